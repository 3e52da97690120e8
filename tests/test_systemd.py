"""systemd: the units in etc/, as it reads them, and what it is told by the server."""

from __future__ import annotations

import configparser
import io
import os
import pathlib
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS
from storescp.operator import main
from storescp.readiness import STALL
from storescp.systemd import STATUS_INTERVAL, Systemd
from tests.server import DEADLINE, Server, temporary_directory

ROOT = pathlib.Path(__file__).parent.parent
UNIT = ROOT / "etc" / "storescp.service"
UNITS = [
    path for path in sorted((ROOT / "etc").iterdir()) if path.suffix in (".service", ".socket", ".timer")
]


def analyze(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which needs no systemd that runs."""
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)


def read(path: pathlib.Path) -> configparser.RawConfigParser:
    """What a unit says; of a key that is there twice the last."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(path)
    return unit


class UnitTests(SynchronousTestCase):
    """The unit."""

    def setUp(self) -> None:
        self.unit = read(UNIT)

    def test_verify(self) -> None:
        """systemd knows every line of it and of the units beside it, where the programs are where they say."""
        directory = pathlib.Path(self.mktemp())
        directory.mkdir()
        for unit in UNITS:
            (directory / unit.name).write_text(
                unit.read_text().replace("/opt/storescp/bin/storescp", sys.executable)
            )
        done = analyze("verify", *directory.iterdir())
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_security(self) -> None:
        """Its exposure is 2.0 at most, of 10, as systemd-analyze rates it, and that of the check as well."""
        for unit in UNITS:
            if unit.suffix == ".service":
                done = analyze("security", "--offline=true", "--threshold=20", unit)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn(f"Overall exposure level for {unit.name}", done.stdout)

    def test_command(self) -> None:
        """It runs the server in the foreground, with options that there are."""
        _, command, *arguments = shlex.split(self.unit["Service"]["ExecStart"])
        self.assertEqual(command, "run")
        known = {option.name for option in OPTIONS} | {"config"}
        self.assertEqual(
            {name.removeprefix("--") for name in arguments if name.startswith("-")} - known, set()
        )

    def test_check(self) -> None:
        """The check runs a command of the operator, as the server's user, where the server has its files."""
        check = read(ROOT / "etc" / "storescp-verify.service")["Service"]
        _, *arguments = shlex.split(check["ExecStart"])
        with self.assertRaises(SystemExit) as end, redirect_stdout(io.StringIO()):
            main([*arguments, "--help"])
        self.assertEqual(end.exception.code, 0)
        for key in ("User", "Group", "StateDirectory", "WorkingDirectory"):
            self.assertEqual(check[key], self.unit["Service"][key])

    def test_started(self) -> None:
        """systemd waits until the server listens, and ends one that says no longer that it is well."""
        service = self.unit["Service"]
        self.assertEqual(service["Type"], "notify")
        self.assertGreater(int(service["WatchdogSec"]), 2 * STALL)

    def test_stop(self) -> None:
        """systemd waits longer for the orderly stop than that takes, and signals the server, not its workers."""
        (stop_timeout,) = (option.default for option in OPTIONS if option.name == "stop-timeout")
        self.assertGreater(int(self.unit["Service"]["TimeoutStopSec"]), int(stop_timeout))
        self.assertEqual(self.unit["Service"]["KillMode"], "mixed")

    def test_may_write(self) -> None:
        """What it may write is the state directory, in which it starts; all else is read-only."""
        service = self.unit["Service"]
        self.assertEqual(service["ProtectSystem"], "strict")
        self.assertEqual(service["WorkingDirectory"], f"/var/lib/{service['StateDirectory']}")
        self.assertNotRegex(UNIT.read_text(), re.compile(r"^(ReadWritePaths|BindPaths)=", re.MULTILINE))


class Listener:
    """The socket that systemd listens on."""

    def __init__(self, case: SynchronousTestCase, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self.socket.close)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(DEADLINE)

    def heard(self) -> list[str]:
        """The lines of the next datagram."""
        return self.socket.recv(4096).decode().split("\n")

    def heard_nothing(self) -> bool:
        """Whether there is none."""
        return not select.select([self.socket], [], [], 0)[0]


class NotificationTests(SynchronousTestCase):
    """What systemd is told."""

    def setUp(self) -> None:
        self.address = str(temporary_directory(self) / "notify")
        self.clock = Clock()
        self.faults: list[str] = []

    def systemd(self, variables: Mapping[str, str]) -> Systemd:
        self.environment = {"NOTIFY_SOCKET": self.address, "PATH": "/bin", **variables}
        return Systemd(self.environment, self.clock, lambda: self.faults, lambda: "well")

    def test_status(self) -> None:
        """That it is ready, and now and then how it is; nobody who is started by it is told of the socket."""
        listener = Listener(self, self.address)
        systemd = self.systemd({})
        self.assertEqual(self.environment, {"PATH": "/bin"})
        systemd.ready()
        self.assertEqual([listener.heard(), listener.heard()], [["READY=1"], ["STATUS=well"]])
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(listener.heard(), ["STATUS=well"])
        systemd.stopping()
        systemd.stopped()
        self.assertEqual(listener.heard(), ["STOPPING=1"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_watchdog(self) -> None:
        """The watchdog hears of it twice in its time, but not of a server that does not turn; the log says why."""
        listener = Listener(self, self.address)
        self.systemd({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}).ready()
        self.assertEqual([listener.heard(), listener.heard()], [["READY=1"], ["STATUS=well", "WATCHDOG=1"]])
        self.clock.advance(2)
        self.assertEqual(listener.heard(), ["STATUS=well", "WATCHDOG=1"])
        self.faults.append("process 0 has written nothing for 60 s")
        with capturedLogs() as events:
            self.clock.advance(2)
        self.assertEqual(listener.heard(), ["STATUS=well"])
        self.assertEqual([event["faults"] for event in events], self.faults)

    def test_patient_watchdog(self) -> None:
        """Where the watchdog has more patience the status is as fresh as without one."""
        listener = Listener(self, self.address)
        self.systemd({"WATCHDOG_USEC": "180000000"}).ready()
        self.assertEqual([listener.heard(), listener.heard()], [["READY=1"], ["STATUS=well", "WATCHDOG=1"]])
        self.clock.advance(STATUS_INTERVAL)
        self.assertEqual(listener.heard(), ["STATUS=well", "WATCHDOG=1"])

    def test_watchdog_of_another(self) -> None:
        """A watchdog that is meant for another process hears nothing."""
        listener = Listener(self, self.address)
        self.systemd({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}).ready()
        self.assertEqual([listener.heard(), listener.heard()], [["READY=1"], ["STATUS=well"]])
        self.clock.advance(2)
        self.assertTrue(listener.heard_nothing())

    def test_abstract(self) -> None:
        """A socket without a file is one, too."""
        self.address = f"@storescp-test-{os.getpid()}"
        listener = Listener(self, self.address)
        self.systemd({}).reloading()
        first, second = listener.heard()
        self.assertEqual(first, "RELOADING=1")
        self.assertRegex(second, r"^MONOTONIC_USEC=\d+$")

    def test_nobody_listens(self) -> None:
        """Where nobody listens the log has a line, and the server goes on."""
        with capturedLogs() as events:
            self.systemd({}).stopping()
        self.assertEqual([event["error"] for event in events], ["No such file or directory"])

    def test_without(self) -> None:
        """Without systemd nothing is said, and nothing waits to be."""
        systemd = Systemd({}, self.clock, lambda: self.faults, lambda: "well")
        for tell in (systemd.ready, systemd.reloading, systemd.stopping, systemd.stopped):
            tell()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_life(self) -> None:
        """The server says when it listens, that it is well, when it reads its settings again, and that it stops."""
        for options in ((), ("--workers", 2)):
            listener = Listener(self, self.address)
            with mock.patch.dict(os.environ, NOTIFY_SOCKET=self.address, WATCHDOG_USEC="60000000"):
                server = Server(self, *options)
            self.assertEqual(listener.heard(), ["READY=1"])
            status = "STATUS=running: 0 associations, 0 instances stored, 0 failed"
            self.assertEqual(listener.heard(), [status, "WATCHDOG=1"])
            server.send_signal(signal.SIGHUP)
            self.assertEqual([listener.heard()[0], listener.heard()], ["RELOADING=1", ["READY=1"]])
            server.stop()
            self.assertEqual(listener.heard(), ["STOPPING=1"])
            self.assertTrue(listener.heard_nothing())
            os.unlink(self.address)
