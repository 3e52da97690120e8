"""storescp.journal_file: what is believed of a file that a power cut left."""

from __future__ import annotations

import pathlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.flushing import sync_each
from storescp.journal_file import GROWTH, JournalFile, line, read
from tests.strategies import steady


class JournalFileTests(SynchronousTestCase):
    """One file."""

    def setUp(self) -> None:
        self.path = pathlib.Path(self.mktemp())

    def open(self, *, sync: bool = False) -> JournalFile:
        file = JournalFile(str(self.path), sync_each if sync else None)
        self.addCleanup(file.close)
        file.restart("")
        return file

    def paths(self) -> list[str]:
        return [event.path for event in read(str(self.path)) if event.kind != "="]

    def test_none(self) -> None:
        """Where there is no file, or something else, there are no events."""
        self.assertEqual(self.paths(), [])
        for content in (b"", b"SCJ1", b"+1/2/3.dcm\n" * 100, bytes(5000)):
            self.path.write_bytes(content)
            self.assertEqual(self.paths(), [])

    def test_events(self) -> None:
        """Lines, with their numbers, in the order in which they were written; later frames have later stamps."""
        file = self.open()
        file.append(line("+", "a", 7) + line("*", "b", 5), [[b"01", b"234"]])
        file.append(line("-", "a"))
        anew, first, second, third = read(str(self.path))
        self.assertEqual((first.kind, first.path, first.inode, first.content), ("+", "a", 7, None))
        self.assertEqual((anew.kind, anew.path), ("=", ""))
        assert second.content is not None
        self.assertEqual(self.path.read_bytes()[second.content.offset :][: second.content.size], b"01234")
        self.assertEqual((third.kind, third.path), ("-", "a"))
        self.assertEqual(first.stamp, second.stamp)
        self.assertLess(second.stamp, third.stamp)

    @steady
    @given(st.integers(min_value=0), st.integers(0, 255), st.booleans())
    def test_torn(self, where: int, what: int, cut: bool) -> None:
        """With one byte wrong, or all from there missing, a frame and those after it do not count; those before do."""
        self.path.unlink(missing_ok=True)
        file = self.open()
        ends = [file.position]
        for number in range(3):
            file.append(line("*", str(number), 300), [[bytes([number]) * 300]])
            ends.append(file.position)
        file.close()
        data = bytearray(self.path.read_bytes())
        where = ends[0] + where % (ends[-1] - ends[0])
        if cut:
            del data[where:]
        elif data[where] == what:
            return
        else:
            data[where] = what
        self.path.write_bytes(data)
        whole = sum(end <= where for end in ends[1:])
        self.assertEqual(self.paths(), [str(number) for number in range(whole)])

    def test_older_generation(self) -> None:
        """What the file held before it was begun anew is no part of it, wherever frames begin."""
        file = self.open()
        for number in range(5):
            file.append(line("+", f"old{number}"))
        file.restart(line("+", "abcd"))
        self.assertEqual(self.paths(), ["abcd"])
        file.append(line("+", "new1"))
        self.assertEqual(self.paths(), ["abcd", "new1"])

    def test_erase(self) -> None:
        """Nothing counts any more."""
        file = self.open()
        file.append(line("+", "a"))
        file.erase()
        self.assertEqual(self.paths(), [])

    def test_growth(self) -> None:
        """A file that is synced grows in large steps, and never shrinks."""
        file = self.open(sync=True)
        self.assertEqual(self.path.stat().st_size, GROWTH)
        file.append(line("*", "a", GROWTH), [[bytes(GROWTH)]])
        self.assertEqual(self.path.stat().st_size, 2 * GROWTH)
        file.restart("")
        file.append(line("+", "b"))
        self.assertEqual((self.path.stat().st_size, self.paths()), (2 * GROWTH, ["b"]))

    def test_many_pieces(self) -> None:
        """A content may have more pieces than one call takes."""
        self.open().append(line("*", "a", 5000), [[b"x"] * 5000])
        _, event = read(str(self.path))
        assert event.content is not None
        self.assertEqual(event.content.size, 5000)
