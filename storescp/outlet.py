"""What goes out on a connection: at once if the socket takes it, and from any thread; else by the transport, in order.

What belongs here: bytes and sockets. What is said is the business of :mod:`storescp.protocol`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from twisted.internet.interfaces import ITransport


class Outlet:
    """Sends past the transport, as long as that has nothing to send itself. *encode* makes PDUs of a command set."""

    __slots__ = ("_encode", "_socket", "_transport", "_turn", "rest", "shared")

    def __init__(self, encode: Callable[[int, bool, bytes], bytes]) -> None:
        self._encode = encode
        self._transport: ITransport | None = None
        self._socket: socket.socket | None = None
        #: A descriptor of our own, that no other thread can find closed, or reused, while it sends.
        self.shared: socket.socket | None = None
        self._turn = threading.Lock()
        self.rest = b""
        """What is left of what another thread could not send to its end."""

    def open(self, transport: ITransport, handle: socket.socket | None) -> None:
        """Send by *transport*, or by its socket *handle*; None where that does not do, as there is TLS between."""
        self._transport, self._socket = transport, handle

    def share(self) -> None:
        """From now on other threads may send."""
        if self._socket is not None:
            try:
                self.shared = self._socket.dup()
            except OSError:  # too many descriptors
                pass

    def withdraw(self) -> None:
        """From now on they may not."""
        with self._turn:
            self._close_shared()

    def send_from_thread(self, presentation_context_id: int, data: bytes) -> bool:
        """See IAssociation."""
        encoded = self._encode(presentation_context_id, True, data)
        with self._turn:
            if self.shared is None:
                return False
            try:
                sent = self.shared.send(encoded)
            except OSError:
                sent = 0  # full, or gone
            if sent == len(encoded):
                return True
            self._close_shared()
            self.rest = encoded[sent:] if sent else b""
        return sent > 0

    def write(self, data: bytes) -> None:
        """Send *data*, after what is left: now if the socket takes it, where the transport would wait for its turn."""
        assert self._transport is not None
        with self._turn:
            if self._socket is not None and not self.rest:
                try:
                    sent = self._socket.send(data)
                except OSError:
                    sent = 0  # full, or gone: the transport finds out which
                if sent == len(data):
                    return
                data = data[sent:]
            # What the transport has to send must not be overtaken.
            self._socket = None
            self._close_shared()
            data, self.rest = self.rest + data, b""
        self._transport.write(data)

    def _close_shared(self) -> None:
        shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()
