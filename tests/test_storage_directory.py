"""storescp.storage_directory: files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp.storage_directory import PRIVATE_DIRECTORY, StorageDirectory


def failing(
    function: Callable[..., object], number: int, *, when: Callable[[str], bool] = lambda path: True
) -> Callable[..., object]:
    """*function* of the module os, that fails with the error *number* where *when* says so of its last path."""

    def call(*args: object, **kwargs: object) -> object:
        path = ([""] + [arg for arg in args if isinstance(arg, str)])[-1]
        directory = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
        if directory is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
        if when(path):
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call


class DirectoryTestCase(SynchronousTestCase):
    """A storage directory on a file system with everything, in a directory of its own."""

    sync = False

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        self.limit()
        self.directory = StorageDirectory(self.root, sync=self.sync)
        self.addCleanup(self.directory.close)

    def limit(self) -> None:
        """Take away what the file system is to lack."""

    def files(self) -> dict[str, bytes]:
        """All there is below the root, by path, but for the directories and the journal's of our own."""
        found = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if not path.is_dir()
            and path.relative_to(self.root).parts[1:2]
            not in (("journal",), ("journal.2",), ("lost-answers",))
        }
        visible = {path.relative_to(self.root).parts[0] for path in self.root.rglob("*")}
        expected = {path.split("/")[0] for path in found} | {PRIVATE_DIRECTORY}
        self.assertEqual(visible, expected, "an empty directory is left")
        return found

    def store(self, path: str, content: bytes) -> None:
        file = self.directory.create()
        try:
            file.write([content])
            self.directory.name(file, path)
        finally:
            file.close()


