"""storescp.ending: a stop has its time, and not more."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from storescp.ending import MOMENT, PATIENCE, STANDSTILL, Ending


class EndingTests(SynchronousTestCase):
    """Something that has a minute to stop."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stopped: Deferred[None] = Deferred()
        self.ending = Ending(self.clock, self.stopped, 60.0)

    def test_in_time(self) -> None:
        """It is over with the stop, and no timer is left."""
        self.assertNoResult(self.ending.over)
        self.stopped.callback(None)
        self.assertIsNone(self.successResultOf(self.ending.over))
        self.assertFalse(self.ending.in_vain)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_vain(self) -> None:
        """It is over when the time is, and what still comes then is nobody's business: not even a failure."""
        for result in (None, OSError()):
            self.setUp()
            self.clock.advance(59.9)
            self.assertNoResult(self.ending.over)
            self.clock.advance(0.1)
            self.assertIsNone(self.successResultOf(self.ending.over))
            self.assertTrue(self.ending.in_vain)
            self.stopped.callback(result)  # type: ignore[arg-type]

    def test_failure(self) -> None:
        """A stop that fails in time fails."""
        self.stopped.errback(OSError())
        self.failureResultOf(self.ending.over, OSError)
        self.assertFalse(self.ending.in_vain)

    def test_hasten(self) -> None:
        """In a hurry a disk that stands still has a moment, any other as long as without, and none more than before."""
        for passed, stalled, seconds, expected in (
            (0.0, 0.0, 0.0, PATIENCE),
            (0.0, STANDSTILL - 0.1, 0.0, PATIENCE),
            (0.0, 1e3, 0.0, MOMENT),
            (0.0, 1e3, 5.0, MOMENT + 5),
            (59.0, 0.0, 0.0, 1.0),
        ):
            self.setUp()
            self.clock.advance(passed)
            self.ending.hasten(stalled, seconds)
            (call,) = self.clock.getDelayedCalls()
            self.assertEqual(call.getTime() - self.clock.seconds(), expected)
        self.stopped.callback(None)
        self.ending.hasten(0.0)
