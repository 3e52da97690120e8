"""What a running server counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
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
    refused: int = 0
    """Connections that were closed at once, by --max-per-address or --max-rate."""
    dropped: int = 0
    """Connections without an association that had to make room for others."""
    slow: int = 0
    """Associations that were ended because the peer did not send, or take, what it had begun."""
    oversized: int = 0
    """Instances that were refused for their size."""


class Occupancy:
    """How many associations there are at this moment, and whether there is room for one more."""

    def __init__(self, max_assoc: int) -> None:
        self.associations = 0
        self.max_assoc = max_assoc

    def begin(self) -> bool:
        """Count one more association, if there is room for it."""
        if self.associations >= self.max_assoc:
            return False
        self.associations += 1
        return True

    def end(self) -> None:
        """One of them has ended."""
        self.associations -= 1

    def waiting(self, connections: int) -> None:
        """So many connections have no association, before one or after."""
