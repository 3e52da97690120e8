"""Between a server and one of its workers: messages, and connections that change hands. Blocking; no Twisted.

What belongs here: a pair of sockets that keep the bounds of messages and carry descriptors along. A connection
goes to a worker as its descriptor, before a byte of it was read: the worker learns the rest from the kernel.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import NamedTuple, Protocol

_LONGEST = 4096
# Not socket.send_fds and recv_fds, which take no notice of their flags (Python 3.11).
_descriptor = struct.Struct("i")
_RIGHTS = socket.CMSG_LEN(_descriptor.size)


class Kind(enum.Enum):
    """What a message says."""

    CONNECTION = b"c"
    """Here is a connection."""
    SECURE = b"t"
    """Here is one of a peer that is to speak TLS."""
    CREDENTIALS = b"k"
    """Here is a file with the credentials for those that follow."""
    CONFIGURATION = b"g"
    """Here is a file with the settings for those that follow."""
    DROP = b"d"
    """Drop the connection that has been longest without an association."""
    STOP = b"s"
    """Take no more, and end when your associations have ended: as does the end of the messages."""
    HURRY = b"h"
    """Do not wait for them any longer."""
    COUNTED = b"n"
    """The worker's counts have changed: it has taken connections, or has more of them without an association."""
    LOST = b"l"
    """A file with credentials or settings came without its descriptor: they are wanted again."""
    OWED = b"o"
    """Something may be owed that the parent has to report."""
    READY = b"r"
    """The worker takes connections."""
    FAILED = b"f"
    """It cannot start; the text says why."""


class HasDescriptor(Protocol):
    """A socket or a file."""

    def fileno(self) -> int: ...


class Message(NamedTuple):
    """``descriptor``, -1 for none, belongs to who received it."""

    kind: Kind
    text: str
    descriptor: int


class Channel:
    """One end. Sending never waits."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends. Raises OSError."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """Whether :meth:`receive` waits for a message."""
        self._socket.setblocking(blocking)

    def send(self, kind: Kind, text: str = "", *, connection: HasDescriptor | None = None) -> bool:
        """Send a message; false when the other side has no room for it, or has gone."""
        data = kind.value + text.encode()[: _LONGEST - 1]
        rights = []
        if connection is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _descriptor.pack(connection.fileno()))]
        try:
            self._socket.sendmsg([data], rights, socket.MSG_DONTWAIT)
        except OSError:  # also ETOOMANYREFS: the kernel wants to see some descriptors arrive first
            return False
        return True

    def receive(self) -> Message | None:
        """The next message, or None when the other side has gone. Raises BlockingIOError when there is none.

        A connection may come without its descriptor: when this process may not have any more.
        """
        try:
            data, rights, _, _ = self._socket.recvmsg(_LONGEST, _RIGHTS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        if not data:
            return None
        descriptor = -1
        for _, _, packed in rights:
            (descriptor,) = _descriptor.unpack(packed)
        return Message(Kind(data[:1]), data[1:].decode(errors="replace"), descriptor)

    def end(self) -> None:
        """Send nothing more: the other side finds the end after what was sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()
