"""Free space on a file system, and the limit below which nothing more is taken. Blocking; no Twisted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

#: Seconds for which one look at the file system is good.
INTERVAL = 0.5

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class SpaceLimit(NamedTuple):
    """At least so much must be free: bytes, or percent of the file system."""

    amount: float
    is_percent: bool

    def bytes_of(self, total: int) -> float:
        """The limit in bytes for a file system of *total* bytes."""
        return total * self.amount / 100 if self.is_percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.is_percent else size_text(self.amount)


class Space(NamedTuple):
    """Bytes of a file system: free for us, and in all."""

    free: int
    total: int

    def is_enough(self, limit: SpaceLimit) -> bool:
        """Whether so much is free as the *limit* wants."""
        return self.free >= limit.bytes_of(self.total)


def size_text(size: float) -> str:
    """A number of bytes in three digits and a decimal unit."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.3g} {_UNITS[unit]}"


def look(directory: str | os.PathLike[str]) -> Space:
    """What there is at this moment in the file system that *directory* is on. Raises OSError."""
    status = os.statvfs(directory)
    return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


class SpaceWatch:
    """What the last look at the file system that *directory* is on has found: ``space``, or else ``trouble``, in words.

    Whoever looks may have to wait for ever; who asks never waits.
    """

    def __init__(
        self, directory: str | os.PathLike[str], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.space: Space | None = None
        self.trouble = ""
        self._directory = directory
        self._monotonic = monotonic
        self._answered = monotonic()

    @property
    def silence(self) -> float:
        """Seconds for which the file system has not answered, or nobody has asked it."""
        return self._monotonic() - self._answered

    def look(self) -> None:
        """Look now. Blocks."""
        try:
            self.space, self.trouble = look(self._directory), ""
        except OSError as error:
            self.space, self.trouble = None, error.strerror or str(error)
        self._answered = self._monotonic()


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
            space = look(self._directory)
            self._enough = space.is_enough(self._limit)
            self._found(self._enough, space.free)
        if not self._enough:
            raise LowSpace(errno.ENOSPC, "free space is below the limit")


def no_room(database: str | None) -> str:
    """What SQLite does not say: that there is no room for a *database*, if so, as the end of a line."""
    try:
        if database is not None and not os.statvfs(os.path.dirname(os.path.abspath(database))).f_bavail:
            return "; no space is left on its file system"
    except OSError:
        pass
    return ""
