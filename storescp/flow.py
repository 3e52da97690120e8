"""When a peer is read, and when it has to wait: for storage, for answers, or until it reads itself.

What belongs here: back-pressure, and the bounds of what one association may have in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from storescp.limits import InFlight, Limits

#: Bytes that one association may have waiting for storage before its transport is paused, and where it goes on.
HIGH_WATER = 4 * 1024 * 1024
LOW_WATER = 1024 * 1024

#: Seconds that a peer has to take our answers, where no option says so.
WRITE_TIMEOUT = 300.0


@implementer(IPushProducer)
class Flow:
    """Pauses and resumes the transport of one connection. As its producer it is told whether the peer reads.

    *not_taken* is called when that has not done so for too long.
    """

    __slots__ = (
        "_clock",
        "_held",
        "_in_flight",
        "_limits",
        "_not_read",
        "_not_taken",
        "_paused_at",
        "_transport",
        "_unread",
        "_waits_for_answers",
        "resumed_at",
        "waits_for_storage",
    )

    def __init__(
        self, in_flight: InFlight, limits: Limits, clock: IReactorTime, not_taken: Callable[[], None]
    ) -> None:
        self._in_flight = in_flight
        self._limits = limits
        self._clock = clock
        self._not_taken: Callable[[], None] | None = not_taken
        self._transport: IPushProducer | None = None
        self._held = 0
        self.waits_for_storage = False
        self._waits_for_answers = False
        self._unread: IDelayedCall | None = None  # since when the peer does not read what we send
        self.resumed_at = 0.0
        """When the peer last could go on: the silence before was ours."""
        self._paused_at: float | None = None
        self._not_read = 0.0

    def open(self, transport: IPushProducer) -> None:
        """Pause *transport*, and have it go on, from now on."""
        self._transport = transport

    def close(self) -> None:
        """Leave the transport alone from now on."""
        self._transport = self._not_taken = None
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    @property
    def not_read(self) -> float:
        """Seconds for which the peer has not been read, in all."""
        return self._not_read + (
            self._clock.seconds() - self._paused_at if self._paused_at is not None else 0.0
        )

    # -- IFlow: the store's side --

    def held(self, size: int) -> bool:
        """See IFlow."""
        self._held += size
        in_flight = self._in_flight
        in_flight.total += size
        if (self._held > HIGH_WATER or in_flight.total > in_flight.limit) and not self.waits_for_storage:
            self.waits_for_storage = True
            self._set_reading()
        return self.waits_for_storage

    def released(self, size: int) -> bool:
        """See IFlow."""
        self._held -= size
        in_flight = self._in_flight
        in_flight.total -= size
        # Who has nothing held may always go on, whatever others have: so all of them advance, by a read each, and
        # none waits for another.
        if self.waits_for_storage and (
            not self._held or (self._held <= LOW_WATER and in_flight.total <= in_flight.limit)
        ):
            self.waits_for_storage = False
            self.resumed_at = self._clock.seconds()
            self._set_reading()
        return self.waits_for_storage

    # -- IAssociation: the user's side --

    def hold_back(self, waits: bool) -> None:
        """See IAssociation."""
        self._waits_for_answers = waits
        self.resumed_at = self._clock.seconds()
        self._set_reading()

    # -- IPushProducer: the transport's side --

    def pauseProducing(self) -> None:
        """The peer does not read our responses: no use in reading more requests, for ever or at all."""
        if self._unread is None:
            limits = self._limits
            delay = min(filter(None, (limits.timeout, limits.progress_timeout)), default=WRITE_TIMEOUT)
            self._unread = self._clock.callLater(delay, self._give_up)
            self._set_reading()

    def resumeProducing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
            self._set_reading()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost follows."""

    def _give_up(self) -> None:
        self._unread = None
        if self._not_taken is not None:
            self._not_taken()

    def _set_reading(self) -> None:
        if self._transport is None:
            return
        if self.waits_for_storage or self._waits_for_answers or self._unread is not None:
            if self._paused_at is None:
                self._paused_at = self._clock.seconds()
            self._transport.pauseProducing()
        else:
            if self._paused_at is not None:
                self._not_read += self._clock.seconds() - self._paused_at
                self._paused_at = None
            self._transport.resumeProducing()
