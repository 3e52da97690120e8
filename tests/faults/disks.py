"""File systems for tests, mounted for these alone and unmounted again whatever happens. Only root can."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.server import temporary_directory

#: How to make an empty file system in an image; its size in MiB.
MAKE: dict[str, tuple[int, list[str]]] = {
    "ext4": (64, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0"]),
    "ext4 without journal": (64, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-K"]),
    "btrfs": (128, ["mkfs.btrfs", "-q", "-K"]),
}


def command(*arguments: object, ok: tuple[int, ...] = (0,)) -> None:
    """Run a program to its end. Raises AssertionError with what it said unless its exit code is one of *ok*."""
    done = subprocess.run(
        list(map(str, arguments)),
        env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode not in ok:
        raise AssertionError(f"{' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout}")


@functools.cache
def among_ourselves() -> None:
    """Mounts are to be seen by this process, and by those that it starts, alone: unshare(2).

    Who makes a name space of mounts elsewhere, as every container does, has a copy of all that are mounted at that
    moment. They would outlive our unmounting, and the next one of the same image would be what they remember of it.
    A server sees what is mounted later if it is started after this.
    """
    clone_newns = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newns):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    command("mount", "--make-rprivate", "/")


class Mount:
    """What *arguments* of mount(8) put on *directory*, until :meth:`unmount` or the end of the test."""

    def __init__(self, case: SynchronousTestCase, directory: pathlib.Path, *arguments: object) -> None:
        among_ourselves()
        directory.mkdir(exist_ok=True)
        command("mount", *arguments, directory)
        self.directory = directory
        self._mounted = True
        case.addCleanup(self.unmount)

    def unmount(self) -> None:
        """Nothing happens the second time."""
        if self._mounted:
            self._mounted = False
            try:
                command("umount", self.directory)
            except AssertionError:
                command("umount", "--lazy", self.directory)  # rather than leave it
                raise


def tmpfs(case: SynchronousTestCase, options: str) -> pathlib.Path:
    """A directory that is a tmpfs."""
    return Mount(case, temporary_directory(case) / "tmpfs", "-t", "tmpfs", "-o", options, "tmpfs").directory


def make_image(path: pathlib.Path, kind: str) -> None:
    """An image, most of it holes, with an empty file system of that *kind*."""
    size, make = MAKE[kind]
    with open(path, "wb") as file:
        file.truncate(size << 20)
    command(*make, path)
