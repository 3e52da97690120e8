"""The start after a crash: what the journal left open is looked at, file by file. Blocking; no Twisted.

What belongs here: how files and index are brought to agree again. Only the paths in the journal can disagree,
so this takes as long for a small archive as for a large one.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from storescp.beneath import SymbolicLink
from storescp.index import Index
from storescp.index_rows import ReceivedInstance
from storescp.journal import Journal
from storescp.lost_answers import LostAnswers
from storescp.storage_directory import StorageDirectory
from storescp.stored_file import NotAnInstance, read_instance


class Recovered(NamedTuple):
    """What a recovery found. Paths below the storage directory.

    ``entered`` got the row that they lacked, ``without_file`` have a row and no file, ``unreadable`` are files
    that hold no instance (of another program: this one names nothing else), with the reason.
    """

    looked_at: int
    entered: list[str]
    without_file: list[str]
    unreadable: list[tuple[str, str]]


def recover(
    directory: StorageDirectory,
    index: Index | None,
    journal: Journal,
    lost: LostAnswers,
    digest: str | None,
) -> Recovered:
    """Bring *directory* and *index* to agree on what *journal* found, which then is empty; what was open is *lost*.

    What was settled needs a look only where its row is missing: a power cut takes the last commits of an index
    that is not synced with each. Raises OSError and IndexUnavailable.
    """
    open_paths = set(journal.open_paths)
    rows = index.find_all(journal.found) if index is not None else {}
    missing: list[ReceivedInstance] = []
    without_file: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for path in journal.found:
        row = rows.get(path)
        if not directory.has(path):
            directory.prune(path)
            if row is not None:
                without_file.append(path)
            continue
        if path in open_paths:
            # The process may have died before it synced what it had named.
            with contextlib.suppress(SymbolicLink):
                directory.sync_file(path)
            lost.add(path)
        elif row is not None:
            continue
        if index is None:
            continue
        algorithm = row.digest.partition(":")[0] if row is not None and row.digest else digest
        try:
            instance = read_instance(directory.root, path, algorithm)
        except (NotAnInstance, SymbolicLink) as error:
            unreadable.append((path, str(error)))
            continue
        if row is None or (row.size, row.digest) != (instance.size, instance.digest):
            missing.append(instance)
    if index is not None:
        index.add(missing)
        if directory.sync:
            index.make_durable()  # the journal forgets them
    directory.flush([event.path for event in journal.events if event.content is not None or event.inode])
    journal.reset()
    return Recovered(len(journal.found), [instance.path for instance in missing], without_file, unreadable)
