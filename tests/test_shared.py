"""Counts in shared memory, with real processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from storescp.access import MAX_CALLERS
from storescp.shared import ADDRESSES, Departures, SharedAdmission, SharedCounts, SharedOccupancy
from storescp.statistics import Load, Statistics
from tests.server import DEADLINE, environment

#: A worker that begins and ends up to 20 associations of 50 again and again, and in the end keeps what it can get.
_GREEDY = """
import sys
from storescp.shared import SharedCounts, SharedOccupancy
descriptor, number = map(int, sys.argv[1:])
counts = SharedCounts(descriptor, 4)
occupancy = SharedOccupancy(counts, number, 50, 100, sys.exit)
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

    def test_threads(self) -> None:
        """What is locked is locked for the other threads of the process, too."""
        inside = threading.Event()

        def enter() -> None:
            with self.counts.lock():
                inside.set()

        other = threading.Thread(target=enter)
        with self.counts.lock():
            other.start()
            self.assertFalse(inside.wait(0.05))
        other.join(DEADLINE)
        self.assertTrue(inside.is_set())

    def occupancy(
        self,
        number: int,
        *,
        max_assoc: int = 50,
        max_pending: int = 100,
        crowded: Callable[[], object] | None = None,
    ) -> SharedOccupancy:
        return SharedOccupancy(self.counts, number, max_assoc, max_pending, crowded or self.fail)

    def test_total(self) -> None:
        """The total is the sum of all slots, as any other mapping of the same memory has counted."""
        for number, slot in enumerate(SharedCounts(self.counts.descriptor, 4).slots):
            for place, field in enumerate(dataclasses.fields(Statistics)):
                setattr(slot.statistics, field.name, 2**33 * place + number)
        expected = [4 * 2**33 * place + 6 for place in range(len(dataclasses.fields(Statistics)))]
        self.assertEqual(self.counts.total(), Statistics(*expected))

    def test_load(self) -> None:
        """A worker's load is what it has reported and what it counts anyway; nothing when it has ended."""
        slot = self.counts.slots[1]
        slot.associations, slot.handed, slot.settled = 2, 5, 1
        slot.report(Load(1.5, 0, 0, 10, 3, 4.5, 5, 0.25, 4096))
        self.assertEqual(slot.load, Load(1.5, 2, 4, 10, 3, 4.5, 5, 0.25, 4096))
        slot.clear()
        self.assertEqual(slot.load, Load(0.0, 0, 0, 0, 0, 0.0, 0, 0.0, 0))

    def test_measurements(self) -> None:
        """What a worker has measured stays when it has ended, and others count under the same names."""
        again = SharedCounts(self.counts.descriptor, 4)
        for number in (0, 2):
            again.measurements.recorder(number).accepted("CT1", is_known=False)
            self.counts.slots[number].clear()
        self.counts.measurements.recorder(1).accepted("CT1", is_known=False)
        (counted,) = self.counts.measurements.counted()
        self.assertEqual((counted.series.labels, counted.times), (("CT1",), 3))
        self.assertFalse(self.counts.low_space.value)

    def test_clear(self) -> None:
        """A worker that ends leaves its statistics and gives its places back."""
        occupancy = self.occupancy(1, max_assoc=1)
        self.assertTrue(occupancy.begin())
        slot = self.counts.slots[1]
        slot.statistics.messages += 2
        slot.handed = slot.taken = slot.settled = 4
        self.assertFalse(self.occupancy(2, max_assoc=1).begin())
        slot.clear()
        self.assertEqual((slot.handed, slot.taken, slot.settled, slot.associations), (0, 0, 0, 0))
        self.assertEqual(self.counts.total(), Statistics(messages=2))
        self.assertTrue(self.occupancy(2, max_assoc=1).begin())

    def test_waiting(self) -> None:
        """A connection waits from when it is handed over till it has an association, has ended or is to be dropped."""
        occupancy, slot = self.occupancy(1), self.counts.slots[1]

        def after(connections: int) -> int:
            occupancy.waiting(connections)
            self.assertEqual(self.counts.waiting, slot.waiting)
            return slot.waiting

        slot.handed += 3
        self.assertEqual(slot.waiting, 3)
        occupancy.came()
        self.assertEqual(slot.waiting, 3)
        self.assertEqual(after(1), 3)
        self.assertEqual(after(0), 2)  # it has got an association
        occupancy.came()
        self.assertEqual(after(0), 1)  # it could not be served
        occupancy.came()
        self.assertEqual(after(1), 1)
        slot.handed -= 1  # the order to drop one
        self.assertEqual(slot.waiting, 0)
        occupancy.drop_ordered()
        self.assertEqual(after(0), 0)
        slot.handed -= 1  # another one: in vain
        self.assertEqual(slot.waiting, -1)
        occupancy.drop_ordered()
        self.assertEqual(after(0), 0)
        self.assertEqual(after(1), 1)  # an association has ended, and left its connection

    def test_crowded(self) -> None:
        """Who gets more of them by itself says so, when together there may be too many."""
        told: list[int] = []
        occupancy = self.occupancy(1, max_pending=10, crowded=lambda: told.append(self.counts.waiting))
        self.counts.slots[0].handed = 4
        self.counts.slots[1].handed = 2
        for number in range(2):
            occupancy.came()
            occupancy.waiting(number + 1)
        self.assertEqual(self.counts.waiting, 6)
        occupancy.waiting(1)
        occupancy.waiting(2)
        self.assertEqual(told, [])
        occupancy.waiting(3)  # three others may just have got one more, too
        self.counts.slots[0].handed = 5
        occupancy.waiting(2)
        occupancy.waiting(3)
        self.assertEqual(told, [7, 8])

    def test_space(self) -> None:
        """What a worker has found about the space is news until another one has found it, too."""
        one, other = self.occupancy(1), self.occupancy(2)
        for enough in (False, True, False):
            self.assertEqual(
                [occupancy.found_space(enough) for occupancy in (one, other, one)], [True, False, False]
            )
        self.assertEqual([one.found_space(True), other.found_space(False)], [True, True])

    def test_callers(self) -> None:
        """The maximum of a caller is that of all workers; a worker that ends gives back what its callers had."""
        first, second = (self.occupancy(number, max_assoc=5) for number in range(2))
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


