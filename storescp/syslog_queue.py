"""What waits for a receiver of syslog, and what is on its way there: bounded, and told of when it is lost.

What belongs here: messages and their number. Who sends them is the business of :mod:`storescp.syslog`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storescp.counting import Count
from storescp.logs import Repeated

#: Bytes of messages that may wait, or be on their way; of messages that peers can cause as often as they like, half.
MOST: Final = 4 << 20

#: Seconds before the receiver is tried again, by a connection, a socket or its name: at first, and at last.
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0


class MessageQueue:
    """For the receiver *name*."""

    log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self.name = name
        self.repeated = Repeated(clock)
        self._waiting: deque[bytes] = deque()
        self._under_way: deque[bytes] = deque()
        self.under_way_size = 0
        """Bytes of messages of which it is not certain yet that they have arrived."""
        self._size = 0  # of all
        self._lost = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def put(self, message: bytes, *, minor: bool) -> None:
        size = self._size + len(message)
        if size > (MOST // 2 if minor else MOST):
            self.lose(1, f"{Count(len(self._waiting) + len(self._under_way)):message waits|messages wait}")
        else:
            self._waiting.append(message)
            self._size = size

    def take(self) -> bytes:
        """The next message, which nobody asks for again."""
        message = self._waiting.popleft()
        self._size -= len(message)
        return message

    def dispatch(self) -> bytes:
        """The next message: it is under way."""
        message = self._waiting.popleft()
        self._under_way.append(message)
        self.under_way_size += len(message)
        return message

    def arrived(self, all_but: int = 0) -> None:
        """What is under way has arrived, but for the last so many bytes, perhaps."""
        while self._under_way and self.under_way_size - len(self._under_way[0]) >= all_but:
            size = len(self._under_way.popleft())
            self.under_way_size -= size
            self._size -= size

    def take_back(self) -> None:
        """What is under way has perhaps not arrived: it waits again, before all others."""
        self._waiting.extendleft(reversed(self._under_way))
        self._under_way.clear()
        self.under_way_size = 0

    def lose(self, count: int, why: str) -> None:
        self._lost += count
        self.repeated.warn(
            "lost", self.log, "audit: messages to {name} are lost: {why}", name=self.name, why=why
        )

    def close(self) -> None:
        """Tell what is lost."""
        self.take_back()
        if self._waiting:
            self.lose(len(self._waiting), "the server stops")
            self._waiting.clear()
        self.repeated.stop()
        if self._lost:
            self.log.error("audit: lost {count:message} to {name}", count=Count(self._lost), name=self.name)
