"""A stop that ends although a disk does not answer.

What belongs here: how long the end of something is waited for. A thread that stands in the kernel cannot be told to
come back: it is left there, and the process ends without it.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

#: Seconds beyond the timeout of the stop for what was received to be written, and the archive to be closed.
PATIENCE: Final = 15.0

#: Seconds without an answer after which a second signal ends that, but for a moment in which peers learn of their end.
STANDSTILL: Final = 5.0
MOMENT: Final = 1.5


class Ending:
    """Waits *seconds* for *stopped*: ``over`` fires with it, or, with ``in_vain`` true, when the time is up."""

    def __init__(self, clock: IReactorTime, stopped: Deferred[None], seconds: float) -> None:
        self.over: Deferred[None] = Deferred()
        self.in_vain = False
        self._clock = clock
        self._deadline = clock.callLater(seconds, self._give_up)
        stopped.addBoth(self._stopped)

    def hasten(self, stalled: float, seconds: float = 0.0) -> None:
        """Give up at once a disk that has not answered for *stalled* seconds, if that is long; and *seconds* later."""
        seconds += MOMENT if stalled >= STANDSTILL else PATIENCE
        if self._deadline.active() and self._deadline.getTime() - self._clock.seconds() > seconds:
            self._deadline.reset(seconds)

    def _stopped(self, result: Failure | None) -> Failure | None:
        if self.in_vain:
            return None  # the process ends anyway
        self._deadline.cancel()
        self.over.callback(result)
        return None

    def _give_up(self) -> None:
        self.in_vain = True
        self.over.callback(None)
