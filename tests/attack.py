"""``make attack``: what an honest sender notices of a crowd of hostile ones, on this machine and by loopback only.

In turns with the crowd and without it the honest sender stores objects of 64 KiB, one after the other, and takes the
time of each answer. The crowd is 1,000 connections that say nothing, 200 TLS handshakes that stop after the ClientHello
(or, of a server without TLS, requests that stop half way) and 50 associations that send an image at 4 KiB a second.
Exits 1 if the 99th percentile of the honest one's answers is more than twice what it is in quiet, or the server had
200 MiB or more.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import resource
import select
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from bench import procfs
from storescp.config import OPTIONS
from storescp.pdu import AAssociateAC, AAssociateRQ
from tests.raw_scu import EXPLICIT_CONTEXT, RawSCU, instance, p_data, store_command
from tests.server import ROOT, Server, environment, free_port

IDLE, HALF_OPEN, SLOW = 1000, 200, 50

#: Of the server's memory at its peak, in MiB, and of the 99th percentile, in units of the quiet one.
MEMORY, RATIO = 200.0, 2.0

#: A slow sender sends so many bytes so often.
CRUMB, EVERY = 1024, 0.25


def client_hello() -> bytes:
    """What a TLS client says first."""
    context = ssl.create_default_context()
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    return said.read()


def crowd(port: int, tls_port: int) -> None:
    """Be the crowd, until standard input ends. Says "ready" when it is there, and in the end how many still are."""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    request = AAssociateRQ("A", "B", ()).encode()
    half_open = [socket.create_connection(("127.0.0.1", tls_port or port)) for _ in range(HALF_OPEN)]
    for connection in half_open:
        connection.sendall(client_hello() if tls_port else request[: len(request) // 2])
    slow = []
    for number in range(SLOW):
        scu = RawSCU(("127.0.0.1", port))
        assert isinstance(scu.associate(), AAssociateAC)
        scu.send_command(store_command(f"1.3.{number}"))
        scu.send(p_data(EXPLICIT_CONTEXT, False, False, instance(f"1.3.{number}")))
        slow.append(scu)
    print("ready", flush=True)
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        for scu in slow:
            scu.send(p_data(EXPLICIT_CONTEXT, False, False, bytes(CRUMB)))
        due += EVERY
    alive = [sum(map(is_open, group)) for group in (idle, half_open, [scu.socket for scu in slow])]
    print(*alive, flush=True)


def is_open(connection: socket.socket) -> bool:
    """Whether the server has it still. Half-open TLS connections have had an answer."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextlib.contextmanager
def attacked(port: int, tls_port: int) -> Iterator[None]:
    """The crowd is there."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.attack", "--crowd", str(port), str(tls_port)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("the crowd was not let in")
            yield
        finally:
            process.stdin.close()
            alive = process.stdout.readline().split()
    if alive != [str(IDLE), str(HALF_OPEN), str(SLOW)]:
        raise SystemExit(f"of the crowd only {' + '.join(alive)} were left: nothing was measured")


def honest(address: tuple[str, int], name: str, count: int) -> list[float]:
    """The seconds that each of *count* answers took."""
    seconds = []
    with RawSCU(address) as scu:
        assert isinstance(scu.associate(calling="HONEST"), AAssociateAC)
        for number in range(count + 20):
            data = instance(f"1.4.{name}.{number}", pixels=bytes(65536))
            began = time.perf_counter()
            status = scu.store(f"1.4.{name}.{number}", data)
            seconds.append(time.perf_counter() - began)
            assert status == 0, status
        scu.release()
    return seconds[20:]  # the first ones find caches empty


def percentile(seconds: list[float], hundredth: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100)[hundredth - 1] * 1000


def tls_options(folder: pathlib.Path, port: int) -> list[object]:
    """Options that make the server listen for TLS, with a certificate of its own."""
    both = folder / "server.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", both, "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    both.write_bytes(both.read_bytes() + (folder / "cert.pem").read_bytes())
    return [
        *("--tls-port", port, "--tls-certificate", both, "--tls-client-cert", "none"),
        *("--tls-timeout", 300),
    ]


def measure(case: SynchronousTestCase, count: int, rounds: int, more: list[str]) -> bool:
    """Print the table; whether all is as it should be."""
    options: list[object] = [
        *("--listen", "tcp:0:interface=127.0.0.1:backlog=500", "--sync", "never"),
        *("--max-assoc", 100, "--max-pending", 2000, "--artim-timeout", 300, *more),
    ]
    tls_port = 0
    if any(option.name == "tls-port" for option in OPTIONS):
        folder = pathlib.Path(case.mktemp())
        folder.mkdir(parents=True)
        tls_port = free_port()
        options += tls_options(folder.resolve(), tls_port)
    server = Server(case, *options, listen=False)
    quiet: list[float] = []
    busy: list[float] = []
    honest(server.address, "0", count)
    for number in range(1, rounds + 1):
        quiet += honest(server.address, f"1.{number}", count)
        with attacked(server.port, tls_port):
            busy += honest(server.address, f"2.{number}", count)
    memory = procfs.peak_mebibytes(server.process.pid)
    ratio = percentile(busy, 99) / percentile(quiet, 99)
    print(f"{IDLE} idle connections, {HALF_OPEN} half-open {'TLS handshakes' if tls_port else 'requests'},")
    print(f"{SLOW} slow senders; {len(busy)} objects of 64 KiB each way\n")
    print(f"{'answer, ms':12} {'p50':>7} {'p99':>7} {'longest':>8}")
    for name, seconds in (("quiet", quiet), ("attacked", busy)):
        print(
            f"{name:12} {percentile(seconds, 50):7.2f} {percentile(seconds, 99):7.2f} {max(seconds) * 1000:8.2f}"
        )
    good = ratio <= RATIO and memory < MEMORY
    print(
        f"\np99 {ratio:.2f} times the quiet one (at most {RATIO:g}), memory {memory:.0f} MiB (below {MEMORY:g}):"
    )
    print("held" if good else "MISSED")
    return good


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--objects", type=int, default=1000, help="in each round and each way [1000]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("server", nargs="*", help="more options for the server, after --")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    case = SynchronousTestCase()
    try:
        return 0 if measure(case, options.objects, options.rounds, options.server) else 1
    finally:
        case.doCleanups()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--crowd"]:
        crowd(*map(int, sys.argv[2:]))
    else:
        sys.exit(main())
