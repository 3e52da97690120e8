"""Storage of instances: :class:`~storescp.interfaces.IInstanceStore` over files, index and threads.

What belongs here: the life of one instance between its first fragment and its status, and the one place
where a failure becomes a Status. How a complete file becomes a stored one is the business of
:mod:`storescp.commit`.
"""

from __future__ import annotations

import datetime
import hashlib
import time
import zlib
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp import tags
from storescp.commit import Committer, DuplicateInstance
from storescp.dataset_head import Head, HeadError, HeadReader
from storescp.dimse import Status
from storescp.flushing import start_writing
from storescp.index import IndexUnavailable
from storescp.index_rows import ReceivedInstance
from storescp.interfaces import Answer, IFlow, IIncomingInstance, IInstanceStore, Origin, Outcome
from storescp.naming import Naming, UnsafeUID, relative_path
from storescp.part10 import FileMeta, UnnamedFile
from storescp.space import FreeSpace, LowSpace
from storescp.storage_directory import StorageDirectory
from storescp.worker import Background, Periodic, Worker

#: Bytes that make a hop to a thread worth while; an object below this makes just one.
BATCH_BYTES = 1024 * 1024

#: Bytes of a file that is synced together with others, by way of the journal: it is written twice. A larger one has a
#: sync of its own, which costs it less than that.
JOURNAL_BYTES = 256 * 1024

#: Seconds until the journal's files are brought to the disk. For so long they may come back after a crash although
#: somebody has taken them away.
CHECKPOINT = 5.0

#: What a piece costs beside its bytes, so that a data set in crumbs is bounded like any other.
PIECE_OVERHEAD = 1024

#: A data set below this does not keep alive what came in the same read: many may wait, each with 256 KiB for company.
SMALL = 32 * 1024


class Mismatch(ValueError):
    """The data set is not of the SOP class or instance that the command named."""


class MissingUID(ValueError):
    """The data set lacks a UID without which an instance has no place."""


