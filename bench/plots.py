"""Plots of what was measured: ``python -m bench.plots FILE... --into DIRECTORY`` turns the JSON of runs into SVG files.

Bars for rates by workload and server, lines for what changes with the number of associations, the size of objects
and the instances stored, ranges for response times. What no file has data for is left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError:
    sys.exit("matplotlib is missing: pip install 'storescp[bench]'")

# Told apart by those who do not see all colours, too (Okabe and Ito).
_COLOURS = {
    "storescp": "#d55e00",
    "storescp, synced": "#e69f00",
    "storescp, flat": "#e69f00",
    "storescp, 2 workers": "#a02c00",
    "storescp, TLS": "#e69f00",
    "DCMTK": "#0072b2",
    "DCMTK, 128 KiB PDUs": "#5d6fc4",
    "DCMTK, Nagle": "#9fb8d9",
    "DCMTK --fork": "#56b4e9",
    "DCMTK, TLS": "#56b4e9",
    "Orthanc": "#009e73",
    "Orthanc, synced": "#009e73",
    "pynetdicom": "#cc79a7",
    "raw copy": "#8c8c8c",
    "raw copy, synced": "#8c8c8c",
}
_OTHER_COLOUR = "#444444"


class Point(NamedTuple):
    """The medians of a server with a workload on a storage; see bench.measure.Sample for the units."""

    comparison: str
    storage: str
    workload: str
    title: str
    associations: int
    size: int
    peer: str
    objects_per_second: float
    megabytes_per_second: float
    cpu_per_1000: float
    peak_mebibytes: float
    p50: float
    p99: float
    p999: float


Points = Sequence[Point]


def read(files: Iterable[pathlib.Path]) -> list[Point]:
    """What the JSON of one or more runs has; of the same measured twice the later one."""
    points: dict[tuple[str, ...], Point] = {}
    for file in files:
        for result in json.loads(file.read_text())["results"]:
            if (median := result["median"]) is not None:
                values = result | median
                point = Point(*(values[name] for name in Point._fields))
                points[point.comparison, point.storage, point.workload, point.peer] = point
    return list(points.values())


def _colour(peer: str) -> str:
    return _COLOURS.get(peer, _OTHER_COLOUR)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _plain(value: float, _: int = 0) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _label(axis: Axis, values: Sequence[float]) -> None:
    """Numbers in full at a logarithmic axis, more of them where the values span less than two decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
    axis.set_major_formatter(_plain)
    axis.set_minor_formatter(NullFormatter())


