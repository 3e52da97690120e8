"""etc/supervisord.conf under the real supervisord."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.server import DEADLINE, ROOT, free_port

CONFIGURATION = ROOT / "etc" / "supervisord.conf"


class SupervisordTests(SynchronousTestCase):
    """The server as a child of supervisord."""

    def setUp(self) -> None:
        # Not mktemp(): the path of a socket has room for about a hundred characters.
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="storescp-"))
        self.addCleanup(shutil.rmtree, self.home)
        self.port = free_port()
        self.output = ""

    def start(self, options: str) -> None:
        """Start supervisord, and with it the server with these options."""
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STORESCP_VENV": sys.prefix,
            "STORESCP_HOME": str(self.home),
            "STORESCP_OPTIONS": options,
        }
        self.supervisord = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONFIGURATION)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(self.end)

    def end(self) -> None:
        """Stop supervisord and its child, whatever state they are in."""
        self.supervisord.terminate()
        try:
            self.supervisord.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.supervisord.kill()
            self.supervisord.communicate()

    def wait_for(self, *patterns: str) -> list[re.Match[str]]:
        """Read the output, beginning with the next line, until each pattern was found in it; return the matches."""
        assert self.supervisord.stdout is not None
        found: dict[str, re.Match[str]] = {}
        watchdog = threading.Timer(DEADLINE, self.supervisord.terminate)
        watchdog.start()
        try:
            for line in self.supervisord.stdout:
                self.output += line
                found.update({p: match for p in patterns if (match := re.search(p, line))})
                if len(found) == len(patterns):
                    return [found[pattern] for pattern in patterns]
        finally:
            watchdog.cancel()
        self.fail(f"supervisord ended before {set(patterns) - set(found)}; its output:\n{self.output}")

    def started(self) -> int:
        """Wait until the server is RUNNING and answers a C-ECHO; return its process id."""
        spawned, _, _ = self.wait_for(
            r"spawned: 'storescp' with pid (\d+)", "storescp entered RUNNING state", f"listening.*{self.port}"
        )
        echo = subprocess.run(
            ["echoscu", "127.0.0.1", str(self.port)], capture_output=True, text=True, timeout=DEADLINE
        )
        self.assertEqual((echo.returncode, echo.stderr), (0, ""))
        return int(spawned[1])

    def control(self, *command: str) -> str:
        """Return what supervisorctl says."""
        return subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(CONFIGURATION), *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        ).stdout

    def test_life(self) -> None:
        """The server answers, comes back when it was killed, reads its settings again, and stops with exit status 0."""
        self.start(f"--port {self.port}")
        first = self.started()
        os.kill(first, signal.SIGKILL)
        self.wait_for("exited: storescp .*SIGKILL")
        second = self.started()
        self.assertNotEqual(first, second)
        self.assertIn(f"RUNNING   pid {second}", self.control("status", "storescp"))

        self.assertEqual(self.control("signal", "HUP", "storescp"), "storescp: signalled\n")
        self.wait_for("SIGHUP: settings read again")

        self.assertEqual(self.control("stop", "storescp"), "storescp: stopped\n")
        (stopped,) = self.wait_for(r"stopped: storescp \((.*)\)")
        self.assertEqual(stopped[1], "exit status 0")
        self.supervisord.terminate()
        self.assertEqual(self.supervisord.wait(DEADLINE), 0)

    def test_bad_option(self) -> None:
        """A server that cannot start does not count as running: supervisord sees its exit status 1 and tries again."""
        self.start("--port 0x")
        self.wait_for(r"exited: storescp \(exit status 1; not expected\)", "--port.*0x")
