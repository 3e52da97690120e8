"""What the operator's command prints: lines for people, or JSON, and a line that shows how it gets on. No Twisted."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping

from storescp.counting import Count
from storescp.operator_archive import Finding
from storescp.space import size_text


class Progress:
    """A line on stderr that is drawn anew now and then, where that is a terminal."""

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._started = self._drawn = time.monotonic()
        self._shown = False
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, done: int, total: int | None = None, size: int | None = None) -> None:
        """Show that *done* files of *total*, if so many are known, are through, and *size* bytes."""
        now = time.monotonic()
        if not self._terminal or now < self._drawn + 0.1:
            return
        self._drawn = now
        self._shown = True
        total = self._total if total is None else total
        seconds = now - self._started
        if total < done or total == 0:  # nobody knows how many there are
            text = f"{Count(done):file}"
        else:
            text = f"[{'#' * (30 * done // total):<30}] {done} of {Count(total):file}"
        text += f", {done / seconds:.0f}/s"
        if size is not None:
            text += f", {size_text(size / seconds)}/s"
        columns = shutil.get_terminal_size().columns
        print(f"\r{text[: columns - 1]}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for other lines."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


class Output:
    """The lines of one run: for people, or as JSON, an object a line."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self._started, 1)

    def finding(self, finding: Finding, progress: Progress) -> None:
        """A finding about the archive."""
        progress.clear()
        if self._as_json:
            print_json(finding._asdict())
        else:
            print(f"{finding.kind}: {printable(finding.path)}: {printable(finding.what)}", flush=True)

    def unsent(self, path: str, why: str, status: int | None, progress: Progress) -> None:
        """A file that was not stored."""
        progress.clear()
        if self._as_json:
            print_json({"path": path, "what": why, "status": None if status is None else f"{status:04X}"})
        else:
            print(f"{printable(path)}: {printable(why)}", flush=True)

    def summary(self, values: Mapping[str, object], text: str) -> None:
        """The last line."""
        if self._as_json:
            print_json({"summary": values})
        else:
            print(text, flush=True)


def print_json(values: Mapping[str, object]) -> None:
    """An object a line."""
    print(json.dumps(values), flush=True)


def printable(text: str) -> str:
    """*text* in one line that a terminal can take, whatever a file's name or a peer's comment has in it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def findings_text(findings: Mapping[str, int]) -> str:
    """How many there are of each kind."""
    if not findings:
        return "no findings"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.items()))
    return f"{Count(sum(findings.values())):finding} ({kinds})"


def time_text(posix_seconds: float) -> str:
    """In local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(posix_seconds))
