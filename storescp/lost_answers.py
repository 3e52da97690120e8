"""Instances whose sender perhaps never got the answer. Blocking; no Twisted.

What belongs here: how they are remembered, over deaths and by all processes of a server: an empty file for each,
named by the digest of its path. There are few: an association must break off at the wrong moment, or the server die.
"""

from __future__ import annotations

import hashlib
import os

from storescp.flushing import sync_path

#: More are not remembered: they would be peers that never release an association.
MAXIMUM = 10_000


class LostAnswers:
    """The set of their paths, kept in *directory*, made if missing. Raises OSError, as every method does.

    *sync*: what is added is on the disk.
    """

    def __init__(self, directory: str, *, sync: bool) -> None:
        self._directory = directory
        self._sync = sync
        os.makedirs(directory, exist_ok=True)
        self._count = len(os.listdir(directory))

    def __contains__(self, path: str) -> bool:
        return os.path.exists(self._mark(path))

    def add(self, path: str) -> None:
        if self._count >= MAXIMUM:
            self._count = len(os.listdir(self._directory))  # others take marks away, too
            if self._count >= MAXIMUM:
                return
        os.close(os.open(self._mark(path), os.O_CREAT | os.O_WRONLY, 0o666))
        self._count += 1
        if self._sync:
            sync_path(self._directory)

    def discard(self, path: str) -> None:
        try:
            os.unlink(self._mark(path))
        except FileNotFoundError:
            return
        self._count -= 1

    def _mark(self, path: str) -> str:
        # A path with a caller's sub-directory can be longer than a name.
        return os.path.join(self._directory, hashlib.sha256(os.fsencode(path)).hexdigest())
