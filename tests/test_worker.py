"""storescp.worker: batches of jobs on threads, and commits that are shared."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from storescp.worker import PATIENCE, Aside, Background, Periodic, Worker
from tests.conversation import MemoryReactor


class WorkerTests(SynchronousTestCase):
    """A worker without threads, turned by hand."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.clock = Clock()
        self.patient: set[int] = set()
        self.batches: list[list[int]] = []
        self.done: list[int] = []
        self.unfinished: set[int] = set()

    def worker(self, batch: int = 64) -> Worker[int]:
        return Worker(
            self.reactor,
            self.clock,
            self.run_batch,
            self.done.append,
            can_wait=self.patient.__contains__,
            threads=0,
            batch=batch,
        )

    def run_batch(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        return [job for job in jobs if job not in self.unfinished]

    def test_batches(self) -> None:
        """A thread takes all jobs that wait, up to the size of a batch, in their order."""
        worker = self.worker(batch=3)
        for job in range(5):
            worker.put(job)
        self.assertTrue(worker.turn() and worker.turn())
        self.assertEqual(self.batches, [[0, 1, 2], [3, 4]])

    def test_stalled(self) -> None:
        """For how long nothing has got on is known to the moment; not when something has, or there is nothing to do."""
        worker = self.worker(batch=1)
        self.clock.advance(100)
        self.assertEqual(worker.stalled, 0.0)
        for job in range(2):
            worker.put(job)
        self.advance(7.0)
        self.assertAlmostEqual(worker.stalled, 7.0)
        worker.turn()
        self.advance(7.0)
        self.assertAlmostEqual(worker.stalled, 7.0, 1)
        worker.turn()
        self.reactor.turn()
        self.assertEqual(worker.stalled, 0.0)
        self.advance(7.0)
        worker.put(2)
        self.assertEqual(worker.stalled, 0.0)

    def advance(self, seconds: float) -> None:
        """Time goes by, in steps short enough for all that looks now and then."""
        self.clock.pump([PATIENCE] * round(seconds / PATIENCE))

    def test_one_call_for_all(self) -> None:
        """What was finished before the reactor came round is delivered by one call into it."""
        worker = self.worker(batch=1)
        for job in range(3):
            worker.put(job)
            worker.turn()
        self.assertEqual(self.done, [])
        self.assertEqual(len(self.reactor.calls), 1)
        self.reactor.turn()
        self.assertEqual(self.done, [0, 1, 2])
        worker.put(3)
        worker.turn()
        self.reactor.turn()
        self.assertEqual(self.done, [0, 1, 2, 3])

    def test_results_that_can_wait(self) -> None:
        """They wake nobody: they are delivered with others, with the next job, on demand, or after a moment."""
        worker = self.worker()
        self.patient.update((0, 1, 2, 4))

        def finished(job: int) -> bool:
            """Whether the reactor is woken by the end of this job."""
            worker.put(job)
            worker.turn()
            return bool(self.reactor.calls)

        self.assertFalse(finished(0))
        self.assertEqual(self.done, [])
        self.assertFalse(finished(1))
        self.assertEqual(self.done, [0])
        worker.collect()
        self.assertEqual(self.done, [0, 1])
        self.assertFalse(finished(2))
        self.assertTrue(finished(3))
        self.reactor.turn()
        self.assertEqual(self.done, [0, 1, 2, 3])
        self.assertFalse(finished(4))
        drained = worker.drained()
        self.clock.advance(PATIENCE)
        self.assertEqual(self.done, [0, 1, 2, 3, 4])
        self.successResultOf(drained)
        self.clock.advance(PATIENCE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hurry(self) -> None:
        """Who is in a hurry has at once what is finished, or else what is finished next, however long it can wait."""
        worker = self.worker(batch=1)
        self.patient.update(range(10))
        worker.put(0)
        worker.turn()
        self.assertEqual(len(self.reactor.calls), 0)
        worker.hurry()
        self.assertEqual(len(self.reactor.calls), 1)
        worker.hurry()  # nobody is woken twice, and the next one is waited for, too
        self.assertEqual(len(self.reactor.calls), 1)
        self.reactor.turn()
        self.assertEqual(self.done, [0])
        worker.put(1)
        worker.turn()
        self.reactor.turn()
        self.assertEqual(self.done, [0, 1])
        worker.put(2)
        worker.turn()
        self.assertEqual(len(self.reactor.calls), 0)

    def test_put_again(self) -> None:
        """A job that was not finished is outstanding until it is, at another run."""
        worker = self.worker()
        self.unfinished = {1}
        worker.put(0)
        worker.put(1)
        worker.turn()
        self.reactor.turn()
        self.assertEqual((self.done, worker.outstanding), ([0], 1))
        drained = worker.drained()
        self.unfinished = set()
        worker.put_again(1)
        worker.turn()
        self.assertNoResult(drained)
        self.reactor.turn()
        self.successResultOf(drained)
        self.assertEqual((self.done, worker.outstanding), ([0, 1], 0))

    def test_end_within_a_batch(self) -> None:
        """The end that a thread comes upon behind its jobs is left for the next turn, its own or another's."""
        worker = self.worker()
        worker.put(0)
        worker._jobs.put(None)
        self.assertTrue(worker.turn())
        self.assertEqual(len(worker._jobs), 1)
        self.assertFalse(worker.turn())

    def test_drained(self) -> None:
        """A worker without jobs is drained at once; one that is given more in the end is not drained yet."""
        worker = self.worker()
        self.successResultOf(worker.drained())
        more = [1]

        def done(job: int) -> None:
            if more:
                worker.put(more.pop())

        worker = Worker(self.reactor, self.clock, self.run_batch, done, threads=0)
        worker.put(0)
        drained = [worker.drained(), worker.drained()]
        worker.turn()
        self.reactor.turn()
        self.assertNoResult(drained[0])
        worker.turn()
        self.reactor.turn()
        for deferred in drained:
            self.successResultOf(deferred)


class ThreadTests(TestCase):
    """Real threads, and the real reactor."""

    def start(
        self, run: Callable[[list[int]], list[int]], done: Callable[[int], None], threads: int
    ) -> Worker[int]:
        worker = Worker(
            IReactorFromThreads(reactor), IReactorTime(reactor), run, done, threads=threads, batch=1
        )
        worker.start()
        self.addCleanup(worker.stop)
        return worker

    def test_every_job_is_done_once(self) -> Deferred[None]:
        """Jobs are run off the reactor's thread, and each is delivered once, on it."""
        here = threading.get_ident()
        ran: list[int] = []
        done: list[tuple[int, int]] = []

        def run(jobs: list[int]) -> list[int]:
            ran.append(threading.get_ident())
            return jobs

        worker = self.start(run, lambda job: done.append((job, threading.get_ident())), 3)
        for job in range(500):
            worker.put(job)

        def check(_: None) -> None:
            self.assertEqual(sorted(done), [(job, here) for job in range(500)])
            self.assertNotIn(here, ran)

        return worker.drained().addCallback(check)

    def test_threads_work_at_the_same_time(self) -> Deferred[None]:
        """Two threads run two jobs side by side: each waits here for the other."""
        meeting = threading.Barrier(2, timeout=30)

        def run(jobs: list[int]) -> list[int]:
            meeting.wait()
            return jobs

        worker = self.start(run, lambda job: None, 2)
        worker.put(0)
        worker.put(1)
        return worker.drained()

    def test_signals(self) -> None:
        """Threads that wait for a job live on when a signal interrupts the system call that they wait in."""
        worker = self.start(lambda jobs: jobs, lambda job: None, 2)
        # For good: one may be on its way in the end.
        signal.signal(signal.SIGUSR2, lambda number, frame: None)
        signal.siginterrupt(signal.SIGUSR2, True)
        for _ in range(20):
            for thread in worker._threads:
                assert thread.ident is not None
                signal.pthread_kill(thread.ident, signal.SIGUSR2)
            worker.put(0)
        self.assertTrue(all(thread.is_alive() for thread in worker._threads))

    def test_stop(self) -> None:
        """stop() ends all threads, even when one of them is given the ends of all."""
        for _ in range(20):
            worker: Worker[int] = Worker(
                IReactorFromThreads(reactor),
                IReactorTime(reactor),
                lambda jobs: jobs,
                lambda job: None,
                threads=4,
                batch=64,
            )
            worker.start()
            worker.stop()
            self.assertFalse(any(thread.is_alive() for thread in worker._threads))


class BackgroundTests(SynchronousTestCase):
    """A thread for what nobody waits for."""

    def test_all_that_waits(self) -> None:
        """What came while the thread was busy is run together; all is run before the end."""
        batches: list[list[int]] = []
        came: SimpleQueue[None] = SimpleQueue()
        go_on = threading.Event()

        def run(items: list[int]) -> None:
            batches.append(items)
            came.put(None)
            go_on.wait(30)

        background = Background(run)
        background.put(0)
        came.get(timeout=30)
        for item in (1, 2, 3):
            background.put(item)
        go_on.set()
        background.stop()
        self.assertEqual([item for batch in batches for item in batch], [0, 1, 2, 3])
        self.assertEqual(batches[0], [0])
        self.assertFalse(background._thread.is_alive())


class PeriodicTests(SynchronousTestCase):
    """A thread that comes round."""

    def test_periodic(self) -> None:
        """It comes again and again, and not after its end."""
        calls: SimpleQueue[None] = SimpleQueue()
        periodic = Periodic(lambda: calls.put(None), 0.001)
        for _ in range(3):
            calls.get(timeout=30)
        periodic.stop()
        self.assertFalse(periodic._thread.is_alive())

    def test_stop(self) -> None:
        """The end does not wait for the next time."""
        Periodic(lambda: self.fail("called"), 3600).stop()

    def test_stuck(self) -> None:
        """Nor, if nobody wants to, for what it is at."""
        called, go_on = threading.Event(), threading.Event()

        def run() -> None:
            called.set()
            go_on.wait(30)

        periodic = Periodic(run, 0.001)
        called.wait(30)
        periodic.stop(wait=False)
        self.assertTrue(periodic._thread.is_alive())
        go_on.set()
        periodic.stop()
        self.assertFalse(periodic._thread.is_alive())


class AsideTests(TestCase):
    """A thread that is asked."""

    async def test_cancelled(self) -> None:
        """What was cancelled before its turn is not called; the others are, and the end waits for none too many."""
        aside = Aside(IReactorFromThreads(reactor))
        go_on = threading.Event()
        first = aside.call(go_on.wait, 30)
        second = aside.call(lambda: self.fail("called"))
        third = aside.call(lambda: 3)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        go_on.set()
        self.assertTrue(await first)
        self.assertEqual(await third, 3)
        await aside.stop()
