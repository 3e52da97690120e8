"""Where log events become text: one line an event, many lines a write.

What belongs here: the observer that twistd is given in the place of its own. Twisted's spends more time on
the line about a small image than the server does on storing it: most of that on the time stamp, and on a
write for each line. And :func:`info_emitter`, for the event that comes with every image.
"""

from __future__ import annotations

import atexit
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, eventAsText, formatEvent
from twisted.python import threadable
from twisted.python.logfile import LogFile
from zope.interface import implementer

#: Seconds that a line may wait for others to be written with it.
DELAY = 0.05

#: Seconds between two lines that tell how often something is repeated, and how many kinds of that are told apart.
INTERVAL = 60.0
KINDS = 100

_INFO = LogLevel.info  # looking it up takes longer than using it


def info_emitter(owner: type) -> Callable[[object, str, LogEvent], None]:
    """``Logger.info`` as a function of source, format and fields, for the class *owner* and its instances.

    Every observer gets the same event, but nothing is looked up or checked again for each. The fields are taken over.
    """
    logger = Logger(f"{owner.__module__}.{owner.__name__}", owner)
    observer, namespace = logger.observer, logger.namespace

    def emit(source: object, log_format: str, event: LogEvent) -> None:
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
    """Writes events of *level* and above to *out*, as ``time [namespace#level] text``.

    Lines are collected, and *schedule* is given what hands them all over, to be called soon. Without it, and
    with warnings and worse, that happens at once. Any thread may log.
    """

    def __init__(
        self,
        out: LineSink,
        level: LogLevel,
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._out = out
        self.set_level(level)
        self._urgent = frozenset(name for name in LogLevel.iterconstants() if name >= LogLevel.warn)
        self._schedule = schedule
        self._lines: list[str] = []
        self._second = -1
        self._stamp = ("", "")

    def set_level(self, level: LogLevel) -> None:
        """Write events of *level* and above from now on."""
        self._levels = {name: name.name for name in LogLevel.iterconstants() if name >= level}

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", _INFO)
        name = self._levels.get(level)
        if name is None:
            return
        text = _text(event)
        if "\n" in text:
            text = text.replace("\n", "\n\t")
        first = not self._lines
        self._lines.append(
            f"{self._time(event['log_time'])} [{event.get('log_namespace', '-')}#{name}] {text}\n"
        )
        if self._schedule is None or level in self._urgent:
            self.flush()
        elif first:
            self._schedule(self.flush)

    def relay(self, lines: str) -> None:
        """Write whole lines that another process has formatted."""
        self._lines.append(lines)
        self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        lines, self._lines = self._lines, []
        if lines:
            self._out.write("".join(lines))
            self._out.flush()

    def _time(self, seconds: float) -> str:
        """ISO 8601, local time with its offset, to the millisecond: formatted once a second."""
        whole = int(seconds)
        if whole != self._second:
            local = time.localtime(whole)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", local), time.strftime("%z", local)
            self._second = whole
        head, zone = self._stamp
        return f"{head}.{int((seconds - whole) * 1000):03d}{zone}"


def observer_for_twistd(
    options: Mapping[str, object], level: LogLevel, reactor: ReactorBase
) -> LineObserver | None:
    """The observer for twistd's own *options*; None when they ask for syslog or another logger.

    Goes where twistd's would go, which includes SIGUSR1 to begin a new file.
    """
    if options.get("logger") or options.get("syslog"):
        return None
    name = options.get("logfile")
    if options.get("nodaemon") and name in (None, "", "-"):
        out: LineSink = sys.stdout
    elif name == "-":
        return None  # twistd says that daemons cannot log to stdout
    else:
        out = file = LogFile.fromFullPath(str(name or "twistd.log"))
        if not signal.getsignal(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda number, frame: reactor.callFromThread(file.rotate))
    observer = line_observer(out, level, reactor)
    atexit.register(observer.flush)  # what was said last, when no reactor runs any more
    return observer


def line_observer(out: LineSink, level: LogLevel, reactor: ReactorBase) -> LineObserver:
    """An observer whose lines wait for others as long as *reactor* runs."""

    def schedule(flush: Callable[[], None]) -> None:
        if reactor.running and threadable.isInIOThread():
            reactor.callLater(DELAY, flush)
        else:
            flush()

    return LineObserver(out, level, schedule)


_line = re.compile(r"\S+ \[(.*?)#([a-z]+)\] (.*)", re.DOTALL).fullmatch


def log_again(lines: str) -> None:
    """Log lines that a LineObserver of another process has formatted: where another observer wants events."""
    for line in re.split(r"\n(?!\t)", lines.removesuffix("\n")):
        match = _line(line)
        namespace, level, text = match.groups() if match else ("-", "error", line)
        Logger(namespace).emit(LogLevel.levelWithName(level), "{text}", text=text.replace("\n\t", "\n"))


def _text(event: LogEvent) -> str:
    if "log_failure" in event or "log_traceback" in event or "isError" in event:
        return eventAsText(event, includeTimestamp=False, includeSystem=False)
    template = event.get("log_format")
    if template is not None and "()" not in template:
        try:
            return str(template).format_map(event)
        except Exception:  # noqa: BLE001 - Twisted's formatter takes anything, and explains what it cannot
            pass
    return formatEvent(event)
