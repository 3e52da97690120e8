"""What the processes of one server count together, in memory that they share. Blocking; no Twisted.

What belongs here: a slot for each worker. Each number in it has one writer, the worker or the parent (which clears
them after the worker's end), so that counting needs no lock; what a worker had counted outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator

from storescp.access import MAX_CALLERS
from storescp.limits import Admission, network_of
from storescp.measurements import Measurements, size_of
from storescp.statistics import Load, Occupancy, Statistics

_NAMES = tuple(field.name for field in dataclasses.fields(Statistics))


class SharedStatistics(ctypes.Structure, Statistics):
    """Statistics in shared memory."""

    _fields_ = [(name, ctypes.c_int64) for name in _NAMES]


#: Addresses that connections are counted by at one time.
ADDRESSES = 65536


class Slot(ctypes.Structure):
    """The counts of one worker.

    ``statistics`` since the start of the server, the others since the start of the worker. The parent writes how
    many connections it has ``handed`` over, without those for which it has ordered another one to be dropped. The
    worker writes how many it has ``taken``, how many of the ``handed`` ones wait for an association no longer
    (``settled``), and how many ``associations`` there are at this moment, ``of_callers`` those of the callers that
    have a maximum of their own; ``closed`` has, by the number of an address, how many of its connections have ended.
    The rest is of its Load, from time to time.
    """

    statistics: SharedStatistics
    handed: int
    taken: int
    settled: int
    associations: int
    in_flight: int
    jobs: int
    unsettled: int
    resident: int
    beat: float
    stalled: float
    cpu: float
    of_callers: ctypes.Array[ctypes.c_int64]
    closed: ctypes.Array[ctypes.c_int64]
    _fields_ = [
        ("statistics", SharedStatistics),
        *((name, ctypes.c_int64) for name in ("handed", "taken", "settled", "associations")),
        *((name, ctypes.c_int64) for name in ("in_flight", "jobs", "unsettled", "resident")),
        *((name, ctypes.c_double) for name in ("beat", "stalled", "cpu")),
        ("of_callers", ctypes.c_int64 * (MAX_CALLERS + 1)),
        ("closed", ctypes.c_int64 * ADDRESSES),
    ]

    @property
    def waiting(self) -> int:
        """Connections without an association, once all that was sent to the worker is done.

        Exact at every moment, as whatever the worker does about a connection is one change of one number.
        """
        return self.handed - self.settled

    @property
    def load(self) -> Load:
        """Of the worker."""
        return Load(
            self.beat,
            self.associations,
            self.waiting,
            self.in_flight,
            self.jobs,
            self.stalled,
            self.unsettled,
            self.cpu,
            self.resident,
        )

    def report(self, load: Load) -> None:
        """The worker's load, but for what it counts here anyway."""
        self.in_flight, self.jobs, self.unsettled = load.in_flight, load.jobs, load.unsettled
        self.beat, self.stalled = load.beat, load.stalled
        self.cpu, self.resident = load.cpu, load.resident

    def clear(self) -> None:
        """The worker has ended, and its connections with it."""
        self.handed = self.taken = self.settled = self.associations = 0
        self.report(Load(0.0, 0, 0, 0, 0, 0.0, 0, 0.0, 0))
        ctypes.memset(self.of_callers, 0, ctypes.sizeof(self.of_callers))


def _size(workers: int) -> int:
    return workers * ctypes.sizeof(Slot) + size_of(workers) + ctypes.sizeof(ctypes.c_bool)


class SharedCounts:
    """The slots of *workers* in the memory behind *descriptor*, which processes inherit.

    ``low_space`` was found by one of them, who had locked it.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _size(workers))
        self._turn = threading.Lock()
        self.slots = [
            Slot.from_buffer(self._memory, number * ctypes.sizeof(Slot)) for number in range(workers)
        ]
        rest = workers * ctypes.sizeof(Slot)
        # Memory that nobody counts in is none.
        self.measurements = Measurements(memoryview(self._memory)[rest:], workers, self.lock)
        self.low_space = ctypes.c_bool.from_buffer(self._memory, rest + size_of(workers))

    @classmethod
    def create(cls, workers: int) -> SharedCounts:
        """New ones, all zero. Raises OSError."""
        descriptor = os.memfd_create("storescp-counts")
        os.ftruncate(descriptor, _size(workers))
        return cls(descriptor, workers)

    @property
    def associations(self) -> int:
        """Associations at this moment."""
        return sum(slot.associations for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Connections without an association."""
        return sum(slot.waiting for slot in self.slots)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """What is done meanwhile no other process does, and no other thread."""
        # A lock of the process, not of the open file: that one they share. Gone with the process, if it dies in it.
        # Its threads have it together, and the first that is through would take it from all.
        with self._turn:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def total(self) -> Statistics:
        """The statistics of all workers together."""
        return Statistics(*(sum(getattr(slot.statistics, name) for slot in self.slots) for name in _NAMES))


