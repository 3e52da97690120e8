"""Whether the files of the archive are what the index says: what ``storescp verify`` does. No Twisted.

What belongs here: what is a difference, and when it counts. The server gives a file its name first and commits its
row after that. So a difference counts only when both were looked at again, stood still meanwhile, and the file has
had its name for a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from storescp.counting import Count
from storescp.index_rows import Row
from storescp.operator_archive import CHUNK, Archive, Finding, Pass, Workers, chunks, find_rows
from storescp.stored_file import NotAnInstance, examine_instance

#: Seconds for which a file that has just got its name may be without its row.
SETTLING = 10.0

#: Seconds between looks at files that are so new.
INTERVAL = 0.2

#: Differences that wait for a second look at the same time.
MAX_DOUBTS = 10_000


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
            return Finding("size", path, f"{Count(size):byte}, {row.size} in the index")
        algorithm = row.digest.partition(":")[0] if digest and row is not None and row.digest else None
        found, missing = examine_instance(root, path, algorithm)
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
    if missing:
        return Finding("truncated", path, f"its data set ends early: {missing}")
    return None
