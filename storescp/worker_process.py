"""A worker as its parent sees it: starting the process, what goes to it and comes from it, its end.

What belongs here: one place among the workers, which processes fill one after the other. Who gets which
connection, and what follows from the end of a process, is the business of :mod:`storescp.supervisor`.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import IO, NamedTuple

from twisted.internet.base import ReactorBase
from twisted.logger import Logger

from storescp.archive import CannotOpen
from storescp.channel import Channel, Kind
from storescp.reader import Reader
from storescp.shared import Slot

#: Seconds that a process may need to end after it has closed its channel, which takes it a moment.
END_TIMEOUT = 5.0

_OUTPUT = 65536

#: How a process ends that was told to stop.
ORDERLY = "ended with exit code 0"


class Accepted(NamedTuple):
    """A connection that was accepted, whether its peer is to speak TLS, and its IP address: empty if it has none."""

    connection: socket.socket
    secure: bool = False
    host: str = ""


class WorkerProcess:
    """The place *number*, whose counts are in *slot*. ``pid`` is the last process there, which lives since ``began``.

    *relay* is given the lines that its processes write. Called with the place: *ready* when one has become ready to
    serve, *counted* when one says that its counts have changed, and *ended* when one has ended, with how, in words,
    and the connections that it did not take; *owed*, without it, when one says that something is owed.
    """

    log = Logger()

    def __init__(
        self,
        reactor: ReactorBase,
        number: int,
        slot: Slot,
        *,
        relay: Callable[[str], object],
        ready: Callable[[WorkerProcess], None],
        counted: Callable[[WorkerProcess], None],
        ended: Callable[[WorkerProcess, str, list[Accepted]], None],
        owed: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self.is_ready = False
        self.pid = 0
        self.began = 0.0
        self._reactor = reactor
        self._slot = slot
        self._relay = relay
        self._ready = ready
        self._counted = counted
        self._ended = ended
        self._owed = owed
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._readers: list[Reader] = []
        self._line = b""  # what it has begun to write
        self._handed_over = 0  # since the start of the server
        self._sent = 0  # since the start of the process
        self._unacknowledged: deque[Accepted] = deque()  # the last of these, not known to be taken
        self._credentials: IO[bytes] | None = None  # that it has for TLS
        self._configuration: IO[bytes] | None = None  # that it is to have, where it has another one
        self._configured: IO[bytes] | None = None  # the last of these

    # -- what it is given --

    @property
    def is_alive(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def load(self) -> tuple[int, int]:
        """Decides who gets the next connection: the number of those that it has; if equal, of those that it had."""
        return self._slot.waiting + self._slot.associations, self._handed_over

    @property
    def waiting(self) -> int:
        """Its connections without an association, as soon as it has read its messages."""
        return self._slot.waiting

    def take(self, accepted: Accepted, credentials: IO[bytes] | None = None, text: str = "") -> bool:
        """Hand over a connection, which is closed here when it was taken there; false when there is no room for it.

        *credentials* are those of the moment for TLS, if it speaks that; *text* is for who serves it.
        """
        if self._channel is None or not self._send_configuration():
            return False
        if accepted.secure and credentials is not None and credentials is not self._credentials:
            if not self._channel.send(Kind.CREDENTIALS, connection=credentials):
                return False
            self._credentials = credentials
        kind = Kind.SECURE if accepted.secure else Kind.CONNECTION
        if not self._channel.send(kind, text, connection=accepted.connection):
            return False
        self._slot.handed += 1
        self._sent += 1
        self._handed_over += 1
        self._unacknowledged.append(accepted)
        self._let_go()
        return True

    def _let_go(self) -> None:
        """Close the connections that it has taken: as long as they are open here, it cannot end them."""
        while len(self._unacknowledged) > self._sent - self._slot.taken:
            self._unacknowledged.popleft().connection.close()

    def configure(self, configuration: IO[bytes]) -> None:
        """Have it do as the settings in the file *configuration* say, before it takes another connection."""
        if self._channel is not None:
            self._configuration = self._configured = configuration
            self._send_configuration()

    def _send_configuration(self) -> bool:
        """Whether it has, or finds in the channel, what it is to have: there may be no room at the moment."""
        if self._configuration is None:
            return True
        assert self._channel is not None
        if not self._channel.send(Kind.CONFIGURATION, connection=self._configuration):
            return False
        self._configuration = None
        return True

    def drop_oldest(self) -> bool:
        """Have it drop a connection without an association; false when there is no room for the message."""
        if self._channel is None or not self._channel.send(Kind.DROP):
            return False
        self._slot.handed -= 1
        return True

    def stop(self) -> None:
        """Have it stop in good order."""
        if self._channel is not None and not self._channel.send(Kind.STOP):
            self._channel.end()

    def hurry(self) -> None:
        """Have it wait for no association any longer."""
        if self._channel is not None:
            self._channel.send(Kind.HURRY)

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._process.kill()

    # -- its process --

    def spawn(self, workers: int, config: int, counts: int, lock: int) -> None:
        """Start a process: one of *workers*, which inherits these descriptors. Raises OSError."""
        ours, theirs = Channel.pair()
        try:
            process = subprocess.Popen(
                # -P: the working directory is the operator's, and no place for modules.
                [sys.executable, "-P", "-m", "storescp.child"]
                + [str(number) for number in (self.number, workers, theirs.fileno(), counts)],
                stdin=config,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), counts, lock),
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        self.pid = process.pid
        self.attach(ours)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._readers = [
            Reader(self._reactor, ours, self._read_channel),
            Reader(self._reactor, process.stdout, self._read_output),
        ]

    def attach(self, channel: Channel) -> None:
        """A process is at the other end of *channel*."""
        channel.set_blocking(False)
        self._channel, self.began = channel, self._reactor.seconds()
        self.is_ready, self._line = False, b""
        self._sent = 0
        self._credentials = self._configuration = self._configured = None

    def wait_until_ready(self) -> None:
        """At the start of the server, when no reactor runs. Raises CannotOpen."""
        assert self._channel is not None
        self._channel.set_blocking(True)
        message = self._channel.receive()
        self._channel.set_blocking(False)
        if message is None:
            assert self._process is not None and self._process.stdout is not None
            how = _words(self._process.wait())
            said = (self._process.stdout.read() or b"").decode(errors="replace").rstrip()
            last = said.rpartition("\n")[2] or "it said nothing"
            raise CannotOpen(f"worker {self.number} {how} before it was ready: {last}")
        if message.kind is Kind.FAILED:
            raise CannotOpen(message.text)
        self.is_ready = True

    def watch(self) -> None:
        """Hear what it says from now on."""
        for reader in self._readers:
            reader.start()

    def _read_channel(self) -> None:
        assert self._channel is not None
        try:
            message = self._channel.receive()
        except BlockingIOError:
            return
        if message is None:
            self._end()
        elif message.kind is Kind.READY:
            self.is_ready = True
            self._ready(self)
        elif message.kind is Kind.COUNTED:
            self._send_configuration()
            self._let_go()
            self._counted(self)
        elif message.kind is Kind.LOST:
            self._credentials, self._configuration = None, self._configured
            self._send_configuration()
        elif message.kind is Kind.OWED:
            self._owed()
        elif message.kind is Kind.FAILED:
            self.log.error("{why}", why=message.text)

    def _read_output(self) -> bool:
        """Relay the whole lines that it has written; whether there may be more."""
        assert self._process is not None and self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), _OUTPUT)
        except BlockingIOError:
            return False
        if not data:
            self._readers[1].stop()
        lines, end, self._line = (self._line + data).rpartition(b"\n")
        if lines:
            self._relay((lines + end).decode(errors="replace"))
        return bool(data)

    def _end(self) -> None:
        """The channel is closed: the process has ended, or does so at this moment."""
        assert self._process is not None and self._process.stdout is not None
        try:
            how = _words(self._process.wait(END_TIMEOUT))
        except subprocess.TimeoutExpired:
            how = "gave up its channel"
        while self._read_output():
            pass
        if self._line:
            self._relay(self._line.decode(errors="replace") + "\n")
        self._ended(self, how, self.close())

    def close(self) -> list[Accepted]:
        """Forget the process, which has ended or is killed; the connections that it did not take."""
        for reader in self._readers:
            reader.stop()
        self._readers = []
        process, self._process = self._process, None
        self.is_ready = False
        if process is not None:
            process.kill()
            process.wait()
            assert self._channel is not None
            self._channel.close()
            self._channel = None
            assert process.stdout is not None
            process.stdout.close()
        self._let_go()
        left, self._unacknowledged = list(self._unacknowledged), deque()
        self._slot.clear()
        return left


def _words(code: int) -> str:
    """How a process has ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _environment() -> dict[str, str]:
    """Ours, with the directory in front that this package was imported from."""
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
