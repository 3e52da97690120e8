"""What the processes of one server count together, in memory that they share. Blocking; no Twisted.

What belongs here: a slot for each worker. Only the worker writes to its slot, and after its end the parent, so
that counting needs no lock; what a worker had counted outlives it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import mmap
import os

from storescp.limits import Admission, network_of
from storescp.statistics import Occupancy, Statistics

_NAMES = tuple(field.name for field in dataclasses.fields(Statistics))


class SharedStatistics(ctypes.Structure, Statistics):
    """Statistics in shared memory."""

    _fields_ = [(name, ctypes.c_int64) for name in _NAMES]


#: Addresses that connections are counted by at one time.
ADDRESSES = 65536


class Slot(ctypes.Structure):
    """The counts of one worker.

    ``statistics`` since the start of the server. Of the connections that the parent has handed over, so many were
    ``taken``, are ``waiting`` without an association or have one (``associations``); so many requests to drop one
    were heard (``dropped``). ``closed`` has, by the number of an address, how many of its connections have ended.
    """

    statistics: SharedStatistics
    taken: int
    waiting: int
    associations: int
    dropped: int
    closed: ctypes.Array[ctypes.c_int64]
    _fields_ = [
        ("statistics", SharedStatistics),
        *((name, ctypes.c_int64) for name in ("taken", "waiting", "associations", "dropped")),
        ("closed", ctypes.c_int64 * ADDRESSES),
    ]

    def clear(self) -> None:
        """The worker has ended, and its connections with it."""
        self.taken = self.waiting = self.associations = self.dropped = 0


class SharedCounts:
    """The slots of *workers* in the memory behind *descriptor*, which processes inherit."""

    def __init__(self, descriptor: int, workers: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, workers * ctypes.sizeof(Slot))
        self.slots = [
            Slot.from_buffer(self._memory, number * ctypes.sizeof(Slot)) for number in range(workers)
        ]

    @classmethod
    def create(cls, workers: int) -> SharedCounts:
        """New ones, all zero. Raises OSError."""
        descriptor = os.memfd_create("storescp-counts")
        os.ftruncate(descriptor, workers * ctypes.sizeof(Slot))
        return cls(descriptor, workers)

    @property
    def associations(self) -> int:
        """Associations at this moment."""
        return sum(slot.associations for slot in self.slots)

    def total(self) -> Statistics:
        """The statistics of all workers together."""
        return Statistics(*(sum(getattr(slot.statistics, name) for slot in self.slots) for name in _NAMES))


class SharedAdmission(Admission):
    """Which connections may come in, as the parent knows: it numbers the addresses, and its workers count who leaves.

    Until the parent looks, nobody has left: no lock is needed, and no message can be lost.
    """

    def __init__(self, counts: SharedCounts, max_per_address: int, max_rate: float) -> None:
        super().__init__(max_per_address, max_rate)
        self._slots = counts.slots
        self._numbers: dict[str, int] = {}
        self._free = list(range(ADDRESSES - 1, 0, -1)) if max_per_address else []
        self._given: list[dict[int, int]] = [{} for _ in counts.slots]  # connections of a worker, by numbers

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
        self._open: dict[str, tuple[int, int]] = {}  # number of the address, and connections from there

    def expect(self, host: str, number: int) -> None:
        """A connection from *host* comes, to be counted under *number*."""
        _, count = self._open.get(host, (number, 0))
        self._open[host] = number, count + 1

    def leave(self, host: str) -> None:
        """See Admission."""
        if host in self._open:
            number, count = self._open.pop(host)
            if count > 1:
                self._open[host] = number, count - 1
            self._slot.closed[number] += 1


class SharedOccupancy(Occupancy):
    """The associations of all workers, as the worker with the slot *number* sees them."""

    def __init__(self, counts: SharedCounts, number: int, max_assoc: int) -> None:
        super().__init__(max_assoc)
        self._counts = counts
        self._slot = counts.slots[number]

    def begin(self) -> bool:
        """See Occupancy."""
        # A lock of the process, not of the open file: that one they share. Gone with the process, if it dies in it.
        fcntl.lockf(self._counts.descriptor, fcntl.LOCK_EX)
        try:
            if self._counts.associations >= self.max_assoc:
                return False
            self._slot.associations += 1
            return True
        finally:
            fcntl.lockf(self._counts.descriptor, fcntl.LOCK_UN)

    def end(self) -> None:
        """See Occupancy."""
        self._slot.associations -= 1

    def waiting(self, connections: int) -> None:
        """See Occupancy."""
        self._slot.waiting = connections
