"""storescp.restoration: what a power cut took comes back from the journal, and nothing else changes."""

from __future__ import annotations

import os
import pathlib
import zlib

from storescp.beneath import SymbolicLink
from storescp.journal import Beginning, Journal
from storescp.restoration import restore, rewrite
from storescp.storage_directory import PRIVATE_DIRECTORY
from tests.test_storage_directory import DirectoryTestCase


class RestorationTestCase(DirectoryTestCase):
    """Two journals, and what they put back."""

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
        self.journals[journal].begin([Beginning(path, content=[content])])

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


class RestorationTests(RestorationTestCase):
    """Files in all the states that a power cut may leave them in."""

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

    def hide(self, name: str, content: bytes) -> Beginning:
        """A synced file under a hidden name, that is about to become "1"."""
        path = self.root / PRIVATE_DIRECTORY / "incoming" / name
        path.write_bytes(content)
        return Beginning("1", path.stat().st_ino, zlib.crc32(content))

    def test_large(self) -> None:
        """A file with a sync of its own gets the name that it was about to get, or had got, from its hidden one."""
        beginning = self.hide("7-1", b"large")
        self.journals[1].begin([beginning])
        for left in (None, b"another"):
            if left is not None:
                self.put("1", left)
            self.assertEqual(self.restore(), ["1"])
            self.assertEqual((self.root / "1").stat().st_ino, beginning.inode)
        self.assertEqual(self.restore(), [])
        self.directory.clean()
        self.assertEqual(self.content("1"), b"large")

    def test_large_one_replaces(self) -> None:
        """The last one counts, and is there as soon as it has its name, with or without a hidden one."""
        self.begin("1", b"small")
        beginning = self.hide("7-1", b"large")
        self.journals[1].begin([beginning])
        self.put("1", b"small")
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"large")
        self.directory.clean()
        self.assertEqual(self.restore(), [])

    def test_large_one_not_whole(self) -> None:
        """If the power was cut while it was synced, what was there before counts, and is put back if need be."""
        self.begin("1", b"small")
        for content, name in ((b"larg\0", "incoming/7-1"), (b"large", "elsewhere")):
            beginning = self.hide("7-1", b"large")
            hidden = self.root / PRIVATE_DIRECTORY / "incoming" / "7-1"
            hidden.write_bytes(content)
            hidden.rename(self.root / PRIVATE_DIRECTORY / name)
            self.journals[1].begin([beginning])
            self.put("1", b"")
            self.assertEqual(self.restore(), ["1"])
            self.assertEqual(self.content("1"), b"small")
            self.assertEqual(self.restore(), [])

    def test_small_one_replaces(self) -> None:
        """A small one that came after a large one counts, also when both are open and the journal has a new file."""
        self.journals[0].begin([self.hide("7-1", b"large")])
        self.begin("1", b"small")
        self.journals[0].rotate()
        self.put("1", b"")
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"small")

    def test_large_void(self) -> None:
        """A large one that did not become a file is not put there."""
        self.journals[0].begin([self.hide("7-1", b"large")])
        self.journals[0].void(["1"])
        self.assertEqual((self.restore(), (self.root / "1").exists()), ([], False))

    def test_still_open(self) -> None:
        """That a file is begun and not ended yet, as the next file of the journal repeats, makes it no safer."""
        inode = self.put("1", b"")
        self.journals[0].begin([Beginning("1", inode, 0, [b"content"])])
        self.journals[0].rotate()
        self.assertEqual(self.restore(), ["1"])
        self.assertEqual(self.content("1"), b"content")

    def test_no_file(self) -> None:
        """What somebody has put there that is no file is left."""
        self.begin("1", b"content")
        os.mkfifo(self.root / "1")
        self.assertEqual(self.restore(), [])

    def test_large_content(self) -> None:
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
        rewrite(self.directory, "1", event.content)
        self.assertEqual(self.content("1"), b"content")
        self.assertNotEqual((self.root / "1").stat().st_ino, inode)


class LinkTests(RestorationTestCase):
    """Symbolic links where something is to be put back."""

    def test_not_put_back_behind_a_link(self) -> None:
        """A directory that is a link now is not followed: the start fails while the journal has the content yet."""
        elsewhere = pathlib.Path(self.mktemp()).absolute()
        elsewhere.mkdir()
        (elsewhere / "1").write_bytes(b"another")
        for name in ("1", "2"):
            self.begin(f"a/b/{name}", b"content")
        self.put("a/c", b"")
        (self.root / "a/b").symlink_to(elsewhere)
        error = self.assertRaises(SymbolicLink, self.restore)
        self.assertEqual(error.filename, str(self.root / "a/b"))
        self.assertEqual(
            [(path.name, path.read_bytes()) for path in elsewhere.iterdir()], [("1", b"another")]
        )
        (self.root / "a/b").unlink()
        self.assertEqual(self.restore(), ["a/b/1", "a/b/2"])

    def test_linked_file(self) -> None:
        """A link in the place of the file is somebody else's, and is left; what it leads to is not read."""
        (self.root / "elsewhere").write_bytes(b"another")
        self.begin("a/1", b"content")
        self.put("a/2", b"")
        (self.root / "a/1").symlink_to(self.root / "elsewhere")
        self.assertEqual(self.restore(), [])
        self.assertEqual((self.root / "elsewhere").read_bytes(), b"another")
