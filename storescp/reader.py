"""A descriptor of our own that the reactor watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer


class HasFileno(Protocol):
    """A socket, a channel, a file."""

    def fileno(self) -> int: ...


@implementer(IReadDescriptor)
class Reader:
    """Has *do_read* called whenever there is something to read in *source*, between :meth:`start` and :meth:`stop`.

    What it raises is logged, and the next time it is called again: the reactor would never do so any more.
    """

    log = Logger()

    def __init__(self, reactor: ReactorBase, source: HasFileno, do_read: Callable[[], object]) -> None:
        self._reactor = reactor
        self._fileno = source.fileno()  # as it was, when the source is closed
        self._do_read = do_read
        self._reading = False

    def start(self) -> None:
        if not self._reading:
            self._reading = True
            self._reactor.addReader(self)

    def stop(self) -> None:
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    # -- IReadDescriptor --

    def fileno(self) -> int:
        return self._fileno

    def doRead(self) -> None:
        try:
            self._do_read()
        except Exception:  # noqa: BLE001 - one fault must not make a process deaf
            self.log.failure("internal error")

    def connectionLost(self, reason: Failure) -> None:
        """The other end has hung up: who reads learns it by reading."""
        self._reading = False
        self.doRead()

    def logPrefix(self) -> str:
        return "storescp"
