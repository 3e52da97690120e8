"""Power cuts: what was acknowledged is on the disk, whatever the disk had not written yet."""

from __future__ import annotations

import pathlib

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.disks import tmpfs
from tests.faults.load import Violation
from tests.faults.power import power_cuts


class PowerLossTests(SynchronousTestCase):
    """Cuts of a recorded load; ``make torture`` makes many more."""

    def test_ext4(self) -> None:
        """With a journal, and instances that replace others."""
        tally = power_cuts(self, 1, kind="ext4", cuts=30, starts=2, duplicate="replace")
        self.assertGreater(tally.power_cuts, 45)  # of 30 moments, most of them in several ways
        self.assertGreater(tally.instances_checked, 300)

    def test_ext4_without_journal(self) -> None:
        """A file system that keeps no order but the one it is asked for, and many instances outstanding."""
        power_cuts(self, 2, kind="ext4 without journal", cuts=20, naming="date", index=False, window=8)

    def test_xfs(self) -> None:
        """Another way of writing metadata."""
        power_cuts(self, 3, kind="xfs", cuts=8, naming="flat", duplicate="same")

    def test_btrfs(self) -> None:
        """A file system that never writes in place."""
        power_cuts(self, 4, kind="btrfs", cuts=15)

    def test_after_death(self) -> None:
        """The server died meanwhile: what it had named only is not taken for stored when it is sent again."""
        power_cuts(self, 6, kind="ext4", cuts=12, kills=2, duplicate="ignore", index=False)

    def test_without_sync(self) -> None:
        """With --sync never images are lost, and these tests find out, on each file system."""
        for kind in ("ext4", "ext4 without journal", "xfs", "btrfs"):
            with self.assertRaisesRegex(
                Violation, "is lost|has no whole File Meta|is not what was acknowledged"
            ):
                power_cuts(self, 5, kind=kind, cuts=4, sync="never")

    def tearDown(self) -> None:
        """Nothing stays mounted that was mounted here."""
        self.addCleanup(self.assertNotIn, "storescp-", pathlib.Path("/proc/mounts").read_text)


class MountTests(SynchronousTestCase):
    """The file systems of these tests."""

    def test_private(self) -> None:
        """Nobody but who mounted them sees them: no copy, such as a container takes, can outlive one."""
        directory = str(tmpfs(self, "size=1m"))
        own, others = (pathlib.Path(f"/proc/{process}/mounts").read_text() for process in ("self", 1))
        self.assertIn(directory, own)
        self.assertNotIn(directory, others)
