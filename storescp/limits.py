"""What peers may cost, and who of them goes beyond it: values and counts, without a clock.

What belongs here: judgements. Who acts on them are :mod:`storescp.protocol` and
:mod:`storescp.connections`, or the parent of several processes.
"""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass

from storescp.counting import Count

#: So many seconds' worth of connections an address may bring at once.
BURST = 5.0

#: Addresses whose rate is remembered; beyond it those are forgotten that have not used up theirs.
MAX_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What connections may cost. Times in seconds, sizes in bytes; 0 for no limit, but for the first two.

    ``max_pending`` bounds the connections without an association, before one or after. A message or PDU that has
    begun brings at least ``min_rate`` bytes a second, judged over ``progress_timeout``, in which the peer takes our
    answers too. ``max_in_flight`` bytes of all associations may wait for storage.
    """

    max_assoc: int
    max_pending: int
    timeout: float
    artim_timeout: float
    auth_timeout: float = 10.0
    max_per_address: int = 0
    max_rate: float = 0.0
    min_rate: float = 0.0
    progress_timeout: float = 0.0
    max_in_flight: int = 0


class InFlight:
    """Bytes that wait for storage, of all associations together."""

    __slots__ = ("limit", "total")

    def __init__(self, limit: int) -> None:
        self.set_limit(limit)
        self.total = 0

    def set_limit(self, limit: int) -> None:
        """Let so many bytes wait, 0 for any number, from now on."""
        self.limit = limit or sys.maxsize


class Admission:
    """Which connections may come in, by their addresses. That of a local socket is empty, and never too many."""

    def __init__(self, max_per_address: int, max_rate: float) -> None:
        self.counted = False
        """Whether the connection that was let in last is counted: if so, its end must be told."""
        self._counts: dict[str, int] = {}
        self._due: dict[str, float] = {}  # when the address has used up nothing any more of what it may
        self.limit(max_per_address, max_rate)

    def limit(self, max_per_address: int, max_rate: float) -> None:
        """Judge by these from now on. Where there was no *max_per_address*, connections that are there do not count."""
        self._max_per_address = max_per_address
        self._interval = 1 / max_rate if max_rate else 0.0
        self._tolerance = max(BURST - self._interval, 0.0)

    def admit(self, host: str, now: float) -> str:
        """Let in a connection from *host* at the time *now*, in seconds; else the reason why not."""
        self.counted = False
        if not host:
            return ""
        address = network_of(host)
        if self._max_per_address and self.count(address) >= self._max_per_address:
            return f"more than {Count(self._max_per_address):connection} from there"
        if self._interval and not self._is_in_time(address, now):
            return f"more connections than {1 / self._interval:g} a second from there"
        self.enter(address)
        return ""

    def leave(self, host: str) -> None:
        """A connection from *host* that is counted has ended."""
        address = network_of(host)
        left = self._counts[address] - 1
        if left:
            self._counts[address] = left
        else:
            del self._counts[address]

    def count(self, address: str) -> int:
        """The connections from *address* at this moment."""
        return self._counts.get(address, 0)

    def enter(self, address: str) -> None:
        """One more connection from *address*."""
        if self._max_per_address:
            self.counted = True
            self._counts[address] = self._counts.get(address, 0) + 1

    def _is_in_time(self, address: str, now: float) -> bool:
        """The generic cell rate algorithm: a bucket of tokens, of which only the time is kept when it will be full."""
        due = max(self._due.get(address, now), now)
        if due - now > self._tolerance:
            return False
        if len(self._due) >= MAX_ADDRESSES:
            self._due = {address: due for address, due in self._due.items() if due > now}
            if len(self._due) >= MAX_ADDRESSES:
                self._due.clear()  # better to forget them than to let nobody in
        self._due[address] = due + self._interval
        return True


def plain(host: str) -> str:
    """An IPv4 address as such: a socket of IPv6 calls it ``::ffff:192.0.2.1``, RFC 4291 §2.5.5.2."""
    if ":" not in host:
        return host
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


def network_of(host: str) -> str:
    """Who is to be counted as one: an IPv4 address, or the /64 network of an IPv6 one, of which a peer has them all."""
    host = plain(host)
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64)) + "/64"
