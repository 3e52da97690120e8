"""Priorities for the journal of systemd, sd-daemon(3): ``<3>`` before a line that is an error.

What belongs here: whether the journal reads what we write, and how lines are marked for it. It takes the marks off.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO

VARIABLE = "JOURNAL_STREAM"

# syslog(3)
_ERROR = 3
_PRIORITIES = {"critical": 2, "error": _ERROR, "warn": 4, "info": 6, "debug": 7}

# What a line of log_lines.text_line() begins with, and one of json_line().
_head = re.compile(r'(?:\S+ \[[^#]*#([a-z]+)\] |\{"time":"[^"]*","level":"([a-z]+)")').match


def goes_to_journal(file: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether *file* is the stream that systemd has made, systemd.exec(5): the variable has its device and inode."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environment.get(VARIABLE) == f"{status.st_dev}:{status.st_ino}"


def marked(text: str) -> str:
    """Whole lines of the log with their priorities; what no logger has written is an error."""
    lines = []
    priority = _ERROR
    for line in text.split("\n")[:-1]:
        if not line.startswith("\t"):  # else it belongs to the one before
            head = _head(line)
            priority = _PRIORITIES.get(head[1] or head[2], _ERROR) if head else _ERROR
        lines.append(f"<{priority}>{line}\n")
    return "".join(lines)


class MarkedLines:
    """A text file to which lines are written with their priorities."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        """Write whole lines."""
        self._out.write(marked(text))

    def flush(self) -> None:
        self._out.flush()


def complain(text: str, file: TextIO | None = None) -> None:
    """Tell the operator on stderr, or in another *file*, in one line, why the work cannot be done."""
    file = file or sys.stderr
    line = f"storescp: {text}\n"
    file.write(marked(line) if goes_to_journal(file, os.environ) else line)
    file.flush()
