"""etc/storescp.service, as systemd reads it."""

from __future__ import annotations

import configparser
import pathlib
import re
import shlex
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS

ROOT = pathlib.Path(__file__).parent.parent
UNIT = ROOT / "etc" / "storescp.service"


def analyze(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which needs no systemd that runs."""
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)


class UnitTests(SynchronousTestCase):
    """The unit."""

    def setUp(self) -> None:
        self.unit = configparser.RawConfigParser(strict=False)
        self.unit.optionxform = str  # type: ignore[assignment, method-assign]
        self.unit.read(UNIT)

    def test_verify(self) -> None:
        """systemd knows every line of it, where the programs are where it says."""
        unit = pathlib.Path(self.mktemp()) / UNIT.name
        unit.parent.mkdir()
        unit.write_text(UNIT.read_text().replace("/opt/storescp/bin/twistd", sys.executable))
        done = analyze("verify", unit)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_security(self) -> None:
        """Its exposure is 2.0 at most, of 10, as systemd-analyze rates it."""
        done = analyze("security", "--offline=true", "--threshold=20", UNIT)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("Overall exposure level for storescp.service", done.stdout)

    def test_command(self) -> None:
        """It runs twistd in the foreground, without a file of its own process ID, with options that there are."""
        _, *arguments = shlex.split(self.unit["Service"]["ExecStart"])
        before, after = arguments[: arguments.index("storescp")], arguments[arguments.index("storescp") + 1 :]
        self.assertEqual(before, ["-n", "--pidfile="])
        known = {option.name for option in OPTIONS} | {"config"}
        self.assertEqual({name.removeprefix("--") for name in after if name.startswith("-")} - known, set())

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
