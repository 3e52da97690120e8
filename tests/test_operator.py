"""storescp.operator and what it calls, in this process: archives that are damaged, and what is printed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

import storescp
from storescp import beneath, operator_reindex, operator_verify
from storescp.dimse import status_text
from storescp.index import Index, IndexUnavailable
from storescp.index_rows import ReceivedInstance, Row, Totals
from storescp.operator import main
from storescp.operator_archive import Archive, ArchiveError, Finding, Workers
from storescp.operator_reindex import Reindexing
from storescp.operator_verify import Verification
from storescp.part10 import FileMeta
from storescp.space import size_text
from storescp.stored_file import read_instance
from tests.raw_scu import CT, EXPLICIT, instance


class ArchiveTestCase(SynchronousTestCase):
    """Five instances a-e in two series, with rows, and with digests but for e."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).resolve() / "received"
        self.database = self.root / ".storescp" / "index.db"
        for name in "abcde":
            self.store(name)
        (self.root / ".storescp" / "incoming").mkdir(parents=True)
        (self.root / ".storescp" / "incoming" / "1-1").write_bytes(b"not the archive's")
        self.index = Index(str(self.database))
        self.addCleanup(self.index.close)
        self.enter(*"abcd")
        self.enter("e", digest=None)
        # What is found is as new as this test.
        self.patch(operator_verify, "SETTLING", 0.0)

    def path(self, name: str) -> str:
        """Where an instance is, below the root."""
        return f"1.2/{'1.2.1' if name < 'd' else '1.2.2'}/{name}.dcm"

    def store(self, name: str, pixels: bytes = b"\0\0") -> pathlib.Path:
        """Write the file of an instance."""
        target = self.root / self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        uid = f"1.2.3.{ord(name) + 100}"
        meta = FileMeta(CT, EXPLICIT, "SENDER", "ARCHIVE").encode(uid)
        target.write_bytes(meta + instance(uid, study="1.2", series=target.parent.name, pixels=pixels))
        return target

    def enter(self, *names: str, digest: str | None = "sha256") -> None:
        """Enter the rows of instances, as their files are."""
        self.index.add([read_instance(str(self.root), self.path(name), digest) for name in names])

    def archive(self) -> Archive:
        """What the functions get."""
        return Archive(str(self.root), str(self.database), self.index)

    def verify(self, *, digest: bool = True, jobs: int = 1) -> list[Finding]:
        """What verify finds, in order of the paths."""
        findings: list[Finding] = []
        with Workers(jobs) as workers:
            verification = Verification(self.archive(), digest=digest, report=findings.append)
            verification.run(workers)
        self.assertEqual(sum(verification.findings.values()), len(findings))
        return sorted(findings, key=lambda finding: finding.path)

    def reindex(
        self, *, all_files: bool = False, digest: str | None = None
    ) -> tuple[list[Finding], Reindexing]:
        """What reindex finds, and its counts."""
        findings: list[Finding] = []
        reindexing = Reindexing(self.archive(), all_files=all_files, digest=digest, report=findings.append)
        reindexing.run(Workers(1))
        return findings, reindexing

    def rows(self) -> dict[str, tuple[object, ...]]:
        """Size, digest and sender of each row."""
        connection = sqlite3.connect(self.database)
        try:
            found = connection.execute("SELECT path, size, digest, calling_ae_title FROM instances")
            return {path: rest for path, *rest in found}
        finally:
            connection.close()


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


