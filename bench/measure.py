"""The side-by-side measurement: workloads, rounds interleaved over all servers, medians."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from bench import loadgen
from bench.outcome import Outcome, summary
from bench.peers import Peer, PeerFailed, PeerMissing, Place, Server
from bench.storage import Storage

_KIB, _MIB = 1024, 1024**2
_LARGEST_RUN = 512 * _MIB  # bytes of objects per run
_MOST_OBJECTS = 10_000
_CALIBRATION_SHARE = 0.4  # of the aimed seconds: a shorter run tells little about the rate
_STALL_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """A way of sending.

    ``size`` in bytes per object; ``least`` objects per association in any run, so that even the slowest server
    gets into its stride; ``also`` names peers measured here besides the usual ones.
    """

    name: str
    title: str
    associations: int
    size: int
    least: int = 1
    association_per_object: bool = False
    also: tuple[str, ...] = ()

    def load(self, port: int, objects: int, *, tls: bool = False, window: int = 1) -> loadgen.Load:
        """``objects`` per association, to 127.0.0.1."""
        return loadgen.Load(
            host="127.0.0.1",
            port=port,
            associations=self.associations,
            objects=objects,
            size=self.size,
            association_per_object=self.association_per_object,
            tls=tls,
            window=window,
            stall=_STALL_SECONDS,
        )


WORKLOADS = (
    Workload("1x512K", "1 x 512 KiB", 1, 512 * _KIB, least=20),
    Workload("8x512K", "8 x 512 KiB", 8, 512 * _KIB, least=20),
    Workload("1x8K", "1 x 8 KiB", 1, 8 * _KIB, least=20, also=("dcmtk-nagle",)),
    Workload("8x8K", "8 x 8 KiB", 8, 8 * _KIB, least=20),
    Workload("1x64M", "1 x 64 MiB", 1, 64 * _MIB, least=2),
    Workload("each8K", "8 x 8 KiB, association each", 8, 8 * _KIB, least=3, association_per_object=True),
)


def _some(*names: str) -> tuple[Workload, ...]:
    """Those workloads, with no more than the usual peers."""
    return tuple(dataclasses.replace(workload, also=()) for workload in WORKLOADS if workload.name in names)


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """The least ratio of the rate of one server to that of another one, by their names."""

    ours: str
    workload: str
    theirs: str
    least: float


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Servers that are measured side by side: the names of the ``peers``, with what workloads, on which storages."""

    name: str
    title: str
    peers: tuple[str, ...]
    workloads: tuple[Workload, ...]
    storages: tuple[str, ...] = ("tmpfs", "disk")
    goals: tuple[Goal, ...] = ()

    @property
    def ours(self) -> str:
        """The name of our server, which the others are compared with; empty if it does not take part."""
        return next((name for name in self.peers if name.startswith("storescp")), "")

    def names(self) -> set[str]:
        """The names of all peers that take part somewhere."""
        return {*self.peers, *(name for workload in self.workloads for name in workload.also)}


