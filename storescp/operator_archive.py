"""The archive as a whole, its files and its index, as ``storescp verify`` and ``storescp reindex`` go through it.

What belongs here: which files there are, and reading them, in memory that does not grow with their number, while
the server stores more. Files are read by several processes, the index is used by this one only. No Twisted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import NamedTuple, TypeVar

from storescp.index import Index
from storescp.index_rows import Row
from storescp.storage_directory import PRIVATE_DIRECTORY

#: Files that are read as one job.
CHUNK = 50

T = TypeVar("T")
R = TypeVar("R")


class ArchiveError(Exception):
    """The work cannot be done. The message is one line for the operator."""


def look_at(what: str, path: str, *, may_be_missing: bool = False) -> None:
    """Raise ArchiveError unless *path*, which is *what*, is there, if it must be, and we may know it."""
    try:
        os.stat(path)
    except OSError as error:
        if not (may_be_missing and isinstance(error, FileNotFoundError)):
            raise ArchiveError(f"{what} {path}: {error.strerror}") from None


class Finding(NamedTuple):
    """Something that is not as it should be.

    ``kind`` is one of missing, not-indexed, unreadable, not-dicom, size, uid, digest, truncated.
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
            # An interrupt is for us alone to decide on: they never hear of it, from their first moment on.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                first = self._executor.submit(int)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            first.result()

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


def find_rows(index: Index, paths: Sequence[str]) -> dict[str, Row]:
    """The rows of *paths*; a name that is no Unicode cannot have one."""
    return index.find_all([path for path in paths if is_text(path)])


def is_text(path: str) -> bool:
    """Whether the name of a file is Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
