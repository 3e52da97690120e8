"""The servers that are measured: how each is found, started, and stopped.

A Peer says how to start a server; a Server is one running, with its own storage directory. To measure another
server, add a Peer to PEERS.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence

from bench import procfs
from bench.storage import Storage

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


class PeerMissing(Exception):
    """A peer is not installed; str() is the one line that says so."""


class PeerFailed(Exception):
    """A server did not start or died; str() is one line with the end of its output."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to run: the directory for received objects, one for anything else, and the port."""

    storage: pathlib.Path
    scratch: pathlib.Path
    port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A server as it is started for a measurement.

    ``command`` gives the command line, or raises PeerMissing. ``title`` is the name in tables and plots, which no
    other one has. ``cpus`` are those it may run on, if not all. A peer that uses ``tls`` is sent to over it, one with a
    ``window`` with so many C-STOREs outstanding on an association.
    """

    name: str
    title: str
    command: Callable[[Place], list[str]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cpus: frozenset[int] = frozenset()
    tls: bool = False
    window: int = 1

    def with_arguments(self, arguments: Sequence[str]) -> Peer:
        """The same server with more command line arguments."""
        return dataclasses.replace(self, command=lambda place: [*self.command(place), *arguments])


def _beside_python(name: str) -> str:
    """A script of the running interpreter's environment, else one on PATH."""
    beside = pathlib.Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if not found:
        raise PeerMissing(f"{name} is missing: pip install it into {sys.prefix}")
    return found


def _dcmtk_storescp() -> str:
    """DCMTK's storescp: pynetdicom has a script of the same name, which may come first on PATH."""
    for directory in os.get_exec_path():
        candidate = os.path.join(directory, "storescp")
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            with open(candidate, "rb") as file:
                if file.read(4) == b"\x7fELF":
                    return candidate
    raise PeerMissing("DCMTK's storescp is missing: apt-get install dcmtk")


