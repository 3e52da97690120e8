"""Files whose bytes are in the journal, and what a power cut has left of them. Blocking; no Twisted.

What belongs here: the decision whether a file is what was stored there last, and putting it back where it is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from storescp.journal_file import BEGUN, VOID, Content, Event
from storescp.part10 import StorageDirectory
from storescp.stored_file import NotAnInstance, open_file

_PIECE = 1024 * 1024


def restore(directory: StorageDirectory, events: Iterable[Event]) -> list[str]:
    """Put back what *events*, of all journals of *directory*, have the content of; returns the paths that needed it.

    That a file is missing may as well be somebody else's doing: it comes back all the same. Raises OSError.
    """
    contents: dict[str, list[tuple[Content, set[int]]]] = {}
    for event in sorted(events, key=lambda event: event.stamp):
        stored = contents.setdefault(event.path, [])
        if event.content is not None:
            stored.append((event.content, set()))
        elif event.kind == VOID and stored:
            stored.pop()
        elif event.kind == BEGUN and event.inode and stored:
            stored[-1][1].add(event.inode)  # it was on the disk before it could take the place
    lost = {
        path: stored[-1][0]
        for path, stored in contents.items()
        if stored and not _is_there(directory.path_of(path), *stored[-1])
    }
    rewrite(directory, lost)
    return list(lost)


def rewrite(directory: StorageDirectory, contents: Mapping[str, Content]) -> None:
    """Write *contents* to the disk as new files, which get these paths whoever has them now. Raises OSError."""
    for path, content in contents.items():
        file = directory.create()
        try:
            for piece in _pieces(content):
                file.write([piece])
            file.sync()
            try:
                directory.name(file, path)
            except FileExistsError:
                directory.forget(directory.replace(file, path))
        finally:
            file.close()
    directory.sync_directories(contents)


def _is_there(path: str, content: Content, later: set[int]) -> bool:
    """Whether the file at *path* has these bytes, or is one of those that came *later* with a sync of its own."""
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            if status.st_ino in later:
                return True
            return status.st_size == content.size and all(
                file.read(len(piece)) == piece for piece in _pieces(content)
            )
    except FileNotFoundError:
        return False
    except NotAnInstance:  # no regular file: somebody else's, and more than we would take away
        return True


def _pieces(content: Content) -> Iterator[bytes]:
    with open(content.file, "rb") as source:
        source.seek(content.offset)
        for start in range(0, content.size, _PIECE):
            yield source.read(min(_PIECE, content.size - start))