USUAL = Comparison(
    "usual",
    "nobody syncs",
    ("storescp", "dcmtk", "dcmtk-128k", "pynetdicom", "raw"),
    WORKLOADS,
    goals=(
        Goal("storescp", "1x512K", "dcmtk", 1.0),
        Goal("storescp", "1x512K", "pynetdicom", 6.0),
        Goal("storescp", "8x512K", "dcmtk", 1.0),
        Goal("storescp", "8x512K", "pynetdicom", 6.0),
        Goal("storescp", "1x8K", "dcmtk", 0.6),
        Goal("storescp", "1x8K", "pynetdicom", 8.0),
        Goal("storescp", "8x8K", "dcmtk", 0.6),
        Goal("storescp", "8x8K", "pynetdicom", 15.0),
        Goal("storescp", "1x64M", "dcmtk", 1.0),
        Goal("storescp", "1x64M", "raw", 0.8),
        Goal("storescp", "each8K", "dcmtk", 0.4),
        Goal("storescp", "each8K", "pynetdicom", 15.0),
    ),
)
WORKERS = Comparison(
    "workers",
    "two processes, nobody syncs",
    ("storescp-workers", "storescp", "dcmtk", "dcmtk-fork"),
    _some("8x512K", "8x8K", "each8K"),
    goals=(
        Goal("storescp-workers", "8x512K", "dcmtk-fork", 1.0),
        Goal("storescp-workers", "8x8K", "dcmtk", 1.0),
        Goal("storescp-workers", "each8K", "dcmtk", 0.7),
    ),
)
TLS = Comparison(
    "tls",
    "over TLS, and the same servers without it",
    ("storescp-tls", "storescp", "dcmtk-tls", "dcmtk"),
    _some("8x512K", "1x8K"),
    storages=("tmpfs",),
    # What it costs.
    goals=(Goal("storescp-tls", "8x512K", "storescp", 0.5),),
)
OBSERVED = Comparison(
    "observed",
    "with metrics, a log in JSON and the audit trail, and without",
    ("storescp-observed", "storescp"),
    _some("1x8K", "8x8K", "8x512K"),
    storages=("tmpfs",),
    # What it costs.
    goals=tuple(
        Goal("storescp-observed", workload, "storescp", 0.9) for workload in ("1x8K", "8x8K", "8x512K")
    ),
)
DURABLE = Comparison(
    "durable",
    "Success means that the object is on the disk, but with the last server",
    ("storescp-sync", "orthanc-sync", "raw-sync", "storescp"),
    _some("1x512K", "8x512K", "1x8K", "8x8K"),
    storages=("disk",),
    goals=(
        Goal("storescp-sync", "1x512K", "orthanc-sync", 2.0),
        Goal("storescp-sync", "8x512K", "orthanc-sync", 2.0),
        Goal("storescp-sync", "8x8K", "orthanc-sync", 2.0),
        Goal("storescp-sync", "1x512K", "raw-sync", 0.6),
        Goal("storescp-sync", "8x512K", "raw-sync", 0.6),
        # What the promise costs.
        Goal("storescp-sync", "8x512K", "storescp", 0.5),
        Goal("storescp-sync", "8x8K", "storescp", 0.5),
    ),
)
WINDOW = Comparison(
    "window",
    "several C-STOREs outstanding on an association",
    ("storescp-64", "storescp-8", "storescp-sync"),
    _some("1x8K"),
    storages=("disk",),
    goals=(
        Goal("storescp-64", "1x8K", "storescp-sync", 3.0),
        Goal("storescp-8", "1x8K", "storescp-sync", 2.0),
    ),
)
COMPARISONS = (USUAL, WORKERS, TLS, OBSERVED, DURABLE, WINDOW)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One run, or the medians of several.

    Rates per second, MB are 10^6 bytes of data sets, CPU seconds of the server for 1000 objects, peak resident
    memory of its processes in MiB since it was started, response times in milliseconds, and the share of one
    CPU that the load generator took.
    """

    objects_per_second: float
    megabytes_per_second: float
    cpu_per_1000: float
    peak_mebibytes: float
    p50: float
    p99: float
    p999: float
    loadgen_share: float


@dataclasses.dataclass(slots=True)
class Result:
    """What one server did with one workload on one storage."""

    comparison: Comparison
    storage: str
    workload: Workload
    peer: Peer
    samples: list[Sample] = dataclasses.field(default_factory=list)
    objects: int = 0  # per run
    trouble: str = ""

    def median(self) -> Sample | None:
        """The median of each column; None if there is no sample."""
        if not self.samples:
            return None
        columns = zip(*map(dataclasses.astuple, self.samples), strict=True)
        return Sample(*map(statistics.median, columns))


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: on those ``storages`` that a comparison names, with those of its peers that are in ``peers``.

    ``seconds`` is the aim for one run.
    """

    storages: Sequence[Storage]
    peers: Mapping[str, Peer]
    rounds: int
    seconds: float


Report = Callable[[str], None]
"""Takes a line about the progress."""


