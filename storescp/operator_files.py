"""The files that ``storescp send`` is given: which there are, what each is, which go on one association. No Twisted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from storescp import tags
from storescp.pdu import MAXIMUM_CONTEXTS
from storescp.sop_classes import DEFLATED_TRANSFER_SYNTAXES
from storescp.storage_directory import PRIVATE_DIRECTORY
from storescp.stored_file import NotAnInstance, open_file, read_data_set_head, read_file_head

#: Files that go on one association, and are known before it begins.
MAX_FILES = 10_000


class FileToSend(NamedTuple):
    """A file with an instance, ``offset`` bytes into which its data set begins."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    size: int


def files_at(paths: Iterable[str], fail: Callable[[str, str], None]) -> Iterator[str]:
    """The *paths*, and those below where that is a directory; *fail* gets one that cannot be listed, and why."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for directory, directories, names in os.walk(
            path, onerror=lambda error: fail(error.filename, reason(error))
        ):
            # A server's own directory, below its storage directory, has nothing that is whole.
            directories[:] = sorted(set(directories) - {PRIVATE_DIRECTORY})
            yield from (os.path.join(directory, name) for name in sorted(names))


def look_into(path: str) -> FileToSend:
    """What is to be said of the file at *path*. Raises NotAnInstance and OSError."""
    with open_file(path) as content:
        head = read_file_head(content.fileno())
        data_set = read_data_set_head(content.fileno(), head)
        size = os.fstat(content.fileno()).st_size
        deflated = head.transfer_syntax_uid in DEFLATED_TRANSFER_SYNTAXES
        if (size - head.data_set_offset) % 2 and not deflated:
            raise NotAnInstance("its data set has an odd number of bytes")
    # The data set's own UIDs, where it has them: that is what the receiver compares (PS3.4 §B.2.3).
    return FileToSend(
        path,
        data_set.uid(tags.SOP_CLASS_UID) or head.sop_class_uid,
        data_set.uid(tags.SOP_INSTANCE_UID) or head.sop_instance_uid,
        head.transfer_syntax_uid,
        head.data_set_offset,
        size,
    )


def groups(files: Iterable[FileToSend]) -> Iterator[list[FileToSend]]:
    """The files of one association each, in order."""
    group: list[FileToSend] = []
    contexts: set[tuple[str, str]] = set()
    for file in files:
        context = file.sop_class_uid, file.transfer_syntax_uid
        if len(group) == MAX_FILES or (context not in contexts and len(contexts) == MAXIMUM_CONTEXTS):
            yield group
            group, contexts = [], set()
        group.append(file)
        contexts.add(context)
    if group:
        yield group


def reason(error: Exception) -> str:
    """Why a file cannot be sent."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
