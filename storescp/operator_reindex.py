"""The index made from the files: what ``storescp reindex`` does. No Twisted.

What belongs here: which rows are entered and removed, while the server writes its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from storescp.index_rows import ReceivedInstance, Row
from storescp.operator_archive import (
    CHUNK,
    Archive,
    ArchiveError,
    Finding,
    Pass,
    Workers,
    chunks,
    find_rows,
    is_text,
)
from storescp.stored_file import NotAnInstance, read_instance

#: Rows that are entered or removed in one transaction: the server has to wait for as long as that takes.
MAX_ROWS = 200

#: Seconds, at most, to leave the index to others after a transaction.
MAX_PAUSE = 0.05


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
            if not is_text(path):
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
