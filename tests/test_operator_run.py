"""``storescp run`` and ``storescp completion``: the server by our own command, and the shells' help with typing."""

from __future__ import annotations

import io
import os
import pathlib
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS
from storescp.operator import main
from tests.server import ROOT, Server, environment, run, storescp_run


class RunTests(SynchronousTestCase):
    """The server."""

    def test_serves(self) -> None:
        """It is the server that twistd runs: it answers, and SIGTERM ends it with exit status 0."""
        server = Server(self, command=storescp_run)
        done = run("echoscu", *server.address)
        self.assertEqual(done.returncode, 0, done.stdout)
        server.stop()

    def test_mistake(self) -> None:
        """A mistake is one line and exit status 1, also a port where DCMTK has it."""
        for arguments, expected in (
            (("--port", "x"), "--port: expected a port from 1 to 65535, got 'x'"),
            (("--prot", "1"), "option --prot not recognized (nearest known: --port)"),
            (("11112",), "expected --port 11112, got '11112'"),
        ):
            done = subprocess.run(
                storescp_run(*arguments), env=environment(), capture_output=True, text=True, timeout=30
            )
            self.assertEqual((done.returncode, done.stderr), (1, f"storescp: {expected}\n"))

    def test_help(self) -> None:
        """It is the help of this command, not of twistd, and has every option."""
        done = subprocess.run(
            storescp_run("-h"), env=environment(), capture_output=True, text=True, timeout=30
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout.splitlines()[0], "Usage: storescp run [options]")
        for option in OPTIONS:
            self.assertIn(f"--{option.name}", done.stdout)

    def test_help_cut(self) -> None:
        """Nobody who reads the help any more is no traceback."""
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            storescp_run("-h"), env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=30
        )
        os.close(write)
        self.assertEqual((done.returncode, done.stderr), (1, ""))


class CompletionTests(SynchronousTestCase):
    """What shells complete."""

    def completed(self, *words: str) -> list[str]:
        """What bash offers for the last of *words*."""
        script = pathlib.Path(self.mktemp()).resolve()
        with open(script, "w") as file, redirect_stdout(file):
            self.assertEqual(main(["completion", "bash"]), 0)
        ask = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        ask += '_shtab_storescp storescp "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=30)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.split()

    def test_commands(self) -> None:
        """bash completes the commands."""
        self.assertEqual(self.completed("storescp", "re"), ["reindex"])

    def test_options(self) -> None:
        """It completes every option of the server behind ``run``."""
        offered = self.completed("storescp", "run", "--")
        self.assertEqual({f"--{option.name}" for option in OPTIONS} - set(offered), set())
        self.assertIn("--config", offered)

    def test_files(self) -> None:
        """It completes files where one is expected."""
        self.assertIn("etc/storescp.yaml", self.completed("storescp", "run", "--config", "etc/storescp.y"))

    def test_zsh(self) -> None:
        """There is one for zsh, too."""
        output = io.StringIO()
        with redirect_stdout(output):
            self.assertEqual(main(["completion", "zsh"]), 0)
        self.assertTrue(output.getvalue().startswith("#compdef storescp\n"))

    def test_without_the_library(self) -> None:
        """Without the extra it is one line, which says what to install."""
        errors = io.StringIO()
        with mock.patch.dict(sys.modules, {"shtab": None}), redirect_stderr(errors):
            self.assertEqual(main(["completion", "bash"]), 1)
        self.assertEqual(
            errors.getvalue(),
            "storescp: completion: expected the package that pip install 'storescp[completion]' brings\n",
        )
