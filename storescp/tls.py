"""TLS beneath associations, PS3.15 Annex B: contexts of OpenSSL, and connections that speak it.

What belongs here: all that needs pyOpenSSL, which the extra ``tls`` brings. A connection counts, and its ARTIM timer
runs, from the moment it is accepted; the handshake has a time limit of its own, and nobody waits for it.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from storescp.credentials import BadCredentials, Credentials, peer_certificate, read
from storescp.logs import AssociationLogger
from storescp.protocol import AssociationFactory, AssociationProtocol
from storescp.tls_settings import ClientCertificate, TLSProfile, TLSSettings

_ECDHE = (
    *("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
)

#: The cipher suites of TLS 1.2, best first: RFC 9325 §4.2 and, for the retired profile, RFC 7525 §4.2.
CIPHER_SUITES: Final = {
    TLSProfile.BCP195: _ECDHE,
    TLSProfile.NON_DOWNGRADING: (*_ECDHE, "DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384"),
    TLSProfile.TLS13: _ECDHE,  # OpenSSL wants some
}

#: Those of TLS 1.3, RFC 8446 §B.4. The fastest first: none is weak.
CIPHER_SUITES_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

# The group ffdhe2048, RFC 7919 §A.1.
_FFDHE2048 = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""

_VERIFY = {
    ClientCertificate.REQUIRE: SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
    ClientCertificate.REQUEST: SSL.VERIFY_PEER,
    ClientCertificate.NONE: SSL.VERIFY_NONE,
}

# X509_V_ERR_*, in the operator's words.
_VERIFY_ERRORS = {
    3: "there is no revocation list of who has issued it",
    9: "it is not valid yet",
    10: "it has expired",
    12: "the revocation list of who has issued it is out of date",
    18: "it is signed by itself and not trusted",
    19: "it comes from an authority that is not trusted",
    20: "it comes from an authority that is not trusted",
    21: "it comes from an authority that is not trusted",
    23: "it is revoked",
    26: "it is not meant for a client",
}


@implementer(IOpenSSLServerConnectionCreator)
class TLS:
    """How a server speaks TLS, with the credentials that it has at the moment."""

    def __init__(self, settings: TLSSettings) -> None:
        self.settings = settings
        self.credentials: Credentials | None = None
        self._context: SSL.Context | None = None

    def load(self) -> list[str]:
        """Read the files, and use what they have from now on; what the operator should know of it.

        Raises BadCredentials, and changes nothing then.
        """
        credentials, warnings = read(self.settings)
        self.use(credentials)
        return warnings

    def adopt(self, other: TLS) -> None:
        """Be as *other* is, for the connections that come."""
        self.settings, self.credentials, self._context = other.settings, other.credentials, other._context

    def use(self, credentials: Credentials) -> None:
        """Use *credentials* for the connections that come. Raises BadCredentials."""
        self._context = _context(self.settings, credentials)
        self.credentials = credentials

    def client(self) -> ClientTLS:
        """What makes connections to others, with the credentials of the moment."""
        assert self.credentials is not None
        return ClientTLS(_context(self.settings, self.credentials, for_client=True))

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLServerConnectionCreator."""
        assert self._context is not None
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """Makes connections to others, who must show a certificate from our authorities. Whose it is, is not judged."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLClientConnectionCreator."""
        return SSL.Connection(self._context, None)


def _context(settings: TLSSettings, credentials: Credentials, *, for_client: bool = False) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD if for_client else SSL.TLS_SERVER_METHOD)
    tls13 = settings.profile is TLSProfile.TLS13
    context.set_min_proto_version(SSL.TLS1_3_VERSION if tls13 else SSL.TLS1_2_VERSION)
    # RFC 9325 §3.3, §3.5: no compression, no renegotiation. The order of the suites is ours.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    # No resumption: a certificate is looked at, and its revocation, each time.
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"storescp")
    # Level 2: RSA from 2048 bits, elliptic curves from 224, no SHA-1 (RFC 9325 §4.5).
    suites = ":".join((*CIPHER_SUITES[settings.profile], "@SECLEVEL=2"))
    context.set_cipher_list(suites.encode())
    context.set_tls13_ciphersuites(CIPHER_SUITES_13)
    if settings.profile is TLSProfile.NON_DOWNGRADING:
        _use_finite_field(context)
    certificate, *between = credentials.chain
    try:
        context.use_certificate(certificate)
        for other in between:
            context.add_extra_chain_cert(other)
        context.use_privatekey(credentials.private_key)
    except SSL.Error as error:  # a short key, a signature by SHA-1
        raise BadCredentials(
            f"--tls-certificate: expected one that OpenSSL takes, got {str(settings.certificate)!r}: {_words(error)}"
        ) from None
    store = context.get_cert_store()
    assert store is not None
    for authority in credentials.trusted:
        store.add_cert(crypto.X509.from_cryptography(authority))
    for revocations in credentials.revocation_lists:
        store.add_crl(revocations)
    if credentials.revocations:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
    if for_client:
        context.set_verify(SSL.VERIFY_PEER)
    else:
        context.set_verify(_VERIFY[settings.client_certificate], _verified)
    return context


