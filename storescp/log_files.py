"""Where the log goes: standard output, twistd's own file, or one of ours, which is begun anew now and then.

What belongs here: files, and the signal by which other programs say that they have moved one.
"""

from __future__ import annotations

import atexit
import glob
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping

from twisted.internet.base import ReactorBase
from twisted.logger import Logger
from twisted.python.logfile import BaseLogFile, DailyLogFile, LogFile

from storescp.log_settings import LogSettings
from storescp.logs import LineObserver, LineSink, line_observer
from storescp.priorities import MarkedLines, goes_to_journal

_log = Logger()
_dated = re.compile(r"[0-9]+_[0-9]+_[0-9]+").fullmatch


class BadLog(Exception):
    """The log cannot go where it is to; str() is one line for the operator."""


class _Plain(BaseLogFile):
    """Grows until somebody moves it away."""

    def shouldRotate(self) -> bool:
        return False


class _Daily(DailyLogFile):
    """Begins a new file each day, local time; the old one is called by the day on which it ended."""

    keep = 0

    def rotate(self) -> None:
        super().rotate()  # type: ignore[no-untyped-call]
        if self.keep:
            old = [
                name for name in glob.glob(f"{glob.escape(self.path)}.*") if _dated(name.rpartition(".")[2])
            ]
            for name in sorted(old, key=os.path.getmtime)[: -self.keep]:
                os.remove(name)


def open_log(settings: LogSettings) -> LineSink:
    """The file that *settings* name, to be written at its end. Raises OSError."""
    assert settings.file is not None
    name = os.fspath(settings.file)
    if settings.rotation.daily:
        daily: _Daily = _Daily.fromFullPath(name)
        daily.keep = settings.keep
        return daily
    if settings.rotation.size:
        size, most = settings.rotation.size, settings.keep or None
        sized: LogFile = LogFile.fromFullPath(name, rotateLength=size, maxRotatedFiles=most)
        return sized
    plain: _Plain = _Plain.fromFullPath(name)
    return plain


def observer_for_twistd(
    options: Mapping[str, object], settings: LogSettings, reactor: ReactorBase
) -> LineObserver | None:
    """The observer for twistd's own *options*; None when they ask for syslog or another logger. Raises BadLog.

    Goes where twistd's would go, which includes SIGUSR1 to begin a new file, unless the *settings* name a file: that
    one SIGUSR1 has opened anew.
    """
    if settings.file is not None:
        for other in ("logger", "syslog", "logfile"):
            if options.get(other):
                raise BadLog(f"log-file: expected it without twistd's --{other}, got both")
        observer = _file_observer(settings, reactor)
    elif options.get("logger") or options.get("syslog"):
        return None
    else:
        name = options.get("logfile")
        if options.get("nodaemon") and name in (None, "", "-"):
            to_journal = goes_to_journal(sys.stdout, os.environ)
            out: LineSink = MarkedLines(sys.stdout) if to_journal else sys.stdout
        elif name == "-":
            return None  # twistd says that daemons cannot log to stdout
        else:
            out = file = LogFile.fromFullPath(str(name or "twistd.log"))
            _on_signal(reactor, file.rotate)
        observer = line_observer(out, settings, reactor)
    atexit.register(observer.flush)  # what was said last, when no reactor runs any more
    return observer


def _file_observer(settings: LogSettings, reactor: ReactorBase) -> LineObserver:
    try:
        observer = line_observer(open_log(settings), settings, reactor)
    except OSError as error:
        expected = "log-file: expected a file that can be written"
        raise BadLog(f"{expected}, got {str(settings.file)!r}: {error.strerror}") from None

    def reopen() -> None:
        try:
            observer.write_to(open_log(settings))
        except OSError as error:
            _log.error("the log goes on in the file that was open: {error}", error=error)

    _on_signal(reactor, reopen)
    return observer


def _on_signal(reactor: ReactorBase, act: Callable[[], object]) -> None:
    """Have SIGUSR1 do something, unless somebody has a use for it already."""
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda number, frame: reactor.callFromThread(act))
