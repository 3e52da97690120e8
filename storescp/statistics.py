"""What a running server counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Totals since the start. Bytes are real ones: received off the wire, stored as data sets."""

    connections: int = 0
    associations: int = 0
    rejected: int = 0
    released: int = 0
    aborted: int = 0
    messages: int = 0
    instances_stored: int = 0
    instances_failed: int = 0
    bytes_received: int = 0
    bytes_stored: int = 0
