"""The archive as a whole, its files and its index: what ``storescp verify`` and ``storescp reindex`` do. No Twisted.

What belongs here: going through all files and all rows, in memory that does not grow with their number, while
the server stores more. Files are read by several processes, the index is used by this one only.

The server gives a file its name first and commits its row after that. So a difference between the two counts only
when both were looked at again, stood still meanwhile, and the file has had its name for a while.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import NamedTuple, TypeVar

from storescp.index import Index, ReceivedInstance, Row
from storescp.part10 import PRIVATE_DIRECTORY
from storescp.stored_file import NotAnInstance, read_instance

#: Files that are read as one job.
CHUNK = 50

#: Rows that are entered or removed in one transaction: the server has to wait for as long as that takes.
MAX_ROWS = 200

#: Seconds, at most, to leave the index to others after a transaction.
MAX_PAUSE = 0.05

#: Seconds for which a file that has just got its name may be without its row.
SETTLING = 10.0

#: Seconds between looks at files that are so new.
INTERVAL = 0.2

#: Differences that wait for a second look at the same time.
MAX_DOUBTS = 10_000

T = TypeVar("T")
R = TypeVar("R")


class ArchiveError(Exception):
    """The work cannot be done. The message is one line for the operator."""


def look_at(what: str, path: str) -> None:
    """Raise ArchiveError unless *path*, which is *what*, is there, and we may know it."""
    try:
        os.stat(path)
    except OSError as error:
        raise ArchiveError(f"{what} {path}: {error.strerror}") from None


class Finding(NamedTuple):
    """Something that is not as it should be.

    ``kind`` is one of missing, not-indexed, unreadable, not-dicom, size, uid, digest.
    """

    kind: str
    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Archive:
    """The files below *root*, and their index."""

    root: str
    index_path: str
    index: Index

    def files(self, report: Callable[[Finding], None]) -> Iterator[str]:
        """The paths of all files, with "/" and relative to the root. Links are followed to files only.

        What cannot be listed is reported.
        """
        directories = [""]
        while directories:
            directory = directories.pop()
            try:
                with os.scandir(os.path.join(self.root, directory)) as entries:
                    for entry in entries:
                        path = f"{directory}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            if path != PRIVATE_DIRECTORY:
                                directories.append(f"{path}/")
                        # The index may stand here too, with its log and its copies.
                        elif not os.path.join(self.root, path).startswith(self.index_path):
                            yield path
            except FileNotFoundError:
                pass  # removed meanwhile
            except OSError as error:
                report(Finding("unreadable", directory, error.strerror or str(error)))

    def exists(self, path: str) -> bool:
        """Whether there is a file at *path*; whoever may not look has to assume it."""
        try:
            os.stat(os.path.join(self.root, path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True


class Workers:
    """*jobs* processes that read files; for one job there are none, and this process does it."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None
        if jobs > 1:
            # Forked while nothing is open and no thread runs: before the index is opened.
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(jobs, context, initializer=_begin_worker)
            self._executor.submit(int).result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            if error is not None:  # whatever they are reading, nobody waits for it
                for process in multiprocessing.active_children():
                    process.terminate()
            self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
        """The results of *function* in order; no more than some calls are ahead of them."""
        if self._executor is None:
            yield from map(function, arguments)
            return
        ahead: deque[Future[R]] = deque()
        for argument in arguments:
            ahead.append(self._executor.submit(function, argument))
            if len(ahead) > 4 * self._jobs:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to decide
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()  # a killed parent leaves nobody behind


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """*items* in lists of *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class Pass:
    """Work that goes once through the whole archive. Afterwards ``files`` and ``findings`` (by kind) are counts.

    *report* gets each finding, *progress* the number of files seen so far, every now and then.
    """

    def __init__(
        self,
        archive: Archive,
        report: Callable[[Finding], None],
        progress: Callable[[int], None],
    ) -> None:
        self._archive = archive
        self._report_to = report
        self._progress = progress
        self.files = 0
        self.findings: dict[str, int] = {}

    def run(self, workers: Workers) -> None:
        """Do it. Raises IndexUnavailable."""
        raise NotImplementedError

    def _report(self, finding: Finding) -> None:
        self.findings[finding.kind] = self.findings.get(finding.kind, 0) + 1
        self._report_to(finding)


# -- verify --


class Checked(NamedTuple):
    """What a worker has found in a chunk: differences by path, and how many files and bytes it looked at."""

    findings: list[Finding]
    files: int
    bytes: int


class Verification(Pass):
    """Compares files and rows. Afterwards ``rows`` and ``bytes`` are counts, too."""

    def __init__(
        self,
        archive: Archive,
        report: Callable[[Finding], None],
        progress: Callable[[int], None] = lambda files: None,
        *,
        digest: bool,
    ) -> None:
        super().__init__(archive, report, progress)
        self._digest = digest
        self._doubts: list[str] = []
        self.rows = 0
        self.bytes = 0

    def run(self, workers: Workers) -> None:
        """Look at everything once, and at what differs once more. Raises IndexUnavailable."""
        archive = self._archive
        check = partial(check_files, archive.root, self._digest)
        jobs = (
            [(path, rows.get(path)) for path in paths]
            for paths in chunks(archive.files(self._report), CHUNK)
            for rows in [find_rows(archive.index, paths)]
        )
        for result in workers.map(check, jobs):
            self.files += result.files
            self.bytes += result.bytes
            self._progress(self.files)
            self._doubt(finding.path for finding in result.findings)
        for batch in archive.index.rows():
            self.rows += len(batch)
            self._doubt(row.path for row in batch if not archive.exists(row.path))
        self._settle()

    def _doubt(self, paths: Iterable[str]) -> None:
        self._doubts += paths
        if len(self._doubts) >= MAX_DOUBTS:
            self._settle()

    def _settle(self) -> None:
        """Look again at what was in doubt, until it has stood still for long enough or is no difference any more."""
        deadline = time.monotonic() + 3 * SETTLING  # what changes all the time is no finding
        self._doubts = list(dict.fromkeys(self._doubts))
        while self._doubts:
            self._doubts = [path for path in self._doubts if not self._judge(path)]
            if not self._doubts or time.monotonic() > deadline:
                break
            time.sleep(INTERVAL)
        self._doubts.clear()

    def _judge(self, path: str) -> bool:
        """Report what is wrong with *path*, if anything; false when it is too early to say."""
        before = self._state(path)
        row, status = before
        if status is not None:
            finding = check_file(self._archive.root, path, row, self._digest)
        elif row is not None:
            finding = Finding("missing", path, "the file is not there")
        else:
            finding = None
        if finding is None:
            return True
        if before != self._state(path):
            return False
        if status is not None and abs(time.time() - status[0] / 1e9) < SETTLING:
            return False
        self._report(finding)
        return True

    def _state(self, path: str) -> tuple[Row | None, tuple[int, ...] | None]:
        row = find_rows(self._archive.index, [path]).get(path)
        try:
            status = os.stat(os.path.join(self._archive.root, path))
        except (FileNotFoundError, NotADirectoryError):
            return row, None
        except OSError:
            return row, (0,)
        return row, (status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino)


def check_files(root: str, digest: bool, items: Sequence[tuple[str, Row | None]]) -> Checked:
    """Compare files with their rows."""
    findings = [
        finding for path, row in items if (finding := check_file(root, path, row, digest)) is not None
    ]
    return Checked(findings, len(items), sum(row.size for _, row in items if row is not None))


def check_file(root: str, path: str, row: Row | None, digest: bool) -> Finding | None:
    """What is wrong with a file, as far as its row can tell; None too when it has gone meanwhile."""
    try:
        size = os.stat(os.path.join(root, path)).st_size
        if row is not None and size != row.size:
            return Finding("size", path, f"{size} bytes, {row.size} in the index")
        algorithm = row.digest.partition(":")[0] if digest and row is not None and row.digest else None
        found = read_instance(root, path, algorithm)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Finding("unreadable", path, error.strerror or str(error))
    except NotAnInstance as error:
        return Finding("not-dicom", path, str(error))
    except ValueError:
        return Finding("digest", path, f"the index has one of an unknown algorithm, {algorithm!r:.40}")
    if row is None:
        return Finding("not-indexed", path, "the index has no row for it")
    if found.sop_instance_uid != row.sop_instance_uid:
        return Finding(
            "uid", path, f"SOP Instance UID {found.sop_instance_uid}, {row.sop_instance_uid} in the index"
        )
    if algorithm is not None and found.digest != row.digest:
        return Finding("digest", path, f"{found.digest}, {row.digest} in the index")
    return None


def find_rows(index: Index, paths: Sequence[str]) -> dict[str, Row]:
    """The rows of *paths*; a name that is no Unicode cannot have one."""
    return index.find_all([path for path in paths if _is_text(path)])


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- reindex --


class Found(NamedTuple):
    """What a worker has made of some files."""

    instances: list[ReceivedInstance]
    findings: list[Finding]


class Reindexing(Pass):
    """Makes the index what the files say. Afterwards ``entered``, ``unchanged`` and ``removed`` are counts, too.

    A file whose row has its path and size is not read, unless *all_files*. *digest* is the algorithm for those
    that are read; without one, a row that was right keeps its digest.
    """

    def __init__(
        self,
        archive: Archive,
        report: Callable[[Finding], None],
        progress: Callable[[int], None] = lambda files: None,
        *,
        all_files: bool,
        digest: str | None,
    ) -> None:
        super().__init__(archive, report, progress)
        self._all = all_files
        self._digest = digest
        self.entered = 0
        self.unchanged = 0
        self.removed = 0

    def run(self, workers: Workers) -> None:
        """Enter what is missing or differs, and remove the rows whose files are gone.

        Raises IndexUnavailable, and ArchiveError when there is no file at all though the index knows some.
        """
        read = partial(read_files, self._archive.root, self._digest)
        waiting: list[ReceivedInstance] = []
        for found in workers.map(read, self._to_read()):
            for finding in found.findings:
                self._report(finding)
            waiting += found.instances
            while len(waiting) >= MAX_ROWS:
                self._enter(waiting[:MAX_ROWS])
                del waiting[:MAX_ROWS]
            self._progress(self.files)
        self._enter(waiting)
        self._remove()
        self._archive.index.make_durable()

    def _to_read(self) -> Iterator[list[tuple[str, Row | None]]]:
        """Files that have to be read, with the rows that they have."""
        return chunks(self._differing(), CHUNK)

    def _differing(self) -> Iterator[tuple[str, Row | None]]:
        for paths in chunks(self._archive.files(self._report), MAX_ROWS):
            rows = find_rows(self._archive.index, paths)
            self.files += len(paths)
            for path in paths:
                row = rows.get(path)
                if self._all or row is None or row.size != self._size(path):
                    yield path, row
                else:
                    self.unchanged += 1

    def _size(self, path: str) -> int:
        try:
            return os.stat(os.path.join(self._archive.root, path)).st_size
        except OSError:
            return -1

    def _enter(self, instances: Sequence[ReceivedInstance]) -> None:
        def is_as_read(instance: ReceivedInstance) -> bool:
            # The server may have put another one in its place; then the row is the server's to write.
            try:
                status = os.stat(os.path.join(self._archive.root, instance.path))
            except OSError:
                return False
            return (status.st_size, status.st_mtime) == (instance.size, instance.received_at)

        began = time.monotonic()
        self.entered += self._archive.index.add_if(instances, is_as_read)
        # Whoever waits for SQLite's lock looks for it now and then: leave it free for as long as it was held.
        time.sleep(min(time.monotonic() - began, MAX_PAUSE))

    def _remove(self) -> None:
        for batch in self._archive.index.rows():
            gone = [row.path for row in batch if not self._archive.exists(row.path)]
            if gone and not self.files:
                raise ArchiveError(
                    f"{self._archive.root} has no files, but the index has rows: is it mounted?"
                )
            if gone:
                self.removed += self._archive.index.remove(gone, lambda path: not self._archive.exists(path))


def read_files(root: str, digest: str | None, items: Sequence[tuple[str, Row | None]]) -> Found:
    """Read files, for the index."""
    found = Found([], [])
    for path, row in items:
        try:
            if not _is_text(path):
                raise NotAnInstance("its name is no Unicode text")
            instance = read_instance(root, path, digest)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.findings.append(Finding("unreadable", path, error.strerror or str(error)))
            continue
        except NotAnInstance as error:
            found.findings.append(Finding("not-dicom", path, str(error)))
            continue
        if (
            digest is None
            and row is not None
            and (row.size, row.sop_instance_uid) == (instance.size, instance.sop_instance_uid)
        ):
            instance = instance._replace(digest=row.digest)
        found.instances.append(instance)
    return found
