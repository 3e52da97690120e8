"""storescp.restoration: what a power cut took comes back from the journal, and nothing else changes."""

from __future__ import annotations

import os

from storescp.journal import Beginning, Journal
from storescp.part10 import PRIVATE_DIRECTORY
from storescp.restoration import restore, rewrite
from tests.test_part10 import DirectoryTestCase


class RestorationTests(DirectoryTestCase):
    """Files in all the states that a power cut may leave them in."""

    sync = True

    def setUp(self) -> None:
        super().setUp()
        self.journals = [self.journal("journal-0"), self.journal("journal-1")]

    def journal(self, name: str) -> Journal:
        journal = Journal(str(self.root / PRIVATE_DIRECTORY / name), None)
        journal.reset()
        self.addCleanup(journal._file.close)
        self.addCleanup(journal._other.close)
        return journal

    def begin(self, path: str, content: bytes, *, journal: int = 0) -> None:
        self.journals[journal].begin([Beginning(path, 0, [content])])

    def put(self, path: str, content: bytes) -> int:
        """A file that is on the disk; its inode."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        return target.stat().st_ino

    def restore(self) -> list[str]:
        """What was put back by the next process."""
        names = [os.path.join(self.root, PRIVATE_DIRECTORY, f"journal-{number}") for number in range(2)]
        return restore(self.directory, [event for name in names for event in Journal(name, None).events])

    def content(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def test_whole(self) -> None:
        """What is there is left alone."""
        self.begin("a/1", b"content")
        inode = self.put("a/1", b"content")
        self.assertEqual(self.restore(), [])
        self.assertEqual((self.root / "a/1").stat().st_ino, inode)

    def test_not_whole(self) -> None:
        """Missing, empty, cut short, too long, of zeros: it is put back."""
        self.begin("a/1", b"content")
        for left in (None, b"", b"cont", b"content!", bytes(7)):
            if left is None:
                (self.root / "a/1").unlink(missing_ok=True)
            else:
                self.put("a/1", left)
            self.assertEqual(self.restore(), ["a/1"])
            self.assertEqual(self.content("a/1"), b"content")
        self.assertEqual(os.listdir(self.root / PRIVATE_DIRECTORY / "incoming"), [])

    def test_last(self) -> None:
        """Of several the last one is put back, whichever process stored it."""
        self.begin("1", b"first", journal=1)
        self.begin("1", b"second", journal=0)
        self.put("1", b"first")
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"second")
        self.begin("1", b"third", journal=1)
        self.restore()
        self.assertEqual(self.content("1"), b"third")

    def test_void(self) -> None:
        """What did not become a file does not come back; what was there before does."""
        self.begin("1", b"first")
        self.begin("1", b"second")
        self.journals[0].void(["1"])
        self.begin("2", b"only")
        self.journals[0].void(["2"])
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual((self.content("1"), (self.root / "2").exists()), (b"first", False))

    def test_replaced_by_a_large_one(self) -> None:
        """A later file with a sync of its own stays; had it not got the name, the earlier one is put back."""
        self.begin("1", b"small")
        inode = self.put("1", b"large and synced")
        self.journals[1].begin([Beginning("1", inode)])
        self.assertEqual(self.restore(), [])
        os.link(self.root / "1", self.root / "elsewhere")  # or its inode would be the next one's
        self.put("1", b"")
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"small")

    def test_still_open(self) -> None:
        """That a file is begun and not ended yet, as the next file of the journal repeats, makes it no safer."""
        inode = self.put("1", b"")
        self.journals[0].begin([Beginning("1", inode, [b"content"])])
        self.journals[0].rotate()
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"content")

    def test_no_file(self) -> None:
        """What somebody has put there that is no file is left."""
        self.begin("1", b"content")
        os.mkfifo(self.root / "1")
        self.assertEqual(self.restore(), [])

    def test_large(self) -> None:
        """A content may have more bytes than are read at once."""
        content = os.urandom(3_000_001)
        self.begin("1", content)
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), content)
        self.assertEqual(self.restore(), [])

    def test_rewrite(self) -> None:
        """A file in doubt is written anew, under the same name."""
        self.begin("1", b"content")
        inode = self.put("1", b"content")
        (event,) = (event for event in Journal(self.journals[0].paths[0], None).events if event.content)
        assert event.content is not None
        rewrite(self.directory, {"1": event.content})
        self.assertEqual(self.content("1"), b"content")
        self.assertNotEqual((self.root / "1").stat().st_ino, inode)
