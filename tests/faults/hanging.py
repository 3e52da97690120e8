"""Disks that do not answer: one that is frozen, and one whose server never says a word. Only root can.

Who writes to the frozen one waits as for a dead disk: not even SIGKILL ends it. Who waits for the silent one can be
killed, as with NFS. Both are over with the test, and with the process that runs it, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.disks import Mount, among_ourselves, command, make_image
from tests.server import DEADLINE, temporary_directory

# Thaws when its input ends, which it does with the test's process.
_GUARD = 'fsfreeze --freeze "$0" && echo frozen && { read -r _ || :; fsfreeze --unfreeze "$0"; }'


class FreezableDisk:
    """An empty ext4, mounted at ``directory``."""

    def __init__(self, case: SynchronousTestCase) -> None:
        home = temporary_directory(case)
        make_image(home / "disk", "ext4")
        self.directory = Mount(case, home / "mounted", "-o", "loop", home / "disk").directory
        self._guard: subprocess.Popen[str] | None = None
        case.addCleanup(self.thaw)

    def freeze(self) -> None:
        """Have all wait that write to it, from now on."""
        self._guard = guard = subprocess.Popen(
            ["sh", "-c", _GUARD, self.directory],
            env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt is for us
        )
        assert guard.stdout is not None
        line = guard.stdout.readline()
        assert line == "frozen\n", line

    def thaw(self) -> None:
        """Let them go on."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate(timeout=DEADLINE)
            assert guard.returncode == 0, guard.returncode


class SilentDirectory:
    """Makes *directory* one whose file system never answers: FUSE, with a server that reads no question.

    Whoever has opened something below it before goes on with that.
    """

    def __init__(self, case: SynchronousTestCase, directory: pathlib.Path) -> None:
        among_ourselves()
        self._directory = directory
        self._device = os.open("/dev/fuse", os.O_RDWR)
        case.addCleanup(self.end)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if ctypes.CDLL(None, use_errno=True).mount(b"silent", os.fsencode(directory), b"fuse", 0, options):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def end(self) -> None:
        """Whoever waits gets an error, and the directory is there again. Nothing happens the second time."""
        device, self._device = self._device, -1
        if device >= 0:
            os.close(device)
            command("umount", "--lazy", self._directory)
