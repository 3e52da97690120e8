"""storescp.operator_verify: archives that are damaged, or change meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable

from storescp import beneath, operator_verify
from storescp.index import Index
from storescp.index_rows import Row
from storescp.operator_archive import Finding, Workers
from storescp.operator_verify import Verification
from storescp.stored_file import read_instance
from tests.test_operator import ArchiveTestCase


class VerifyTests(ArchiveTestCase):
    """Files against rows and rows against files."""

    def test_well(self) -> None:
        """Where nothing is wrong nothing is found, and all was looked at; what is the server's own is not."""
        with Workers(1) as workers:
            verification = Verification(self.archive(), digest=True, report=self.fail)
            verification.run(workers)
        self.assertEqual((verification.files, verification.rows), (5, 5))
        self.assertEqual(verification.bytes, self.index.totals().bytes)

    def test_missing(self) -> None:
        """A row whose file is gone, alone or with its directories."""
        (self.root / self.path("a")).unlink()
        shutil.rmtree(self.root / "1.2" / "1.2.2")
        self.assertEqual(
            self.verify(), [Finding("missing", self.path(name), "the file is not there") for name in "ade"]
        )

    def test_not_indexed(self) -> None:
        """A file without a row."""
        self.store("f")
        self.assertEqual(
            self.verify(), [Finding("not-indexed", self.path("f"), "the index has no row for it")]
        )

    def test_no_dicom(self) -> None:
        """Files that are no instances, with a row or without; the reason is given, whatever they are named."""
        (self.root / "notes.txt").write_bytes(b"call me")
        (self.root / os.fsdecode(b"\xff")).write_bytes(b"")
        os.mkfifo(self.root / "fifo")
        with (self.root / self.path("a")).open("r+b") as file:
            file.write(bytes(132))
        self.assertEqual(
            self.verify(),
            [
                Finding("not-dicom", self.path("a"), "not a DICOM file"),
                Finding("not-dicom", "fifo", "not a regular file"),
                Finding("not-dicom", "notes.txt", "not a DICOM file"),
                Finding("not-dicom", "\udcff", "not a DICOM file"),
            ],
        )

    def test_unreadable(self) -> None:
        """Files and directories that cannot be read."""
        denied = PermissionError(13, "Permission denied")
        scandir, open_ = os.scandir, os.open

        def no_scandir(path: str) -> object:
            if path.endswith("1.2.2/"):
                raise denied
            return scandir(path)

        def no_open(path: str, *arguments: int, dir_fd: int | None = None) -> int:
            if path == "a.dcm":
                raise denied
            return open_(path, *arguments, dir_fd=dir_fd)

        self.patch(beneath, "_OPENAT2", 100_000)  # no such call: os.open it is
        self.patch(os, "scandir", no_scandir)
        self.patch(os, "open", no_open)
        self.assertEqual(
            self.verify(),
            [
                Finding("unreadable", self.path("a"), "Permission denied"),
                Finding("unreadable", "1.2/1.2.2/", "Permission denied"),
            ],
        )

    def test_size(self) -> None:
        """A file that has been cut short or has grown, also where its head is gone."""
        size = (self.root / self.path("a")).stat().st_size
        os.truncate(self.root / self.path("a"), size - 2)
        os.truncate(self.root / self.path("b"), 0)
        with (self.root / self.path("e")).open("ab") as file:
            file.write(b"more")
        self.assertEqual(
            self.verify(),
            [
                Finding("size", self.path(name), f"{now} bytes, {size} in the index")
                for name, now in (("a", size - 2), ("b", 0), ("e", size + 4))
            ],
        )

    def test_digest(self) -> None:
        """A bit that flips where only a digest can tell; without one, or unasked for, it is not found."""
        digests = [self.rows()[self.path("a")][1]]
        for name in "ae":
            with (self.root / self.path(name)).open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\1")
        digests.insert(0, "sha256:" + hashlib.sha256((self.root / self.path("a")).read_bytes()).hexdigest())
        for jobs in (1, 2):
            self.assertEqual(
                self.verify(jobs=jobs),
                [Finding("digest", self.path("a"), "{}, {} in the index".format(*digests))],
            )
        self.assertEqual(self.verify(digest=False), [])

    def test_unknown_algorithm(self) -> None:
        """A digest that this Python cannot compute is a finding, not a crash."""
        self.index.add([read_instance(str(self.root), self.path("a"), None)._replace(digest="crc7:00")])
        self.assertEqual(
            self.verify(),
            [Finding("digest", self.path("a"), "the index has one of an unknown algorithm, 'crc7'")],
        )

    def test_uid(self) -> None:
        """A whole file of the same size in the place of another one."""
        shutil.copyfile(self.root / self.path("b"), self.root / self.path("a"))
        self.assertEqual(
            self.verify(),
            [Finding("uid", self.path("a"), "SOP Instance UID 1.2.3.198, 1.2.3.197 in the index")],
        )

    def test_index_in_the_archive(self) -> None:
        """An index that stands among the files is none of them, nor are its log and its copies."""
        self.index.close()
        self.database = self.database.rename(self.root / "index.db")
        (self.root / "index.db.schema-1.bak").touch()
        self.index = Index(str(self.database))
        self.addCleanup(self.index.close)
        self.index.add([read_instance(str(self.root), self.path("e"), None)])
        self.assertTrue((self.root / "index.db-wal").exists())
        self.assertEqual(self.verify(), [])

    def test_many(self) -> None:
        """More differences than are kept at a time are all found, each once."""
        self.patch(operator_verify, "MAX_DOUBTS", 2)
        self.patch(operator_verify, "CHUNK", 2)
        for name in "abc":
            (self.root / self.path(name)).unlink()
        for name in "fghijk":
            self.store(name)
        self.assertEqual(
            [(finding.kind, finding.path) for finding in self.verify()],
            sorted(
                [("missing", self.path(name)) for name in "abc"]
                + [("not-indexed", self.path(name)) for name in "fghijk"],
                key=lambda finding: finding[1],
            ),
        )


