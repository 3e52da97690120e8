"""Free space on a file system, and the limit below which nothing more is taken. Blocking; no Twisted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

#: Seconds for which one look at the file system is good.
INTERVAL = 0.5


class SpaceLimit(NamedTuple):
    """At least so much must be free: bytes, or percent of the file system."""

    amount: float
    is_percent: bool

    def bytes_of(self, total: int) -> float:
        """The limit in bytes for a file system of *total* bytes."""
        return total * self.amount / 100 if self.is_percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.is_percent else f"{self.amount:.0f} bytes"


class LowSpace(OSError):
    """Less is free than the limit wants."""


class FreeSpace:
    """Watches the file system that *directory* is on.

    *found* is told what each look has found: whether there is enough, and the bytes free. Any thread may check.
    """

    def __init__(
        self,
        directory: str,
        limit: SpaceLimit,
        found: Callable[[bool, int], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._limit = limit
        self._found = found
        self._monotonic = monotonic
        self._looked = float("-inf")
        self._enough = True

    def set_limit(self, limit: SpaceLimit) -> None:
        """Want so much from the next check on."""
        self._limit = limit
        self._looked = float("-inf")

    def check(self) -> None:
        """Raises LowSpace while less is free than the limit wants, and OSError."""
        if not self._limit.amount and self._enough:
            return
        now = self._monotonic()
        if now - self._looked >= INTERVAL:
            self._looked = now
            status = os.statvfs(self._directory)
            free = status.f_bavail * status.f_frsize
            self._enough = free >= self._limit.bytes_of(status.f_blocks * status.f_frsize)
            self._found(self._enough, free)
        if not self._enough:
            raise LowSpace(errno.ENOSPC, "free space is below the limit")
