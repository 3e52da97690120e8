"""What became of a run of the load generator: counts, times, and how they are summed up."""

from __future__ import annotations

import array
import collections
import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(slots=True)
class Outcome:
    """What happened. Times in seconds; ``started`` and ``finished`` on the monotonic clock.

    ``response_times`` runs from the first byte of a C-STORE-RQ to its response, ``association_times`` from
    connect to A-ASSOCIATE-AC. The clock of a run starts with the first C-STORE and ends with the last
    response; with an association per object it covers connects and releases, too.
    """

    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    response_times: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    association_times: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    object_bytes: int = 0
    max_pdu: int = 0
    cpu_seconds: float = 0.0
    started: float = math.inf
    finished: float = -math.inf

    def merge(self, other: Outcome) -> None:
        """Adds the outcome of another process of the same run."""
        self.statuses += other.statuses
        self.failures += other.failures
        self.response_times += other.response_times
        self.association_times += other.association_times
        self.object_bytes = other.object_bytes
        self.max_pdu = max(self.max_pdu, other.max_pdu)
        self.cpu_seconds += other.cpu_seconds
        self.started = min(self.started, other.started)
        self.finished = max(self.finished, other.finished)

    @property
    def seconds(self) -> float:
        return max(self.finished - self.started, 0.0)

    @property
    def objects(self) -> int:
        """Objects answered with Success."""
        return self.statuses[0]

    @property
    def ok(self) -> bool:
        """Everything was answered with Success."""
        return not self.failures and self.objects == self.statuses.total() > 0

    def per_second(self) -> float:
        return self.objects / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """The printed form; response times in milliseconds, bytes of data sets in units of 10^6."""
        return {
            "objects": self.objects,
            "seconds": round(self.seconds, 6),
            "objects_per_second": round(self.per_second(), 2),
            "megabytes_per_second": round(self.per_second() * self.object_bytes / 1e6, 3),
            "object_bytes": self.object_bytes,
            "statuses": {f"{status:04X}": count for status, count in sorted(self.statuses.items())},
            "failures": dict(sorted(self.failures.items())),
            "response_ms": summary(self.response_times),
            "association_ms": summary(self.association_times),
            "associations": len(self.association_times),
            "max_pdu": self.max_pdu,
            "loadgen_cpu_seconds": round(self.cpu_seconds, 3),
        }


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest-rank percentile of values in ascending order; 0.0 for none."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else 0.0


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and maximum, from seconds to milliseconds."""
    ordered = sorted(seconds)
    named = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: round(1000 * percentile(ordered, fraction), 4) for name, fraction in named.items()}
