"""storescp.journal: what was begun and not ended is known to the next process, whatever became of this one."""

from __future__ import annotations

import errno
import os
import pathlib
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.flushing import sync_each
from storescp.journal import SIZE, Beginning, Journal, Unsettled
from storescp.journal_file import Content, Pieces
from tests.strategies import steady
from tests.test_storage_directory import failing

NAMES = st.sampled_from(["1/2/3.dcm", "1/2/4.dcm", "5.dcm", "2026/11/25/1.2/6.dcm"])


class JournalTestCase(SynchronousTestCase):
    """A journal in a directory of its own."""

    def setUp(self) -> None:
        directory = pathlib.Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "journal"

    def find(self) -> Journal:
        """What the next process finds; it leaves everything as it is."""
        return Journal(str(self.path), None)

    def open(self, *, sync: bool = False, size: int = SIZE) -> Journal:
        journal = Journal(str(self.path), sync_each if sync else None, size)
        journal.reset()
        self.addCleanup(journal._file.close)
        self.addCleanup(journal._other.close)
        return journal


def begin(journal: Journal, *paths: str, **contents: Pieces) -> None:
    """Begin *paths* without content, and the keys of *contents*."""
    journal.begin(
        [*map(Beginning, paths), *(Beginning(path, 7, 0, content) for path, content in contents.items())]
    )


def content(found: Content | None) -> bytes:
    """The bytes of a content."""
    assert found is not None
    return pathlib.Path(found.file).read_bytes()[found.offset :][: found.size]


class JournalTests(JournalTestCase):
    """What is found after a death, that is: without close()."""

    def test_first(self) -> None:
        """Where there is no journal nothing is open."""
        journal = self.find()
        self.assertEqual((journal.found, journal.open_paths, journal.events), ([], [], []))

    def test_begun(self) -> None:
        """What was begun is found, in its order; what was ended is found too, but not open."""
        journal = self.open()
        begin(journal, "a", "b")
        journal.end("a")
        begin(journal, "c")
        again = self.find()
        self.assertEqual((again.found, again.open_paths), (["a", "b", "c"], ["b", "c"]))

    def test_any_path(self) -> None:
        """Paths may have any characters but tabs and ends of lines, even bytes that are no UTF-8."""
        paths = ["Müller 7/1.2.dcm", os.fsdecode(b"\xff/1.dcm")]
        begin(self.open(), *paths)
        self.assertEqual(self.find().open_paths, paths)

    def test_last_end(self) -> None:
        """An end is written with what begins next: one that was not is forgotten, which only costs a look."""
        journal = self.open()
        begin(journal, "a")
        journal.end("a")
        self.assertEqual(journal.open_paths, [])
        self.assertEqual(self.find().open_paths, ["a"])

    def test_twice(self) -> None:
        """A path that was begun twice is open until it was ended twice."""
        journal = self.open()
        begin(journal, "a")
        begin(journal, "a")
        journal.end("a")
        self.assertEqual(journal.open_paths, ["a"])
        begin(journal, "b")
        self.assertEqual(self.find().open_paths, ["a", "b"])
        journal.end("a")
        begin(journal, "b")
        self.assertEqual(self.find().open_paths, ["b"])

    def test_close(self) -> None:
        """After an ordered end only what is open is found."""
        journal = self.open()
        begin(journal, "a", "b", c=[b"content"])
        journal.end("a")
        journal.end("c")
        journal.close()
        again = self.find()
        self.assertEqual((again.found, again.open_paths), (["b"], ["b"]))

    def test_close_without_reset(self) -> None:
        """Who could not do what it found to be done leaves it."""
        begin(self.open(), "a", b=[b"content"])
        before = self.find().events
        self.find().close()
        self.assertEqual(self.find().events, before)

    def test_reset(self) -> None:
        """A journal can be told that nothing is open, and that its contents are where they belong."""
        journal = self.open(size=100)
        begin(journal, "a", "a", b=[bytes(100)])
        begin(journal, c=[bytes(100)])
        self.assertEqual(len(self.find().found), 3)
        journal = self.find()
        journal.reset()
        again = self.find()
        self.assertEqual((again.found, again.open_paths, journal.open_paths), ([], [], []))
        journal.close()

    def test_remove(self) -> None:
        """Nothing is left of a journal that is removed."""
        journal = self.open()
        journal.remove()
        self.assertEqual(os.listdir(self.path.parent), [])

    @steady
    @given(st.lists(st.one_of(st.lists(NAMES, max_size=3), NAMES), max_size=40))
    def test_any_order(self, steps: list[list[str] | str]) -> None:
        """Whatever is begun and ended, the next process finds open what is, and perhaps what was ended last."""
        journal = self.open(size=300)
        counts: dict[str, int] = {}
        written = dict(counts)
        for step in steps:
            if isinstance(step, list):
                for path in step:
                    counts[path] = counts.get(path, 0) + 1
                begin(journal, *step)
                written = dict(counts)
            elif counts.get(step):
                counts[step] -= 1
                journal.end(step)
        self.assertEqual(set(self.find().open_paths), {path for path, count in written.items() if count})
        self.assertEqual(set(journal.open_paths), {path for path, count in counts.items() if count})
        journal._file.close()
        journal._other.close()


