"""Files on their way to a Storage SCP: what ``storescp send`` does. Blocking; no Twisted.

What belongs here: the associations, and what became of each file. Several associations have a thread each: they wait
for the network and the peer, and share nothing but what is still to be sent.
"""

from __future__ import annotations

import heapq
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from storescp.dimse import Status, status_text
from storescp.operator_files import FileToSend, files_at, groups, look_into, reason
from storescp.pdu import UserIdentity
from storescp.scu import SCU, Response
from storescp.scu_errors import AssociationError, ContextNotAccepted
from storescp.stored_file import NotAnInstance, open_file

#: Seconds that nothing is waited for longer before it is tried again.
MAX_DELAY = 60.0


@dataclass(order=True, slots=True)
class _Waiting:
    """A file that is still to be sent, when it is *due* on the monotonic clock; *tries* have failed."""

    due: float
    file: FileToSend = field(compare=False)
    tries: int = field(default=0, compare=False)


class _Queue:
    """The files of a group that are still to be sent. Any thread may take one, and give it back."""

    def __init__(self, files: Sequence[FileToSend]) -> None:
        self.contexts = list(dict.fromkeys((file.sop_class_uid, file.transfer_syntax_uid) for file in files))
        self._ready = deque(_Waiting(0.0, file) for file in files)
        self._later: list[_Waiting] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    def take(self) -> _Waiting | None:
        """One that is due."""
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            if self._later and self._later[0].due <= time.monotonic():
                return heapq.heappop(self._later)
            return None

    def give_back(self, waiting: _Waiting, delay: float) -> None:
        """It is to be sent again, in *delay* seconds."""
        with self._lock:
            waiting.due = time.monotonic() + delay
            heapq.heappush(self._later, waiting)

    def seconds(self) -> float:
        """Until one is due; 0 if it is, or there is none."""
        with self._lock:
            if self._ready or not self._later:
                return 0.0
            return max(0.0, self._later[0].due - time.monotonic())


