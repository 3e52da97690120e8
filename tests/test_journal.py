"""storescp.journal: what was begun and not ended is known to the next process, whatever became of this one."""

from __future__ import annotations

import errno
import os
import pathlib
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.journal import Journal
from tests.test_part10 import failing

NAMES = st.sampled_from(["1/2/3.dcm", "1/2/4.dcm", "5.dcm", "2026/11/25/1.2/6.dcm"])


class JournalTestCase(SynchronousTestCase):
    """A journal in a directory of its own."""

    def setUp(self) -> None:
        directory = pathlib.Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "journal"

    def open(self, *, sync: bool = False, size: int = 4096) -> Journal:
        journal = Journal(str(self.path), sync=sync, size=size)
        self.addCleanup(journal._forget_file)
        return journal


class JournalTests(JournalTestCase):
    """What is found after a death, that is: without close()."""

    def test_first(self) -> None:
        """Where there is no journal nothing is open."""
        journal = self.open()
        self.assertEqual((journal.found, journal.open_paths), ([], []))

    def test_begun(self) -> None:
        """What was begun is found, in its order; what was ended is found too, but not open."""
        journal = self.open()
        journal.begin(["a", "b"])
        journal.end("a")
        journal.begin(["c"])
        again = self.open()
        self.assertEqual((again.found, again.open_paths), (["a", "b", "c"], ["b", "c"]))

    def test_last_end(self) -> None:
        """An end is written with what begins next: one that was not is forgotten, which only costs a look."""
        journal = self.open()
        journal.begin(["a"])
        journal.end("a")
        self.assertEqual(journal.open_paths, [])
        self.assertEqual(self.open().open_paths, ["a"])

    def test_twice(self) -> None:
        """A path that was begun twice is open until it was ended twice."""
        journal = self.open()
        journal.begin(["a"])
        journal.begin(["a"])
        journal.end("a")
        self.assertEqual(journal.open_paths, ["a"])
        journal.begin(["b"])
        self.assertEqual(self.open().open_paths, ["a", "b"])
        journal.end("a")
        journal.begin(["b"])
        self.assertEqual(self.open().open_paths, ["b"])

    def test_close(self) -> None:
        """After an ordered end only what is open is found."""
        journal = self.open()
        journal.begin(["a", "b"])
        journal.end("a")
        journal.close()
        again = self.open()
        self.assertEqual((again.found, again.open_paths), (["b"], ["b"]))

    def test_reset(self) -> None:
        """A journal can be told that nothing is open."""
        journal = self.open()
        journal.begin(["a", "a", "b"])
        journal.end("b")
        journal.reset()
        again = self.open()
        self.assertEqual((again.found, again.open_paths, journal.open_paths), ([], [], []))

    def test_full(self) -> None:
        """When the file is full it is begun anew with what is open, once the index answers for the rest."""
        journal = self.open(size=1000)
        found: list[list[str]] = []
        journal.settle_index = lambda: found.append(self.open().found)
        journal.begin(["kept"])
        for number in range(100):
            journal.begin([f"path/{number}"])
            journal.end(f"path/{number}")
        self.assertGreater(len(found), 1)
        self.assertIn("path/10", found[1])  # what is about to be forgotten is still there
        self.assertLess(self.path.stat().st_size, 2000)
        self.assertEqual(self.open().open_paths[0], "kept")
        self.assertNotIn("path/10", self.open().found)

    def test_more_than_fits(self) -> None:
        """What is open may be more than the size: then the file grows."""
        journal = self.open(size=1000)
        paths = [f"path/{number}" for number in range(500)]
        for path in paths:
            journal.begin([path])
        self.assertEqual(self.open().open_paths, paths)

    def test_cut_short(self) -> None:
        """A line that was not written to its end never counted."""
        journal = self.open()
        journal.begin(["first"])
        journal.begin(["second"])
        content = self.path.read_bytes()
        for end in range(content.index(b"\0") - len("+second\n"), content.index(b"\0")):
            self.path.write_bytes(content[:end])
            self.assertEqual(self.open().open_paths, ["first"], end)

    @given(st.lists(st.one_of(st.lists(NAMES, max_size=3), NAMES), max_size=40))
    def test_any_order(self, steps: list[list[str] | str]) -> None:
        """Whatever is begun and ended, the next process finds open what is, and perhaps what was ended last."""
        self.path.unlink(missing_ok=True)
        journal = self.open(size=300)
        counts: dict[str, int] = {}
        written = dict(counts)
        for step in steps:
            if isinstance(step, list):
                for path in step:
                    counts[path] = counts.get(path, 0) + 1
                journal.begin(step)
                written = dict(counts)
            elif counts.get(step):
                counts[step] -= 1
                journal.end(step)
        expected = {path for path, count in written.items() if count}
        self.assertEqual(set(self.open().open_paths), expected)
        self.assertEqual(set(journal.open_paths), {path for path, count in counts.items() if count})
        journal._forget_file()


class FaultTests(JournalTestCase):
    """When the journal cannot be written, whoever begins is told; the next one can begin."""

    def check(self, function: str, number: int) -> None:
        journal = self.open(sync=True)
        journal.begin(["first"])
        with mock.patch.object(os, function, failing(getattr(os, function), number)):
            self.assertRaises(OSError, journal.begin, ["second"])
        journal.end("second")
        journal.begin(["third"])
        self.assertEqual(self.open().open_paths, ["first", "third"])

    def test_write(self) -> None:
        """No room."""
        self.check("pwrite", errno.ENOSPC)

    def test_sync(self) -> None:
        """A write that does not reach the disk."""
        self.check("fdatasync", errno.EIO)

    def test_short_write(self) -> None:
        """A full disk shows first as a short count."""
        journal = self.open()
        journal.begin(["first"])
        original = os.pwrite
        short = mock.patch.object(os, "pwrite", lambda file, data, offset: original(file, data[:3], offset))
        with short:
            self.assertRaises(OSError, journal.begin, ["second"])
        journal.end("second")
        journal.begin(["third"])
        self.assertEqual(self.open().open_paths, ["first", "third"])


class SyncTests(JournalTestCase):
    """What reaches the disk."""

    def setUp(self) -> None:
        super().setUp()
        self.synced: list[str] = []
        for name in ("fsync", "fdatasync"):
            self.patch(os, name, self.record)

    def record(self, descriptor: int) -> None:
        self.synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def test_with(self) -> None:
        """A new file and its name, and then each beginning."""
        journal = self.open(sync=True)
        journal.begin(["a"])
        self.assertEqual(self.synced, ["journal.new", self.path.parent.name])
        self.synced.clear()
        journal.begin(["b"])
        self.assertEqual(self.synced, ["journal"])

    def test_without(self) -> None:
        """Nothing is synced."""
        journal = self.open()
        journal.begin(["a"])
        journal.begin(["b"])
        journal.close()
        self.assertEqual(self.synced, [])