class AdmissionTests(SynchronousTestCase):
    """SharedAdmission in the parent, Departures in its workers."""

    def setUp(self) -> None:
        counts = SharedCounts.create(2)
        self.addCleanup(os.close, counts.descriptor)
        self.parent = SharedAdmission(counts, 3, 0)
        theirs = SharedCounts(counts.descriptor, 2)
        self.workers = [Departures(slot) for slot in theirs.slots]

    def connect(self, worker: int, host: str = "192.0.2.1") -> bool:
        """A connection is given to *worker*, if it is let in."""
        if self.parent.admit(host, 0.0):
            return False
        number = self.parent.number(host)
        self.parent.given(worker, number)
        if number:
            self.workers[worker].expect(host, number)
        self.workers[worker].admit(host, 0.0)
        self.assertEqual(self.workers[worker].counted, number > 0)
        return True

    def test_of_all_workers(self) -> None:
        """The connections from an address count wherever they are, until they have left."""
        self.assertEqual([self.connect(n % 2) for n in range(5)], [True, True, True, False, False])
        self.assertTrue(self.connect(0, "192.0.2.2"))
        self.workers[1].leave("192.0.2.1")
        self.assertEqual([self.connect(0), self.connect(0)], [True, False])

    def test_dead_worker(self) -> None:
        """The connections of a worker that has ended count no more, and what it had counted does not either."""
        for worker in (0, 1, 1):
            self.connect(worker)
        self.workers[1].leave("192.0.2.1")
        self.parent.ended(1)
        self.assertEqual(self.parent.count("192.0.2.1"), 1)
        self.assertEqual([self.connect(1) for _ in range(3)], [True, True, False])

    def test_numbers_are_used_again(self) -> None:
        """Any number of addresses that come and go need no more numbers than are there at a time."""
        for number in range(2 * ADDRESSES):
            host = f"10.0.0.{number}"
            self.assertTrue(self.connect(0, host))
            self.workers[0].leave(host)
        self.assertEqual(self.workers[0]._open, {})
        self.assertTrue(all(self.connect(1, "192.0.2.9") for _ in range(3)))
        self.assertFalse(self.connect(1, "192.0.2.9"))

    def test_other_limits(self) -> None:
        """Another limit is judged by at once; without one nothing is counted."""
        self.assertTrue(all(self.connect(0) for _ in range(3)))
        self.parent.limit(5, 0)
        self.assertEqual([self.connect(1) for _ in range(3)], [True, True, False])
        self.parent.limit(0, 0)
        self.assertEqual(self.parent.number("192.0.2.1"), 0)
        self.workers[0].limit(1, 1)  # which is the parent's business
        self.assertEqual([self.workers[0].admit("192.0.2.1", 0.0) for _ in range(9)], [""] * 9)
        for _ in range(3):
            self.workers[0].leave("192.0.2.1")
        self.parent.limit(3, 0)
        self.assertEqual([self.connect(0) for _ in range(2)], [True, False])

    def test_first_limit(self) -> None:
        """Where there was no limit, connections count that come after it."""
        counts = SharedCounts.create(2)
        self.addCleanup(os.close, counts.descriptor)
        self.parent = SharedAdmission(counts, 0, 0)
        self.assertEqual([self.parent.number(f"192.0.2.{n}") for n in range(3)], [0, 0, 0])
        self.parent.limit(1, 0)
        self.assertEqual([self.connect(0) for _ in range(2)], [True, False])

    def test_not_expected(self) -> None:
        """A connection that is not counted is none whose end must be told."""
        for host in ("", "192.0.2.7"):
            self.assertEqual(self.workers[0].admit(host, 0.0), "")
            self.assertFalse(self.workers[0].counted)
