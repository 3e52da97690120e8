"""Where log events become lines: one line an event, many lines a write.

What belongs here: the observer that twistd is given in the place of its own. Twisted's spends more time on
the line about a small image than the server does on storing it: most of that on the time stamp, and on a
write for each line. And ways to log: :func:`info_emitter`, for the event that comes with every image,
:class:`AssociationLogger`, for all that is about one association, and :class:`Repeated`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python import threadable
from zope.interface import implementer

from storescp.log_lines import FORMATTERS, as_json_lines
from storescp.log_settings import LogFormat, LogLevels, LogSettings

#: Seconds that a line may wait for others to be written with it.
DELAY = 0.05

#: Seconds between two lines that tell how often something is repeated, and how many kinds of that are told apart.
INTERVAL = 60.0
KINDS = 100

_INFO = LogLevel.info  # looking it up takes longer than using it


class OfAssociation(Protocol):
    """What has to do with one association, or with the connection that may become one."""

    association_id: str


def association_ids(worker: int | None = None) -> Iterator[str]:
    """Names for associations: short, and none is given twice, also by another *worker* of the same server."""
    tag = "".join(random.choices("bcdfghjkmnpqrstvwxz", k=4)) + ("" if worker is None else str(worker))
    return (f"{tag}-{number}" for number in itertools.count(1))


class AssociationLogger(Logger):
    """The logger of an :class:`OfAssociation`: its events have the field ``association``."""

    def emit(self, level: LogLevel, format: str | None = None, **fields: object) -> None:
        association = getattr(self.source, "association_id", "")
        if association:
            fields.setdefault("association", association)
        super().emit(level, format, **fields)


def info_emitter(owner: type[OfAssociation]) -> Callable[[OfAssociation, str, LogEvent], None]:
    """``AssociationLogger.info`` as a function of source, format and fields, for the class *owner* and its instances.

    Every observer gets the same event, but nothing is looked up or checked again for each. The fields are taken over.
    """
    logger = Logger(f"{owner.__module__}.{owner.__name__}", owner)
    observer, namespace = logger.observer, logger.namespace

    def emit(source: OfAssociation, log_format: str, event: LogEvent) -> None:
        event["association"] = source.association_id
        event["log_logger"] = logger
        event["log_level"] = _INFO
        event["log_namespace"] = namespace
        event["log_source"] = source
        event["log_format"] = log_format
        event["log_time"] = time.time()
        observer(event)

    return emit


class Repeated:
    """Warnings that peers can cause as often as they like: the first of a kind at once, of the others how many came.

    That is told every *interval* seconds of *clock*, with the last of them, as long as they come.
    """

    def __init__(self, clock: IReactorTime, interval: float = INTERVAL) -> None:
        self._clock = clock
        self._interval = interval
        self._more: dict[str, tuple[int, Callable[[], None]]] = {}
        self._timer: IDelayedCall | None = None

    def warn(self, kind: str, log: Logger, log_format: str, **fields: object) -> None:
        """Log the warning, or count it with others of its *kind*; of too many kinds all others are one."""
        if kind not in self._more and len(self._more) >= KINDS:
            kind = ""
        count, _ = self._more.get(kind, (-1, None))
        if count < 0:
            log.warn(log_format, **fields)
        summary = partial(
            log.warn,
            log_format + " ({more} more like this in {interval:g} s)",
            **fields,
            more=count + 1,
            interval=self._interval,
        )
        self._more[kind] = count + 1, summary
        if self._timer is None:
            self._timer = self._clock.callLater(self._interval, self._summarise)

    def stop(self) -> None:
        """Tell what is not told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._tell()

    def _tell(self) -> bool:
        """Whether there was anything to tell."""
        more, self._more = self._more, {}
        for kind, (count, summary) in more.items():
            if count:
                summary()
                self._more[kind] = 0, summary
        return bool(self._more)

    def _summarise(self) -> None:
        self._timer = self._clock.callLater(self._interval, self._summarise) if self._tell() else None


class LineSink(Protocol):
    """A text file, or Twisted's LogFile."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


@implementer(ILogObserver)
class LineObserver:
    """Writes events to *out* as lines of a *format*, those that are important enough by *levels*.

    Lines are collected, and *schedule* is given what hands them all over, to be called soon. Without it, and
    with warnings and worse, that happens at once. Any thread may log.
    """

    def __init__(
        self,
        out: LineSink,
        levels: LogLevels,
        schedule: Callable[[Callable[[], None]], object] | None = None,
        format: LogFormat = LogFormat.TEXT,
    ) -> None:
        self._out = out
        self._format = format
        self._line = FORMATTERS[format]
        self._urgent = frozenset(name for name in LogLevel.iterconstants() if name >= LogLevel.warn)
        self._schedule = schedule
        self._lines: list[str] = []
        self._second = -1
        self._stamp = ("", "")
        self.set_levels(levels)

    def set_levels(self, levels: LogLevels) -> None:
        """What is important enough from now on."""
        self._levels = levels
        self._written: dict[str, dict[LogLevel, str]] = {}  # the names of the levels that are, by namespaces

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", _INFO)
        namespace = event.get("log_namespace", "-")
        written = self._written.get(namespace)
        if written is None:
            written = self._written[namespace] = self._levels_of(namespace)
        name = written.get(level)
        if name is None:
            return
        first = not self._lines
        date, zone = self._time(event["log_time"])
        self._lines.append(self._line(event, date, zone, name))
        if self._schedule is None or level in self._urgent:
            self.flush()
        elif first:
            self._schedule(self.flush)

    def relay(self, lines: str) -> None:
        """Write whole lines that another process has formatted."""
        self._lines.append(as_json_lines(lines) if self._format is LogFormat.JSON else lines)
        self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        lines, self._lines = self._lines, []
        if lines:
            text = "".join(lines)
            try:
                self._out.write(text)
            except UnicodeEncodeError:  # a name that is none, or a terminal that knows few characters
                self._out.write(text.encode("ascii", "backslashreplace").decode())
            self._out.flush()

    def write_to(self, out: LineSink) -> None:
        """Write to *out* from now on. What a thread is writing it still writes to the other one."""
        self.flush()
        self._out = out

    def _levels_of(self, namespace: str) -> dict[LogLevel, str]:
        least = getattr(LogLevel, self._levels.of(namespace).value)
        return {level: level.name for level in LogLevel.iterconstants() if level >= least}

    def _time(self, seconds: float) -> tuple[str, str]:
        """Local time to the millisecond, and its offset as ``+hhmm``: formatted once a second."""
        whole = int(seconds)
        if whole != self._second:
            local = time.localtime(whole)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", local), time.strftime("%z", local)
            self._second = whole
        head, zone = self._stamp
        return f"{head}.{int((seconds - whole) * 1000):03d}", zone


def line_observer(out: LineSink, settings: LogSettings, reactor: ReactorBase) -> LineObserver:
    """An observer whose lines wait for others as long as *reactor* runs."""

    def schedule(flush: Callable[[], None]) -> None:
        if reactor.running and threadable.isInIOThread():
            reactor.callLater(DELAY, flush)
        else:
            flush()

    return LineObserver(out, settings.levels, schedule, settings.format)
