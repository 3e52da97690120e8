"""No room: A700H, nothing left behind, and everything goes on once there is room again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.full import full_disk


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

    def test_index(self) -> None:
        """No room for the index, which is on another disk than the files."""
        full_disk(self, 5, kind="index")
