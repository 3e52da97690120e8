"""The real server for tests: ``twistd storescp`` as a child process, and the real senders.

    server = Server(self, "--duplicate", "replace")
    run("storescu", *server.address, "CT_small.dcm")
    server.wait_for("C-STORE from STORESCU")
    server.stop()

Nothing sleeps. What is waited for shows itself: a line in the log, the end of a process, an answer.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

from twisted.trial.unittest import SynchronousTestCase

from bench.peers import free_port as free_port

ROOT = pathlib.Path(__file__).parent.parent

#: Seconds after which something that is waited for counts as not coming.
DEADLINE = 60.0

#: Runs a command as systemd does that has made a socket for it.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "storescp.socket", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""

STOPPED = re.compile(
    r"stopped after (?P<uptime>\d+) s: (?P<associations>\d+) associations? \((?P<rejected>\d+) rejected,"
    r" (?P<aborted>\d+) aborted\), (?P<messages>\d+) messages?, (?P<stored>\d+) instances? stored"
    r" \((?P<bytes_stored>\d+) bytes?\), (?P<failed>\d+) failed, (?P<bytes_received>\d+) bytes? received"
)


def environment() -> dict[str, str]:
    """The environment with this source tree, and without the programs of the virtual environment.

    pynetdicom brings an ``echoscu`` and a ``storescu`` of its own; DCMTK's are meant.
    """
    ours = os.path.dirname(sys.executable)
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry != ours]
    return {**os.environ, "PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT)}


def run(program: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a sender, and return what it said; *variables* join its environment."""
    paths = environment() | variables
    found = shutil.which(program, path=paths["PATH"])
    assert found is not None, f"{program} is not installed"
    try:
        return subprocess.run(
            [found, *map(str, arguments)],
            env=paths,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(
            f"{program} has not ended after {DEADLINE:g} s; it said: {late.output}"
        ) from None


def twistd(*options: object, main: tuple[str, ...] = ("--pidfile=", "-n")) -> list[str | pathlib.Path]:
    """The command line that starts the server; *main* are twistd's own options."""
    return [pathlib.Path(sys.executable).parent / "twistd", *main, "storescp", *map(str, options)]


def storescp_run(*options: object) -> list[str | pathlib.Path]:
    """The command line that starts the server without a word about twistd."""
    return [sys.executable, "-m", "storescp", "run", *map(str, options)]


def run_twistd(
    *options: object,
    cwd: pathlib.Path,
    main: tuple[str, ...] = ("--pidfile=", "-n"),
    inherited: tuple[int, ...] = (),
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run the server until it ends by itself, with *cwd* as its working directory; *variables* join its environment."""
    return subprocess.run(
        twistd(*options, main=main),
        cwd=cwd,
        env=environment() | variables,
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def path_without(package: str, directory: pathlib.Path) -> str:
    """A PYTHONPATH on which *package* cannot be imported, by way of *directory*."""
    (directory / f"{package}.py").write_text(f"raise ImportError('No module named {package}')\n")
    return os.pathsep.join((str(directory), str(ROOT)))


def eventually(condition: Callable[[], object]) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never was"


def descriptors(pid: int) -> list[str]:
    """What a process has open: the path of each, or its kind, as proc(5) has them."""
    found = []
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            found.append(os.readlink(entry))
    return found


def temporary_directory(case: SynchronousTestCase) -> pathlib.Path:
    """A directory that is removed after the test."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="storescp-"))
    case.addCleanup(shutil.rmtree, path)
    return path


def links(path: pathlib.Path) -> int:
    """How many names a file has; 0 when it has just gone."""
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


class Server:
    """A server that runs, on a port of 127.0.0.1 that the kernel chose, storing into a temporary directory.

    Options given here come after those. The test fails at its end unless the server can be stopped by
    SIGTERM with exit code 0, has printed nothing to stderr and has logged no traceback.
    It may be given a socket that is *activated* as by systemd: sd_listen_fds(3).
    """

    def __init__(
        self,
        case: SynchronousTestCase,
        *options: object,
        listen: bool = True,
        activated: socket.socket | None = None,
        command: Callable[..., list[str | pathlib.Path]] = twistd,
    ) -> None:
        self.case = case
        self.home = temporary_directory(case)
        self.storage = self.home / "received"
        self.output = ""
        self._news = threading.Condition()
        self._stopped = False
        where = ("--listen", "tcp:0:interface=127.0.0.1") if listen else ()
        arguments = command("--storage-dir", self.storage, "--stop-timeout", "10", *where, *options)
        inherited: tuple[int, ...] = ()
        if activated is not None:
            inherited = (activated.fileno(),)
            arguments = [sys.executable, "-c", _ACTIVATE, str(activated.fileno()), *arguments]
        with open(self.home / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(
                arguments,
                pass_fds=inherited,
                cwd=self.home,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # for what is sent to the whole group
            )
        case.addCleanup(self._end)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        self.port = int(self.wait_for(r"listening on \S+ port (\d+)")[1])

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    # -- its log --

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Wait until *pattern* was found in the log *count* times since the start; the last of those matches."""
        deadline = time.monotonic() + DEADLINE
        with self._news:
            while True:
                matches = list(re.finditer(pattern, self.output))
                if len(matches) >= count:
                    return matches[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or not (self._reader.is_alive() or self.process.poll() is None):
                    self.case.fail(f"{count} x {pattern!r} has not come.\n{self.output}\n{self.stderr}")
                self._news.wait(min(left, 1.0))

    @property
    def stderr(self) -> str:
        """What it printed to stderr so far."""
        return (self.home / "stderr").read_text("utf-8", "replace")

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                self.output += line
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    # -- its storage and index --

    def files(self) -> dict[str, pathlib.Path]:
        """All files that a visitor of the storage directory sees: relative path -> path."""
        return {
            str(path.relative_to(self.storage)): path
            for path in sorted(self.storage.rglob("*"))
            if path.is_file() and ".storescp" not in path.relative_to(self.storage).parts
        }

    def litter(self) -> list[str]:
        """What must not be there: names that are no finished file, and what a failure left in .storescp."""
        found = []
        for path in sorted(self.storage.rglob("*")):
            name = path.relative_to(self.storage)
            if name.parts[0] == ".storescp":
                # With another name it is finished: this one goes when that is on the disk.
                if "incoming" in name.parts[1:-1] and not path.is_dir() and links(path) == 1:
                    found.append(str(name))
            elif path.is_dir():
                if not any(path.iterdir()):
                    found.append(f"{name}/")
            elif path.suffix != ".dcm" or path.read_bytes()[128:132] != b"DICM":
                found.append(str(name))
        return found

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Query the index through a read-only connection."""
        database = self.storage / ".storescp" / "index.db"
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    # -- its process --

    def memory(self, what: str = "VmHWM") -> int:
        """Bytes resident: VmRSS now, VmHWM at most so far."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) * 1024

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and for the rest of its log; its exit code."""
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> dict[str, int]:
        """Stop it in good order; the numbers of its farewell line."""
        self.send_signal(number)
        return self.stopped()

    def stopped(self, code: int = 0) -> dict[str, int]:
        """Wait for the end of a stop, in good order if the exit *code* is 0; the numbers of its farewell line."""
        self._stopped = True
        self.case.assertEqual((self.wait(), self.stderr), (code, ""), self.output)
        self.case.assertNotIn("Traceback", self.output)
        farewells = list(STOPPED.finditer(self.output))
        self.case.assertEqual(len(farewells), 1, self.output)
        return {name: int(number) for name, number in farewells[0].groupdict().items()}

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self._stopped = True
        self.process.kill()
        self.wait()

    def _end(self) -> None:
        try:
            if not self._stopped:
                self.stop()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.wait()
            assert self.process.stdout is not None
            self._reader.join(DEADLINE)
            self.process.stdout.close()


def wait_for_exit(pid: int) -> None:
    """Wait for the end of a process that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([descriptor], [], [], DEADLINE)[0]:
            raise TimeoutError(f"process {pid} does not end")
    finally:
        os.close(descriptor)


def data_set_offset(content: bytes) -> int:
    """Where the data set begins in a DICOM file, PS3.10 §7.1: behind the last element of group 0002."""
    assert content[128:132] == b"DICM"
    return max((end for end, _, _ in file_meta_elements(content)), default=132)


def file_meta_elements(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The File Meta elements of a DICOM file: (where it ends, element number, value without padding)."""
    position = 132
    while content[position : position + 2] == b"\2\0":
        element = int.from_bytes(content[position + 2 : position + 4], "little")
        long = content[position + 4 : position + 6] in (b"OB", b"UN")
        start = position + (12 if long else 8)
        length = int.from_bytes(content[start - (4 if long else 2) : start], "little")
        position = start + length
        yield position, element, content[start:position].rstrip(b"\0 ")


def data_set_of(path: str | os.PathLike[str]) -> bytes:
    """The encoded data set of a DICOM file: all that follows its File Meta Information."""
    content = pathlib.Path(path).read_bytes()
    return content[data_set_offset(content) :]
