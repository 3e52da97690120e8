"""What is negotiated by TLS, PS3.15 Annex B: contexts of OpenSSL.

What belongs here, and in :mod:`storescp.tls`: all that needs pyOpenSSL, which the extra ``tls`` brings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from storescp.credentials import BadCredentials, Credentials, read
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

    def connection(self, complain: Callable[[str], object]) -> SSL.Connection:
        """A server's side of a connection; *complain* is told what is wrong with a peer's certificate."""
        assert self._context is not None
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(complain)
        connection.set_accept_state()
        return connection


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
            f"--tls-certificate: expected one that OpenSSL takes, got {str(settings.certificate)!r}: {words(error)}"
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
        return context
    try:
        context.set_verify(_VERIFY[settings.client_certificate], _verified)
    except MemoryError:  # pyOpenSSL has OpenSSL call us by code that it writes into memory
        raise BadCredentials(
            "TLS: expected memory that can be written and executed (MemoryDenyWriteExecute=no of systemd), got none"
        ) from None
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
        complain: Callable[[str], object] = connection.get_app_data()
        try:
            subject = certificate.to_cryptography().subject.rfc4514_string()
        except ValueError:
            subject = "unreadable"
        complain(f"certificate {subject!r}: {_VERIFY_ERRORS.get(error, f'error {error} of OpenSSL')}")
    return bool(verified)


def words(error: SSL.Error) -> str:
    """What OpenSSL says, without its addresses."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(reason for _, _, reason in entries) or "no reason given"
