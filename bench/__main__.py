"""``python -m bench``: this server beside others, on the same machine, in the same run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence

from bench import loadgen, report, sweeps
from bench.check import Check
from bench.index import measure_index
from bench.measure import COMPARISONS, USUAL, Comparison, Result, Settings, available, measure
from bench.memory import measure_memory
from bench.peers import PEERS, STORESCP
from bench.storage import Storage, spread

_PARTS = (*(comparison.name for comparison in COMPARISONS), "memory", "index")
_SWEEPS = (*(comparison.name for comparison in sweeps.COMPARISONS), sweeps.STORED.name)
_ALL_COMPARISONS = (*COMPARISONS, *sweeps.COMPARISONS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures storescp beside other Storage SCPs and a raw copy of the byte stream. "
        "Rates are medians over rounds in which all servers take turns.",
    )
    peers = [peer.name for peer in PEERS]
    workloads = list(dict.fromkeys(w.name for comparison in _ALL_COMPARISONS for w in comparison.workloads))
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs per figure (5)")
    parser.add_argument("--seconds", type=float, default=0.6, metavar="S", help="aim for one run (0.6)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.25 s")
    parts = (*_PARTS, *_SWEEPS)
    parser.add_argument(
        "--part", action="append", choices=parts, metavar="NAME", help=f"only: {', '.join(parts)}"
    )
    parser.add_argument(
        "--sweeps", action="store_true", help=f"instead of the usual parts: {', '.join(_SWEEPS)}"
    )
    parser.add_argument(
        "--server", action="append", choices=peers, metavar="NAME", help=f"only this one: {', '.join(peers)}"
    )
    parser.add_argument(
        "--workload", action="append", choices=workloads, metavar="NAME", help=f"only: {', '.join(workloads)}"
    )
    parser.add_argument(
        "--storage", action="append", choices=("tmpfs", "disk"), metavar="NAME", help="only: tmpfs, disk"
    )
    parser.add_argument("--tmpfs", type=pathlib.Path, default=pathlib.Path("/dev/shm"), metavar="DIR")
    parser.add_argument(
        "--disk", type=pathlib.Path, default=pathlib.Path(), metavar="DIR", help="a directory on a disk (.)"
    )
    parser.add_argument(
        "--storescp-args",
        type=shlex.split,
        default=[],
        metavar="ARGS",
        help='more options for storescp: --storescp-args="--no-index"',
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="the load generator has the last CPU to itself, the servers share the others: steadier figures",
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything measured to FILE")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _comparisons(options: argparse.Namespace) -> list[Comparison]:
    """The comparisons that are asked for, with those servers and workloads that are."""
    found = []
    for comparison in _ALL_COMPARISONS:
        if comparison.name not in options.part:
            continue
        workloads = [w for w in comparison.workloads if not options.workload or w.name in options.workload]
        peers = comparison.peers
        if options.server:
            peers = tuple(options.server)
            workloads = [dataclasses.replace(workload, also=()) for workload in workloads]
        found.append(dataclasses.replace(comparison, peers=peers, workloads=tuple(workloads)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 0 when everything was measured without trouble, 1 when not, 2 for bad use."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds: expected more than 0")
    if options.quick:
        options.rounds, options.seconds = 3, 0.25
    if not options.part:
        some = options.server or options.workload
        options.part = _SWEEPS if options.sweeps else (USUAL.name,) if some else _PARTS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers are stopped, too
    loadgen.raise_descriptor_limit()
    peers = {peer.name: peer for peer in PEERS}
    if options.pin:
        *others, last = sorted(os.sched_getaffinity(0))
        if not others:
            parser.error("--pin: expected two CPUs or more")
        os.sched_setaffinity(0, {last})
        peers = {peer.name: dataclasses.replace(peer, cpus=frozenset(others)) for peer in PEERS}
    for name in peers:
        if name.startswith(STORESCP.name):
            peers[name] = peers[name].with_arguments(options.storescp_args)
    comparisons = _comparisons(options)
    wanted = {name for comparison in comparisons for name in comparison.names()}
    if sweeps.STORED.name in options.part:
        wanted |= set(options.server or sweeps.STORED.peers) & set(sweeps.STORED.peers)
    if {"memory", "index"} & set(options.part):
        wanted.add(STORESCP.name)
    results: list[Result] = []
    checks: list[Check] = []
    with contextlib.ExitStack() as stack:
        storages = []
        for name, parent in (("tmpfs", options.tmpfs), ("disk", options.disk)):
            if options.storage and name not in options.storage:
                continue
            try:
                made = tempfile.TemporaryDirectory(
                    dir=parent, prefix=".storescp-bench-", ignore_cleanup_errors=True
                )
            except OSError as error:
                parser.error(f"--{name}: {error.strerror}: {parent}")
            directory = pathlib.Path(stack.enter_context(made)).resolve()
            spread(directory)
            storages.append(Storage(name, directory, keep_inodes=name == "disk"))
        installed = available((peer for peer in peers.values() if peer.name in wanted), _progress)
        settings = Settings(storages, installed, options.rounds, options.seconds)
        for comparison in comparisons:
            results += measure(comparison, settings, _progress)
        checks += report.goals(results)
        if sweeps.STORED.name in options.part:
            comparisons.append(sweeps.STORED)
            results += sweeps.measure_stored(settings, _progress)
        if ours := installed.get(STORESCP.name):
            if "memory" in options.part:
                checks += measure_memory(ours, storages[0], _progress)
            if "index" in options.part:
                checks += measure_index(ours, storages, options.rounds, _progress)
    pinned = "; load generator on a CPU of its own" if options.pin else ""
    conditions = f"{report.machine()}; medians of {options.rounds} rounds of {options.seconds:g} s{pinned}"
    print(f"{conditions}\n")
    for comparison in comparisons:
        if found := [result for result in results if result.comparison is comparison]:
            print(f"{comparison.name}: {comparison.title}\n\n{report.table(found)}")
    print(report.limits(checks), end="")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, checks, conditions), indent=2) + "\n")
    troubled = any(result.trouble for result in results) or any(check.value is None for check in checks)
    return 1 if troubled or len(installed) < len(wanted) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
