"""storescp.logs: when lines are written, and ways to log."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from storescp.log_settings import LogFormat, LogLevels
from storescp.log_settings import LogLevel as Level
from storescp.logs import (
    DELAY,
    KINDS,
    AssociationLogger,
    LineObserver,
    Repeated,
    association_ids,
    info_emitter,
)


class LineObserverTests(SynchronousTestCase):
    """LineObserver."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.out = io.StringIO()

    def logger(self, level: Level = Level.INFO, *, collecting: bool = False) -> Logger:
        def schedule(flush: Callable[[], None]) -> None:
            self.clock.callLater(DELAY, flush)

        observer = LineObserver(self.out, LogLevels(level), schedule if collecting else None)
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
        log = self.logger(Level.WARN)
        log.debug("one")
        log.info("two")
        log.warn("three")
        log.error("four")
        self.assertEqual(
            [line.split("] ")[1] for line in self.out.getvalue().splitlines()], ["three", "four"]
        )

    def test_levels_of_areas(self) -> None:
        """An area has its own level, and so has a namespace, also when they come to have another one."""
        observer = LineObserver(self.out, LogLevels(Level.WARN, (("tls", Level.DEBUG), ("a.b", Level.INFO))))
        loggers = [
            Logger(name, observer=observer) for name in ("storescp.tls.X", "a.b.C", "a.bc", "storescp.scp")
        ]

        def said() -> list[str]:
            self.out.truncate(0)
            for log in loggers:
                log.debug("{name}", name=f"{log.namespace} debug")
                log.info("{name}", name=f"{log.namespace} info")
            return [line.split("] ")[1] for line in self.out.getvalue().lstrip("\0").splitlines()]

        self.assertEqual(said(), ["storescp.tls.X debug", "storescp.tls.X info", "a.b.C info"])
        observer.set_levels(LogLevels(Level.ERROR, (("dimse", Level.INFO),)))
        self.assertEqual(said(), ["storescp.scp info"])

    def test_old_way(self) -> None:
        """What Twisted logs in its old way is written from warnings on, unless somebody asks for more, or for less."""
        for levels, least in (
            (LogLevels(), Level.WARN),
            (LogLevels(Level.ERROR), Level.ERROR),
            (LogLevels(Level.DEBUG), Level.DEBUG),
            (LogLevels(own=(("twisted", Level.INFO),)), Level.INFO),
        ):
            self.assertIs(levels.of("log_legacy"), least)

    def test_any_text(self) -> None:
        """What the output has no characters for is written in escapes."""
        written = io.BytesIO()
        observer = LineObserver(io.TextIOWrapper(written, "latin-1"), LogLevels())
        Logger("x", observer=observer).info("{name}", name="Ä 名 \udcff")
        self.assertTrue(written.getvalue().endswith(rb"\xc4 \u540d \udcff" + b"\n"), written.getvalue())

    def test_relay(self) -> None:
        """Lines of a worker pass as they are; in JSON what is no object becomes one."""
        LineObserver(self.out, LogLevels()).relay("one\n")
        observer = LineObserver(self.out, LogLevels(), format=LogFormat.JSON)
        observer.relay('{"time":"now"}\nSegmentation fault\n')
        one, two, three = self.out.getvalue().splitlines()
        self.assertEqual((one, two), ("one", '{"time":"now"}'))
        self.assertEqual(json.loads(three)["message"], "Segmentation fault")

    def test_other_output(self) -> None:
        """What waits goes to the old output, what comes to the new one."""
        log = self.logger(collecting=True)
        observer = log.observer
        assert isinstance(observer, LineObserver)
        log.info("old")
        other = io.StringIO()
        observer.write_to(other)
        log.warn("new")
        self.assertRegex(self.out.getvalue(), "old\n$")
        self.assertRegex(other.getvalue(), "new\n$")

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


class AssociationTests(SynchronousTestCase):
    """The field ``association``."""

    def test_ids(self) -> None:
        """They are short, count on, and those of workers are never the same."""
        seen = set()
        for worker in (None, *range(20)):
            ids = association_ids(worker)
            some = [next(ids) for _ in range(100)]
            self.assertRegex(some[99], rf"^[a-z]{{4}}{'' if worker is None else worker}-100$")
            seen.update(some)
        self.assertEqual(len(seen), 2100)

    def test_logger(self) -> None:
        """Whatever is logged of an association has it, whatever is not has none."""
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        talker = Talker()
        talker.log.warn("one")
        talker.log.failure("two", Failure(ValueError()))
        Talker.log.info("three")
        self.flushLoggedErrors(ValueError)
        self.assertEqual([event.get("association") for event in events], ["abcd-1", "abcd-1", None])


class InfoEmitterTests(SynchronousTestCase):
    """info_emitter()."""

    def test_same_event(self) -> None:
        """Observers get what Logger.info would give them, in every field."""
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            # trial's own observer adds fields for older ones
            events.append({name: event[name] for name in event if name.startswith(("log_", "size", "assoc"))})

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        talker = Talker()
        before = time.time()
        talker.log.info("{size} bytes", size=8)
        info_emitter(Talker)(talker, "{size} bytes", {"size": 8})
        expected, event = events
        for one in events:
            self.assertTrue(before <= one.pop("log_time") <= time.time())
            self.assertRegex(repr(one.pop("log_logger")), "Logger 'tests.test_logs.Talker'>$")
            one.pop("log_legacy", None)
        self.assertEqual(event, expected)
        fields = ["association", "log_format", "log_level", "log_namespace", "log_source", "size"]
        self.assertEqual(sorted(event), fields)
        self.assertIs(event["log_source"], talker)


class Talker:
    """Somebody with something to say."""

    log = AssociationLogger()

    def __init__(self) -> None:
        self.association_id = "abcd-1"


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