def _use_finite_field(context: SSL.Context) -> None:
    """Of 2048 bits, as PS3.15 §B.10 wants at least. pyOpenSSL reads parameters only from a file."""
    descriptor = os.memfd_create("ffdhe2048")
    try:
        os.write(descriptor, _FFDHE2048)
        context.load_tmp_dh(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _verified(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, verified: int
) -> bool:
    """OpenSSL's judgement stands; this notes what is wrong, for the log."""
    if not verified:
        secured = connection.get_app_data()
        assert isinstance(secured, SecureConnection)
        try:
            subject = certificate.to_cryptography().subject.rfc4514_string()
        except ValueError:
            subject = "unreadable"
        secured.complaint = (
            f"certificate {subject!r}: {_VERIFY_ERRORS.get(error, f'error {error} of OpenSSL')}"
        )
    return bool(verified)


def _words(error: SSL.Error) -> str:
    """What OpenSSL says, without its addresses."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(reason for _, _, reason in entries) or "no reason given"


class SecureConnection(TLSMemoryBIOProtocol):
    """A connection of a peer that is to speak TLS, and the transport of its AssociationProtocol."""

    log = AssociationLogger()
    complaint = ""
    """What was wrong with the peer's certificate."""

    def __init__(
        self, factory: SecureFactory, association: AssociationProtocol, _connectWrapped: bool = True
    ) -> None:
        self.association = association
        self.association_id = association.association_id
        self._clear = _ClearText(self)
        super().__init__(factory, self._clear, _connectWrapped)  # type: ignore[no-untyped-call]
        self._handshake: IDelayedCall | None = None
        self._began = False
        self._tls = factory.tls
        self._clock = factory.clock

    def makeConnection(self, transport: ITransport) -> None:
        limit = self._tls.settings.handshake_timeout
        self._handshake = self._clock.callLater(limit, self._late, limit)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        if not self._began and data:
            self._began = True
            if data[0] != 0x16:  # a record of the type handshake, RFC 8446 §5.1
                self.complaint = "it does not speak TLS"
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        self._clear.flush()

    def completed(self) -> None:
        """The handshake is done."""
        self._stop_timer()
        connection: SSL.Connection = self.getHandle()
        certificate = connection.get_peer_certificate(as_cryptography=True)
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
            version=connection.get_protocol_version_name(),
            suite=connection.get_cipher_name(),
            certificate=f"certificate {shown.subject!r}" if shown is not None else "no certificate",
        )

    def ended(self, reason: Failure) -> None:
        """The connection is lost."""
        if self._handshake is None:
            return
        self._stop_timer()
        if self.complaint:
            self._refuse(self.complaint)
        elif isinstance(reason.value, SSL.Error):
            self._refuse(_words(reason.value))
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


@implementer(IHandshakeListener)
class _ClearText(Protocol):
    """Between TLS and the association: joins the records, of 16 KiB at most, that came with one read.

    The association works for each piece that it is given; what is given in one is as much as without TLS.
    """

    def __init__(self, secured: SecureConnection) -> None:
        self._secured = secured
        self._association = secured.association
        self._pieces: list[bytes] = []

    def makeConnection(self, transport: ITransport) -> None:
        self._association.makeConnection(transport)

    def handshakeCompleted(self) -> None:
        self._secured.completed()

    def dataReceived(self, data: bytes) -> None:
        self._pieces.append(data)

    def flush(self) -> None:
        """Give on what was received."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._association.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.flush()
        self._secured.ended(reason)
        self._association.connectionLost(reason)


class SecureFactory(TLSMemoryBIOFactory):
    """Makes connections with TLS for *associations*."""

    protocol = SecureConnection

    def __init__(self, tls: TLS, associations: AssociationFactory, clock: IReactorTime) -> None:
        super().__init__(tls, False, associations, clock)
        self.tls = tls
        self.clock = clock
