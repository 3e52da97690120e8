"""What systemd wants to know of a service: sd_notify(3), and the watchdog of sd_watchdog_enabled(3).

What belongs here: the datagrams. Whether the server is well is the judgement of :mod:`storescp.readiness`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLES = ("WATCHDOG_USEC", "WATCHDOG_PID")

#: Seconds between two lines for ``systemctl status``, where no watchdog wants to hear of us more often.
STATUS_INTERVAL = 30.0


class Systemd:
    """Tells whoever started us, where that wants to know: otherwise it does nothing.

    The variables are taken out of *environment*: they are meant for this process alone. *faults* says what does not
    turn any more, *status* what may be read of the server.
    """

    log = Logger()

    def __init__(
        self,
        environment: MutableMapping[str, str],
        clock: IReactorTime,
        faults: Callable[[], Sequence[str]],
        status: Callable[[], str],
    ) -> None:
        self._address = environment.pop(SOCKET_VARIABLE, "")
        microseconds, pid = (environment.pop(name, "") for name in WATCHDOG_VARIABLES)
        is_watched = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        # Half of what is allowed, as sd_watchdog_enabled(3) advises.
        self._watchdog = int(microseconds) / 2e6 if is_watched and int(microseconds) else 0.0
        self._faults = faults
        self._status = status
        self._turn = LoopingCall(self._tell)
        self._turn.clock = clock

    def ready(self) -> None:
        """The server listens, or has read its settings again."""
        self._send("READY=1")
        if self._address and not self._turn.running:
            self._turn.start(min(self._watchdog or STATUS_INTERVAL, STATUS_INTERVAL))

    def reloading(self) -> None:
        """It reads its settings again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It stops, which may take its time."""
        self._send("STOPPING=1")

    def stopped(self) -> None:
        """It has nothing more to say."""
        if self._turn.running:
            self._turn.stop()

    def _tell(self) -> None:
        lines = [f"STATUS={self._status()}"]
        if self._watchdog:
            faults = self._faults()
            if faults:
                # systemd will end us, and start us again: that is what a watchdog is for.
                self.log.critical("watchdog: {faults}", faults="; ".join(faults))
            else:
                lines.append("WATCHDOG=1")
        self._send(*lines)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.connect(address)
                sender.send("\n".join(lines).encode())
        except OSError as error:
            self.log.warn("cannot notify {address}: {error}", address=self._address, error=error.strerror)
