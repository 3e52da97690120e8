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


class Occupancy:
    """What there is at this moment: associations, and room for one more; space for images."""

    def __init__(self, max_assoc: int) -> None:
        self.associations = 0
        self.max_assoc = max_assoc
        self._low_space = False

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

    def found_space(self, enough: bool) -> bool:
        """There is enough space, or not; whether that is news."""
        news = enough is self._low_space
        self._low_space = not enough
        return news
