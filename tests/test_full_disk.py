"""No room: A700H, nothing left behind, and everything goes on once there is room again."""

from __future__ import annotations

import errno

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.disks import tmpfs
from tests.faults.full import full_disk
from tests.faults.load import FaultServer
from tests.raw_scu import instance, store
from tests.server import run_twistd


class FullDiskTests(SynchronousTestCase):
    """Small file systems, really full."""

    def test_room(self) -> None:
        """No room for data; the index is on the same disk."""
        full_disk(self, 1, kind="room")

    def test_room_without_index(self) -> None:
        """No room for data, and nothing else on the disk."""
        full_disk(self, 2, kind="room", index=False)

    def test_inodes(self) -> None:
        """No inodes for files and directories."""
        full_disk(self, 3, kind="inodes")

    def test_ext4(self) -> None:
        """A disk that allocates late."""
        full_disk(self, 4, kind="ext4")

    def test_start(self) -> None:
        """On a disk without any room the server does not start, and says in one line why; with room it does."""
        small = tmpfs(self, "size=16m")
        storage = small / "received"
        with FaultServer(self, storage) as server:
            self.assertEqual(store(server.address, [("1.2.3", instance("1.2.3"))]), [0])
            server.stop()
        with self.assertRaises(OSError) as full, open(small / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        self.assertEqual(full.exception.errno, errno.ENOSPC)
        done = run_twistd("--listen", "tcp:0:interface=127.0.0.1", "--storage-dir", storage, cwd=small)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Astorescp: [^\n]*no space is left on its file system\n\Z")
        (small / "ballast").unlink()
        with FaultServer(self, storage) as server:
            self.assertEqual(store(server.address, [("1.2.3", instance("1.2.3"))]), [0x0111])
            server.stop()

    def test_index(self) -> None:
        """No room for the index, which is on another disk than the files."""
        full_disk(self, 5, kind="index")
