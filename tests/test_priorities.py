"""storescp.priorities: what the journal of systemd is told of a line."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from typing import cast
from unittest import mock

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from storescp.log_files import observer_for_twistd
from storescp.log_lines import FORMATTERS
from storescp.log_settings import LogFormat, LogSettings
from storescp.priorities import VARIABLE, complain, goes_to_journal, marked
from tests.server import environment, storescp_run


class _Reactor(Clock):
    running = False


class MarkTests(SynchronousTestCase):
    """marked()."""

    def test_levels(self) -> None:
        """Each level that the log has gets the priority that syslog has for it."""
        event = {"log_namespace": "storescp.scp", "log_format": "text", "association": "abcd-1"}
        levels = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
        for level, priority in levels.items():
            for formatted in FORMATTERS.values():
                line = formatted(event, "2026-11-25T19:53:02.973", "+0000", level)
                self.assertEqual(marked(line), f"<{priority}>{line}")

    def test_further_lines(self) -> None:
        """What is indented has the priority of its first line; what no logger has written is an error."""
        text = "T [x#info] a\n\tb\nSegmentation fault\n\tc\nT [x#warn] [a#info] d\n"
        self.assertEqual(
            [line[:3] for line in marked(text).splitlines()], ["<6>", "<6>", "<3>", "<3>", "<4>"]
        )
        self.assertEqual(marked(text).replace("<6>", "").replace("<3>", "").replace("<4>", ""), text)


class JournalTests(SynchronousTestCase):
    """Who reads."""

    def setUp(self) -> None:
        self.theirs, ours = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.file = ours.makefile("w", encoding="utf-8")
        ours.close()
        self.addCleanup(self.file.close)
        status = os.fstat(self.file.fileno())
        self.stream = f"{status.st_dev}:{status.st_ino}"

    def test_stream(self) -> None:
        """The variable must name the very stream; one that somebody has inherited says nothing of another file."""
        self.assertTrue(goes_to_journal(self.file, {VARIABLE: self.stream}))
        self.assertFalse(goes_to_journal(self.file, {}))
        with open(os.devnull, "w") as other:
            self.assertFalse(goes_to_journal(other, {VARIABLE: self.stream}))
        self.assertFalse(goes_to_journal(io.StringIO(), {VARIABLE: self.stream}))

    def test_complaint(self) -> None:
        """Why something cannot be done is an error for the journal, and a plain line for anybody else."""
        complain("no", self.file)
        with mock.patch.dict(os.environ, {VARIABLE: self.stream}):
            complain("no", self.file)
        self.assertEqual(self.theirs.recv(100), b"storescp: no\n<3>storescp: no\n")

    def log(self, settings: LogSettings) -> bytes:
        """What a logger writes to the stream as standard output."""
        with mock.patch("sys.stdout", self.file), mock.patch.dict(os.environ, {VARIABLE: self.stream}):
            observer = observer_for_twistd({"nodaemon": True}, settings, cast(ReactorBase, _Reactor()))
        assert observer is not None
        Logger("x", observer=observer).warn("hello")
        return self.theirs.recv(1000)

    def test_log(self) -> None:
        """Lines have their priority, in either format."""
        self.assertRegex(self.log(LogSettings()), rb"^<4>\S+ \[x#warn\] hello\n$")
        self.assertRegex(self.log(LogSettings(format=LogFormat.JSON)), rb'^<4>\{"time".*\}\n$')

    def test_command(self) -> None:
        """A start that fails is an error in the journal."""
        variables = environment() | {VARIABLE: self.stream}
        process = subprocess.Popen(storescp_run("--port", "x"), env=variables, stderr=self.file.fileno())
        self.assertEqual(process.wait(30), 1)
        self.assertRegex(self.theirs.recv(1000), rb"^<3>storescp: --port: expected [^\n]+\n$")
