"""Ctrl-C at any time of the start."""

from __future__ import annotations

import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.server import DEADLINE, environment, temporary_directory

# Interrupts itself when a module is about to be imported, or asked whether it is a plugin of twistd.
_INTERRUPTED = """
import os, signal, sys
module, statement, *sys.argv = sys.argv[1:]
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
exec(statement)
"""


class InterruptsTests(SynchronousTestCase):
    """The process ends by the signal, for shells with 130, and says nothing."""

    def interrupted(self, module: str, statement: str, *arguments: str) -> None:
        """Start a program that is interrupted when it imports the *module*."""
        home = temporary_directory(self)
        done = subprocess.run(
            [sys.executable, "-c", _INTERRUPTED, module, statement, *arguments],
            cwd=home,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (-signal.SIGINT, "", ""))
        self.assertEqual(list(home.iterdir()), [])

    def test_command(self) -> None:
        """The operator's command, while it is imported and while it imports what only one of its parts needs."""
        command = "from storescp.__main__ import main; sys.exit(main())"
        self.interrupted("storescp.config", command, "storescp", "stats")

    def test_run(self) -> None:
        """``storescp run``, also where twistd looks for plugins and takes any exception for a fault of one."""
        command = "from storescp.__main__ import main; sys.exit(main())"
        for module in ("storescp.service", "twisted.plugins.storescp_plugin"):
            self.interrupted(module, command, "storescp", "run", "--listen", "tcp:0:interface=127.0.0.1")

    def test_thread(self) -> None:
        """What is imported on another thread, which no signal interrupts, is imported all the same."""
        code = "import threading; t = threading.Thread(target=__import__, args=['storescp.tap'])"
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; t.start(); t.join(); import storescp.tap"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_twistd(self) -> None:
        """twistd, as soon as it has come to us."""
        command = "from twisted.scripts.twistd import run; run()"
        self.interrupted(
            "storescp.service",
            command,
            *("twistd", "-n", "--pidfile=", "storescp", "--listen", "tcp:0:interface=127.0.0.1"),
        )