class ContentTests(JournalTestCase):
    """Files whose bytes the journal has, and when it may forget them."""

    def setUp(self) -> None:
        super().setUp()
        self.settled: list[dict[str, bytes]] = []

    def open(self, *, sync: bool = False, size: int = SIZE) -> Journal:
        journal = super().open(sync=sync, size=size)
        journal.settle = self.settle
        return journal

    def settle(self, unsettled: Unsettled) -> None:
        self.settled.append({path: content(found) for path, found in unsettled.contents.items()})

    def test_found(self) -> None:
        """The bytes are found, of all pieces."""
        journal = self.open()
        begin(journal, "x", a=[b"first ", memoryview(b"second")], b=[b"third"])
        begin(journal, c=[b"fourth"])
        self.assertEqual(
            [(event.path, content(event.content)) for event in self.find().events if event.content],
            [("a", b"first second"), ("b", b"third"), ("c", b"fourth")],
        )

    def test_void(self) -> None:
        """That a content did not become a file is known."""
        journal = self.open()
        begin(journal, a=[b"first"])
        journal.void(["a"])
        self.assertEqual([event.kind for event in self.find().events], ["=", "=", "*", "!"])

    def test_full(self) -> None:
        """When a file is full the other is used; what the first has is settled before that is overwritten."""
        journal = self.open(size=1000)
        for number in range(9):
            begin(journal, **{f"p{number}": [bytes([number]) * 400]})
            found = {event.path for event in self.find().events if event.content}
            settled = {path for contents in self.settled for path in contents}
            self.assertEqual(found | settled, {f"p{n}" for n in range(number + 1)})
            journal.end(f"p{number}")
        self.assertEqual(self.settled[0], {"p0": b"\0" * 400, "p1": b"\1" * 400})
        self.assertEqual(self.find().open_paths[-1], "p8")

    def test_more_than_fits(self) -> None:
        """What is open, or belongs to one group, may be more than the size: then the file grows."""
        journal = self.open(size=1000)
        paths = [f"path/{number}" for number in range(500)]
        for path in paths:
            begin(journal, path)
        begin(journal, big=[bytes(5000)])
        self.assertEqual(self.find().open_paths, [*paths, "big"])

    def test_cannot_be_settled(self) -> None:
        """As long as what a file has cannot be settled it is kept, and what would overwrite it fails."""
        journal = self.open(size=1000)
        journal.settle = failing(lambda unsettled: None, errno.EIO)  # type: ignore[assignment]
        begin(journal, a=[bytes(900)])
        begin(journal, b=[bytes(900)])
        for _ in range(2):
            self.assertRaises(OSError, begin, journal, c=[bytes(900)])
        self.assertEqual([event.path for event in self.find().events if event.content], ["a", "b"])
        journal.settle = self.settle
        begin(journal, c=[bytes(900)])
        self.assertEqual(list(map(list, self.settled)), [["a"]])

    def test_rotate(self) -> None:
        """Without being full a file can be settled; where nothing has happened nothing does."""
        journal = self.open()
        for _ in range(2):
            journal.rotate()
            journal.settle_old()
        self.assertEqual(self.settled, [])
        begin(journal, a=[b"content"])
        journal.end("a")
        journal.keep("b", None)
        self.assertEqual(journal.unsettled, 2)  # the answers to senders are another matter
        journal.rotate()
        self.assertEqual(journal.unsettled, 2)
        journal.settle_old()
        self.assertEqual(journal.unsettled, 0)
        journal.rotate()
        journal.settle_old()
        self.assertEqual(self.settled, [{"a": b"content"}])
        self.assertEqual(self.find().found, [])


class FaultTests(JournalTestCase):
    """When the journal cannot be written, whoever begins is told; the next one can begin."""

    def check(self, function: str, number: int) -> None:
        journal = self.open(sync=True)
        begin(journal, "first")
        with mock.patch.object(os, function, failing(getattr(os, function), number)):
            self.assertRaises(OSError, begin, journal, "second")
        journal.end("second")
        begin(journal, "third")
        self.assertEqual(self.find().open_paths, ["first", "third"])

    def test_write(self) -> None:
        """No room."""
        self.check("pwritev", errno.ENOSPC)

    def test_sync(self) -> None:
        """A write that does not reach the disk."""
        self.check("fdatasync", errno.EIO)

    def test_short_write(self) -> None:
        """A full disk shows first as a short count."""
        journal = self.open()
        begin(journal, "first")
        original = os.pwritev
        with mock.patch.object(os, "pwritev", lambda file, data, at: original(file, [data[0][:3]], at)):
            self.assertRaises(OSError, begin, journal, "second")
        journal.end("second")
        begin(journal, "third")
        self.assertEqual(self.find().open_paths, ["first", "third"])


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
        """New files and their names, and then each beginning."""
        journal = self.open(sync=True)
        name = self.path.parent.name
        self.assertEqual(self.synced, [name, "journal.2", name, "journal"])
        self.synced.clear()
        begin(journal, "b")
        self.assertEqual(self.synced, ["journal"])

    def test_others(self) -> None:
        """Other files are synced along; what becomes of them is told, and is no fault of the journal's."""
        journal = self.open(sync=True)
        self.synced.clear()
        with open(self.path.parent / "other", "wb") as file:
            self.assertEqual(journal.begin([Beginning("a")], [file.fileno()]), [None])
            self.assertEqual(self.synced, ["journal", "other"])
            closed = os.dup(file.fileno())
        os.close(closed)
        self.synced.clear()
        (failure,) = journal.begin([Beginning("b")], [closed])
        self.assertIsInstance(failure, OSError)
        self.assertEqual(self.find().open_paths, ["a", "b"])

    def test_without(self) -> None:
        """Nothing is synced."""
        journal = self.open()
        begin(journal, "a")
        begin(journal, "b")
        journal.close()
        self.assertEqual(self.synced, [])
