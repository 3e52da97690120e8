"""Memory of the server under three loads that must not make it grow: a huge object, many senders, many connections."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable

from bench import loadgen, measure
from bench.check import Check
from bench.peers import Peer, PeerFailed, Server
from bench.storage import Storage

_MIB = 1024**2
_FIRST = 500
_ALL = 5000
_CLOSE_SECONDS = 10.0


def _send(server: Server, load: loadgen.Load) -> None:
    """Runs the load; PeerFailed if anything was not answered with Success."""
    outcome = loadgen.run(load)
    server.remove_objects()
    server.check()
    if not outcome.ok:
        raise PeerFailed(measure.trouble(outcome))


def huge_object(peer: Peer, storage: Storage) -> tuple[float, str]:
    """Peak resident memory while one multi-frame object of 1 GiB arrives."""
    if shutil.disk_usage(storage.directory).free < 1536 * _MIB:
        raise PeerFailed(f"less than 1.5 GiB free in {storage.directory}")
    with Server(peer, storage) as server:
        before = server.resident_mebibytes()
        _send(server, loadgen.Load(host="127.0.0.1", port=server.place.port, objects=1, size=1024 * _MIB))
        return server.peak_mebibytes(), f"{before:.1f} MiB before"


def many_senders(peer: Peer, storage: Storage) -> tuple[float, str]:
    """Peak resident memory with 100 associations at once, each sending ten objects of 512 KiB."""
    with Server(peer, storage) as server:
        before = server.resident_mebibytes()
        load = loadgen.Load(
            host="127.0.0.1", port=server.place.port, associations=100, objects=10, size=_MIB // 2
        )
        _send(server, load)
        return server.peak_mebibytes(), f"{before:.1f} MiB before"


def associations_in_turn(peer: Peer, storage: Storage) -> tuple[float, str]:
    """Growth of resident memory from the 500th to the 5,000th association, one after the other, an object each."""

    def some(server: Server, count: int) -> None:
        load = loadgen.Load(
            host="127.0.0.1",
            port=server.place.port,
            objects=count,
            size=8 * 1024,
            association_per_object=True,
        )
        _send(server, load)

    return _growth(peer, storage, some)


def bare_connections(peer: Peer, storage: Storage) -> tuple[float, str]:
    """Growth of resident memory from the 500th to the 5,000th TCP connection that is closed without a byte sent."""

    def some(server: Server, count: int) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", server.place.port), timeout=_CLOSE_SECONDS) as probe:
                probe.shutdown(socket.SHUT_WR)
                try:
                    probe.recv(1)  # until the server has closed it, too
                except TimeoutError:
                    raise PeerFailed(f"a connection stayed open for {_CLOSE_SECONDS:g} s") from None
        server.check()

    return _growth(peer, storage, some)


def _growth(peer: Peer, storage: Storage, some: Callable[[Server, int], None]) -> tuple[float, str]:
    with Server(peer, storage) as server:
        some(server, _FIRST)
        before = server.resident_mebibytes()
        some(server, _ALL - _FIRST)
        after = server.resident_mebibytes()
        return after - before, f"{before:.1f} MiB after {_FIRST}, {after:.1f} MiB after {_ALL}"


LOADS: dict[str, tuple[str, float, Callable[[Peer, Storage], tuple[float, str]]]] = {
    "huge": ("peak, one object of 1 GiB", 96.0, huge_object),
    "many": ("peak, 100 associations of 512 KiB objects at once", 160.0, many_senders),
    "associations": ("growth over 5,000 associations", 5.0, associations_in_turn),
    "connections": ("growth over 5,000 bare connections", 5.0, bare_connections),
}
"""By name: title, limit in MiB, and the function that measures."""


def measure_memory(peer: Peer, storage: Storage, report: measure.Report) -> list[Check]:
    """All loads, each on a server of its own."""
    checks = []
    for name, (title, limit, function) in LOADS.items():
        report(f"memory, {title} ...")
        value: float | None
        try:
            value, detail = function(peer, storage)
        except (PeerFailed, OSError) as failed:
            value, detail = None, str(failed)
        checks.append(Check(name, f"memory: {title}", value, below=limit, unit="MiB", detail=detail))
    return checks