def available(peers: Iterable[Peer], report: Report) -> dict[str, Peer]:
    """The peers that are installed, by name; one line for each that is not."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        for peer in peers:
            try:
                peer.command(Place(directory, directory, 0))
            except PeerMissing as missing:
                report(str(missing))
            else:
                found[peer.name] = peer
    return found


def run(server: Server, workload: Workload, objects: int, *, keep: bool = False) -> tuple[Sample, Outcome]:
    """One run of ``objects`` per association; leaves the storage directory empty, unless it is to ``keep`` them.

    PeerFailed if the server has ended, or has not stored all that it answered with Success.
    """
    server.storage.warm(objects * workload.associations * workload.size)
    cpu = server.cpu_seconds()
    peer = server.peer
    outcome = loadgen.run(workload.load(server.place.port, objects, tls=peer.tls, window=peer.window))
    cpu = server.cpu_seconds() - cpu
    response = summary(outcome.response_times)
    rate = outcome.per_second()
    sample = Sample(
        objects_per_second=rate,
        megabytes_per_second=rate * outcome.object_bytes / 1e6,
        cpu_per_1000=1000 * cpu / max(1, outcome.objects),
        peak_mebibytes=server.peak_mebibytes(),
        p50=response["p50"],
        p99=response["p99"],
        p999=response["p99.9"],
        loadgen_share=outcome.cpu_seconds / outcome.seconds if outcome.seconds else 0.0,
    )
    server.check(1.0 if outcome.failures else 0.0)
    if keep:
        return sample, outcome
    if server.stored_bytes() < outcome.objects * outcome.object_bytes:
        raise PeerFailed(f"{server.peer.name} stored less than the {outcome.objects} objects it took")
    server.remove_objects()
    return sample, outcome


def trouble(outcome: Outcome) -> str:
    """What went wrong, in a few words; empty if every object was answered with Success."""
    statuses = [f"{count} answered {code:04X}H" for code, count in outcome.statuses.items() if code]
    return ", ".join([*statuses, *(f"{count} times {why}" for why, count in outcome.failures.items())])


def _calibrate(server: Server, workload: Workload, seconds: float) -> tuple[int, str]:
    """Objects per association for a run of about ``seconds``; and what went wrong, if anything."""
    associations = workload.associations
    most = max(1, min(_MOST_OBJECTS, _LARGEST_RUN // max(1, workload.size)) // associations)
    least = min(most, workload.least)
    objects = least
    while True:
        _, outcome = run(server, workload, objects)
        if not outcome.ok:
            return objects, trouble(outcome)
        if outcome.seconds >= _CALIBRATION_SHARE * seconds or objects >= most:
            return max(least, min(most, round(outcome.per_second() * seconds / associations))), ""
        objects = min(most, objects * 4)


def measure(comparison: Comparison, settings: Settings, report: Report) -> list[Result]:
    """Runs everything: for each storage and workload all servers at once, and in every round one after the other."""
    results: list[Result] = []
    for storage in settings.storages:
        if storage.name not in comparison.storages:
            continue
        for workload in comparison.workloads:
            report(f"{comparison.name}, {storage.name}, {workload.title} ...")
            with contextlib.ExitStack() as stack:
                pairs = []
                for name in (*comparison.peers, *workload.also):
                    if (peer := settings.peers.get(name)) is None:
                        continue
                    result = Result(comparison, storage.name, workload, peer)
                    results.append(result)
                    try:
                        server = stack.enter_context(Server(peer, storage))
                        result.objects, result.trouble = _calibrate(server, workload, settings.seconds)
                    except PeerFailed as failed:
                        result.trouble = str(failed)
                    if not result.trouble:
                        pairs.append((server, result))
                for turn in range(settings.rounds):
                    # Everybody is first once in a while.
                    start = turn % len(pairs) if pairs else 0
                    for server, result in pairs[start:] + pairs[:start]:
                        play_round(server, result)
    return results


def play_round(server: Server, result: Result, *, keep: bool = False) -> None:
    """One run more for a result, unless there was trouble."""
    if result.trouble:
        return
    try:
        sample, outcome = run(server, result.workload, result.objects, keep=keep)
    except PeerFailed as failed:
        result.trouble = str(failed)
        return
    if outcome.ok:
        result.samples.append(sample)
    else:
        result.trouble = trouble(outcome)
