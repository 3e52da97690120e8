"""The settings of TLS: their options, and what they say together.

What belongs here: what may stand there. The files are read by :mod:`storescp.credentials`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from storescp.config_file import ConfigError
from storescp.option_values import Option, Values, file_or_none, files, number, one_of
from storescp.tls_settings import SECURE, ClientCertificate, TLSProfile, TLSSettings, is_secure

_PORT = Option(
    "tls-port",
    "PORT",
    "0",
    "TCP port to listen on with TLS, beside the others (2762 is the registered one); 0: none",
    number(int, "a port", 1, 65535, or_zero=True),
)
_CERTIFICATE = Option(
    "tls-certificate",
    "FILE",
    "none",
    "our certificate in PEM, and those between it and its authority",
    file_or_none,
    reloads=True,
)
_KEY = Option(
    "tls-key",
    "FILE",
    "none",
    "the certificate's private key in PEM; none: in the same file",
    file_or_none,
    reloads=True,
)
_CA = Option(
    "tls-ca",
    "PATH",
    "none",
    "file, or directory with .pem, .crt and .cer files, of the authorities that senders' certificates come from",
    file_or_none,
    reloads=True,
)
_CLIENT_CERTIFICATE = Option(
    "tls-client-cert",
    "WHAT",
    "require",
    "whether senders must show a certificate (require), may (request), or are not asked (none)",
    one_of(ClientCertificate),
    reloads=True,
)
_CRL = Option(
    "tls-crl",
    "FILE",
    "none",
    "revocation lists in PEM, one for each authority that issues senders' certificates; may be repeated",
    files,
    is_list=True,
    reloads=True,
)
_PROFILE = Option(
    "tls-profile",
    "PROFILE",
    "bcp195",
    "of DICOM PS3.15: bcp195 (B.12) TLS 1.2 and 1.3, non-downgrading (B.10) also DHE suites; or tls13 only",
    one_of(TLSProfile),
    reloads=True,
)
_TIMEOUT = Option(
    "tls-timeout",
    "SECONDS",
    "10",
    "close a connection whose TLS handshake is not done by then",
    number(float, "a number of seconds", 0.1, 3600.0),
    reloads=True,
)

TLS_OPTIONS: Final[tuple[Option[object], ...]] = (
    _PORT,
    _CERTIFICATE,
    _KEY,
    _CA,
    _CLIENT_CERTIFICATE,
    _CRL,
    _PROFILE,
    _TIMEOUT,
)


def read_tls(
    value: Values, place: Callable[[str], str], listen: tuple[str, ...]
) -> tuple[tuple[str, ...], TLSSettings | None]:
    """The endpoints *listen* with that of ``--tls-port``, and the settings of those with TLS, if there are any.

    By the options that *value* knows; *place* is where they stand. Raises ConfigError.
    """
    if port := value(_PORT):
        listen += (f"{SECURE}{port}",)
    certificate, key, ca = value(_CERTIFICATE), value(_KEY), value(_CA)
    client_certificate, crl = value(_CLIENT_CERTIFICATE), value(_CRL)
    profile, handshake_timeout = value(_PROFILE), value(_TIMEOUT)
    if not any(map(is_secure, listen)):
        if certificate is not None:
            raise ConfigError(
                f"{place(_CERTIFICATE.name)}: expected with tls-port, or to listen on tls:PORT, got neither"
            )
        return listen, None
    wanted = _PORT.name if port else "listen"
    if certificate is None:
        raise ConfigError(f"{place(wanted)}: expected tls-certificate with it, got none")
    asks = client_certificate is not ClientCertificate.NONE
    if ca is None and asks:
        raise ConfigError(f"{place(wanted)}: expected tls-ca with it, or tls-client-cert none, got neither")
    return listen, TLSSettings(
        certificate=certificate,
        key=key or certificate,
        ca=ca if asks else None,
        crl=crl,
        client_certificate=client_certificate,
        profile=profile,
        handshake_timeout=handshake_timeout,
    )