class StorageDirectoryTests(DirectoryTestCase):
    """How files come and go."""

    def test_name(self) -> None:
        """A file appears under its name, with its directories, when it is named; until then nothing is there."""
        file = self.directory.create()
        file.write([b"con", memoryview(b"tent")])
        self.directory.name(file, "a/b/c.dcm")
        file.close()
        self.assertEqual(self.files(), {"a/b/c.dcm": b"content"})
        self.assertEqual(file.size, 7)

    def test_without_a_name(self) -> None:
        """A file that is closed without a name leaves nothing."""
        file = self.directory.create()
        file.write([b"content"])
        file.close()
        self.assertEqual(self.files(), {})

    def test_never_overwrites(self) -> None:
        """A name that is taken is refused, and what is there stays."""
        self.store("a/b.dcm", b"first")
        self.assertRaises(FileExistsError, self.store, "a/b.dcm", b"second")
        self.assertEqual(self.files(), {"a/b.dcm": b"first"})

    def replace(self, path: str, content: bytes) -> str:
        file = self.directory.create()
        try:
            file.write([content])
            return self.directory.replace(file, path)
        finally:
            file.close()

    def test_replace(self) -> None:
        """replace() puts the new file there, and forget() ends it."""
        self.store("a/b.dcm", b"old")
        self.directory.forget(self.replace("a/b.dcm", b"new"))
        self.assertEqual(self.files(), {"a/b.dcm": b"new"})

    def test_restore(self) -> None:
        """restore() brings the old file back."""
        self.store("a/b.dcm", b"old")
        self.directory.restore(self.replace("a/b.dcm", b"new"), "a/b.dcm")
        self.assertEqual(self.files(), {"a/b.dcm": b"old"})

    def test_replace_fails(self) -> None:
        """When replace() fails, wherever that is, the old file is there and nothing else."""
        self.store("a/b.dcm", b"old")
        target = str(self.root / "a/b.dcm")
        for name, when in (
            ("rename", lambda path: path == target),
            ("link", lambda path: PRIVATE_DIRECTORY in path),
        ):
            with mock.patch.object(os, name, failing(getattr(os, name), errno.EIO, when=when)):
                self.assertRaises(OSError, self.replace, "a/b.dcm", b"new")
            self.assertEqual(self.files(), {"a/b.dcm": b"old"})

    def test_remove(self) -> None:
        """remove() takes the file away, and the directories that it leaves empty, but no others."""
        self.store("study/one/a.dcm", b"a")
        self.store("study/two/b.dcm", b"b")
        self.directory.remove("study/one/a.dcm")
        self.assertEqual(self.files(), {"study/two/b.dcm": b"b"})
        self.assertFalse((self.root / "study/one").exists())
        self.directory.remove("study/two/b.dcm")
        self.assertEqual(self.files(), {})

    def test_many_pieces(self) -> None:
        """A file of more pieces than one system call takes is written whole."""
        file = self.directory.create()
        file.write([bytes([number % 256]) for number in range(5000)])
        self.directory.name(file, "a.dcm")
        file.close()
        self.assertEqual(self.files(), {"a.dcm": bytes(number % 256 for number in range(5000))})

    def test_short_writes(self) -> None:
        """What the system wrote only a part of is written on, to the last byte."""
        writev, write = os.writev, os.write
        pieces: list[bytes | memoryview] = [b"0123456789", memoryview(b"abcdef"), b"", b"XYZ"]
        for most in range(1, 20):
            with (
                mock.patch.object(
                    os, "writev", lambda fd, data, most=most: writev(fd, [b"".join(data)[:most]])
                ),
                mock.patch.object(os, "write", lambda fd, data: write(fd, data[:1])),
            ):
                file = self.directory.create()
                file.write(pieces)
            self.directory.name(file, f"{most}.dcm")
            file.close()
            self.assertEqual(file.size, 19)
        self.assertEqual(set(self.files().values()), {b"0123456789abcdefXYZ"})

    def test_nothing_written(self) -> None:
        """A system that writes nothing and says so is an error, not a loop."""
        file = self.directory.create()
        with (
            mock.patch.object(os, "writev", lambda fd, data: 0),
            mock.patch.object(os, "write", lambda fd, data: 0),
        ):
            self.assertRaises(OSError, file.write, [b"data"])
        file.close()
        self.assertEqual(self.files(), {})

    def test_leftovers(self) -> None:
        """What a crash has left among the hidden names can be found, and removed, and nothing else."""
        self.store("a.dcm", b"a")
        (self.root / PRIVATE_DIRECTORY / "incoming" / "77-1").write_bytes(b"half")
        (self.root / PRIVATE_DIRECTORY / "index.db").write_bytes(b"index")
        directory = StorageDirectory(self.root, sync=False)
        self.addCleanup(directory.close)
        self.assertEqual([os.path.basename(name) for name in directory.leftovers().values()], ["77-1"])
        directory.clean()
        self.assertEqual(directory.leftovers(), {})
        self.assertEqual(self.files(), {"a.dcm": b"a", f"{PRIVATE_DIRECTORY}/index.db": b"index"})

    def test_cannot_be_written(self) -> None:
        """A directory that cannot be made, or written, is found out when it is opened."""
        (self.root / "file").write_bytes(b"")
        self.assertRaises(OSError, StorageDirectory, self.root / "file", sync=False)
        self.assertRaises(OSError, StorageDirectory, self.root / "file" / "below", sync=False)
        with mock.patch.object(
            os, "open", failing(os.open, errno.EROFS, when=lambda path: "incoming/" in path)
        ):
            self.assertRaises(OSError, StorageDirectory, self.root, sync=False)