@implementer(IInstanceStore)
class InstanceStore:
    """Stores instances under *directory* by way of *committer*.

    One thread writes: it takes all that wait, so that they share the syncs, and has the interpreter to itself while
    the reactor sleeps. *space* is asked before a file is begun; *digest*, an algorithm of hashlib, is computed of
    each file.
    """

    log = Logger()

    def __init__(
        self,
        reactor: IReactorFromThreads,
        clock: IReactorTime,
        directory: StorageDirectory,
        committer: Committer,
        *,
        naming: Naming,
        threaded: bool = True,
        space: FreeSpace | None = None,
        digest: str | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.naming = naming
        self.space = space
        self.digest = digest
        self.wall_clock = wall_clock
        self.worker: Worker[IncomingInstance] = Worker(
            reactor, clock, self._run, self._done, can_wait=IncomingInstance.can_wait, threads=int(threaded)
        )
        self.collect = self.worker.collect
        self.hurry = self.worker.hurry
        self._judge = committer.judge
        self._checkpoint = committer.checkpoint
        self._checkpoints: Periodic | None = None
        if directory.sync and threaded:
            self._checkpoints = Periodic(self._try_checkpoint, CHECKPOINT)
        self._commit = committer.commit
        self._acknowledged = committer.acknowledged
        self._settle: Callable[[tuple[str, bool]], None] = lambda answer: committer.settle([answer])
        self._answers: Background[tuple[str, bool]] | None = None
        if threaded:
            self._answers = Background(committer.settle)
            self._settle = self._answers.put
        self._metas: dict[tuple[str, str, str, str], FileMeta] = {}

    def stop(self) -> None:
        """End the threads that work beside the worker's. Blocks for as long as the disk makes them wait."""
        if self._checkpoints is not None:
            self._checkpoints.stop()
        if self._answers is not None:
            self._answers.stop()

    def begin(self, origin: Origin, flow: IFlow) -> IIncomingInstance:
        """See IInstanceStore."""
        return IncomingInstance(self, origin, flow)

    def acknowledged(self, path: str) -> None:
        """See IInstanceStore."""
        if not self._acknowledged(path):
            self._settle((path, True))

    def unacknowledged(self, path: str) -> None:
        """See IInstanceStore."""
        self._settle((path, False))

    def file_meta(self, origin: Origin) -> bytes:
        """The beginning of the file of an instance."""
        key = (
            origin.sop_class_uid,
            origin.transfer_syntax_uid,
            origin.calling_ae_title,
            origin.called_ae_title,
        )
        meta = self._metas.get(key)
        if meta is None:
            if len(self._metas) >= 1000:
                self._metas.clear()
            meta = self._metas[key] = FileMeta(*key)
        return meta.encode(origin.sop_instance_uid)

    # -- on a worker's thread --

    def _run(self, jobs: list[IncomingInstance]) -> list[IncomingInstance]:
        complete = []
        for job in jobs:
            try:
                if job.take_chunk():
                    complete.append(job)
            except Exception as error:  # noqa: BLE001 - whatever it is becomes this instance's status
                job.fail(error)
        if not complete:
            return jobs
        # Who wants a name that is being given waits for the outcome, so that a duplicate is never judged by a file
        # that is about to be taken back.
        first: dict[str, IncomingInstance] = {}
        for job in complete:
            first.setdefault(job.path, job)
        waiting = [job for job in complete if first[job.path] is not job]
        self._store(list(first.values()))
        for job in waiting:
            self.worker.put_again(job)
        return [job for job in jobs if job not in waiting] if waiting else jobs

    def _store(self, jobs: list[IncomingInstance]) -> None:
        """Make *jobs*, whose files are complete, final; each ends stored or failed."""
        self._commit(jobs)
        for job in jobs:
            job.content = ()
            try:
                if job.exists and job.error is None:
                    self._judge(job)
            except Exception as error:  # noqa: BLE001 - whatever it is becomes this instance's status
                job.error = error
            job.settle()  # first: who has the answer may look for what is left
            job.reply()

    def _try_checkpoint(self) -> None:
        try:
            self._checkpoint()
        except (OSError, IndexUnavailable) as error:
            self.log.error(
                "what was stored last cannot be brought from the journal to its place: {error}", error=error
            )

    # -- on the reactor's thread --

    def _done(self, job: IncomingInstance) -> None:
        job.chunk_done()

    def outcome_of(self, error: Exception, association_id: str) -> tuple[Status, str]:
        """The status that *error* earns, and the comment that goes with it."""
        if isinstance(error, DuplicateInstance):
            return Status.DUPLICATE_SOP_INSTANCE, "the instance is stored already"
        if isinstance(error, Mismatch):
            return Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, str(error)
        if isinstance(error, HeadError | MissingUID | UnsafeUID):
            return Status.CANNOT_UNDERSTAND, str(error)
        if isinstance(error, LowSpace):
            return Status.OUT_OF_RESOURCES, str(error.strerror)  # who watches the space has said so
        if isinstance(error, OSError):
            self.log.error("cannot store: {error}", error=error, association=association_id)
            return Status.OUT_OF_RESOURCES, error.strerror or "write error"
        if isinstance(error, IndexUnavailable):
            self.log.error("cannot store: {error}", error=error, association=association_id)
            return Status.OUT_OF_RESOURCES, "the index is unavailable"
        self.log.failure("an instance could not be stored", Failure(error), association=association_id)
        return Status.PROCESSING_FAILURE, "internal error"


@implementer(IIncomingInstance)
class IncomingInstance:
    """One instance. It belongs to the reactor's thread, but while a chunk is out, ``chunk`` and what
    stands under it belong to the worker's.
    """

    __slots__ = (
        "_answer",
        "_cancelled",
        "_complete",
        "_finished",
        "_flow",
        "_held",
        "_pieces",
        "_running",
        "_size",
        "_store",
        "checksum",
        "chunk",
        "chunk_held",
        "content",
        "data_set_offset",
        "digest",
        "duplicate",
        "error",
        "exists",
        "file",
        "final",
        "head",
        "is_answered",
        "is_begun",
        "is_open",
        "origin",
        "path",
        "reader",
        "received_at",
        "replaced",
        "transfer_syntax_uid",
    )

    def __init__(self, store: InstanceStore, origin: Origin, flow: IFlow) -> None:
        self._store = store
        self._flow = flow
        self._pieces: list[bytes | memoryview] = []
        self._held = 0
        self._size = 0
        self._complete = False
        self._cancelled = False
        self._running = False
        self._finished: Deferred[Outcome] = Deferred()
        self.origin = origin
        self.duplicate = origin.duplicate
        self.chunk: list[bytes | memoryview] = []
        self.chunk_held = 0
        self.content: Sequence[bytes | memoryview] = ()
        self.checksum = 0
        self.final = False
        self.error: Exception | None = None
        self.file: UnnamedFile | None = None
        self.reader: HeadReader | None = HeadReader(origin.transfer_syntax_uid)
        self.head: Head | None = None
        self.path = ""
        self.received_at = 0.0
        self.replaced: str | None = None
        self.transfer_syntax_uid = origin.transfer_syntax_uid
        self.data_set_offset = 0
        self.digest = hashlib.new(store.digest) if store.digest is not None else None
        self.exists = False
        self.is_begun = False
        self.is_open = False
        self.is_answered = False
        self._answer: Answer | None = None

    # -- on the reactor's thread --

    def write(self, data: memoryview) -> None:
        """See IIncomingInstance."""
        size = len(data)
        self._size += size
        if self.error is not None and not self._running:
            return
        size += PIECE_OVERHEAD
        self._pieces.append(data)
        self._held += size
        is_enough = self._flow.held(size)
        if is_enough:
            self._store.hurry()
        if (is_enough or self._held >= BATCH_BYTES) and not self._running:
            self._submit()

    def finish(self, answer: Answer | None = None) -> Deferred[Outcome]:
        """See IIncomingInstance."""
        self._answer = answer
        self._complete = True
        if self._size < SMALL and self._pieces and _is_crumb(self._pieces):
            self._pieces = [b"".join(self._pieces)]
        if not self._running:
            self._submit()
        return self._finished

    def cancel(self) -> None:
        """See IIncomingInstance."""
        self._cancelled = True
        self._drop()
        if not self._running and self.file is not None:
            self._submit()  # closing a large file can take a while: not here

    def chunk_done(self) -> None:
        """The worker is through with the chunk."""
        # Which may bring more at once: before the chunk is given up.
        is_enough = self._flow.released(self.chunk_held)
        if is_enough:
            self._store.hurry()
        self._running = False
        if self._cancelled:
            if self.file is not None:
                self._submit()
        elif self.final:
            self._finished.callback(self._outcome())
        elif self.error is not None:
            self._drop()
            if self._complete:
                self._finished.callback(self._outcome())
        elif self._complete or self._held >= BATCH_BYTES or (is_enough and self._held):
            self._submit()

    def _submit(self) -> None:
        if self._complete and self.error is not None:
            self._finished.callback(self._outcome())
            return
        self._running = True
        self.final = self._complete and not self._cancelled
        self.chunk, self._pieces = self._pieces, []
        self.chunk_held, self._held = self._held, 0
        self._store.worker.put(self)

    def _drop(self) -> None:
        held, self._held = self._held, 0
        self._pieces = []
        self._flow.released(held)

    def _outcome(self) -> Outcome:
        status, comment = Status.SUCCESS, ""
        if self.error is not None:
            status, comment = self._store.outcome_of(self.error, self.origin.association_id)
        return Outcome(status, comment, self._size, self.path, self.head, self.is_open, self.is_answered)

    # -- on a worker's thread --

    def take_chunk(self) -> bool:
        """Write the chunk; true when the file is complete and has to be stored. Raises what failed."""
        if self._cancelled:
            self.settle()
            return False
        chunk, self.chunk = self.chunk, []
        if self.reader is not None:
            for piece in chunk:
                if self.reader.feed(piece):
                    self._identify(self.reader)
                    break
            else:
                if self.final:
                    self._identify(self.reader)
        if self.file is None:
            if self._store.space is not None:
                self._store.space.check()
            directory = self._store.directory
            is_small = directory.sync and self.final and self._size <= JOURNAL_BYTES
            self.file = directory.create(is_safe=is_small)
            file_meta = self._store.file_meta(self.origin)
            self.data_set_offset = len(file_meta)
            chunk.insert(0, file_meta)
            if is_small:
                self.content = chunk
        if chunk:
            self.file.write(chunk)
            if self._store.directory.sync and not self.content:
                start_writing(self.file.descriptor)
                for piece in chunk:
                    self.checksum = zlib.crc32(piece, self.checksum)
        if self.digest is not None:
            for piece in chunk:
                self.digest.update(piece)
        return self.final

    def reply(self) -> None:
        """It is stored: the sender need not wait until the reactor's thread has time for it."""
        if self.error is None and self._answer is not None:
            self.is_answered = self._answer(Status.SUCCESS, "")

    def can_wait(self) -> bool:
        """Whether nobody waits for the result: neither the sender nor, being small, a transport that was paused."""
        return self.is_answered and self.chunk_held < BATCH_BYTES

    def row(self) -> ReceivedInstance:
        """What the index is to know."""
        assert self.head is not None and self.file is not None
        origin = self.origin
        return ReceivedInstance(
            self.head,
            origin.sop_class_uid,
            origin.sop_instance_uid,
            origin.transfer_syntax_uid,
            self.path,
            self.file.size,
            origin.calling_ae_title,
            self.received_at,
            f"{self.digest.name}:{self.digest.hexdigest()}" if self.digest is not None else None,
        )

    def fail(self, error: Exception) -> None:
        """*error* is how this ends."""
        self.error = error
        self.settle()

    def settle(self) -> None:
        """Let go of the file: what has no name now is gone."""
        file, self.file = self.file, None
        try:
            if file is not None:
                file.close()
            if self.replaced is not None and self.error is None:
                self._store.directory.forget(self.replaced)
        except OSError as error:
            # Nothing that an answer depends on: a hidden name stays until the next start removes it.
            association = self.origin.association_id
            self._store.log.warn("cannot clean up: {error}", error=error, association=association)

    def _identify(self, reader: HeadReader) -> None:
        self.reader = None
        head = self.head = reader.finish()
        origin = self.origin
        sop_class, instance = head.uid(tags.SOP_CLASS_UID), head.uid(tags.SOP_INSTANCE_UID)
        study, series = head.uid(tags.STUDY_INSTANCE_UID), head.uid(tags.SERIES_INSTANCE_UID)
        for name, uid in (
            ("SOP Class UID", sop_class),
            ("SOP Instance UID", instance),
            ("Study Instance UID", study),
            ("Series Instance UID", series),
        ):
            if uid is None:
                raise MissingUID(f"the data set has no {name}")
        assert instance is not None and study is not None and series is not None
        if sop_class != origin.sop_class_uid:
            raise Mismatch("SOP Class UID differs from the command's")
        if instance != origin.sop_instance_uid:
            raise Mismatch("SOP Instance UID differs from the command's")
        self.received_at = self._store.wall_clock()
        date = head.raw.get(tags.STUDY_DATE)
        path = relative_path(
            self._store.naming,
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=instance,
            study_date=date.decode("latin-1").strip("\0 ") if date is not None else None,
            received=datetime.date.fromtimestamp(self.received_at),
        )
        self.path = f"{origin.directory}/{path}" if origin.directory else path


def _is_crumb(pieces: list[bytes | memoryview]) -> bool:
    """Whether a small data set is part of a much larger read."""
    return any(memoryview(memoryview(end).obj).nbytes > 4 * SMALL for end in (pieces[0], pieces[-1]))
