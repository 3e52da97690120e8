"""How long a peer may be silent, and how slowly it may go on with what it has begun: two timers of an association.

What belongs here: the judgement. What follows from it is the business of :mod:`storescp.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from storescp.limits import Limits


class Watched(Protocol):
    """What is to be known of the association."""

    @property
    def last_heard(self) -> float:
        """When the peer last said something, or was not to blame for its silence."""

    @property
    def received(self) -> int:
        """Bytes, in all."""

    @property
    def incomplete(self) -> object:
        """Stands for what the peer has begun to send, and not ended; None when that is nothing."""

    @property
    def is_ours(self) -> bool:
        """Whether it is we who have something to do."""

    @property
    def not_read(self) -> float:
        """Seconds for which we have not read what the peer sends, in all."""


class Patience:
    """Watches *peer* from the start of its association to the end.

    *give_up* is told why, and whether the peer was too slow rather than silent.
    """

    __slots__ = (
        "_clock",
        "_give_up",
        "_idle",
        "_incomplete",
        "_limits",
        "_not_read",
        "_peer",
        "_progress",
        "_received",
        "_since",
        "_stopped",
    )

    def __init__(
        self, peer: Watched, limits: Limits, clock: IReactorTime, give_up: Callable[[str, bool], None]
    ) -> None:
        self._peer = peer
        self._limits = limits
        self._clock = clock
        self._give_up = give_up
        self._stopped = False
        self._idle: IDelayedCall | None = None
        self._progress: IDelayedCall | None = None
        # What is being judged for its progress: since when, what had been received then, for how long we had not read.
        self._incomplete: object = None
        self._since, self._received, self._not_read = 0.0, 0, 0.0
        self._watch_idleness(limits.timeout)
        self._judge_from_now()

    def stop(self) -> None:
        """Nothing more is to be judged."""
        self._stopped = True
        for timer in (self._idle, self._progress):
            if timer is not None:
                timer.cancel()

    def _watch_idleness(self, delay: float) -> None:
        if delay:
            self._idle = self._clock.callLater(delay, self._check_idleness)

    def _check_idleness(self) -> None:
        """One timer, not re-armed at every packet: it looks back when it fires."""
        self._idle = None
        timeout = self._limits.timeout
        silence = 0.0 if self._peer.is_ours else self._clock.seconds() - self._peer.last_heard
        if self._stopped:  # as somebody looked what there is to do, and there was nothing but the end
            return
        if silence >= timeout:
            self._give_up(f"idle for {timeout:g} s", False)
        else:
            self._watch_idleness(timeout - silence)

    def _judge_from_now(self) -> None:
        """Begin a period in which a message that is not complete has to get on."""
        peer, limits = self._peer, self._limits
        if limits.progress_timeout and limits.min_rate:
            self._since = self._clock.seconds()
            self._received, self._not_read = peer.received, peer.not_read
            self._incomplete = peer.incomplete
            self._progress = self._clock.callLater(limits.progress_timeout, self._check_progress)

    def _check_progress(self) -> None:
        """One timer, too. A message that stretches over a whole period must have brought enough for it."""
        self._progress = None
        peer, limits = self._peer, self._limits
        if self._incomplete is not None and peer.incomplete is self._incomplete:
            # The time in which we did not read is not the peer's.
            read_for = self._clock.seconds() - self._since - (peer.not_read - self._not_read)
            if read_for < limits.progress_timeout:
                delay = max(limits.progress_timeout - read_for, 0.001)
                self._progress = self._clock.callLater(delay, self._check_progress)
                return
            if peer.received - self._received < limits.min_rate * read_for:
                self._give_up(f"less than {limits.min_rate:g} bytes a second of what it had begun", True)
                return
        self._judge_from_now()