class SharedAdmission(Admission):
    """Which connections may come in, as the parent knows: it numbers the addresses, and its workers count who leaves.

    Until the parent looks, nobody has left: no lock is needed, and no message can be lost.
    """

    def __init__(self, counts: SharedCounts, max_per_address: int, max_rate: float) -> None:
        self._slots = counts.slots
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._given: list[dict[int, int]] = [{} for _ in counts.slots]  # connections of a worker, by numbers
        super().__init__(max_per_address, max_rate)

    def limit(self, max_per_address: int, max_rate: float) -> None:
        """See Admission."""
        super().limit(max_per_address, max_rate)
        if max_per_address and not (self._free or self._numbers):
            self._free = list(range(ADDRESSES - 1, 0, -1))

    def count(self, address: str) -> int:
        """See Admission."""
        number = self._numbers.get(address, 0)
        if not number:
            return 0
        count = sum(
            given.get(number, 0) - slot.closed[number]
            for given, slot in zip(self._given, self._slots, strict=True)
        )
        if not count:  # nobody counts under this number any more: it can be another's
            for given, slot in zip(self._given, self._slots, strict=True):
                given.pop(number, None)
                slot.closed[number] = 0
            self._free.append(self._numbers.pop(address))
        return count

    def enter(self, address: str) -> None:
        """Nothing: see :meth:`given`."""

    def number(self, host: str) -> int:
        """What a worker is to count a connection from *host* under; 0 for not at all."""
        if not host or not self._max_per_address:
            return 0
        address = network_of(host)
        if address not in self._numbers:
            if not self._free:
                for other in list(self._numbers):
                    self.count(other)
            if not self._free:
                return 0
            self._numbers[address] = self._free.pop()
        return self._numbers[address]

    def given(self, worker: int, number: int) -> None:
        """*worker* has been given a connection of the address *number*."""
        if number:
            given = self._given[worker]
            given[number] = given.get(number, 0) + 1

    def ended(self, worker: int) -> None:
        """*worker* has ended, and its connections with it."""
        for number in self._given[worker]:
            self._slots[worker].closed[number] = 0
        self._given[worker].clear()


class Departures(Admission):
    """Counts in *slot* the connections that leave a worker. All that it is given have been let in."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(0, 0)
        self._slot = slot
        self._is_expected = False
        self._open: dict[str, tuple[int, int]] = {}  # number of the address, and connections from there

    def limit(self, max_per_address: int, max_rate: float) -> None:
        """None here: see the class."""
        super().limit(0, 0)

    def admit(self, host: str, now: float) -> str:
        """See Admission: it has been let in."""
        self.counted, self._is_expected = self._is_expected, False
        return ""

    def expect(self, host: str, number: int) -> None:
        """The connection that comes next is from *host*, and to be counted under *number*."""
        self._is_expected = True
        _, count = self._open.get(host, (number, 0))
        self._open[host] = number, count + 1

    def leave(self, host: str) -> None:
        """See Admission."""
        self._is_expected = False
        number, count = self._open.pop(host)
        if count > 1:
            self._open[host] = number, count - 1
        self._slot.closed[number] += 1


class SharedOccupancy(Occupancy):
    """The associations and connections of all workers, as the worker with the slot *number* sees them.

    *crowded* is called when this worker has more connections without an association than before, other than by
    those handed over, and all together may have more than *max_pending*.
    """

    def __init__(
        self,
        counts: SharedCounts,
        number: int,
        max_assoc: int,
        max_pending: int,
        crowded: Callable[[], object],
    ) -> None:
        super().__init__(max_assoc)
        self._counts = counts
        self._slot = counts.slots[number]
        self.limit(max_assoc, max_pending)
        self._crowded = crowded
        self._came = 0
        self._drops = 0

    def limit(self, max_assoc: int, max_pending: int) -> None:
        """See Occupancy."""
        self.max_assoc = max_assoc
        # Others that count at this very moment may not see us, nor we them.
        self._safe = max_pending - len(self._counts.slots)

    @property
    def is_full(self) -> bool:
        """See Occupancy."""
        return self._counts.associations >= self.max_assoc

    def begin(self, caller: int | None = None, most: int = 0) -> bool:
        """See Occupancy."""
        with self._counts.lock():
            if self.is_full:
                return False
            if caller is not None:
                if sum(slot.of_callers[caller] for slot in self._counts.slots) >= most:
                    return False
                self._slot.of_callers[caller] += 1
            self._slot.associations += 1
            return True

    def end(self, caller: int | None = None) -> None:
        """See Occupancy."""
        self._slot.associations -= 1
        if caller is not None:
            self._slot.of_callers[caller] -= 1

    def waiting(self, connections: int) -> None:
        """See Occupancy."""
        before = self._slot.settled
        self._slot.settled = settled = self._came - self._drops - connections
        if settled < before and self._counts.waiting > self._safe:
            self._crowded()

    def found_space(self, enough: bool) -> bool:
        """See Occupancy."""
        low = self._counts.low_space
        if low.value is not enough:
            return False
        with self._counts.lock():
            news = low.value is enough
            low.value = not enough
            return news

    def came(self) -> None:
        """A connection that was handed over is about to be taken: it is among those waiting from now on."""
        self._came += 1

    def taken(self) -> None:
        """It has been taken, and dies with this worker."""
        self._slot.taken += 1

    def drop_ordered(self) -> None:
        """A connection is about to be dropped by order; the order counts, whether there is one or not."""
        self._drops += 1