class WithoutTemporaryFiles(DirectoryTestCase):
    """On a file system without O_TMPFILE, as NFS is."""

    def limit(self) -> None:
        original = os.open

        def open(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return original(path, flags, *args, dir_fd=dir_fd)

        self.patch(os, "open", open)


class WithoutLinks(WithoutTemporaryFiles):
    """On one that has no hard links either, as FAT is."""

    def limit(self) -> None:
        super().limit()
        self.patch(os, "link", failing(os.link, errno.EPERM))


class WithoutTemporaryFilesTests(WithoutTemporaryFiles, StorageDirectoryTests):
    """The same without O_TMPFILE."""


class WithoutLinksTests(WithoutLinks, StorageDirectoryTests):
    """The same without hard links."""

    def test_replace_leaves_no_gap(self) -> None:
        """Even so there is a whole file under the name at every moment."""
        self.store("a.dcm", b"old")
        rename, seen = os.rename, []

        def watch(source: str, target: str, **directories: int) -> None:
            seen.append((self.root / "a.dcm").read_bytes())
            rename(source, target, **directories)
            seen.append((self.root / "a.dcm").read_bytes())

        with mock.patch.object(os, "rename", watch):
            self.directory.forget(self.replace("a.dcm", b"new"))
        self.assertEqual(seen[-1], b"new")
        self.assertEqual(self.files(), {"a.dcm": b"new"})


class SyncTests(SynchronousTestCase):
    """What is synced, so that an instance survives the loss of power."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        self.synced: list[str] = []
        self.patch(os, "fsync", self.record)
        self.patch(os, "fdatasync", self.record)

    def record(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.synced.append(os.path.relpath(path, self.root))

    def store(self, directory: StorageDirectory, *paths: str) -> list[str]:
        """The directories that are synced for new files at *paths*."""
        for path in paths:
            file = directory.create()
            directory.name(file, path)
            file.close()
        self.synced.clear()
        directory.sync_together.close()  # one after the other, where that can be seen
        directory.sync_directories(paths)
        return sorted(self.synced, reverse=True)

    def test_directories(self) -> None:
        """Directories are synced once for all their files, new ones with those above."""
        directory = StorageDirectory(self.root, sync=True)
        self.addCleanup(directory.close)
        self.assertEqual(self.store(directory, "a/b/1", "a/b/2"), ["a/b", "a", "."])
        self.assertEqual(self.store(directory, "a/b/3"), ["a/b"])
        self.assertEqual(self.store(directory, "a/c/1"), ["a/c", "a"])

    def test_made_anew(self) -> None:
        """A directory that was removed meanwhile, and is made anew, is not taken for durable."""
        directory = StorageDirectory(self.root, sync=True)
        self.addCleanup(directory.close)
        self.store(directory, "a/b/1")
        directory.remove("a/b/1")
        self.assertEqual(self.store(directory, "a/b/1"), ["a/b", "a", "."])

    def test_file(self) -> None:
        """sync() syncs the content of the file."""
        directory = StorageDirectory(self.root, sync=True)
        self.addCleanup(directory.close)
        file = directory.create()
        self.synced.clear()
        file.sync()
        file.close()
        self.assertEqual([os.path.dirname(path) for path in self.synced], [".storescp/incoming"])

    def test_own_directories(self) -> None:
        """The directory itself and those of our own are synced when it is opened."""
        self.synced.clear()
        StorageDirectory(self.root, sync=True).close()
        self.assertEqual(self.synced, [".storescp", ".", ".."])

    def test_existing(self) -> None:
        """A file that was named by somebody who did not sync is, and so are all directories above."""
        unsynced = StorageDirectory(self.root, sync=False)
        self.addCleanup(unsynced.close)
        self.store(unsynced, "a/b/1")
        directory = StorageDirectory(self.root, sync=True)
        self.addCleanup(directory.close)
        self.synced.clear()
        directory.sync_together.close()
        directory.sync_file("a/b/1")
        self.assertEqual(self.synced[0], "a/b/1")
        self.assertEqual(set(self.synced[1:]), {"a/b", "a", "."})

    def test_without(self) -> None:
        """Without sync no directory is."""
        directory = StorageDirectory(self.root, sync=False)
        self.addCleanup(directory.close)
        self.assertEqual(self.store(directory, "a/b/1"), [])
