"""A proxy that keeps what a sender and the server say to each other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from storescp import pdu
from storescp.pdu import AAssociateAC, AAssociateRQ, Fragment
from storescp.pdu_reader import PDUReader


class Recorder:
    """Stands between a sender and the server at *address*, one connection at a time, and keeps what the sender says."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.said: list[bytearray] = []
        self.answered: list[bytearray] = []
        self._over = threading.Event()  # the latest connection
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where senders find it."""
        return "127.0.0.1", self.port

    def close(self) -> None:
        """Take no more connections, and wait for the end of the one there is."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def whole(self) -> list[pdu.PDU]:
        """What the sender has said on its latest connection, P-DATA-TF left out, when that is over."""
        if not self._over.wait(30):
            raise TimeoutError("the connection does not end")
        return pdus(self.said[-1])

    def request(self) -> AAssociateRQ:
        """The latest association request."""
        request = pdus(self.said[-1])[0]
        assert isinstance(request, AAssociateRQ), request
        return request

    def acceptance(self) -> AAssociateAC:
        """What was answered to it."""
        answer = pdus(self.answered[-1])[0]
        assert isinstance(answer, AAssociateAC), answer
        return answer

    def _serve(self) -> None:
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                return
            with sender, socket.create_connection(self._address) as server:
                said, answered = bytearray(), bytearray()
                self.said.append(said)
                self.answered.append(answered)
                self._over.clear()
                back = threading.Thread(target=_copy, args=(server, sender, answered.extend))
                back.start()
                _copy(sender, server, said.extend)
                back.join()
                self._over.set()


def pdus(stream: bytes | bytearray) -> list[pdu.PDU]:
    """The PDUs of a stream, without P-DATA-TF."""
    reader = PDUReader(0)
    reader.feed(bytes(stream))
    found: list[pdu.PDU] = []
    while (item := reader.next()) is not None:
        if not isinstance(item, Fragment):
            found.append(item)
    return found


def _copy(source: socket.socket, target: socket.socket, see: Callable[[bytes], None]) -> None:
    try:
        while data := source.recv(65536):
            see(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
