"""Counts in shared memory, with real processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from storescp.access import MAX_CALLERS
from storescp.shared import SharedCounts, SharedOccupancy
from storescp.statistics import Statistics
from tests.server import DEADLINE, environment

#: A worker that begins and ends up to 20 associations of 50 again and again, and in the end keeps what it can get.
_GREEDY = """
import sys
from storescp.shared import SharedCounts, SharedOccupancy
descriptor, number = map(int, sys.argv[1:])
counts = SharedCounts(descriptor, 4)
occupancy = SharedOccupancy(counts, number, 50)
for most, times in (20, 500), (100, 1):
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(times):
        mine = 0
        while mine < most and occupancy.begin():
            mine += 1
            assert counts.associations <= 50
        for _ in range(mine if times > 1 else 0):
            occupancy.end()
print(mine)
"""


class SharedCountsTests(SynchronousTestCase):
    """SharedCounts and SharedOccupancy."""

    def setUp(self) -> None:
        self.counts = SharedCounts.create(4)
        self.addCleanup(os.close, self.counts.descriptor)

    def test_total(self) -> None:
        """The total is the sum of all slots, as any other mapping of the same memory has counted."""
        for number, slot in enumerate(SharedCounts(self.counts.descriptor, 4).slots):
            for place, field in enumerate(dataclasses.fields(Statistics)):
                setattr(slot.statistics, field.name, 2**33 * place + number)
        expected = [4 * 2**33 * place + 6 for place in range(len(dataclasses.fields(Statistics)))]
        self.assertEqual(self.counts.total(), Statistics(*expected))

    def test_clear(self) -> None:
        """A worker that ends leaves its statistics and gives its places back."""
        occupancy = SharedOccupancy(self.counts, 1, 1)
        self.assertTrue(occupancy.begin())
        occupancy.waiting(3)
        slot = self.counts.slots[1]
        slot.statistics.messages += 2
        slot.taken = slot.dropped = 4
        self.assertFalse(SharedOccupancy(self.counts, 2, 1).begin())
        slot.clear()
        self.assertEqual((slot.taken, slot.waiting, slot.associations, slot.dropped), (0, 0, 0, 0))
        self.assertEqual(self.counts.total(), Statistics(messages=2))
        self.assertTrue(SharedOccupancy(self.counts, 2, 1).begin())

    def test_callers(self) -> None:
        """The maximum of a caller is that of all workers; a worker that ends gives back what its callers had."""
        first, second = (SharedOccupancy(self.counts, number, 5) for number in range(2))
        last = MAX_CALLERS
        self.assertEqual(
            [one.begin(last, 2) for one in (first, second, first, second)], [True, True, False, False]
        )
        self.assertEqual([first.begin(0, 1), second.begin(0, 1), second.begin()], [True, False, True])
        self.assertFalse(second.is_full)
        second.end(last)
        self.assertTrue(first.begin(last, 2))
        self.counts.slots[0].clear()
        self.assertEqual([second.begin(last, 2) for _ in range(3)], [True, True, False])
        self.assertEqual((self.counts.associations, second.begin(), second.begin()), (3, True, True))
        self.assertEqual((second.is_full, second.begin(0, 9)), (True, False))

    def test_limit(self) -> None:
        """Four processes at once never have more associations than the limit, and reach it exactly."""
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", _GREEDY, str(self.counts.descriptor), str(number)],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(self.counts.descriptor,),
            )
            for number in range(4)
        ]
        for _ in range(2):
            for worker in workers:
                assert worker.stdout is not None
                self.assertEqual(worker.stdout.readline(), "ready\n")
            self.assertEqual(self.counts.associations, 0)
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
        kept = [int(worker.communicate(timeout=DEADLINE)[0]) for worker in workers]
        self.assertEqual([slot.associations for slot in self.counts.slots], kept)
        self.assertEqual(sum(kept), 50)
