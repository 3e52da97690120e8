"""storescp.operator_reindex: what the index becomes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from unittest import mock

from storescp import operator_reindex, operator_verify
from storescp.index import Index
from storescp.index_rows import ReceivedInstance
from storescp.operator_archive import ArchiveError, Finding
from tests.test_operator import ArchiveTestCase

READ_FILES = operator_reindex.read_files


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