def _dcmtk(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        # -dhl: no host name look-ups; -pm and +xa: any SOP class, any transfer syntax.
        common = ["+B", "-q", "-dhl", "-pm", "+xa", "-od", str(place.storage)]
        return [_dcmtk_storescp(), *common, *options, str(place.port)]

    return command


def _storescp(*options: str, listen: str = "tcp") -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        where = f"{listen}:{place.port}:interface=127.0.0.1"
        # Others have no limit to the associations, but the memory.
        arguments = ["--storage-dir", str(place.storage), "--max-assoc", "1024", *options]
        return [_beside_python("twistd"), "--pidfile=", "-n", "storescp", "--listen", where, *arguments]

    return command


def _certificate(place: Place) -> list[str]:
    """The files of a private key and of a certificate that is good for a day."""
    key, certificate = (str(place.scratch / name) for name in ("key.pem", "certificate.pem"))
    program = shutil.which("openssl")
    if not program:
        raise PeerMissing("openssl is missing: apt-get install openssl")
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1")
    where = ("-keyout", key, "-out", certificate)
    subprocess.run([program, *made, *where], check=True, capture_output=True)
    return [key, certificate]


def _storescp_tls(place: Place) -> list[str]:
    if importlib.util.find_spec("OpenSSL") is None:
        raise PeerMissing(f"pyOpenSSL is missing: pip install it into {sys.prefix}")
    key, certificate = _certificate(place)
    # The load generator has no certificate.
    tls = ("--tls-key", key, "--tls-certificate", certificate, "--tls-client-cert", "none")
    return _storescp("--sync", "never", *tls, listen="tls")(place)


_RECEIVERS: list[socket.socket] = []  # of audit messages, as long as the benchmark runs


def _observed(place: Place) -> list[str]:
    if importlib.util.find_spec("prometheus_client") is None:
        raise PeerMissing(f"prometheus_client is missing: pip install it into {sys.prefix}")
    # A receiver that reads nothing: over UDP that costs the server as much as one that does.
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    _RECEIVERS.append(receiver)
    audit = ("--audit", f"udp://127.0.0.1:{receiver.getsockname()[1]}")
    web = ("--http", "tcp:0:interface=127.0.0.1")
    return _storescp("--sync", "never", "--log-format", "json", *audit, *web)(place)


def _dcmtk_tls(place: Place) -> list[str]:
    return _dcmtk("+tls", *_certificate(place), "-ic")(place)


def _pynetdicom(place: Place) -> list[str]:
    try:
        __import__("pynetdicom")
    except ImportError:
        raise PeerMissing(f"pynetdicom is missing: pip install it into {sys.prefix}") from None
    arguments = ["-q", "-ba", "127.0.0.1", "-od", str(place.storage), str(place.port)]
    return [sys.executable, "-m", "pynetdicom", "storescp", *arguments]


def _rawcopy(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [sys.executable, "-m", "bench.rawcopy", str(place.port), str(place.storage), *options]

    return command


def _orthanc(*, sync: bool) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
        if not program:
            raise PeerMissing("Orthanc is missing: apt-get install orthanc")
        configuration = place.scratch / "orthanc.json"
        settings = {
            "StorageDirectory": str(place.storage),
            "IndexDirectory": str(place.scratch),
            "DicomPort": place.port,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "HttpServerEnabled": False,
            "SyncStorageArea": sync,
            "Plugins": [],
            # What its documentation offers for speed: the longest PDUs that it knows, no MD5 of every file,
            # a thread for every association, no copies kept in memory.
            "MaximumPduLength": 131072,
            "StoreMD5ForAttachments": False,
            "DicomThreadsCount": 16,
            "MaximumStorageCacheSize": 0,
        }
        configuration.write_text(json.dumps(settings))
        return [program, str(configuration)]

    return command


_NODELAY = {"TCP_NODELAY": "1"}  # read by DCMTK, and by Orthanc, which is built on it

STORESCP = Peer("storescp", "storescp", _storescp("--sync", "never"))  # most others do not sync either
PEERS = (
    STORESCP,
    Peer("storescp-sync", "storescp, synced", _storescp("--sync", "always")),
    Peer("storescp-8", "storescp, synced, window 8", _storescp("--sync", "always"), window=8),
    Peer("storescp-64", "storescp, synced, window 64", _storescp("--sync", "always"), window=64),
    Peer("dcmtk", "DCMTK", _dcmtk(), _NODELAY),
    Peer("dcmtk-128k", "DCMTK, 128 KiB PDUs", _dcmtk("-pdu", "131072"), _NODELAY),
    Peer("pynetdicom", "pynetdicom", _pynetdicom),
    Peer("raw", "raw copy", _rawcopy()),
    Peer("raw-sync", "raw copy, synced", _rawcopy("--sync")),
    Peer("orthanc-sync", "Orthanc, synced", _orthanc(sync=True), _NODELAY),
    Peer("storescp-workers", "storescp, 2 workers", _storescp("--sync", "never", "--workers", "2")),
    Peer("dcmtk-fork", "DCMTK --fork", _dcmtk("--fork"), _NODELAY),
    Peer("storescp-tls", "storescp, TLS", _storescp_tls, tls=True),
    Peer("dcmtk-tls", "DCMTK, TLS", _dcmtk_tls, _NODELAY, tls=True),
    Peer("storescp-observed", "storescp, observed", _observed),
    # Measured by the sweeps, or when asked for by name.
    Peer("storescp-flat", "storescp, flat", _storescp("--sync", "never", "--naming", "flat")),
    Peer("dcmtk-nagle", "DCMTK, Nagle", _dcmtk()),
    Peer("raw-1", "raw copy, 1 process", _rawcopy("--processes", "1")),
    Peer("orthanc", "Orthanc", _orthanc(sync=False), _NODELAY),
)


_kept: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has, nor gets by chance as long as this process lives.

    It is bound already, so that the system gives it to no connection; whoever asks for it, as servers do, may listen.
    """
    kept = socket.socket()
    kept.bind(("127.0.0.1", 0))
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _kept.append(kept)
    port: int = kept.getsockname()[1]
    return port


def environment(peer: Peer) -> dict[str, str]:
    """The environment to start a peer in, in whatever directory."""
    variables = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    variables |= peer.environment
    # The interpreter's own project is importable although the server starts in another directory.
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH"))))
    return variables


class Server:
    """A running peer, to be used in a ``with`` statement; stopped, and its directory removed, at its end.

    Received objects, scratch files and the server's output go into a new directory of the Storage.
    """

    def __init__(self, peer: Peer, storage: Storage) -> None:
        self.peer = peer
        self.storage = storage
        self._directory = directory = storage.new_directory(peer.name)
        self.place = Place(directory / "storage", directory / "scratch", free_port())
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.place.storage.mkdir()
        self.place.scratch.mkdir()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            try:
                # It led a group of its own: children that it left behind go, too.
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.storage.remove(self._directory)

    def _start(self) -> None:
        command = self.peer.command(self.place)
        with open(self._directory / "output", "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.place.scratch,
                env=environment(self.peer),
                start_new_session=True,
            )
        if self.peer.cpus:
            os.sched_setaffinity(self._process.pid, self.peer.cpus)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self.place.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise PeerFailed(f"{self.peer.name} does not listen: {self._last_line()}") from None
                time.sleep(0.02)

    def check(self, wait: float = 0.0) -> None:
        """Raises PeerFailed if the server has ended, or does within ``wait`` seconds."""
        assert self._process is not None
        try:
            status = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return
        raise PeerFailed(f"{self.peer.name} ended with exit code {status}: {self._last_line()}")

    def _last_line(self) -> str:
        try:
            lines = (self._directory / "output").read_text(errors="replace").split("\n")
        except OSError:
            lines = []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_seconds(self) -> float:
        return procfs.cpu_seconds(self.pid)

    def peak_mebibytes(self) -> float:
        return procfs.peak_mebibytes(self.pid)

    def resident_mebibytes(self) -> float:
        return procfs.resident_mebibytes(self.pid)

    def stored_bytes(self) -> int:
        """Size of all files in the storage directory, but for what begins with a dot."""
        total = 0
        for folder, folders, names in os.walk(self.place.storage):
            folders[:] = (name for name in folders if not name.startswith("."))
            total += sum(os.stat(os.path.join(folder, name)).st_size for name in names)
        return total

    def remove_objects(self) -> None:
        """Empties the storage directory, but for what begins with a dot: a server may keep its database there."""
        for entry in self.place.storage.iterdir():
            if not entry.name.startswith("."):
                self.storage.remove(entry)
