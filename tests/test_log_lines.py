"""storescp.log_lines: an event as a line of text or as an object of JSON, and what another process has written."""

from __future__ import annotations

import datetime
import enum
import json
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python import log as old_log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from storescp.log_lines import as_json_lines, json_line, log_again, text_line

DATE, ZONE = "2026-11-25T19:25:14.123", "-0330"


class Colour(enum.IntEnum):
    """A number with a name."""

    RED = 0x0111


class Unspeakable:
    """Cannot be told."""

    def __str__(self) -> str:
        raise ValueError("no")


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []

        @implementer(ILogObserver)
        def see(event: LogEvent) -> None:
            self.events.append(event)

        globalLogPublisher.addObserver(see)
        self.addCleanup(globalLogPublisher.removeObserver, see)

    def json(self) -> dict[str, Any]:
        """The one event as an object; it is one line of ASCII."""
        (event,) = self.events
        self.events.clear()
        line = json_line(event, DATE, ZONE, event["log_level"].name)
        self.assertTrue(line.isascii())
        self.assertEqual(line.find("\n"), len(line) - 1)
        found: dict[str, Any] = json.loads(line)
        return found


class JSONTests(_TestCase):
    """json_line()."""

    def test_object(self) -> None:
        """Who, when, how important, the text, and every field with its type."""
        Logger("storescp.scp.X").warn(
            "{size} bytes in {ms:.1f} ms: {status:04X}H",
            size=8,
            ms=1.26,
            status=Colour.RED,
            ok=True,
            none=None,
            names=("a", "b"),
            association="abcd-7",
            text='"quoted"\n\u2028 名 \udcff',
        )
        found = self.json()
        time = datetime.datetime.fromisoformat(found["time"])
        self.assertEqual(time.utcoffset(), -datetime.timedelta(hours=3, minutes=30))
        self.assertEqual(
            found,
            {
                "time": "2026-11-25T19:25:14.123-03:30",
                "level": "warn",
                "area": "dimse",
                "namespace": "storescp.scp.X",
                "message": "8 bytes in 1.3 ms: 0111H",
                "size": 8,
                "ms": 1.26,
                "status": 0x111,
                "ok": True,
                "none": None,
                "names": ["a", "b"],
                "association": "abcd-7",
                "text": '"quoted"\n\u2028 名 \udcff',
            },
        )

    def test_any_field(self) -> None:
        """What JSON has no type for is told in words; no field takes the place of one that is always there."""
        Logger("x").info("m", size=float("nan"), error=OSError(28, "full"), bad=Unspeakable(), area=7)
        found = self.json()
        self.assertEqual(
            (found["size"], found["error"], found["bad"]), ("nan", "[Errno 28] full", "<Unspeakable>")
        )
        self.assertEqual((found["time"][:4], found["area"], found["message"]), ("2026", "twisted", "m"))

    def test_failure(self) -> None:
        """A traceback stands in the same object, and not in the text."""
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError:
            Logger("x").failure("it broke")
        found = self.json()
        self.assertEqual((found["level"], found["message"]), ("critical", "it broke"))
        self.assertIn("ZeroDivisionError: why", found["traceback"])
        self.assertIn("test_log_lines.py", found["traceback"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_old_events(self) -> None:
        """Who logs in the old way of Twisted gets the same object, without the fields of that."""
        old_log.msg("hello")
        found = self.json()
        self.assertEqual((found["message"], found["area"]), ("hello", "twisted"))
        self.assertEqual(set(found), {"time", "level", "area", "namespace", "message"})
        old_log.err(Failure(ValueError("bad")), "doing it")
        found = self.json()
        self.assertEqual(found["message"], "doing it")
        self.assertIn("ValueError: bad", found["traceback"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class TextTests(_TestCase):
    """text_line()."""

    def test_association(self) -> None:
        """The association stands in front of the text."""
        Logger("a.B").info("{size} bytes", size=8, association="abcd-7")
        self.assertEqual(
            text_line(self.events[0], DATE, ZONE, "info"), f"{DATE}{ZONE} [a.B#info] [abcd-7] 8 bytes\n"
        )


class AgainTests(_TestCase):
    """What a worker has written."""

    def said(self, lines: str) -> list[tuple[object, ...]]:
        self.events.clear()
        log_again(lines)
        return [
            (event["log_level"], event["text"], event["log_namespace"], event.get("size"))
            for event in self.events
        ]

    def test_events(self) -> None:
        """Lines of either format become the same text at the same level, JSON with its fields; all else is an error."""
        log = Logger("a.b")
        log.info("one {{x}} [c#d] {size}", size=1)
        log.warn("two\nlines")
        events = list(self.events)
        text = "".join(text_line(event, DATE, ZONE, event["log_level"].name) for event in events)
        objects = "".join(json_line(event, DATE, ZONE, event["log_level"].name) for event in events)
        last = (LogLevel.error, "Segmentation fault", "-", None)
        self.assertEqual(
            self.said(text + "Segmentation fault\n"),
            [
                (LogLevel.info, "one {x} [c#d] 1", "a.b", None),
                (LogLevel.warn, "two\nlines", "a.b", None),
                last,
            ],
        )
        self.assertEqual(
            self.said(objects + "Segmentation fault\n"),
            [(LogLevel.info, "one {x} [c#d] 1", "a.b", 1), (LogLevel.warn, "two\nlines", "a.b", None), last],
        )

    def test_broken(self) -> None:
        """What only looks like an object is told as it is."""
        line = '{"time":"now","level":"loud"}'
        self.assertEqual(self.said(line), [(LogLevel.error, line, "-", None)])

    def test_as_json(self) -> None:
        """Among objects, every other line becomes one."""
        lines = as_json_lines('{"time":"now"}\nFatal Python error: Aborted\n\n').splitlines()
        self.assertEqual(lines[0], '{"time":"now"}')
        (last,) = map(json.loads, lines[1:])
        self.assertEqual((last["level"], last["message"]), ("error", "Fatal Python error: Aborted"))
        self.assertIsNotNone(datetime.datetime.fromisoformat(last["time"]).tzinfo)
