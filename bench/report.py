"""Results as one table, and as JSON."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import statistics
from collections.abc import Sequence

from bench.check import Check
from bench.measure import Result

_COLUMNS = (
    "",
    "",
    "objects/s",
    "MB/s",
    "CPU s/1000",
    "peak MiB",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "storescp is",
)


def machine() -> str:
    """The machine in a few words."""
    model = platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, {versions}"


def blocks(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each comparison, storage and workload."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        key = result.comparison.name, result.storage, result.workload.name
        found.setdefault(key, []).append(result)
    return list(found.values())


def ratio(ours: Result, theirs: Result) -> float | None:
    """The median over the rounds of our rate by theirs; None if either has no sample."""
    both = zip(ours.samples, theirs.samples, strict=False)
    ratios = [a.objects_per_second / b.objects_per_second for a, b in both if b.objects_per_second]
    return statistics.median(ratios) if ratios else None


def _number(value: float) -> str:
    """Three significant digits, or all before the point, with thousands separated."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{decimals}f}"


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines with columns of equal width; the first ``left`` ones to the left. A row without cells is an empty line."""
    filled = [row for row in rows if row]
    widths = [max(map(len, column)) for column in zip(*filled, strict=True)] if filled else []
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _ours(block: Sequence[Result]) -> Result | None:
    return next((result for result in block if result.peer.name == result.comparison.ours), None)


def table(results: Sequence[Result]) -> str:
    """The side-by-side table, a block of lines for each storage and workload."""
    rows: list[Sequence[str]] = [_COLUMNS]
    notes = [f"{r.peer.name}, {r.storage}, {r.workload.title}: {r.trouble}" for r in results if r.trouble]
    for block in blocks(results):
        rows.append(())
        ours = _ours(block)
        title = f"{block[0].workload.title}, {block[0].storage}"
        for result in block:
            median = result.median()
            if median is None:
                cells = ["-"] * (len(_COLUMNS) - 3)
            else:
                cells = [
                    _number(median.objects_per_second),
                    _number(median.megabytes_per_second),
                    _number(median.cpu_per_1000),
                    _number(median.peak_mebibytes),
                    _number(median.p50),
                    _number(median.p99),
                    _number(median.p999),
                ]
            quotient = ratio(ours, result) if ours is not None and ours is not result else None
            rows.append((title, result.peer.title, *cells, f"{quotient:.2f} x" if quotient else ""))
            title = ""
    return "\n".join([*_aligned(rows, 2), "", *notes]).rstrip() + "\n"


def goals(results: Sequence[Result]) -> list[Check]:
    """Each goal that was measured."""
    found = []
    for block in blocks(results):
        by_name = {result.peer.name: result for result in block}
        for goal in block[0].comparison.goals:
            ours, theirs = by_name.get(goal.ours), by_name.get(goal.theirs)
            if ours is not None and theirs is not None and ours.workload.name == goal.workload:
                title = f"{ours.workload.title}, {ours.storage}: {ours.peer.title} by {theirs.peer.title}"
                name = f"{goal.workload}, {ours.storage}, {goal.ours}, {goal.theirs}"
                found.append(Check(name, title, ratio(ours, theirs), least=goal.least))
    return found


def limits(checks: Sequence[Check]) -> str:
    """What was to be reached, and what was."""
    return "".join(line + "\n" for line in _aligned([check.cells() for check in checks], 2))


def as_json(results: Sequence[Result], checks: Sequence[Check], conditions: str) -> dict[str, object]:
    """Everything measured, samples too."""
    return {
        "conditions": conditions,
        "results": [
            {
                "comparison": result.comparison.name,
                "storage": result.storage,
                "workload": result.workload.name,
                "title": result.workload.title,
                "associations": result.workload.associations,
                "size": result.workload.size,
                "server": result.peer.name,
                "peer": result.peer.title,
                "objects_per_association": result.objects,
                "trouble": result.trouble,
                "median": dataclasses.asdict(median) if (median := result.median()) else None,
                "samples": [dataclasses.asdict(sample) for sample in result.samples],
            }
            for result in results
        ],
        "checks": [check.as_json() for check in checks],
    }
