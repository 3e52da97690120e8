"""TLS beneath associations, PS3.15 Annex B: connections that speak it.

What belongs here: OpenSSL between a transport and an association. A connection counts, and its ARTIM timer runs,
from the moment it is accepted; the handshake has a time limit of its own, and nobody waits for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from storescp.credentials import peer_certificate
from storescp.logs import AssociationLogger
from storescp.protocol import AssociationFactory, AssociationProtocol
from storescp.tls_context import TLS, words
from storescp.transports import READ_SIZE, IConnection

#: What a record holds at most, RFC 8446 §5.1.
RECORD: Final = 16 * 1024

#: So much OpenSSL is given at once of what was read: while it decrypts that, the processor has it in its cache.
PORTION: Final = 64 * 1024


class Plaintext:
    """Where records are decrypted to, of one connection after the other: one behind the other, to need no joining."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_SIZE + RECORD)
        self._view = memoryview(self._buffer)

    def copy(self, size: int) -> bytes:
        """The first *size* bytes."""
        return bytes(self._view[:size])

    def decryptor(self, connection: SSL.Connection) -> Callable[[int], int]:
        """What puts the next record of *connection* at an offset here, and tells its size: 0 or less if there is none.

        By OpenSSL's own function where pyOpenSSL lets us at it: ``Connection.recv`` takes half as long again, with
        a buffer, two copies and a look for errors for each record.
        """
        try:
            from OpenSSL._util import ffi, lib

            ssl, read, start = connection._ssl, lib.SSL_read, ffi.from_buffer(self._buffer)
        except (ImportError, AttributeError):
            return partial(self._decrypt, connection)
        return lambda offset: read(ssl, start + offset, RECORD)

    def _decrypt(self, connection: SSL.Connection, offset: int) -> int:
        try:
            return connection.recv_into(self._view[offset : offset + RECORD])
        except SSL.Error:
            return 0


