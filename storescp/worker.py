"""Blocking work on threads of our own: the only module of the server that has any.

What belongs here: how work travels to threads and back, not what it is. A hop between threads costs more
than the storing of a small object, so jobs travel in company: a thread takes all that wait, and all that is
finished comes back by one call into the reactor.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

Job = TypeVar("Job")
P = ParamSpec("P")
T = TypeVar("T")

#: What is written to an eventfd(2): a number in the machine's order.
_ONE = (1).to_bytes(8, sys.byteorder)

#: Seconds for which results may wait that nobody waits for.
PATIENCE = 0.02


class Worker(Generic[Job]):
    """Threads that run batches of jobs.

    ``run`` is called on a thread with the jobs taken together (at most ``batch``) and returns those that
    are finished; the others it must give to :meth:`put_again` later. ``done`` is called on the reactor's
    thread with each finished job. Neither may raise. Jobs for which ``can_wait`` wake nobody up: they are done
    with the next ones that do, at the next :meth:`put`, when somebody asks or is in a hurry, or after a moment.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        clock: IReactorTime,
        run: Callable[[list[Job]], list[Job]],
        done: Callable[[Job], None],
        *,
        can_wait: Callable[[Job], bool] = lambda job: False,
        threads: int,
        batch: int = 64,
    ) -> None:
        self.outstanding = 0
        self._batches = 0  # that the threads are through with
        self._seen, self._since = 0, 0.0  # how many they were when that was looked at, and since when
        self._reactor = reactor
        self._clock = clock
        self._run = run
        self._done = done
        self._can_wait = can_wait
        self._later: IDelayedCall | None = None
        self._woken = False
        self._hurry = False
        self._batch = batch
        self._jobs: WakingQueue[Job | None] = WakingQueue()
        self._finished: list[Job] = []
        self._lock = threading.Lock()
        self._drained: list[Deferred[None]] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"storescp-worker-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        self._jobs.open()
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        """Have *job* run. To be called on the reactor's thread."""
        self.outstanding += 1
        self._jobs.put(job)
        if self._later is None:
            self._later = self._clock.callLater(PATIENCE, self._look)
            self._seen, self._since = self._batches, self._clock.seconds()
        elif self._finished and not self._woken:
            self.collect()

    def put_again(self, job: Job) -> None:
        """Run a job once more that was not finished. To be called from ``run``."""
        self._jobs.put(job)

    @property
    def stalled(self) -> float:
        """Seconds for which the threads have not been through with anything, though there is something to do."""
        return self._clock.seconds() - self._since if self.outstanding else 0.0

    def drained(self) -> Deferred[None]:
        """Fires as soon as no job is outstanding."""
        deferred: Deferred[None] = Deferred()
        if self.outstanding:
            self._drained.append(deferred)
        else:
            deferred.callback(None)
        return deferred

    def stop(self) -> None:
        """End the threads; call it when drained. Blocks only for as long as they need to wake up."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._jobs.close()
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def turn(self) -> bool:
        """Wait for a job, and run it with those that wait too; false once it is time to end.

        The threads call nothing else. Without any (``threads=0``) somebody else may: a test, step by step.
        """
        job = self._jobs.get()
        if job is None:
            return False
        jobs = [job]
        # What a thread takes waits for all that it took: a fair share for each of them.
        share = min(self._batch, 1 + len(self._jobs) // max(1, len(self._threads)))
        try:
            while len(jobs) < share:
                following = self._jobs.get_nowait()
                if following is None:
                    self._jobs.put(None)
                    break
                jobs.append(following)
        except IndexError:
            pass
        finished = self._run(jobs)
        self._batches += 1
        if finished:
            with self._lock:
                self._finished += finished
                wake = not self._woken and (self._hurry or not all(map(self._can_wait, finished)))
                if wake:
                    self._woken, self._hurry = True, False
            if wake:
                self._reactor.callFromThread(self.collect)
        return True

    def _work(self) -> None:
        while self.turn():
            pass

    def collect(self) -> None:
        """Have all jobs done that are finished. To be called on the reactor's thread."""
        with self._lock:
            finished, self._finished = self._finished, []
            self._woken = False
        self.outstanding -= len(finished)
        for job in finished:
            self._done(job)
        if not self.outstanding:
            drained, self._drained = self._drained, []
            for deferred in drained:
                deferred.callback(None)

    def hurry(self) -> None:
        """Have the next jobs that are finished, or those that are already, done at once. On the reactor's thread."""
        with self._lock:
            wake = bool(self._finished) and not self._woken
            self._woken |= wake
            self._hurry = not wake
        if wake:
            self._reactor.callFromThread(self.collect)

    def _look(self) -> None:
        self._later = None
        self.collect()
        if self._batches != self._seen:
            self._seen, self._since = self._batches, self._clock.seconds()
        if self.outstanding and self._later is None:
            self._later = self._clock.callLater(PATIENCE, self._look)


