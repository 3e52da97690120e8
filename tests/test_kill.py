"""SIGKILL at random moments: nothing acknowledged is lost, nothing unfinished is seen."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.injected import killed_at_calls
from tests.faults.kill import killed


class KillTests(SynchronousTestCase):
    """A few rounds of each way of naming files, judging duplicates and syncing; ``make torture`` does many."""

    def test_hierarchical_reject(self) -> None:
        """With an index and --sync always."""
        tally = killed(self, 1, rounds=2)
        self.assertGreater(tally.instances_acknowledged, 100)

    def test_date_replace(self) -> None:
        """Replaced instances are the old one or the new one, never none and never half of one."""
        killed(self, 2, rounds=2, naming="date", duplicate="replace")

    def test_flat_ignore(self) -> None:
        """Without an index, and with --sync never: the system outlives the server, and so does what it was given."""
        killed(self, 3, rounds=2, naming="flat", duplicate="ignore", sync="never", index=False)

    def test_workers(self) -> None:
        """Several processes at once."""
        killed(self, 6, rounds=2, workers=2)

    def test_window(self) -> None:
        """Many instances outstanding: those whose answers are lost get through when they are sent again."""
        tally = killed(self, 7, rounds=2, window=16, instances=30)
        self.assertGreater(tally.instances_acknowledged, 300)

    def test_at_calls(self) -> None:
        """At some system calls of the way from the network to the disk and back; ``make torture`` takes them all."""
        killed_at_calls(self, 4, limit=3)

    def test_at_calls_replace(self) -> None:
        """The same while an instance takes the place of another."""
        killed_at_calls(self, 5, limit=3, duplicate="replace")
