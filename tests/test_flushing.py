"""storescp.flushing: several files to the disk at once, and which file systems go there as a whole."""

from __future__ import annotations

import errno
import os
import pathlib
import threading

from twisted.trial.unittest import SynchronousTestCase

from storescp import flushing
from storescp.flushing import ParallelSync, can_sync_file_system, sync_each, sync_file_system
from tests.faults.disks import tmpfs
from tests.server import run


class ParallelSyncTests(SynchronousTestCase):
    """By the kernel's own threads, or one after the other."""

    def setUp(self) -> None:
        self.sync = ParallelSync()
        self.addCleanup(self.sync.close)
        directory = pathlib.Path(self.mktemp())
        directory.mkdir()
        self.descriptors = [os.open(directory / str(n), os.O_CREAT | os.O_RDWR) for n in range(150)]
        for descriptor in self.descriptors:
            self.addCleanup(os.close, descriptor)
            os.write(descriptor, b"content")

    def test_many(self) -> None:
        """Any number is synced, of files and of directories."""
        self.assertEqual(self.sync([]), [])
        for count in (1, 2, 64, 65, 150):
            self.assertEqual(self.sync(self.descriptors[:count]), [None] * count)
        directories = [os.open(name, os.O_RDONLY) for name in ("/tmp", ".")]
        self.assertEqual(self.sync((), directories), [None, None])
        for descriptor in directories:
            os.close(descriptor)

    def test_calls(self) -> None:
        """Two or more cost no call of their own each."""
        self.patch(os, "fdatasync", lambda descriptor: self.fail("called"))
        self.assertEqual(self.sync(self.descriptors[:2]), [None, None])

    def test_failures(self) -> None:
        """Each has its own outcome: a pipe cannot be synced, nor a descriptor that is none."""
        pipe = os.pipe()
        files = self.descriptors
        for results in (
            self.sync([files[0], pipe[1], files[1]]),
            self.sync([files[0], 1_000_000, files[1]]),
            sync_each([files[0], pipe[1], files[1]]),
        ):
            self.assertEqual((results[0], results[2]), (None, None))
            self.assertIn(getattr(results[1], "errno", None), (errno.EINVAL, errno.EBADF))
        for end in pipe:
            os.close(end)

    def test_without(self) -> None:
        """Where the kernel cannot, they go one after the other."""
        self.sync.close()
        self.assertEqual(self.sync(self.descriptors), [None] * 150)
        self.patch(flushing, "_AIO_NUMBERS", {})
        self.assertEqual(ParallelSync()(self.descriptors), [None] * 150)

    def test_threads(self) -> None:
        """Several threads may sync."""
        results = []

        def work() -> None:
            for _ in range(20):
                results.append(self.sync(self.descriptors[:5]))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [[None] * 5] * 80)


class FileSystemTests(SynchronousTestCase):
    """The whole of one."""

    def test_known(self) -> None:
        """A type that is known counts, whatever its mount point is called; others do not, nor do old kernels."""
        place = tmpfs(self, "size=1m") / "a directory"
        place.mkdir()
        self.assertTrue(can_sync_file_system(str(place)))
        self.assertFalse(can_sync_file_system("/proc"))
        mounted = tmpfs(self, "size=1m") / "with space"
        mounted.mkdir()
        run("mount", "-t", "proc", "proc", mounted)
        self.addCleanup(run, "umount", mounted)
        self.assertFalse(can_sync_file_system(str(mounted)))

        class Old:
            release = "4.19.0-27-amd64"

        self.patch(os, "uname", Old)
        self.assertFalse(can_sync_file_system(str(place)))

    def test_sync(self) -> None:
        """It is synced; a descriptor that is none is an error."""
        descriptor = os.open(".", os.O_RDONLY)
        sync_file_system(descriptor)
        os.close(descriptor)
        self.assertRaises(OSError, sync_file_system, 1_000_000)
