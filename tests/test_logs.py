"""storescp.logs: what an event looks like as a line, and when lines are written."""

from __future__ import annotations

import io
import pathlib
import signal
import time
from collections.abc import Callable
from typing import cast

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from storescp.logs import DELAY, KINDS, LineObserver, Repeated, info_emitter, log_again, observer_for_twistd


class LineObserverTests(SynchronousTestCase):
    """LineObserver."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.out = io.StringIO()

    def logger(self, level: LogLevel = LogLevel.info, *, collecting: bool = False) -> Logger:
        def schedule(flush: Callable[[], None]) -> None:
            self.clock.callLater(DELAY, flush)

        observer = LineObserver(self.out, level, schedule if collecting else None)
        return Logger("storescp.test", observer=observer)

    def test_line(self) -> None:
        """An event is one line: local time with offset, where from, how important, the text with its fields."""
        self.logger().info("{size} bytes in {ms:.1f} ms from {calling!r}", size=8, ms=1.26, calling="A")
        self.assertRegex(
            self.out.getvalue(),
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} \[storescp\.test#info\] 8 bytes in 1\.3 ms from 'A'\n$",
        )

    def test_level(self) -> None:
        """Only events of the level and above are written."""
        log = self.logger(LogLevel.warn)
        log.debug("one")
        log.info("two")
        log.warn("three")
        log.error("four")
        self.assertEqual(
            [line.split("] ")[1] for line in self.out.getvalue().splitlines()], ["three", "four"]
        )

    def test_another_level(self) -> None:
        """The level can change."""
        observer = LineObserver(self.out, LogLevel.warn)
        log = Logger("storescp.test", observer=observer)
        for level in (LogLevel.info, LogLevel.error):
            log.info("before")
            observer.set_level(level)
            log.info("after")
        self.assertEqual(
            [line.split("] ")[1] for line in self.out.getvalue().splitlines()], ["after", "before"]
        )

    def test_no_forged_lines(self) -> None:
        """A field with a line break in it cannot begin a line of the log."""
        self.logger().info("{name}", name="x\n2026-01-01T00:00:00 [forged]")
        _, second = self.out.getvalue().splitlines()
        self.assertTrue(second.startswith("\t2026"), second)

    def test_collected(self) -> None:
        """Lines are collected for one write; a warning takes along at once what waits."""
        log = self.logger(collecting=True)
        log.info("one")
        log.info("two")
        self.assertEqual(self.out.getvalue(), "")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(DELAY)
        self.assertEqual(self.out.getvalue().count("\n"), 2)
        log.info("three")
        log.warn("four")
        self.assertEqual(self.out.getvalue().count("\n"), 4)

    def test_failure(self) -> None:
        """A failure is logged with its traceback."""
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError:
            self.logger().failure("it broke", Failure())
        self.assertIn("it broke", self.out.getvalue())
        self.assertIn("ZeroDivisionError: why", self.out.getvalue())

    def test_bad_format(self) -> None:
        """An event whose fields do not fit its format is still a line."""
        self.logger().info("{size:d} bytes", size="many")
        self.assertIn("many", self.out.getvalue())
        self.assertEqual(self.out.getvalue().count("\n"), 1)


class InfoEmitterTests(SynchronousTestCase):
    """info_emitter()."""

    def test_same_event(self) -> None:
        """Observers get what Logger.info would give them, in every field."""
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            # trial's own observer adds fields for older ones
            events.append({name: event[name] for name in event if name.startswith(("log_", "size"))})

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        talker = Talker()
        before = time.time()
        talker.log.info("{size} bytes", size=8)
        info_emitter(Talker)(talker, "{size} bytes", {"size": 8})
        expected, event = events
        for one in events:
            self.assertTrue(before <= one.pop("log_time") <= time.time())
            self.assertEqual(repr(one.pop("log_logger")), "<Logger 'tests.test_logs.Talker'>")
            one.pop("log_legacy", None)
        self.assertEqual(event, expected)
        self.assertEqual(sorted(event), ["log_format", "log_level", "log_namespace", "log_source", "size"])
        self.assertIs(event["log_source"], talker)


class Talker:
    """Somebody with something to say."""

    log = Logger()


class TwistdTests(SynchronousTestCase):
    """observer_for_twistd()."""

    def test_other_loggers(self) -> None:
        """Who asks twistd for syslog or for a logger of his own gets it."""
        reactor = cast(ReactorBase, Clock())
        for option in ("syslog", "logger"):
            self.assertIsNone(observer_for_twistd({option: "x", "nodaemon": True}, LogLevel.info, reactor))

    def test_file(self) -> None:
        """The log goes to the file that --logfile names."""
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        name = self.mktemp()
        clock = Clock()
        clock.running = False  # type: ignore[attr-defined]
        observer = observer_for_twistd({"logfile": name}, LogLevel.info, cast(ReactorBase, clock))
        assert observer is not None
        Logger("x", observer=observer).info("hello")
        self.assertTrue(pathlib.Path(name).read_text().endswith("[x#info] hello\n"))


class LogAgainTests(SynchronousTestCase):
    """log_again(): the lines of another process as events."""

    def test_events(self) -> None:
        """What a LineObserver has written becomes the same text at the same level, and anything else an error."""
        written = io.StringIO()
        observer = LineObserver(written, LogLevel.info)
        Logger("a.b", observer=observer).info("one {{x}} [c#d] {n}", n=1)
        Logger("a.b", observer=observer).warn("two\nlines")
        seen: list[tuple[object, str, object]] = []

        @implementer(ILogObserver)
        def see(event: LogEvent) -> None:
            seen.append((event["log_level"], formatEvent(event), event["log_namespace"]))

        globalLogPublisher.addObserver(see)
        self.addCleanup(globalLogPublisher.removeObserver, see)
        log_again(written.getvalue() + "Segmentation fault\n")
        self.assertEqual(
            seen,
            [
                (LogLevel.info, "one {x} [c#d] 1", "a.b"),
                (LogLevel.warn, "two\nlines", "a.b"),
                (LogLevel.error, "Segmentation fault", "-"),
            ],
        )


class RepeatedTests(SynchronousTestCase):
    """What peers can cause as often as they like."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.repeated = Repeated(self.clock)
        self.events: list[LogEvent] = []
        self.log = Logger("test", observer=self.events.append)  # type: ignore[arg-type]

    def warn(self, kind: str, times: int = 1) -> None:
        for number in range(times):
            self.repeated.warn(kind, self.log, "{name} {number}", name=kind, number=number)

    def said(self) -> list[str]:
        events, self.events[:] = list(map(formatEvent, self.events)), []
        return events

    def test_summary(self) -> None:
        """The first at once, then how many, as long as they come; afterwards there is a first again."""
        self.warn("a", 5)
        self.assertEqual(self.said(), ["a 0"])
        self.clock.advance(59)
        self.warn("a")
        self.clock.advance(1)
        self.assertEqual(self.said(), ["a 0 (5 more like this in 60 s)"])
        self.warn("a", 2)
        self.clock.advance(60)
        self.assertEqual(self.said(), ["a 1 (2 more like this in 60 s)"])
        self.clock.advance(60)
        self.assertEqual((self.said(), self.clock.getDelayedCalls()), ([], []))
        self.warn("a")
        self.assertEqual(self.said(), ["a 0"])

    def test_kinds(self) -> None:
        """Each kind has its first; of too many all others share one."""
        for number in range(10 * KINDS):
            self.warn(f"k{number}")
        self.assertEqual(len(self.said()), KINDS + 1)
        self.clock.advance(60)
        self.assertEqual(self.said(), [f"k{10 * KINDS - 1} 0 ({9 * KINDS - 1} more like this in 60 s)"])

    def test_stop(self) -> None:
        """At the end all is told, and nothing is left to do."""
        self.warn("a", 3)
        self.said()
        self.repeated.stop()
        self.assertEqual(self.said(), ["a 2 (2 more like this in 60 s)"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        Repeated(self.clock).stop()
