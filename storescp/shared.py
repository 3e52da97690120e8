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

from storescp.access import MAX_CALLERS
from storescp.statistics import Occupancy, Statistics

_NAMES = tuple(field.name for field in dataclasses.fields(Statistics))


class SharedStatistics(ctypes.Structure, Statistics):
    """Statistics in shared memory."""

    _fields_ = [(name, ctypes.c_int64) for name in _NAMES]


class Slot(ctypes.Structure):
    """The counts of one worker.

    ``statistics`` since the start of the server. Of the connections that the parent has handed over, so many were
    ``taken``, are ``waiting`` without an association or have one (``associations``); so many requests to drop one
    were heard (``dropped``). ``of_callers`` are the associations of those that have a maximum of their own.
    """

    statistics: SharedStatistics
    taken: int
    waiting: int
    associations: int
    dropped: int
    of_callers: ctypes.Array[ctypes.c_int64]
    _fields_ = [
        ("statistics", SharedStatistics),
        *((name, ctypes.c_int64) for name in ("taken", "waiting", "associations", "dropped")),
        ("of_callers", ctypes.c_int64 * (MAX_CALLERS + 1)),
    ]

    def clear(self) -> None:
        """The worker has ended, and its connections with it."""
        self.taken = self.waiting = self.associations = self.dropped = 0
        ctypes.memset(self.of_callers, 0, ctypes.sizeof(self.of_callers))


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


class SharedOccupancy(Occupancy):
    """The associations of all workers, as the worker with the slot *number* sees them."""

    def __init__(self, counts: SharedCounts, number: int, max_assoc: int) -> None:
        super().__init__(max_assoc)
        self._counts = counts
        self._slot = counts.slots[number]

    @property
    def is_full(self) -> bool:
        """See Occupancy."""
        return self._counts.associations >= self.max_assoc

    def begin(self, caller: int | None = None, most: int = 0) -> bool:
        """See Occupancy."""
        # A lock of the process, not of the open file: that one they share. Gone with the process, if it dies in it.
        fcntl.lockf(self._counts.descriptor, fcntl.LOCK_EX)
        try:
            if self.is_full:
                return False
            if caller is not None:
                if sum(slot.of_callers[caller] for slot in self._counts.slots) >= most:
                    return False
                self._slot.of_callers[caller] += 1
            self._slot.associations += 1
            return True
        finally:
            fcntl.lockf(self._counts.descriptor, fcntl.LOCK_UN)

    def end(self, caller: int | None = None) -> None:
        """See Occupancy."""
        self._slot.associations -= 1
        if caller is not None:
            self._slot.of_callers[caller] -= 1

    def waiting(self, connections: int) -> None:
        """See Occupancy."""
        self._slot.waiting = connections
