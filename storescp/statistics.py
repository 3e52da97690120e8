"""What a running server counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple


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
    rejected_titles: int = 0
    rejected_addresses: int = 0
    rejected_certificates: int = 0
    rejected_called: int = 0
    rejected_users: int = 0
    rejected_full: int = 0
    refused: int = 0
    """Connections that were closed at once, by --max-per-address or --max-rate."""
    dropped: int = 0
    """Connections without an association that had to make room for others."""
    slow: int = 0
    """Associations that were ended because the peer did not send, or take, what it had begun."""
    oversized: int = 0
    """Instances that were refused for their size."""
    tls_failures: int = 0
    """Connections that did not get beyond the handshake of TLS."""

    def count_rejection(self, name: str) -> None:
        """One more, for what the count *name* stands for; empty: for something else."""
        self.rejected += 1
        if name:
            setattr(self, name, getattr(self, name) + 1)

    def reasons(self) -> str:
        """What associations were rejected for, and how many, in words; empty if none was."""
        counts = {text: getattr(self, name) for name, text in REASONS.items()}
        return ", ".join(f"{text} {count}" for text, count in counts.items() if count)


#: What it is that a rejection was for, by the name of its count.
REASONS = {
    "rejected_titles": "calling AE title",
    "rejected_addresses": "address",
    "rejected_certificates": "certificate",
    "rejected_called": "called AE title",
    "rejected_users": "user",
    "rejected_full": "number of associations",
}


class Load(NamedTuple):
    """What a process has to do at this moment, or had when it said so: at the time ``beat``, in seconds."""

    beat: float
    associations: int
    waiting: int
    """Connections without an association."""
    in_flight: int
    """Bytes that wait for storage."""
    jobs: int
    """Parts of instances that are with the writing thread."""
    stalled: float
    """Seconds for which that has not been through with anything."""
    unsettled: int
    """Files that the journal answers for."""
    cpu: float
    """Seconds of CPU time that it has had."""
    resident: int
    """Bytes of its memory that are in the machine's."""


class Occupancy:
    """What there is at this moment: associations, and room for one more; space for images.

    A *caller* is the number of who has a maximum of its own, None where there is none.
    """

    def __init__(self, max_assoc: int) -> None:
        self.associations = 0
        self.max_assoc = max_assoc
        self._low_space = False
        self._of_callers: Counter[int] = Counter()

    def limit(self, max_assoc: int, max_pending: int) -> None:
        """Allow so many associations, and connections without one, from now on."""
        self.max_assoc = max_assoc

    @property
    def is_full(self) -> bool:
        """Whether there is no room for any association."""
        return self.associations >= self.max_assoc

    def begin(self, caller: int | None = None, most: int = 0) -> bool:
        """Count one more association, if there is room for it, and for one more than *most* of the caller."""
        if self.is_full:
            return False
        if caller is not None:
            if self._of_callers[caller] >= most:
                return False
            self._of_callers[caller] += 1
        self.associations += 1
        return True

    def end(self, caller: int | None = None) -> None:
        """One of them has ended."""
        self.associations -= 1
        if caller is not None:
            self._of_callers[caller] -= 1

    def waiting(self, connections: int) -> None:
        """So many connections have no association, before one or after."""

    def found_space(self, enough: bool) -> bool:
        """There is enough space, or not; whether that is news."""
        news = enough is self._low_space
        self._low_space = not enough
        return news
