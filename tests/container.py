"""podman for tests, away from the containers, images and networks of the machine; and a base to build an image on.

There is no registry of images here. What python:3.13-slim has and etc/Containerfile uses is made of the machine's own
files: the Python that runs the tests, pip, a shell, some programs, and the libraries that these want.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable

import pip
from twisted.trial.unittest import SynchronousTestCase

from tests.server import environment, temporary_directory

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# What the Containerfile runs, and who looks into a container.
_PROGRAMS = ("sh", "cat", "id", "install", "ls", "nologin", "useradd")
_FILES = ("/etc/login.defs", "/etc/nsswitch.conf", "/usr/lib/locale/C.utf8")
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

# What of Python's library has no use there.
_UNUSED = re.compile(
    r"/(?:test|tests|(?:site|dist)-packages|config-[^/]+|idlelib|tkinter|_tkinter\.[^/]+)\Z|\.opt-\d\.pyc\Z"
)

# How pip comes to the packages; what else it is told, of files for example, is of this machine only.
_PIP_SETTINGS = ("default-timeout", "index-url", "proxy", "timeout", "trusted-host")

# Makes the loopback interface of a new network namespace work, says so, and stays until its input ends.
_NETWORK = """
import fcntl, socket, struct, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as any:
    fcntl.ioctl(any, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
print("up", flush=True)
sys.stdin.read()
"""

# Docker's limits for processes are more than a machine in a container may give; no service of systemd is asked.
_CONTAINERS_CONF = """
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{home}/tmp"
"""
_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "{home}/run"
"""


class Podman:
    """podman with a store and a network namespace of its own, in which its ports are; gone after the test."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.home = temporary_directory(case)
        for name, text in (("containers.conf", _CONTAINERS_CONF), ("storage.conf", _STORAGE_CONF)):
            (self.home / name).write_text(text.format(home=self.home))
        self.environment = environment() | {
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
            # The build may use the network of the machine, and keeps no layers that nobody will use again.
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_LAYERS": "false",
        }
        self._network = subprocess.Popen(
            ["unshare", "--net", "--", sys.executable, "-c", _NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        case.addCleanup(self._network.communicate)
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == "up\n"
        case.addCleanup(self._clean)

    def inside(self, *command: object) -> list[str]:
        """What runs *command* where the containers' ports are."""
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", "--", *map(str, command)]

    def _clean(self) -> None:
        for command in (
            self.inside("podman", "rm", "--all", "--force", "--time", "0"),
            ["umount", str(self.home / "storage" / "overlay")],
        ):
            subprocess.run(command, env=self.environment, capture_output=True)


def pip_variables() -> list[str]:
    """Variables with which pip works elsewhere as it does here."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(re.findall(r"\.([a-z-]+)='(.*)'", said))
    found = [
        f"PIP_{name.upper().replace('-', '_')}={settings[name]}" for name in _PIP_SETTINGS if name in settings
    ]
    return [*found, f"PIP_CERT={_CERTIFICATES}"] if os.path.exists(_CERTIFICATES) else found


def base_archive(into: pathlib.Path) -> pathlib.Path:
    """Write the files of the base *into* an archive that ``podman import`` takes."""
    programs = [str(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")) for name in _PROGRAMS]
    python, library = os.path.realpath(sys.executable), pathlib.Path(sysconfig.get_path("stdlib"))
    modules = [str(path) for path in library.glob("lib-dynload/*.so") if not _UNUSED.search(str(path))]
    with tarfile.open(into, "w") as archive:
        base = _Base(archive)
        for directory in ("/bin", "/sbin", "/lib", "/lib64"):
            if os.path.islink(directory):
                archive.add(directory)
        for path in (*programs, *_libraries([python, *programs, *modules]), *_FILES, _CERTIFICATES):
            base.add(path)
        for name in ("passwd", "group"):
            base.add(f"/usr/share/base-passwd/{name}.master", f"/etc/{name}")
        base.add(python, f"/usr/local/bin/{_PYTHON}")
        base.add(str(library), f"/usr/local/lib/{_PYTHON}")
        base.add(os.path.dirname(pip.__file__), "/usr/local/lib/pip")
        for name, mode, kind, content in (
            ("usr/local/bin/python", 0o777, tarfile.SYMTYPE, _PYTHON),
            ("usr/local/bin/pip", 0o755, tarfile.REGTYPE, '#!/bin/sh\nexec python /usr/local/lib/pip "$@"\n'),
            ("tmp", 0o1777, tarfile.DIRTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.type, entry.linkname = mode, kind, content
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content.encode()))
    return into


class _Base:
    """The archive, in which each file is once."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._names: set[str] = set()

    def add(self, path: str, name: str = "") -> None:
        """Add a file, or a directory with what is in it, under its own name or that one; and what a link leads to."""
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        name = name or real
        if name in self._names or _UNUSED.search(name) or not os.path.lexists(real):
            return
        self._names.add(name)
        self._archive.add(real, name, recursive=False)
        if os.path.islink(real):
            self.add(os.path.join(os.path.dirname(real), os.readlink(real)))
        elif os.path.isdir(real):
            for entry in os.listdir(real):
                self.add(os.path.join(real, entry), os.path.join(name, entry))


def _libraries(programs: Iterable[str]) -> list[str]:
    """The shared libraries of *programs*, and what loads these."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(", said, re.MULTILINE)))