class ReindexTests(ArchiveTestCase):
    """The index made anew."""

    def test_lost(self) -> None:
        """An index that was lost comes back, but for digests, unless these are asked for."""
        before = self.rows()
        self.index.close()
        self.database.unlink()
        self.index = Index(str(self.database))
        self.addCleanup(self.index.close)
        findings, counts = self.reindex()
        self.assertEqual((findings, counts.files, counts.entered), ([], 5, 5))
        self.assertEqual(
            self.rows(), {path: [size, None, sender] for path, (size, _, sender) in before.items()}
        )
        self.reindex(all_files=True, digest="sha256")
        before[self.path("e")] = self.rows()[self.path("e")]
        self.assertEqual(self.rows(), before)

    def test_unchanged(self) -> None:
        """A second run reads nothing; with --all it reads everything, and keeps the digests."""
        before = self.rows()
        self.patch(operator_reindex, "read_files", lambda *_: self.fail("read"))
        _, counts = self.reindex()
        self.assertEqual((counts.files, counts.unchanged, counts.entered), (5, 5, 0))
        self.patch(operator_reindex, "read_files", READ_FILES)
        _, counts = self.reindex(all_files=True)
        self.assertEqual((counts.files, counts.unchanged, counts.entered), (5, 0, 5))
        self.assertEqual(self.rows(), before)

    def test_differences(self) -> None:
        """Rows without files go; files without rows, and files of another size, are entered; the rest stays."""
        (self.root / self.path("a")).unlink()
        self.store("b", pixels=bytes(100))
        self.store("f")
        findings, counts = self.reindex()
        self.assertEqual(findings, [])
        self.assertEqual((counts.entered, counts.unchanged, counts.removed), (2, 3, 1))
        self.assertEqual(sorted(self.rows()), [self.path(name) for name in "bcdef"])
        self.assertEqual(self.rows()[self.path("b")][1], None)
        self.patch(operator_verify, "SETTLING", 0.0)
        self.assertEqual(self.verify(), [])

    def test_no_dicom(self) -> None:
        """What is no instance is reported and left alone, and so is its row if it has one."""
        (self.root / "notes.txt").write_bytes(b"call me")
        (self.root / self.path("a")).write_bytes(b"damaged")
        (self.root / os.fsdecode(b"\xff")).write_bytes((self.root / self.path("b")).read_bytes())
        findings, counts = self.reindex()
        self.assertEqual(
            sorted(findings, key=lambda finding: finding.path),
            [
                Finding("not-dicom", self.path("a"), "not a DICOM file"),
                Finding("not-dicom", "notes.txt", "not a DICOM file"),
                Finding("not-dicom", "\udcff", "its name is no Unicode text"),
            ],
        )
        self.assertEqual(counts.findings, {"not-dicom": 3})
        self.assertEqual((self.root / self.path("a")).read_bytes(), b"damaged")
        self.assertEqual(len(self.rows()), 5)

    def test_not_mounted(self) -> None:
        """An archive without a single file is taken for one that is not there: no row is removed."""
        shutil.rmtree(self.root / "1.2")
        with self.assertRaisesRegex(ArchiveError, "mounted"):
            self.reindex()
        self.assertEqual(len(self.rows()), 5)

    def test_replaced_meanwhile(self) -> None:
        """What the server replaced after it was read, and removed or stored before its row goes, is the server's."""
        self.store("a", pixels=bytes(10))
        self.store("f")

        def add_if(instances: list[ReceivedInstance], condition: Callable[[ReceivedInstance], bool]) -> int:
            self.store("a", pixels=bytes(20))
            self.enter("a")
            (self.root / self.path("f")).unlink()
            return original_add(instances, condition)

        original_add, original_remove = self.index.add_if, self.index.remove
        with mock.patch.object(self.index, "add_if", add_if):
            _, counts = self.reindex()
        self.assertEqual((counts.entered, counts.removed), (0, 0))
        self.assertEqual(self.verify(), [])

        def remove(paths: list[str], condition: Callable[[str], bool]) -> int:
            self.store("b")
            self.enter("b")
            return original_remove(paths, condition)

        (self.root / self.path("b")).unlink()
        self.patch(self.index, "remove", remove)
        _, counts = self.reindex()
        self.assertEqual((counts.entered, counts.removed), (0, 0))
        self.assertEqual(self.verify(), [])

    def test_short_transactions(self) -> None:
        """No transaction has more rows than are allowed, and none is lost between them."""
        self.patch(operator_reindex, "MAX_ROWS", 2)
        self.patch(operator_reindex, "CHUNK", 3)
        sizes: list[int] = []
        add_if = self.index.add_if

        def measure(instances: list[ReceivedInstance], condition: Callable[[ReceivedInstance], bool]) -> int:
            sizes.append(len(instances))
            return add_if(instances, condition)

        self.patch(self.index, "add_if", measure)
        self.index.remove(list(self.rows()))
        self.reindex()
        self.assertEqual((sum(sizes), max(sizes)), (5, 2))
        self.assertEqual(len(self.rows()), 5)


READ_FILES = operator_reindex.read_files