class WhileStoringTests(ArchiveTestCase):
    """A server that is in the middle of storing is no finding. Time is made up of the looks at a new file."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(operator_verify, "SETTLING", 5.0)
        self.now = time.time()
        self.patch(time, "time", lambda: self.now)
        self.patch(time, "monotonic", lambda: self.now)
        self.patch(time, "sleep", self.sleep)
        self.events: list[Callable[[], object]] = []

    def sleep(self, seconds: float) -> None:
        """Time passes, and the next event happens."""
        self.now += seconds
        if self.events:
            self.events.pop(0)()

    def test_named_but_not_entered(self) -> None:
        """A file has its name before its row is committed."""
        self.store("f")
        self.events = [lambda: None, lambda: self.enter("f")]
        self.assertEqual(self.verify(), [])
        self.assertEqual(self.events, [])

    def test_never_entered(self) -> None:
        """A file that stays without a row is found, once it is old enough and not before."""
        began = self.now = self.store("f").stat().st_ctime
        self.assertEqual([finding.kind for finding in self.verify()], ["not-indexed"])
        self.assertGreaterEqual(self.now, began + 5)
        self.assertLess(self.now, began + 5.3)

    def test_taken_back(self) -> None:
        """A file that the server names and then removes again, as its row could not be committed."""
        target = self.store("f")
        self.events = [target.unlink]
        self.assertEqual(self.verify(), [])

    def test_replaced(self) -> None:
        """A file that the server replaces has a new size before it has its new row."""
        self.store("a", pixels=bytes(100))
        self.events = [lambda: self.enter("a")]
        self.assertEqual(self.verify(), [])
        self.assertEqual(self.events, [])

    def test_replaced_all_the_time(self) -> None:
        """A file that never stands still is not found wrong, and is not waited for without end."""
        target = self.root / self.path("a")
        size = 0

        def touch(seconds: float) -> None:
            nonlocal size
            size += 2
            self.now += seconds
            self.store("a", pixels=bytes(size))
            os.utime(target)

        self.patch(time, "sleep", touch)
        original = operator_verify.check_file

        def check_file(*arguments: object) -> Finding | None:
            finding = original(*arguments)  # type: ignore[arg-type]
            touch(0)
            return finding

        self.patch(operator_verify, "check_file", check_file)
        touch(0)
        self.assertEqual(self.verify(), [])

    def test_replaced_between_looks(self) -> None:
        """A file and its row that are both replaced after the row was looked up, whenever that happens."""
        self.patch(operator_verify, "SETTLING", 0.0)
        original = operator_verify.check_file
        sizes = [2, 4, 6]

        def check_file(root: str, path: str, row: Row | None, digest: bool) -> Finding | None:
            if path == self.path("a") and sizes:
                self.store("a", pixels=bytes(100 + sizes.pop()))
                self.enter("a")
            return original(root, path, row, digest)

        self.patch(operator_verify, "check_file", check_file)
        self.assertEqual(self.verify(), [])
        self.assertEqual(sizes, [])

    def test_entered_between_looks(self) -> None:
        """A row that comes after its file was looked for in the index, and before it is looked at again."""
        self.store("f")
        original = operator_verify.check_files

        def check_files(*arguments: object) -> object:
            result = original(*arguments)  # type: ignore[arg-type]
            self.enter("f")
            return result

        self.patch(operator_verify, "check_files", check_files)
        self.assertEqual(self.verify(), [])
