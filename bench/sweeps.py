"""The sweeps: what becomes of a server with more associations, larger objects, more that is stored already.

Most are comparisons like the usual one, with other workloads. Only the instances stored need a run of their own:
nothing is removed in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from bench import loadgen
from bench.measure import Comparison, Report, Result, Settings, Workload, play_round, run, trouble
from bench.peers import PeerFailed, Server

_KIB, _MIB = 1024, 1024**2

ASSOCIATE = Comparison(
    "associate",
    "associations without any object, connect to release",
    ("storescp", "dcmtk", "dcmtk-fork", "orthanc", "pynetdicom", "raw"),
    (
        Workload("1xnone", "1 at a time", 1, 0, least=5, association_per_object=True),
        Workload("8xnone", "8 at a time", 8, 0, least=2, association_per_object=True),
    ),
    storages=("tmpfs",),
)
SCALING = Comparison(
    "scaling",
    "more and more associations at once",
    # DCMTK without --fork, and each process of the raw copy, serves one at a time: nothing to find out there.
    ("storescp", "dcmtk-fork", "orthanc"),
    tuple(
        Workload(f"{number}x{name}", f"{number} x {title}", number, size, least=2)
        for name, title, size in (("8K", "8 KiB", 8 * _KIB), ("512K", "512 KiB", 512 * _KIB))
        for number in (1, 8, 32, 128, 512)
    ),
    storages=("tmpfs",),
)
SIZES = Comparison(
    "sizes",
    "larger and larger objects on one association, each size with a fresh server",
    ("storescp", "dcmtk", "orthanc", "pynetdicom", "raw"),
    tuple(
        Workload(f"1x{size}", f"1 x {size[:-1]} {size[-1]}iB", 1, loadgen.byte_count(size), least=least)
        for size, least in (
            ("1K", 20),
            ("8K", 20),
            ("64K", 20),
            ("512K", 20),
            ("4M", 5),
            ("32M", 2),
            ("256M", 1),
            ("1G", 1),
        )
    ),
    storages=("tmpfs",),
)
COMPARISONS = (ASSOCIATE, SCALING, SIZES)

_STEPS = (1_000, 10_000, 100_000, 1_000_000)


def _with(step: int) -> Workload:
    return Workload(f"stored-{step}", f"8 x 1 KiB, {step:,} stored", 8, _KIB)


STORED = Comparison(
    "stored",
    "the more instances are stored already, the same server throughout",
    ("storescp", "storescp-flat", "dcmtk", "orthanc"),
    tuple(map(_with, _STEPS)),
    storages=("disk",),
)
_MOST = {"storescp": 1_000_000}
_MOST_OF_OTHERS = 100_000
_FILL = 5_000  # objects per association in a run that only fills
_MEASURED = 250  # objects per association in a run that is measured


def measure_stored(settings: Settings, report: Report, steps: Sequence[int] = _STEPS) -> list[Result]:
    """Fills servers up to each step, and measures them there, in rounds as usual; they keep what they get."""
    results: list[Result] = []
    for storage in settings.storages:
        if storage.name in STORED.storages:
            with contextlib.ExitStack() as stack:
                peers = [settings.peers[name] for name in STORED.peers if name in settings.peers]
                servers = [Filled(stack.enter_context(Server(peer, storage))) for peer in peers]
                for step in steps:
                    report(f"{STORED.name}, {storage.name}, {step:,} instances ...")
                    there = [(server, server.up_to(step)) for server in servers if step <= server.most]
                    for _ in range(settings.rounds):
                        for server, result in there:
                            server.play_round(result)
                    results += (result for _, result in there)
    return results


class Filled:
    """A server that keeps what it gets."""

    def __init__(self, server: Server) -> None:
        self.most = _MOST.get(server.peer.name, _MOST_OF_OTHERS)
        self._server = server
        self._stored = 0

    def up_to(self, step: int) -> Result:
        """A result to be measured once ``step`` objects are there, which are sent now."""
        workload = _with(step)
        result = Result(STORED, self._server.storage.name, workload, self._server.peer, objects=_MEASURED)
        while not result.trouble and (missing := (step - self._stored) // workload.associations) > 0:
            try:
                _, outcome = run(self._server, workload, min(missing, _FILL), keep=True)
            except PeerFailed as failed:
                result.trouble = str(failed)
            else:
                result.trouble = trouble(outcome)
                self._stored += outcome.objects
        return result

    def play_round(self, result: Result) -> None:
        play_round(self._server, result, keep=True)
        self._stored += _MEASURED * result.workload.associations