class SecureConnection(ProtocolWrapper):
    """A connection of a peer that is to speak TLS, and the transport of its AssociationProtocol."""

    log = AssociationLogger()
    factory: SecureFactory
    transport: IConnection | None
    complaint = ""
    """What was wrong with the peer's certificate."""

    def __init__(self, factory: SecureFactory, association: AssociationProtocol) -> None:
        super().__init__(factory, association)
        self.association = association
        self.association_id = association.association_id
        self._handshake: IDelayedCall | None = None
        self._began = self._established = False
        self._reads = True  # until either side has ended it
        self._reason: Failure | None = None
        self._socket: socket.socket | None = None  # as long as the transport has nothing to send
        self._tls = factory.tls.connection(self._complain)
        self._plaintext = factory.plaintext
        self._decrypt = factory.plaintext.decryptor(self._tls)

    # -- IProtocol: the transport's side --

    def makeConnection(self, transport: ITransport) -> None:
        limit = self.factory.tls.settings.handshake_timeout
        self._handshake = self.factory.clock.callLater(limit, self._late, limit)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        assert self.transport is not None
        handle = self.transport.getHandle()
        if isinstance(handle, socket.socket):
            self._socket = handle

    def dataReceived(self, data: bytes) -> None:
        if not self._began and data:
            self._began = True
            if data[0] != 0x16:  # a record of the type handshake, RFC 8446 §5.1
                self.complaint = "it does not speak TLS"
        portions = memoryview(data)
        decrypt, filled = self._decrypt, 0
        for start in range(0, len(portions), PORTION):
            if not self._reads:
                return
            self._tls.bio_write(portions[start : start + PORTION])
            if self._established or self._shake_hands():
                while (size := decrypt(filled)) > 0:
                    filled += size
                    if filled > READ_SIZE:
                        self._deliver(filled)
                        filled = 0
        if self._established:
            self._deliver(filled)
            if self._reads:
                self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = 0
        self._reads = False
        self._socket = None
        self._tls.set_app_data(None)  # which refers to us
        self._ended(self._reason or reason)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # -- ITransport: the association's side --

    def write(self, data: bytes) -> None:
        if self.disconnecting or not self._established or not self._reads:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.send(rest[:RECORD]) :]
        except SSL.Error as error:
            self._fail(error)
        else:
            self._send()

    def loseConnection(self) -> None:
        """Say farewell; the transport is closed once the peer has said it too, or has closed its side."""
        if self.disconnecting or not self.connected:
            return
        if self._established:
            self.disconnecting = 1
            self._say_farewell()
        else:
            self.abortConnection()

    def abortConnection(self) -> None:
        self.disconnecting = 1
        self._reads = False
        assert self.transport is not None
        self.transport.abortConnection()

    # -- OpenSSL's side --

    def _shake_hands(self) -> bool:
        """Whether the handshake is done, and the connection goes on."""
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._send()
        except SSL.Error as error:
            self._fail(error)
        else:
            self._established = True
            self._send()
            self._completed()
        return self._established and self._reads

    def _look(self) -> None:
        """See why there is no more to decrypt: usually because there was no more to read."""
        try:
            self._tls.recv(1, socket.MSG_PEEK)
        except SSL.WantReadError:
            self._send()  # a request for new keys may have had an answer
        except SSL.ZeroReturnError:
            self._reads = False
            self._say_farewell()
        except SSL.Error as error:
            self._fail(error)

    def _deliver(self, size: int) -> None:
        if size and self._reads:
            self.association.dataReceived(self._plaintext.copy(size))

    def _say_farewell(self) -> None:
        try:
            is_last = self._tls.shutdown()
        except SSL.Error:
            is_last = False
        self._send()
        if is_last:
            assert self.transport is not None
            self.transport.loseConnection()

    def _fail(self, error: SSL.Error) -> None:
        """TLS cannot go on; OpenSSL has something to say of it to the peer."""
        self._reads = False
        self._reason = Failure(error)
        self._send()
        assert self.transport is not None
        self.transport.loseConnection()

    def _send(self) -> None:
        """Send what OpenSSL has for the peer: at once if the socket takes it, as the transport has a turn to wait."""
        data = b""
        try:
            while True:
                data += self._tls.bio_read(2 * RECORD)
        except SSL.WantReadError:
            pass
        if data and self._socket is not None:
            try:
                data = data[self._socket.send(data) :]
            except OSError:  # full, or gone: the transport finds out which
                pass
        if data:
            self._socket = None  # what the transport has to send must not be overtaken
            assert self.transport is not None
            self.transport.write(data)

    # -- the handshake --

    def _complain(self, complaint: str) -> None:
        self.complaint = complaint

    def _completed(self) -> None:
        self._stop_timer()
        certificate = self._tls.get_peer_certificate(as_cryptography=True)
        if isinstance(certificate, x509.Certificate):
            try:
                self.association.peer_certificate = peer_certificate(certificate)
            except ValueError:
                self._refuse("its certificate cannot be understood")
                self.abortConnection()
                return
        shown = self.association.peer_certificate
        self.log.info(
            "{address} speaks {version} with {suite}, {certificate}",
            address=self.association.address,
            version=self._tls.get_protocol_version_name(),
            suite=self._tls.get_cipher_name(),
            certificate=f"certificate {shown.subject!r}" if shown is not None else "no certificate",
        )

    def _ended(self, reason: Failure) -> None:
        """The connection is lost."""
        if self._handshake is None:
            return
        self._stop_timer()
        if self.complaint:
            self._refuse(self.complaint)
        elif isinstance(reason.value, SSL.Error):
            self._refuse(words(reason.value))
        elif isinstance(reason.value, ConnectionDone | ConnectionLost):
            self.log.debug("{address} ended during the handshake", address=self.association.address)

    def _late(self, limit: float) -> None:
        self._handshake = None
        self._refuse(f"no handshake within {limit:g} s")
        self.abortConnection()

    def _refuse(self, why: str) -> None:
        association = self.association
        association.parent.statistics.tls_failures += 1
        if association.parent.audit is not None:
            association.parent.audit.tls_refused(association.host, why)
        association.parent.repeated.warn(
            f"TLS {why} {association.host}",
            self.log,
            "TLS refused: {address}: {why}",
            address=association.address,
            why=why,
        )

    def _stop_timer(self) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.cancel()


if TYPE_CHECKING:
    _SecureWrapping = WrappingFactory[SecureConnection]
else:
    _SecureWrapping = WrappingFactory  # which older versions of Twisted do not have by type


class SecureFactory(_SecureWrapping):
    """Makes connections with TLS for *associations*."""

    protocol = SecureConnection
    noisy = False

    def __init__(self, tls: TLS, associations: AssociationFactory, clock: IReactorTime) -> None:
        super().__init__(associations)  # type: ignore[no-untyped-call]
        self.tls = tls
        self.clock = clock
        self.plaintext = Plaintext()
