"""Prints docs/metrics.rst, the reference of the metrics. See ``make reference``."""

from __future__ import annotations

import textwrap

from storescp.measurements import BUCKETS, SERIES, TITLES
from storescp.metrics import METRICS, Kind, Metric
from storescp.readiness import STALL
from storescp.web import MAX_CONNECTIONS

_INTRODUCTION = f"""\
Metrics and health
==================

.. Made by "make reference" of the table of metrics.

``pip install 'storescp[web]'`` brings what it needs. Then ``--http 8080`` serves by HTTP, on the loopback interface;
``--http tcp:8080:interface=10.0.0.5`` on another one. It asks nobody for a password, so it belongs where only those can
reach it who may know the AE titles of senders; there is no patient data in it. It takes at most {MAX_CONNECTIONS}
connections.

``/``
    A page for people.
``/metrics``
    For Prometheus. With ``--workers`` the numbers are those of all processes; what a worker had counted that died is
    among them. ``etc/prometheus-rules.yaml`` has alerts and ``etc/grafana-dashboard.json`` a dashboard.
``/healthz``
    200 while the server works; 503, with the reason, when a process has given no sign of life for {STALL:.0f} seconds,
    or its writing thread has got nothing done for so long although it had something to do. Who finds that may
    start it anew.
``/readyz``
    200 while images are taken; 503, with the reason, when it is starting or stopping, less is free on the disk than
    ``--min-free`` wants, the disk has not answered for 10 seconds, or no worker is ready. Who finds that should send
    images elsewhere, and leave it alone.

In ``prometheus.yml``::

    scrape_configs:
      - job_name: storescp
        static_configs: [{{targets: ["localhost:8080"]}}]

What is told apart is bounded, whatever peers call themselves. Calling AE titles with a rule of their own in ``callers``
have their own numbers; of the others the first {TITLES} (of those that were rejected the first {TITLES // 2}). All
later ones are ``other``. So are modalities that DICOM does not know (PS3.3, C.7.3.1.1.1); ``unknown`` is that of what
was refused before its data set was read. There are at most {SERIES:,} series by sender.

Metrics
-------

Beside these there are those of the Python client for its process: ``process_cpu_seconds_total``,
``process_resident_memory_bytes``, ``process_open_fds``, ``process_start_time_seconds`` and so on. With ``--workers``
that is the process which accepts connections; the others are in those named ``storescp_process_...``.
"""


def entry(metric: Metric) -> str:
    """What there is to say about one."""
    labels = f", by {', '.join(f'``{label}``' for label in metric.labels)}" if metric.labels else ""
    lines = textwrap.wrap(f"{metric.help}.", 114)
    return "\n".join([f"``{metric.name}`` ({metric.kind.value}{labels})", *(f"    {line}" for line in lines)])


def text() -> str:
    """The whole file."""
    histograms = ", ".join(f"``{metric.name}``" for metric in METRICS if metric.kind is Kind.HISTOGRAM)
    bounds = ", ".join(f"{bound:g}" for bound in BUCKETS)
    buckets = textwrap.fill(f"The buckets of {histograms} end at {bounds} seconds.", 118)
    return "\n".join([_INTRODUCTION, *map(entry, METRICS), "", buckets, ""])


if __name__ == "__main__":
    print(text(), end="")
