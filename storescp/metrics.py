"""The metrics: what they are called, what they say, and where their values come from.

What belongs here: one table for the scrape, the documentation and the page. Names are as Prometheus wants them. How
they are written down is the business of :mod:`storescp.exposition`.
"""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from storescp import __version__
from storescp.config import Config
from storescp.measurements import Counted, Duration, Durations, Event, Measurements
from storescp.readiness import Crew, Readiness
from storescp.space import Space
from storescp.statistics import Load, Statistics


class Kind(enum.Enum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Observed(Crew, Protocol):
    """Who does the work, and counts."""

    restarts: int
    measurements: Measurements | None

    @property
    def statistics(self) -> Statistics: ...

    @property
    def associations(self) -> int: ...


class Sample(NamedTuple):
    """A value, with those of the labels."""

    value: float | Durations
    labels: tuple[str, ...] = ()


class Snapshot:
    """What there is at this moment."""

    def __init__(self, crew: Observed, readiness: Readiness) -> None:
        assert crew.measurements is not None
        self.config: Config = crew.config
        self.measurements = crew.measurements
        self.statistics = crew.statistics
        self.associations = crew.associations
        self.restarts = crew.restarts
        self.loads: dict[int, Load] = dict(crew.loads)
        self.obstacles = readiness.obstacles()
        self.space: Space | None = readiness.watch.space
        self._counted: dict[Event, list[Counted]] = {event: [] for event in Event}
        for counted in self.measurements.counted():
            self._counted[counted.series.event].append(counted)

    def counted(self, event: Event) -> list[Counted]:
        """All series of an event."""
        return self._counted[event]


Source = Callable[[Snapshot], Iterable[Sample]]


class Metric(NamedTuple):
    """One row of the table. Names of counters end with ``_total``, as in queries."""

    name: str
    kind: Kind
    help: str
    source: Source
    labels: tuple[str, ...] = ()


def _one(value: Callable[[Snapshot], float]) -> Source:
    return lambda snapshot: (Sample(value(snapshot)),)


def _sum(value: Callable[[Load], float]) -> Source:
    return lambda snapshot: (Sample(sum(map(value, snapshot.loads.values()))),)


def _each(value: Callable[[Load], float]) -> Source:
    return lambda snapshot: (
        Sample(value(load), (str(number),)) for number, load in sorted(snapshot.loads.items())
    )


def _count(event: Event) -> Source:
    return lambda snapshot: (Sample(one.times, one.series.labels) for one in snapshot.counted(event))


def _size(event: Event) -> Source:
    return lambda snapshot: (Sample(one.size, one.series.labels) for one in snapshot.counted(event))


def _duration(duration: Duration) -> Source:
    return lambda snapshot: (Sample(snapshot.measurements.durations(duration)),)


#: From the files of a package, which are not to be read for each scrape.
_version = functools.cache(importlib.metadata.version)


def _build(snapshot: Snapshot) -> Iterator[Sample]:
    versions = map(_version, ("twisted", "pydicom"))
    yield Sample(1, (__version__, platform.python_version(), *versions))


def _space(value: Callable[[Space, Config], float]) -> Source:
    def source(snapshot: Snapshot) -> Iterator[Sample]:
        if snapshot.space is not None:
            yield Sample(value(snapshot.space, snapshot.config))

    return source


def _limits(snapshot: Snapshot) -> Iterator[Sample]:
    statistics = snapshot.statistics
    yield Sample(statistics.refused, ("address",))
    yield Sample(statistics.dropped, ("pending",))
    yield Sample(statistics.slow, ("progress",))
    yield Sample(statistics.oversized, ("size",))


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_INSTANCE = ("calling_ae", "modality", "status")

METRICS: Final = (
    Metric(
        "storescp_build_info",
        _G,
        "1, with the versions of the server and what it is built on",
        _build,
        ("version", "python", "twisted", "pydicom"),
    ),
    Metric("storescp_ready", _G, "1 if images are taken: what /readyz says", _one(lambda s: not s.obstacles)),
    Metric("storescp_workers", _G, "Processes that serve associations now", _one(lambda s: len(s.loads))),
    Metric(
        "storescp_worker_restarts_total",
        _C,
        "Workers that died and had to be replaced",
        _one(lambda s: s.restarts),
    ),
    Metric(
        "storescp_process_cpu_seconds_total",
        _C,
        "CPU time of each process that serves associations, since its start",
        _each(lambda load: load.cpu),
        ("process",),
    ),
    Metric(
        "storescp_process_resident_bytes",
        _G,
        "Memory of each process that serves associations",
        _each(lambda load: load.resident),
        ("process",),
    ),
    Metric("storescp_connections_total", _C, "Connections", _one(lambda s: s.statistics.connections)),
    Metric(
        "storescp_connections_waiting",
        _G,
        "Connections without an association now",
        _sum(lambda load: load.waiting),
    ),
    Metric("storescp_associations", _G, "Associations now", _one(lambda s: s.associations)),
    Metric(
        "storescp_associations_max",
        _G,
        "Associations that may be at a time: --max-assoc",
        _one(lambda s: s.config.max_assoc),
    ),
    Metric(
        "storescp_associations_accepted_total",
        _C,
        "Associations that were accepted",
        _count(Event.ACCEPTED),
        ("calling_ae",),
    ),
    Metric(
        "storescp_associations_rejected_total",
        _C,
        "Associations that were rejected, by what they were rejected for: titles (the calling AE title), addresses,"
        " certificates, called (the called AE title), users, full (too many associations), other",
        _count(Event.REJECTED),
        ("calling_ae", "reason"),
    ),
    Metric(
        "storescp_associations_ended_total",
        _C,
        "Associations that have ended, and how: released or aborted",
        _count(Event.ENDED),
        ("calling_ae", "how"),
    ),
    Metric("storescp_messages_total", _C, "DIMSE messages received", _one(lambda s: s.statistics.messages)),
    Metric(
        "storescp_received_bytes_total",
        _C,
        "Bytes received of associations",
        _one(lambda s: s.statistics.bytes_received),
    ),
    Metric(
        "storescp_instances_total",
        _C,
        "Instances that were answered, by the status of the answer: 0000 is Success",
        _count(Event.INSTANCE),
        _INSTANCE,
    ),
    Metric("storescp_instance_bytes_total", _C, "Bytes of their data sets", _size(Event.INSTANCE), _INSTANCE),
    Metric(
        "storescp_receive_seconds",
        _H,
        "From a C-STORE-RQ to the end of its data set",
        _duration(Duration.RECEIVE),
    ),
    Metric(
        "storescp_answer_seconds",
        _H,
        "From the end of a data set to the answer",
        _duration(Duration.ANSWER),
    ),
    Metric(
        "storescp_sync_seconds",
        _H,
        "Writing the journal for a group of instances, which with --sync always brings them to the disk",
        _duration(Duration.SYNC),
    ),
    Metric(
        "storescp_index_seconds",
        _H,
        "Committing the rows of a group of instances",
        _duration(Duration.INDEX),
    ),
    Metric(
        "storescp_in_flight_bytes", _G, "Bytes that wait for storage now", _sum(lambda load: load.in_flight)
    ),
    Metric(
        "storescp_in_flight_max_bytes",
        _G,
        "How many may, before senders have to wait: --max-in-flight",
        _one(lambda s: s.config.max_in_flight),
    ),
    Metric(
        "storescp_writer_jobs",
        _G,
        "Parts of instances that are with the writing threads now",
        _sum(lambda load: load.jobs),
    ),
    Metric(
        "storescp_journal_files",
        _G,
        "Files that only the journal brings back after a power cut, now",
        _sum(lambda load: load.unsettled),
    ),
    Metric(
        "storescp_storage_free_bytes",
        _G,
        "Bytes free in the file system of --storage-dir",
        _space(lambda space, config: space.free),
    ),
    Metric(
        "storescp_storage_size_bytes", _G, "Bytes of it in all", _space(lambda space, config: space.total)
    ),
    Metric(
        "storescp_storage_min_free_bytes",
        _G,
        "Bytes that must be free for images to be taken: --min-free",
        _space(lambda space, config: config.min_free.bytes_of(space.total)),
    ),
    Metric(
        "storescp_limit_exceeded_total",
        _C,
        "What was beyond a limit: connections refused by --max-per-address or --max-rate (address), dropped by"
        " --max-pending (pending); associations aborted by --min-rate or --progress-timeout (progress); instances"
        " refused by --max-object-size (size)",
        _limits,
        ("limit",),
    ),
    Metric(
        "storescp_tls_failures_total",
        _C,
        "Connections that did not get beyond the handshake of TLS",
        _one(lambda s: s.statistics.tls_failures),
    ),
)
