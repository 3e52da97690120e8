"""Transports of Twisted, and what is at their bottom: sockets, and addresses as the log has them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import sys
import termios

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IConsumer, IPushProducer, ISystemHandle, ITCPTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from storescp.limits import plain

#: What one read takes at most. Measured: 64 KiB and 1 MiB are both slower.
READ_SIZE = 256 * 1024

# mallopt(3), <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class IConnection(ITCPTransport, ISystemHandle, IPushProducer, IConsumer):
    """What Twisted's stream transports offer, all in one."""


def keep_buffers() -> None:
    """Have the C library keep the memory of what was read for what is read next.

    Otherwise it gives it back when an image has been stored, and takes it from the system again page by page: a fifth
    of the CPU time for large images, a tenth of the throughput of TLS.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 8 * READ_SIZE)
        mallopt(_M_TRIM_THRESHOLD, 64 * READ_SIZE)


def bottom_of(transport: object) -> object:
    """The transport beneath those that only wrap one, as TLS does."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def socket_of(transport: object) -> socket.socket | None:
    """The socket that *transport* stands on, if it does on one."""
    bottom = bottom_of(transport)
    handle = bottom.getHandle() if ISystemHandle.providedBy(bottom) else None
    return handle if isinstance(handle, socket.socket) else None


def unacknowledged(handle: socket.socket) -> int:
    """Bytes that were given to the kernel, and that the other end's kernel has not acknowledged: tcp(7), SIOCOUTQ."""
    return int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class HostEndpoint(HostnameEndpoint):
    """Twisted's, for a *host* that is an address or a name in ASCII.

    That one wants names as IDNA has them, and refuses those with underscores, which resolvers know.
    """

    @staticmethod
    def _hostAsBytesAndText(host: bytes | str) -> tuple[bool, bytes, str]:
        text = host.decode("ascii") if isinstance(host, bytes) else host
        return False, text.encode("ascii"), text


def origin_of(peer: IAddress | None) -> tuple[str, str]:
    """The address of a peer as the log has it, and its host: empty where there is none."""
    host, port = getattr(peer, "host", None), getattr(peer, "port", None)
    if host is None:
        return "local socket", ""
    host = plain(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host


def end_of(error: BaseException | None) -> str:
    """What ended a connection, or kept one from being made, as the log has it: a few words in one line."""
    number = getattr(error, "osError", None)
    if isinstance(error, ConnectError) and isinstance(number, int):
        return os.strerror(number)
    cause = error.args[0] if error is not None and error.args else None
    if isinstance(cause, Failure):  # Twisted's, when it sees that the kernel refuses one before it sees why
        error = cause.value
    if isinstance(error, ConnectionDone | ConnectionLost | ConnectionAborted):
        return "the connection was lost"
    if isinstance(cause, list):  # of OpenSSL
        return "; ".join(str(entry[-1]) for entry in cause) or "TLS failed"
    return " ".join(str(error).split()) or type(error).__name__