class CommandTests(ArchiveTestCase):
    """The command line: what is printed, and the exit status."""

    def run_command(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, and what came to stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as end:
                assert isinstance(end.code, int)
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def on_archive(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """The command on this archive, in this process."""
        jobs = ["--jobs", 1] if command != "stats" else []
        return self.run_command(command, "--storage-dir", self.root, *jobs, *arguments)

    def test_verify(self) -> None:
        """A line a finding and a summary; with --json objects; exit status 1 for findings, else 0."""
        code, out, err = self.on_archive("verify")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A5 files \(\S+ kB\), 5 rows in \S+ s: no findings\n\Z")
        (self.root / self.path("a")).unlink()
        (self.root / "two\nlines").touch()
        code, out, err = self.on_archive("verify")
        self.assertEqual((code, err), (1, ""))
        *findings, summary = out.splitlines()
        self.assertEqual(
            sorted(findings),
            [f"missing: {self.path('a')}: the file is not there", "not-dicom: two\\nlines: not a DICOM file"],
        )
        self.assertTrue(summary.endswith("2 findings (1 missing, 1 not-dicom)"), summary)
        code, out, err = self.on_archive("verify", "--json", "--no-digest")
        self.assertEqual((code, err), (1, ""))
        *found, last = map(json.loads, out.splitlines())
        self.assertIn({"kind": "not-dicom", "path": "two\nlines", "what": "not a DICOM file"}, found)
        self.assertEqual(last["summary"]["findings"], {"missing": 1, "not-dicom": 1})
        self.assertEqual((last["summary"]["files"], last["summary"]["rows"]), (5, 5))

    def test_reindex(self) -> None:
        """Its summary has the counts; what it cannot enter makes the exit status 1."""
        self.store("f")
        code, out, err = self.on_archive("reindex", "--digest", "md5")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A6 files in \S+ s: 1 entered, 5 unchanged, 0 rows removed; no findings\n\Z")
        digest = hashlib.md5((self.root / self.path("f")).read_bytes()).hexdigest()
        self.assertEqual(self.rows()[self.path("f")][1], f"md5:{digest}")
        (self.root / "x").touch()
        code, out, err = self.on_archive("reindex", "--json", "--all")
        self.assertEqual((code, err), (1, ""))
        self.assertEqual(json.loads(out.splitlines()[-1])["summary"]["entered"], 6)

    def test_reindex_creates(self) -> None:
        """A lost index is made anew; the others say that it is not there, and do not make one."""
        self.index.close()
        self.database.unlink()
        for command in ("verify", "stats"):
            code, out, err = self.on_archive(command)
            self.assertEqual(
                (code, out, err), (1, "", f"storescp: index {self.database}: No such file or directory\n")
            )
        self.assertEqual(self.on_archive("reindex")[0], 0)
        self.assertEqual(self.on_archive("verify")[0], 0)

    def test_stats(self) -> None:
        """Counts, times, room; for people and as JSON."""
        code, out, err = self.on_archive("stats")
        self.assertEqual((code, err), (0, ""))
        totals = self.index.totals()
        self.assertEqual(totals, Totals(1, 1, 2, 5, totals.bytes))
        for line in (
            r"studies +1",
            r"instances +5",
            rf"bytes +{totals.bytes} \(.* kB\)",
            rf"CT +2 +5 +{totals.bytes}",
        ):
            self.assertRegex(out, f"(?m)^{line}$")
        code, out, err = self.on_archive("stats", "--json")
        self.assertEqual((code, err), (0, ""))
        values = json.loads(out)
        self.assertEqual(
            values["modalities"], [{"modality": "CT", "series": 2, "instances": 5, "bytes": totals.bytes}]
        )
        self.assertEqual((values["instances"], values["bytes"]), (5, totals.bytes))
        first, last = (
            edge(os.stat(self.root / self.path(name)).st_mtime for name in "abcde") for edge in (min, max)
        )
        self.assertEqual((values["first_received"], values["last_received"]), (first, last))
        self.assertGreater(values["database_bytes"], 4096)
        self.assertGreater(values["total_bytes"], values["free_bytes"])

    def test_stats_of_nothing(self) -> None:
        """An empty index has no times and no modalities."""
        self.index.remove(list(self.rows()))
        code, out, err = self.on_archive("stats")
        self.assertEqual((code, err), (0, ""))
        self.assertNotIn("received  ", out.replace(str(self.root), ""))
        self.assertIsNone(json.loads(self.on_archive("stats", "--json")[1])["first_received"])

    def test_configuration(self) -> None:
        """The server's YAML file says where things are, the command line overrules it, and mistakes are one line."""
        file = self.root.parent / "storescp.yaml"
        file.write_text(f"storage-dir: {self.root}\nport: 104\n")
        self.assertEqual(self.run_command("verify", "--jobs", 1, "--config", file)[0], 0)
        other = self.root.parent / "other"
        self.assertEqual(
            self.run_command("stats", "--config", file, "-d", other),
            (1, "", f"storescp: storage directory {other}/: No such file or directory\n"),
        )
        moved = self.root.parent / "moved.db"
        self.assertEqual(
            self.run_command("stats", "--config", file, "--index-db", moved),
            (1, "", f"storescp: index {moved}: No such file or directory\n"),
        )
        for text, message in (
            ("no-index: true", "the configuration says no-index: there is no index to work with"),
            ("prot: 1", f"{file}:2: expected the name of an option, got 'prot' (nearest known: port)"),
        ):
            file.write_text(f"storage-dir: {self.root}\n{text}\n")
            self.assertEqual(self.run_command("stats", "--config", file), (1, "", f"storescp: {message}\n"))

    def test_failures(self) -> None:
        """What keeps the work from being done is one line and exit status 1."""
        for error, line in (
            (IndexUnavailable("index x: locked"), "index x: locked"),
            (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
            (OSError(5, "Input/output error"), "Input/output error"),
            (BrokenProcessPool(), "a process that read files was killed"),
        ):
            with mock.patch.object(Verification, "run", side_effect=error):
                self.assertEqual(self.on_archive("verify"), (1, "", f"storescp: {line}\n"))

    def test_usage(self) -> None:
        """Wrong usage is told on stderr with exit status 2; no command at all shows the help."""
        for arguments, message in (
            (["nothing"], "invalid choice"),
            (["verify", "--jobs", "0"], "expected a number from 1 to 1024, got '0'"),
            (["verify", "--port", "1"], "unrecognized arguments"),
            (["reindex", "--digest", "sha257"], "expected one of .*sha256.*, got 'sha257'"),
            (["reindex", "--digest", "shake_128"], "expected one of"),
            (["echo", "localhost"], "required: PORT"),
            (["echo", "localhost", "0"], "expected a number from 1 to 65535, got '0'"),
            (["echo", "localhost", "1", "--timeout", "nan"], "expected a number from"),
            (["send", "localhost", "1"], "required: PATH"),
            (["send", "localhost", "1", "x", "--calling", "A\\B"], "--calling: expected 1 to 16 ASCII"),
        ):
            code, out, err = self.run_command(*arguments)
            self.assertEqual((code, out), (2, ""), arguments)
            self.assertRegex(err, message)
        code, out, err = self.run_command()
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, "(?s)usage: storescp .*verify.*reindex.*stats.*echo.*send")
        self.assertEqual(self.run_command("--version"), (0, f"storescp {storescp.__version__}\n", ""))

    def test_progress(self) -> None:
        """On a terminal a line shows how far it is, and is gone at the end; elsewhere there is none."""

        class Terminal(io.StringIO):
            """What says that it is one."""

            def isatty(self) -> bool:
                return True

        now = 0.0

        def monotonic() -> float:
            nonlocal now
            now += 1
            return now

        self.patch(time, "monotonic", monotonic)
        terminal = Terminal()
        with mock.patch.object(sys, "stderr", terminal), contextlib.redirect_stdout(io.StringIO()):
            main(["verify", "--jobs", "1", "--storage-dir", str(self.root)])
        self.assertRegex(terminal.getvalue(), r"\A\r\[#{30}\] 5 of 5 files, \d+/s\x1b\[K\r\x1b\[K\Z")

    def test_texts(self) -> None:
        """Sizes have three digits; statuses have the standard's words."""
        for size, text in (
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (999_700, "1 MB"),
            (1.5e18, "1.5e+03 PB"),
        ):
            self.assertEqual(size_text(size), text)
        for status, text in (
            (0, "0000H Success"),
            (0xA701, "A701H Refused: Out of Resources"),
            (0xC123, "C123H Error: Cannot understand"),
            (0x0111, "0111H Duplicate SOP Instance"),
            (0x1234, "1234H unknown status"),
        ):
            self.assertEqual(status_text(status), text)
