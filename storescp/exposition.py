"""The metrics as prometheus_client wants them, which the extra ``web`` brings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from storescp.measurements import BUCKETS, Durations
from storescp.metrics import METRICS, Kind, Metric, Observed, Snapshot
from storescp.readiness import Readiness

_BOUNDS = [*map(str, BUCKETS), "+Inf"]


class ServerCollector(Collector):
    """All metrics of the server, read when somebody asks. Any thread may."""

    def __init__(self, crew: Observed, readiness: Readiness) -> None:
        self._crew = crew
        self._readiness = readiness

    def collect(self) -> Iterator[Family]:
        """See Collector."""
        snapshot = Snapshot(self._crew, self._readiness)
        for metric in METRICS:
            yield _family(metric, snapshot)

    def describe(self) -> Iterator[Family]:
        """Nothing: so nobody collects when this is registered."""
        return iter(())


def _family(metric: Metric, snapshot: Snapshot) -> Family:
    name, _, text, source, labels = metric
    samples = source(snapshot)
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for value, values in samples:
            assert isinstance(value, Durations)
            buckets = list(zip(_BOUNDS, accumulate(value.counts), strict=True))
            histogram.add_metric(values, buckets, value.seconds)
        return histogram
    family = (CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily)(
        name, text, labels=labels
    )
    for value, values in samples:
        assert not isinstance(value, Durations)
        family.add_metric(values, value)
    return family


def registry(crew: Observed, readiness: Readiness) -> CollectorRegistry:
    """The server's metrics, and those of its process that prometheus_client has."""
    found = CollectorRegistry()
    found.register(ServerCollector(crew, readiness))
    ProcessCollector(registry=found)
    GCCollector(registry=found)
    return found
