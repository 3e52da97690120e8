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
from storescp.index import Index
from storescp.index_rows import Row
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
        verdicts = dict.fromkeys(request.references, FailureReason.NO_SUCH_OBJECT_INSTANCE)
        paths: dict[Reference, str] = {}
        wanted: dict[str, list[Reference]] = {}
        for reference in verdicts:
            wanted.setdefault(reference.sop_instance_uid, []).append(reference)
            if not self.takes(reference.sop_class_uid):
                verdicts[reference] = FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED
        below = f"{directory}/" if directory else ""
        for row in self._index.find_instances(wanted):
            if not row.path.startswith(below):
                continue
            for reference in wanted.pop(row.sop_instance_uid, ()):
                reason = self._fault(reference, row)
                if reason is None:
                    paths[reference] = row.path
                else:
                    verdicts[reference] = reason
                    wanted.setdefault(row.sop_instance_uid, []).append(reference)
        if paths and not self._is_synced:
            try:
                self._sync(paths.values())
            except OSError:
                verdicts |= dict.fromkeys(paths, FailureReason.PROCESSING_FAILURE)
                paths = {}
        return Report(
            request.transaction_uid,
            tuple(reference for reference in request.references if reference in paths),
            tuple(
                (reference, verdicts[reference]) for reference in request.references if reference not in paths
            ),
        )

    def close(self) -> None:
        """Close the index. Raises IndexUnavailable."""
        self._index.close()

    def _fault(self, reference: Reference, row: Row) -> FailureReason | None:
        """Why the file of *row* cannot be relied upon for *reference*; None if it can."""
        if row.sop_class_uid != reference.sop_class_uid:
            return FailureReason.CLASS_INSTANCE_CONFLICT
        try:
            with closing(Beneath(self._root)) as beneath, open_below(beneath, row.path) as file:
                size = os.fstat(file.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError):
            return FailureReason.NO_SUCH_OBJECT_INSTANCE
        except (NotAnInstance, OSError):
            return FailureReason.PROCESSING_FAILURE
        return None if size == row.size else FailureReason.PROCESSING_FAILURE

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
