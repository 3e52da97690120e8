"""Files that only the journal has on the disk, and what a power cut has left of them. Blocking; no Twisted.

What belongs here: the decision whether a file is what was stored there last, and putting it back where it is not: of
a small one the journal has the bytes, of a large one the inode, which has a hidden name yet.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping

from storescp.beneath import SymbolicLink
from storescp.journal_file import VOID, Content, Event
from storescp.part10 import UnnamedFile
from storescp.storage_directory import StorageDirectory
from storescp.stored_file import NotAnInstance, open_below

_PIECE = 1024 * 1024


def restore(directory: StorageDirectory, events: Iterable[Event]) -> list[str]:
    """Put back what *events*, of all journals of *directory*, know the bytes of; returns the paths that needed it.

    That a file is missing may as well be somebody else's doing: it comes back all the same. Raises OSError.
    """
    stored: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event.stamp):
        if event.content is not None or event.inode:
            stored.setdefault(event.path, []).append(event)
        elif event.kind == VOID and stored.get(event.path):
            stored[event.path].pop()
    hidden = directory.leftovers()
    restored = []
    for path, of_path in stored.items():
        if not of_path or _is_there(directory, of_path[-1]):
            continue
        # One with a sync of its own does not count if the power was cut in the middle of that: nobody was told then.
        while of_path and of_path[-1].content is None and not _is_whole(directory, hidden, of_path[-1]):
            of_path.pop()
        if not of_path or _is_there(directory, of_path[-1]):
            continue
        restored.append(path)
        if (content := of_path[-1].content) is not None:
            rewrite(directory, path, content)
        else:
            name = hidden[of_path[-1].inode]
            _put(directory, UnnamedFile(-1, name, directory.hidden_descriptor), path)
    directory.sync_directories(restored)
    return restored


def rewrite(directory: StorageDirectory, path: str, content: Content) -> None:
    """Write *content* to the disk as a new file, which gets this path whoever has it now. Raises OSError.

    The name is still to be synced.
    """
    file = directory.create()
    try:
        for piece in _pieces(content):
            file.write([piece])
        file.sync()
        _put(directory, file, path)
    finally:
        file.close()


def _put(directory: StorageDirectory, file: UnnamedFile, path: str) -> None:
    try:
        directory.name(file, path)
    except FileExistsError:
        directory.forget(directory.replace(file, path))


def _is_there(directory: StorageDirectory, event: Event) -> bool:
    """Whether the file that *event* was about has its name, and all its bytes."""
    content = event.content
    if content is None:  # the name was given when the bytes were on the disk
        return directory.inode_of(event.path) == event.inode
    try:
        with open_below(directory.beneath, event.path) as file:
            return os.fstat(file.fileno()).st_size == content.size and all(
                file.read(len(piece)) == piece for piece in _pieces(content)
            )
    except FileNotFoundError:
        return False
    except NotAnInstance:  # no regular file: somebody else's, and more than we would take away
        return True
    except SymbolicLink:
        if directory.has(event.path):  # it is the file itself
            return True
        raise


def _is_whole(directory: StorageDirectory, hidden: Mapping[int, str], event: Event) -> bool:
    """Whether the file that *event* was about has its hidden name yet, and all its bytes."""
    if event.inode not in hidden:
        return False
    checksum = 0
    with open(directory.open_hidden(hidden[event.inode]), "rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum == event.checksum


def _pieces(content: Content) -> Iterator[bytes]:
    with open(content.file, "rb") as source:
        source.seek(content.offset)
        for start in range(0, content.size, _PIECE):
            yield source.read(min(_PIECE, content.size - start))
