"""storescp.log_files: where the log goes, and how its files change."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any, cast

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from storescp.log_files import BadLog, observer_for_twistd, open_log
from storescp.log_settings import LogSettings, Rotation
from storescp.logs import LineObserver


class _Reactor(Clock):
    """Does at once what a signal has it do."""

    running = False

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        function(*arguments)


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = pathlib.Path(self.mktemp()).absolute()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def observer(
        self, options: dict[str, object], settings: LogSettings | None = None
    ) -> LineObserver | None:
        return observer_for_twistd(options, settings or LogSettings(), cast(ReactorBase, _Reactor()))

    def names(self) -> list[str]:
        """The files of the log: what comes after the name of the first."""
        return sorted(
            path.name[len(self.file.name) :] for path in self.file.parent.glob(f"{self.file.name}*")
        )


class TwistdTests(_TestCase):
    """observer_for_twistd()."""

    def test_other_loggers(self) -> None:
        """Who asks twistd for syslog or for a logger of his own gets it."""
        for option in ("syslog", "logger"):
            self.assertIsNone(self.observer({option: "x", "nodaemon": True}))

    def test_logfile(self) -> None:
        """The log goes to the file that twistd's --logfile names, and SIGUSR1 begins a new one."""
        log = Logger("x", observer=self.observer({"logfile": str(self.file)}))
        log.info("hello")
        os.kill(os.getpid(), signal.SIGUSR1)
        log.info("again")
        self.assertRegex(self.file.read_text(), r"\[x#info\] again\n$")
        self.assertRegex(pathlib.Path(f"{self.file}.1").read_text(), r"\[x#info\] hello\n$")

    def test_moved_away(self) -> None:
        """Our own file is opened anew by SIGUSR1, when somebody has moved it."""
        log = Logger("x", observer=self.observer({"nodaemon": True}, LogSettings(file=self.file)))
        log.info("one")
        self.file.rename(f"{self.file}.old")
        log.info("two")
        os.kill(os.getpid(), signal.SIGUSR1)
        log.info("three")
        self.assertEqual(self.file.read_text().count("\n"), 1)
        self.assertRegex(self.file.read_text(), "three\n$")
        self.assertRegex(pathlib.Path(f"{self.file}.old").read_text(), "one\n.*two\n$")

    def test_cannot_be_opened_anew(self) -> None:
        """When the new file cannot be opened, the log goes on in the old one, and says so."""
        directory = self.file.parent / "directory"
        directory.mkdir()
        observer = self.observer({}, LogSettings(file=directory / "log"))
        assert observer is not None
        moved = directory.rename(self.file)
        os.kill(os.getpid(), signal.SIGUSR1)
        Logger("x", observer=observer).info("still here")
        self.assertRegex((moved / "log").read_text(), "still here\n$")

    def test_mistakes(self) -> None:
        """One line tells of a file that cannot be written, and of a second place for the log."""
        here = LogSettings(file=self.file)
        for option in ("syslog", "logger", "logfile"):
            error = self.assertRaises(BadLog, self.observer, {option: "x"}, here)
            self.assertEqual(str(error), f"log-file: expected it without twistd's --{option}, got both")
        nowhere = LogSettings(file=self.file / "log")
        error = self.assertRaises(BadLog, self.observer, {}, nowhere)
        expected = f"log-file: expected a file that can be written, got '{self.file}/log': "
        self.assertEqual(str(error), expected + "No such file or directory")


class RotationTests(_TestCase):
    """Files that are begun anew."""

    def test_size(self) -> None:
        """Beyond a size a new one is begun, and of the older ones so many are kept."""
        out = open_log(LogSettings(file=self.file, rotation=Rotation(size=10), keep=2))
        for number in range(5):
            out.write(f"line {number} 456\n")
        self.assertEqual(self.names(), ["", ".1", ".2"])
        self.assertEqual(self.file.read_text(), "line 4 456\n")
        self.assertEqual(pathlib.Path(f"{self.file}.2").read_text(), "line 2 456\n")

    def test_daily(self) -> None:
        """A day after the last line a new one is begun, and of the older ones so many are kept."""
        out = open_log(LogSettings(file=self.file, rotation=Rotation(daily=True), keep=2))
        pathlib.Path(f"{self.file}.old").touch()  # not one of them
        for day in range(1, 6):
            vars(out)["lastDate"] = (2001, 2, day)
            for path in self.file.parent.glob(f"{self.file.name}.2001*"):
                os.utime(path, (day, int(path.suffix.rpartition("_")[2])))
            out.write(f"after day {day}\n")
        self.assertEqual(self.names(), ["", ".2001_2_4", ".2001_2_5", ".old"])
        self.assertEqual(self.file.read_text(), "after day 5\n")

    def test_none(self) -> None:
        """Without rotation the file grows, and what was there before stays."""
        self.file.write_text("before\n")
        out = open_log(LogSettings(file=self.file))
        out.write("after\n")
        self.assertEqual((self.names(), self.file.read_text()), ([""], "before\nafter\n"))