class Sending:
    """Sends files to *host* and *port*, on *jobs* associations at a time, with *window* operations outstanding on each
    if the peer allows that. Afterwards ``statuses`` (how many of each), ``unsent``, ``retried`` (files that were sent
    more than once) and ``bytes`` (of the files answered) are the counts, and ``errors`` are those of associations.

    What fails for a reason that may pass (no connection or a lost one, a transient rejection, Out of Resources) is
    tried again so many times as *retries* says: after *delay* seconds, and twice as long each time. *report* gets the
    path of each file that was not stored, why, and the status if that is why; *progress* the number of files done so
    far and the number known so far.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        calling_ae_title: str,
        called_ae_title: str,
        timeout: float,
        user: UserIdentity | None = None,
        tls: ssl.SSLContext | None = None,
        window: int = 1,
        jobs: int = 1,
        retries: int = 0,
        delay: float = 1.0,
        report: Callable[[str, str, int | None], None],
        progress: Callable[[int, int], None] = lambda done, known: None,
    ) -> None:
        self._host = host
        self._port = port
        self._calling_ae_title = calling_ae_title
        self._called_ae_title = called_ae_title
        self._timeout = timeout
        self._user = user
        self._tls = tls
        self._window = window
        self._jobs = jobs
        self._retries = retries
        self._delay = delay
        self._report = report
        self._progress = progress
        self._known = 0
        self._lock = threading.Lock()  # for all that follows
        self._stopped = threading.Event()
        self._crash: BaseException | None = None
        self.statuses: Counter[int] = Counter()
        self.unsent = 0
        self.retried = 0
        self.bytes = 0
        self.errors: list[AssociationError] = []

    @property
    def done(self) -> int:
        """Files that were answered or will not be sent."""
        return self.statuses.total() + self.unsent

    def run(self, paths: Sequence[str]) -> None:
        """Send the files at *paths*, and those below where that is a directory.

        Raises AssociationError; the files that were known and not sent are counted then.
        """
        for group in groups(self._files(paths)):
            queue = _Queue(group)
            before = self.unsent
            jobs = min(self._jobs, len(group))
            if jobs == 1:
                self._work(queue)
            else:
                self._work_on_threads(queue, jobs)
            self.unsent += len(queue)
            if self.errors and self.unsent > before:
                raise self.errors[0]

    def _work_on_threads(self, queue: _Queue, jobs: int) -> None:
        def work() -> None:
            try:
                self._work(queue)
            except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
                self._crash = error
                self._stopped.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._stopped.set()  # somebody may have pressed Ctrl-C: who waits for a peer is not waited for
            deadline = time.monotonic() + 1.0
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._crash is not None:
            raise self._crash
        self._stopped.clear()

    def _work(self, queue: _Queue) -> None:
        """Send what there is, on one association after the other."""
        failed = 0  # associations, one after the other
        while len(queue) and not self._stopped.wait(queue.seconds()):
            done = self.done
            try:
                self._send(queue)
            except AssociationError as error:
                failed = 1 if self.done > done else failed + 1
                if not error.is_transient or failed > self._retries:
                    with self._lock:
                        self.errors.append(error)
                    return
                self._stopped.wait(self._pause(failed))
            else:
                failed = 0

    def _send(self, queue: _Queue) -> None:
        """Send files on one association, as many as it takes. Raises AssociationError."""
        with SCU(
            self._host,
            self._port,
            queue.contexts,
            calling_ae_title=self._calling_ae_title,
            called_ae_title=self._called_ae_title,
            timeout=self._timeout,
            user=self._user,
            window=self._window,
            tls=self._tls,
        ) as scu:
            outstanding: dict[int, _Waiting] = {}
            current: _Waiting | None = None
            try:
                while not self._stopped.is_set():
                    current = queue.take() if len(outstanding) < scu.window else None
                    if current is not None:
                        if not self._begin(scu, current, outstanding):
                            break
                    elif not outstanding:
                        return
                    else:
                        self._finish(queue, outstanding, *scu.response())
                # Half of a data set is on its way: no more can be sent.
                current = None
                while outstanding and not self._stopped.is_set():
                    self._finish(queue, outstanding, *scu.response())
                scu.abort()
            except AssociationError as error:
                for message_id, response in scu.arrived():
                    self._finish(queue, outstanding, message_id, response)
                for waiting in (*outstanding.values(), *((current,) if current is not None else ())):
                    self._again(queue, waiting, str(error), error)
                raise

    def _begin(self, scu: SCU, waiting: _Waiting, outstanding: dict[int, _Waiting]) -> bool:
        """Send one file; false when that was the end of the association."""
        file = waiting.file
        try:
            content = open_file(file.path)
        except (OSError, NotAnInstance) as error:
            self._fail(file.path, reason(error))
            return True
        with content:
            try:
                message_id = scu.send(
                    file.sop_class_uid,
                    file.sop_instance_uid,
                    file.transfer_syntax_uid,
                    content.fileno(),
                    file.offset,
                )
            except ContextNotAccepted as error:
                self._fail(file.path, str(error))
                return True
            except OSError as error:
                self._fail(file.path, reason(error))
                return False
        outstanding[message_id] = waiting
        return True

    def _finish(
        self, queue: _Queue, outstanding: dict[int, _Waiting], message_id: int, response: Response
    ) -> None:
        """A file was answered."""
        waiting = outstanding.pop(message_id, None)
        if waiting is None:
            return  # of a file that could not be sent to its end
        status, comment = response
        text = f"{status_text(status)} ({comment})" if comment else status_text(status)
        if status >> 8 == Status.OUT_OF_RESOURCES >> 8 and self._is_given_back(queue, waiting):
            return
        with self._lock:
            self.statuses[status] += 1
            self.bytes += waiting.file.size
            if status != Status.SUCCESS:
                self._report(waiting.file.path, text, status)
            self._progress(self.done, self._known)

    def _again(self, queue: _Queue, waiting: _Waiting, why: str, error: AssociationError) -> None:
        """Nobody knows what became of a file: its association is gone."""
        if not (error.is_transient and self._is_given_back(queue, waiting)):
            self._fail(waiting.file.path, why)

    def _is_given_back(self, queue: _Queue, waiting: _Waiting) -> bool:
        """Whether a file that failed is tried again."""
        waiting.tries += 1
        if waiting.tries > self._retries:
            return False
        with self._lock:
            self.retried += waiting.tries == 1
        queue.give_back(waiting, self._pause(waiting.tries))
        return True

    def _pause(self, tries: int) -> float:
        """Seconds until the next one, after so many *tries*."""
        return min(self._delay * 2.0 ** min(tries - 1, 32), MAX_DELAY)

    def _files(self, paths: Iterable[str]) -> Iterator[FileToSend]:
        for path in files_at(paths, self._fail):
            self._known += 1
            try:
                file = look_into(path)
            except (OSError, NotAnInstance) as error:
                self._fail(path, reason(error))
            else:
                yield file

    def _fail(self, path: str, why: str) -> None:
        with self._lock:
            self.unsent += 1
            self._report(path, why, None)
            self._progress(self.done, self._known)
