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

from bench import loadgen, report
from bench.measure import WORKLOADS, Settings, available, measure
from bench.memory import measure_memory
from bench.peers import PEERS, STORESCP, USUAL
from bench.storage import Storage, spread


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures storescp beside other Storage SCPs and a raw copy of the byte stream. "
        "Rates are medians over rounds in which all servers take turns.",
    )
    peers, workloads = [peer.name for peer in PEERS], [workload.name for workload in WORKLOADS]
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs per figure (5)")
    parser.add_argument("--seconds", type=float, default=0.6, metavar="S", help="aim for one run (0.6)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.25 s, on tmpfs only")
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
        "--memory", choices=("yes", "no", "only"), default="yes", help="the memory loads (yes)"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 0 when everything was measured without trouble, 1 when not, 2 for bad use."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds: expected more than 0")
    if options.quick:
        options.rounds, options.seconds = 3, 0.25
        options.storage = options.storage or ["tmpfs"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers are stopped, too
    loadgen.raise_descriptor_limit()
    peers = {peer.name: peer for peer in PEERS}
    if options.pin:
        *others, last = sorted(os.sched_getaffinity(0))
        if not others:
            parser.error("--pin: expected two CPUs or more")
        os.sched_setaffinity(0, {last})
        peers = {peer.name: dataclasses.replace(peer, cpus=frozenset(others)) for peer in PEERS}
    peers[STORESCP.name] = peers[STORESCP.name].with_arguments(options.storescp_args)
    workloads = [w for w in WORKLOADS if not options.workload or w.name in options.workload]
    usual = [peer for name, peer in peers.items() if name in (options.server or USUAL)]
    also = {name for workload in workloads for name in workload.also} if not options.server else set()
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
        installed = available([*usual, *(peers[name] for name in also)], _progress)
        results = []
        if options.memory != "only":
            settings = Settings(
                storages=storages,
                workloads=workloads,
                peers=[peer for peer in installed if peer in usual],
                extra=[peer for peer in installed if peer not in usual],
                rounds=options.rounds,
                seconds=options.seconds,
            )
            results = measure(settings, _progress)
        memory = []
        if options.memory != "no" and peers[STORESCP.name] in installed:
            memory = measure_memory(peers[STORESCP.name], storages[0], _progress)
    pinned = "; load generator on a CPU of its own" if options.pin else ""
    conditions = f"{report.machine()}; medians of {options.rounds} rounds of {options.seconds:g} s{pinned}"
    print(f"{conditions}\n")
    if results:
        print(report.table(results))
    print(report.limits(results, memory), end="")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, memory, conditions), indent=2) + "\n")
    troubled = any(r.trouble for r in results) or any(m.value is None for m in memory)
    return 1 if troubled or len(installed) < len(usual) + len(also) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