class WakingQueue(Generic[Job]):
    """A queue whose consumers are woken by the kernel, outside the interpreter's lock.

    queue.SimpleQueue wakes a thread while the lock is held: it then has to wait for that, and is woken again.
    """

    def __init__(self) -> None:
        self._items: deque[Job] = deque()
        self._idle: set[int] = set()
        self._event = -1

    def open(self) -> None:
        """To be called before anybody waits."""
        self._event = os.eventfd(0, os.EFD_CLOEXEC)

    def close(self) -> None:
        """To be called when nobody waits any more."""
        if self._event >= 0:
            os.close(self._event)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Job) -> None:
        self._items.append(item)
        if self._idle:
            os.write(self._event, _ONE)

    def get_nowait(self) -> Job:
        """Raises IndexError when there is nothing."""
        return self._items.popleft()

    def get(self) -> Job:
        """Blocks until there is something."""
        me = threading.get_ident()
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                pass
            self._idle.add(me)
            if not self._items:  # else it came before anybody knew that we wait
                os.read(self._event, 8)  # which goes on after a signal, unlike os.eventfd_read
            self._idle.discard(me)
            # One event may stand for several items: somebody else has to take the others.
            if len(self._items) > 1 and self._idle:
                os.write(self._event, _ONE)


class Periodic:
    """A thread that calls *run*, which must not raise, every *interval* seconds until it is stopped."""

    def __init__(self, run: Callable[[], None], interval: float) -> None:
        self._run = run
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="storescp-periodic", daemon=True)
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """End the thread; what it is at is waited for, which may block, or not."""
        self._stopped.set()
        if wait:
            self._thread.join()

    def _serve(self) -> None:
        while not self._stopped.wait(self._interval):
            self._run()


class Aside:
    """A thread that calls functions one after the other. There is none until one is called."""

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self.outstanding = 0
        """Calls that have not come back."""
        self._reactor = reactor
        self._background: Background[tuple[Deferred[Any], Callable[[], object]]] | None = None
        self._drained: list[Deferred[None]] = []

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """What *function* returns, or raises. To be called on the reactor's thread, on which it fires.

        If that is cancelled before its turn has come, the function is not called.
        """
        if self._background is None:
            self._background = Background(self._run)
        self.outstanding += 1
        deferred: Deferred[T] = Deferred()
        self._background.put((deferred, partial(function, *args, **kwargs)))
        return deferred

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[None], object, None]:
        """End the thread when all has fired that was called."""
        while self.outstanding:
            deferred: Deferred[None] = Deferred()
            self._drained.append(deferred)
            yield deferred
        background, self._background = self._background, None
        if background is not None:
            background.stop()

    def _run(self, jobs: list[tuple[Deferred[Any], Callable[[], object]]]) -> None:
        for deferred, function in jobs:
            if deferred.called:  # it was cancelled
                self._reactor.callFromThread(self._done, deferred.callback, None)
                continue
            try:
                self._reactor.callFromThread(self._done, deferred.callback, function())
            except Exception:  # noqa: BLE001 - whatever it is becomes the result
                self._reactor.callFromThread(self._done, deferred.errback, Failure())

    def _done(self, fire: Callable[[Any], None], result: object) -> None:
        self.outstanding -= 1
        fire(result)
        if not self.outstanding:
            drained, self._drained = self._drained, []
            for deferred in drained:
                deferred.callback(None)


class Background(Generic[Job]):
    """A thread that calls *run*, which must not raise, with all items that wait."""

    def __init__(self, run: Callable[[list[Job]], None]) -> None:
        self._run = run
        self._items: WakingQueue[Job | None] = WakingQueue()
        self._items.open()
        self._thread = threading.Thread(target=self._serve, name="storescp-background", daemon=True)
        self._thread.start()

    def put(self, item: Job) -> None:
        """Have *item* run."""
        self._items.put(item)

    def stop(self) -> None:
        """End the thread when it has run what waits."""
        self._items.put(None)
        self._thread.join()
        self._items.close()

    def _serve(self) -> None:
        ended = False
        while not ended:
            taken = [self._items.get()]
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(self._items.get_nowait())
            ended = None in taken
            self._run([item for item in taken if item is not None])
