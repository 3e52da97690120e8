"""Directories to store under, kept so that no run pays for what an earlier one did."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Iterator

_GET_FLAGS, _SET_FLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000  # FS_IOC_GETFLAGS, ..., FS_TOPDIR_FL
_BLOCK = 4 * 1024**2


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A place to measure on: ``directory`` is ours alone.

    ``keep_inodes``: emptied files stay, elsewhere in ``directory``, until the end of the benchmark. ext4 without a
    journal does not use an inode again for minutes after its file was deleted, and every new file searches past
    all of these: a server would be the slower the more files of others had been removed before.
    """

    name: str
    directory: pathlib.Path
    keep_inodes: bool = False
    _removed: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False)

    def new_directory(self, name: str) -> pathlib.Path:
        """An empty directory, on ext4 far away from the others: it places files near their directory."""
        return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))

    def warm(self, size: int) -> None:
        """Writes a file of ``size`` bytes, or half of what is free, and removes it; what others wrote goes to the disk.

        Where a hypervisor takes back free memory, the first write to a page costs ten times the later ones;
        without this, a server would pay for it or not depending on who ran before. And whoever syncs would pay
        for what is left of others.
        """
        size = min(size, shutil.disk_usage(self.directory).free // 2)
        block = bytes(_BLOCK)
        with tempfile.TemporaryFile(dir=self.directory, buffering=0) as file:
            for _ in range(size // _BLOCK):
                file.write(block)
        os.sync()

    def remove(self, path: pathlib.Path) -> None:
        """Removes a file or a directory that was made under ``directory``, or gives back its space."""
        if self.keep_inodes:
            grave = self.directory / "removed"
            grave.mkdir(exist_ok=True)
            path = path.rename(grave / str(next(self._removed)))
            if path.is_dir():
                for folder, _, names in os.walk(path):
                    for name in names:
                        os.truncate(os.path.join(folder, name), 0)
            else:
                os.truncate(path, 0)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def spread(directory: pathlib.Path) -> None:
    """Asks ext4 to place each new directory in ``directory`` in a block group of its own; others do not know it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("l", 0)))
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOPDIR))
    except OSError:
        pass
    finally:
        os.close(descriptor)
