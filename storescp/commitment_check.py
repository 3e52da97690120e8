"""Whether instances are safe: what a report on storage commitment says. Blocking; no Twisted.

What belongs here: judging references, PS3.4 §J.3.3.1.2. An instance is committed if the index has it under the same SOP
class and its file is there, with the size that it was stored with. What is in the index is on the disk, or in the
journal, which is: unless the server does not wait for the disk (``--sync never``). Then it is brought there now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing

from storescp.beneath import Beneath
from storescp.commitment_data import FailureReason, Reference, Report, Request
from storescp.flushing import can_sync_file_system, sync_file_system, sync_path
from storescp.index import Index, Row
from storescp.stored_file import NotAnInstance, open_below


class Judge:
    """Judges by *index* and the files below *root*; *takes* says which SOP classes are stored at all.

    *is_synced*: whether what is stored is on the disk already.
    """

    def __init__(self, root: str, index: Index, takes: Callable[[str], bool], *, is_synced: bool) -> None:
        self._root = root
        self._index = index
        self.takes = takes
        self._is_synced = is_synced

    def report(self, request: Request, directory: str = "") -> Report:
        """What to report on *request*; if there is a *directory*, only what is below it counts.

        Raises IndexUnavailable.
        """
        rows = self._index.find_instances({reference.sop_instance_uid for reference in request.references})
        below = f"{directory}/" if directory else ""
        committed: list[tuple[Reference, str]] = []
        failed: list[tuple[Reference, FailureReason]] = []
        for reference in request.references:
            candidates = [
                row for row in rows.get(reference.sop_instance_uid, ()) if row.path.startswith(below)
            ]
            verdict = self._judge(reference, candidates)
            if isinstance(verdict, FailureReason):
                failed.append((reference, verdict))
            else:
                committed.append((reference, verdict))
        if committed and not self._is_synced:
            try:
                self._sync([path for _, path in committed])
            except OSError:
                failed += [(reference, FailureReason.PROCESSING_FAILURE) for reference, _ in committed]
                committed = []
        return Report(request.transaction_uid, tuple(reference for reference, _ in committed), tuple(failed))

    def close(self) -> None:
        """Close the index. Raises IndexUnavailable."""
        self._index.close()

    def _judge(self, reference: Reference, rows: Iterable[Row]) -> str | FailureReason:
        """The path of the file, or why there is none that could be relied upon."""
        reason = FailureReason.NO_SUCH_OBJECT_INSTANCE
        if not self.takes(reference.sop_class_uid):
            reason = FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED
        for row in rows:
            if row.sop_class_uid != reference.sop_class_uid:
                reason = FailureReason.CLASS_INSTANCE_CONFLICT
                continue
            try:
                with closing(Beneath(self._root)) as beneath, open_below(beneath, row.path) as file:
                    status = os.fstat(file.fileno())
            except (FileNotFoundError, NotADirectoryError):
                reason = FailureReason.NO_SUCH_OBJECT_INSTANCE
            except NotAnInstance:
                reason = FailureReason.PROCESSING_FAILURE
            except OSError:
                reason = FailureReason.PROCESSING_FAILURE
            else:
                if status.st_size == row.size:
                    return row.path
                reason = FailureReason.PROCESSING_FAILURE
        return reason

    def _sync(self, paths: Iterable[str]) -> None:
        """Bring files, their names and their rows to the disk. Raises OSError."""
        names = {os.path.join(self._root, path) for path in paths}
        if can_sync_file_system(self._root):
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                device = os.fstat(descriptor).st_dev
                sync_file_system(descriptor)
            finally:
                os.close(descriptor)
            names = {name for name in names if os.stat(name).st_dev != device}
        directories = names
        while directories := {os.path.dirname(name) for name in directories if name != self._root}:
            names = names | directories
        for name in names:
            sync_path(name)
        self._index.make_durable()
