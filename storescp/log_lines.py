"""What a log event looks like: a line of text for people, or an object of JSON for machines; and back again.

What belongs here: one event, one line. Who writes it, and when, is the business of :mod:`storescp.logs`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from twisted.logger import LogEvent, Logger, LogLevel, eventAsText, formatEvent
from twisted.python.failure import Failure

from storescp.log_settings import LogFormat, area_of

Formatter: TypeAlias = Callable[[LogEvent, str, str, str], str]
"""Makes a line of an event, the date and time with milliseconds, the zone as ``+hhmm``, and the level."""

# What twisted.logger adds to events for observers of the old kind, or takes over from those who log in the old way.
_LEGACY = frozenset(
    ("message", "time", "system", "isError", "format", "failure", "why", "printed", "debug", "logLevel")
)
_OURS = frozenset(("time", "level", "area", "namespace", "message", "traceback"))
_PLAIN = frozenset((str, int, bool, type(None)))

_NO_FIELDS = _LEGACY | _OURS

_encode = json.JSONEncoder(separators=(",", ":")).encode  # in ASCII: any file and any terminal takes that
_string = json.encoder.encode_basestring_ascii


def text_line(event: LogEvent, date: str, zone: str, level: str) -> str:
    """``time [namespace#level] [association] text``; further lines of one event are indented."""
    text = _text(event)
    if "\n" in text:
        text = text.replace("\n", "\n\t")
    association = event.get("association")
    if association:
        text = f"[{association}] {text}"
    return f"{date}{zone} [{event.get('log_namespace', '-')}#{level}] {text}\n"


def json_line(event: LogEvent, date: str, zone: str, level: str) -> str:
    """An object: ``time`` (RFC 3339), ``level``, ``area``, ``namespace``, ``message``, perhaps ``traceback``, fields.

    Fields are strings, numbers, true, false, null and lists of those; anything else is told in words.
    """
    namespace = str(event.get("log_namespace", "-"))
    # There is one with every image: piece by piece that takes half of the time of an encoder's.
    pieces = [
        f'{{"time":"{date}{zone[:3]}:{zone[3:]}","level":"{level}","area":"{area_of(namespace)}",'
        f'"namespace":{_string(namespace)},"message":{_string(_message(event))}'
    ]
    failure = _failure(event)
    if failure is not None:
        pieces.append(f'"traceback":{_string(failure.getTraceback())}')
    for name, value in event.items():
        if name[:4] == "log_" or name in _NO_FIELDS:
            continue
        kind = type(value)
        if kind is str:
            text = _string(value)
        elif kind is int or (kind is float and math.isfinite(value)):
            text = repr(value)
        else:
            text = _encode(value if kind in _PLAIN else _plain(value))
        pieces.append(f"{_string(name)}:{text}")
    return ",".join(pieces) + "}\n"


FORMATTERS: dict[LogFormat, Formatter] = {LogFormat.TEXT: text_line, LogFormat.JSON: json_line}


def _plain(value: object) -> object:
    if isinstance(value, int):  # an enumeration, too
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [item if type(item) in _PLAIN else _plain(item) for item in value]
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever it is, its event is a line
        return f"<{type(value).__name__}>"


def _failure(event: LogEvent) -> Failure | None:
    failure = event.get("log_failure") or event.get("failure")
    return failure if isinstance(failure, Failure) else None


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


def _message(event: LogEvent) -> str:
    """The text without the traceback."""
    failure = _failure(event)
    if failure is None:
        return _text(event)
    if event.get("isError"):  # logged in the old way, in which the text has the traceback
        return str(event.get("why") or failure.getErrorMessage())
    return formatEvent(event) or failure.getErrorMessage()


# -- lines of another process --

_line = re.compile(r"\S+ \[(.*?)#([a-z]+)\] (.*)", re.DOTALL).fullmatch
_LEVELS = {level.name: level for level in LogLevel.iterconstants()}


def is_json_line(line: str) -> bool:
    """Whether :func:`json_line` has made it, by its looks."""
    return line.startswith('{"time":"') and line.endswith("}")


def parsed(lines: str) -> Iterator[tuple[str, LogLevel, str, dict[str, Any]]]:
    """Namespace, level, text and fields of each of whole *lines*, in either format; anything else is an error."""
    for line in re.split(r"\n(?!\t)", lines.removesuffix("\n")):
        if is_json_line(line):
            try:
                entry: dict[str, Any] = json.loads(line)
                namespace, level = entry.pop("namespace"), _LEVELS[entry.pop("level")]
                text = "\n".join(filter(None, (entry.pop("message"), entry.pop("traceback", ""))))
            except (ValueError, LookupError):
                yield "-", LogLevel.error, line, {}
                continue
            yield namespace, level, text, {name: entry[name] for name in entry if name not in _OURS}
            continue
        match = _line(line)
        namespace, level_name, text = match.groups() if match else ("-", "error", line)
        yield namespace, _LEVELS.get(level_name, LogLevel.error), text.replace("\n\t", "\n"), {}


def log_again(lines: str) -> None:
    """Log what another process has made lines of: where another observer wants events."""
    for namespace, level, text, fields in parsed(lines):
        Logger(namespace).emit(level, "{text}", **{**fields, "text": text})


def as_json_lines(lines: str) -> str:
    """Whole lines of JSON as they are, and any other that a process has written as an object, too."""
    return "".join(
        f"{line}\n" if is_json_line(line) else _foreign(line) for line in lines.splitlines() if line.strip()
    )


def _foreign(line: str) -> str:
    """What no logger has written: the last words of an interpreter."""
    from datetime import datetime

    time = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return (
        _encode({"time": time, "level": "error", "area": "server", "namespace": "-", "message": line}) + "\n"
    )