def _panels(count: int, width: float, height: float, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of panels in rows of three, or of two; the last ones stay empty when they do not fill a row."""
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    if engine := figure.get_layout_engine():
        engine.set(hspace=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for left in axes[count:]:
        left.set_axis_off()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def bars(points: Points, what: str, title: str) -> Figure:
    """Rates: a panel for each workload, a bar for each server, a paler one for each storage but the first."""
    workloads = _ordered(point.title for point in points)
    storages = _ordered(point.storage for point in points)
    most = len({point.peer for point in points})
    figure, axes = _panels(len(workloads), 4.2, 0.5 + 0.42 * most, title)
    height = 0.8 / len(storages)
    for axis, workload in zip(axes, workloads, strict=True):
        peers = _ordered(point.peer for point in points if point.title == workload)
        here = {(p.peer, p.storage): p.objects_per_second for p in points if p.title == workload}
        for row, peer in enumerate(peers):
            for number, storage in enumerate(storages):
                if (rate := here.get((peer, storage))) is None:
                    continue
                at = row + (number - (len(storages) - 1) / 2) * height
                axis.barh(at, rate, 0.92 * height, color=_colour(peer), alpha=0.45 if number else 1)
                decimals = 0 if rate >= 100 else 1
                axis.text(rate, at, f" {rate:,.{decimals}f}", va="center", fontsize=7)
        axis.set_title(workload, fontsize=10)
        axis.set_yticks(range(len(peers)), peers, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.16)
        axis.xaxis.set_major_formatter(_plain)
        axis.tick_params(axis="x", labelsize=7)
    pale = f"; the pale bars: {', '.join(storages[1:])}" if storages[1:] else ""
    figure.supxlabel(f"{what}, {storages[0]}{pale}", fontsize=9)
    return figure


class Column(NamedTuple):
    """What a panel of lines shows: its title, and the value of a point."""

    title: str
    value: Callable[[Point], float]


_RATE = Column("objects/s", lambda p: p.objects_per_second)
_DATA_RATE = Column("MB/s", lambda p: p.megabytes_per_second)
_CPU = Column("CPU ms per object", lambda p: p.cpu_per_1000)
_PEAK = Column("peak resident memory, MiB", lambda p: p.peak_mebibytes)
_P99 = Column("p99 of the response, ms", lambda p: p.p99)


def lines(
    points: Points, columns: Sequence[Column], x: Callable[[Point], float], label: str, title: str
) -> Figure:
    """A panel for each column, a line for each server, over ``x`` on a logarithmic scale."""
    figure, axes = _panels(len(columns), 4.6, 3.4, title)
    peers = _ordered(point.peer for point in points)
    for axis, column in zip(axes, columns, strict=True):
        for peer in peers:
            line = sorted((x(p), column.value(p)) for p in points if p.peer == peer)
            axis.plot(*zip(*line, strict=True), marker="o", markersize=4, color=_colour(peer), label=peer)
        axis.set_xscale("log")
        ticks = sorted({x(point) for point in points})
        axis.set_xticks(ticks, [_short(tick) for tick in ticks], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.set_yscale("log")
        _label(axis.yaxis, [column.value(point) for point in points])
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(column.title, fontsize=10)
        axis.set_xlabel(label, fontsize=9)
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _short(number: float) -> str:
    """1000 as "1,000", 65536 as "64K", 2**30 as "1G"."""
    for factor, letter in ((1024**3, "G"), (1024**2, "M"), (1024, "K")):
        if number >= factor and number % factor == 0:
            return f"{number // factor:g}{letter}"
    return _plain(number)


def ranges(points: Points, title: str) -> Figure:
    """Response times: a panel for each workload, for each server a line from p50 over p99 to p99.9."""
    workloads = _ordered(point.title for point in points)
    most = len({point.peer for point in points})
    figure, axes = _panels(len(workloads), 4.2, 0.6 + 0.32 * most, title)
    for axis, workload in zip(axes, workloads, strict=True):
        peers = _ordered(point.peer for point in points if point.title == workload)
        here = [point for point in points if point.title == workload]
        rows, colours = [peers.index(point.peer) for point in here], [_colour(point.peer) for point in here]
        first, last = [point.p50 for point in here], [point.p999 for point in here]
        axis.hlines(rows, first, last, colors=colours, linewidth=2, alpha=0.6)
        for times, marker, size in ((first, "o", 25), ([p.p99 for p in here], "D", 25), (last, "|", 80)):
            axis.scatter(times, rows, c=colours, marker=marker, s=size)
        axis.set_title(workload, fontsize=10)
        axis.set_yticks(range(len(peers)), peers, fontsize=8)
        axis.set_ylim(len(peers) - 0.5, -0.5)
        axis.set_xscale("log")
        _label(axis.xaxis, [*first, *last])
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(True, axis="x", which="major", color="#dddddd", linewidth=0.6)
    figure.supxlabel(
        "ms from the first byte of the request to the response:  ● p50   ◆ p99   | p99.9", fontsize=9
    )
    return figure


def figures(points: Points) -> dict[str, Figure]:
    """Every figure that there are points for, by the name of its file."""

    def of(comparison: str, storage: str = "", size: int = 0) -> list[Point]:
        return [
            point
            for point in points
            if point.comparison == comparison
            and (not storage or point.storage == storage)
            and (not size or point.size == size)
        ]

    found: dict[str, Figure] = {}
    for name, comparison, what, title in (
        ("rates", "usual", "objects/s", "Objects stored in a second, nobody syncs"),
        ("rates-workers", "workers", "objects/s", "Objects stored in a second, two processes, nobody syncs"),
        ("rates-tls", "tls", "objects/s", "Objects stored in a second, with and without TLS"),
        ("rates-durable", "durable", "objects/s", "Objects stored in a second, Success means on the disk"),
        ("associations", "associate", "associations/s", "Associations in a second, without any object"),
    ):
        if chosen := of(comparison):
            found[name] = bars(chosen, what, title)
    for size, name in ((8 * 1024, "8 KiB"), (512 * 1024, "512 KiB")):
        if chosen := of("scaling", size=size):
            found[f"scaling-{size // 1024}k"] = lines(
                chosen,
                (_RATE, _P99, _CPU, _PEAK),
                lambda point: point.associations,
                "associations at once",
                f"Objects of {name} over more and more associations, {chosen[0].storage}",
            )
    for name, comparison, storage, title in (
        ("latency-tmpfs", "usual", "tmpfs", "Response times, tmpfs, nobody syncs"),
        ("latency-disk", "usual", "disk", "Response times, disk, nobody syncs"),
        ("latency-durable", "durable", "disk", "Response times, Success means on the disk"),
    ):
        if chosen := of(comparison, storage):
            found[name] = ranges(chosen, title)
    if chosen := of("sizes"):
        found["sizes"] = lines(
            chosen,
            (_DATA_RATE, _CPU, _PEAK),
            lambda point: point.size,
            "bytes of an object",
            f"One association, larger and larger objects, {chosen[0].storage}",
        )
    if chosen := of("stored"):
        found["stored"] = lines(
            chosen,
            (_RATE, _CPU, _PEAK),
            lambda point: int(point.workload.rpartition("-")[2]),
            "instances stored already",
            f"The more is stored already: {chosen[0].title.partition(',')[0]}, {chosen[0].storage}",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 for a file that is no JSON of a run, 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__.partition("\n\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help="what bench --json wrote")
    parser.add_argument("--into", type=pathlib.Path, default=pathlib.Path("docs"), metavar="DIRECTORY")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args(arguments)
    try:
        points = read(options.files)
        options.into.mkdir(parents=True, exist_ok=True)
        # The same figures give the same files. Text as text: as outlines it is most of a file.
        with matplotlib.rc_context({"svg.hashsalt": "storescp", "svg.fonttype": "none"}):
            for name, figure in figures(points).items():
                path = options.into / f"{name}.{options.format}"
                figure.savefig(path, dpi=110, metadata={"Date": None} if options.format == "svg" else None)
                print(path)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, TypeError):
        print(
            f"expected JSON that python -m bench --json wrote: {', '.join(map(str, options.files))}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
