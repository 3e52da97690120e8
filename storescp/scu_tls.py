"""TLS for associations that we ask for, by the standard library. Blocking; no Twisted.

What belongs here: what a peer must show, what it is shown, and words for what went wrong. The server's own TLS is
another one (:mod:`storescp.tls`), and needs more than the standard library.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

#: What the files of a directory of authorities are called, as for the server.
_SUFFIXES = (".pem", ".crt", ".cer")


class BadTLSFile(Exception):
    """A file that cannot be used; str() is one line: the option, what was expected, what was got."""


def client_context(
    ca: str | None = None,
    certificate: str | None = None,
    key: str | None = None,
    *,
    any_name: bool = False,
    any_certificate: bool = False,
) -> ssl.SSLContext:
    """TLS 1.2 or newer, as PS3.15 Annex B.12 has it.

    *ca* is a file or directory of authorities that we believe, None for those of the system; *certificate* what the
    peer is shown if it asks, with its *key* (None: in the same file). *any_name*: the peer's certificate may be one
    for another host; *any_certificate*: it may be any. Raises BadTLSFile.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if any_name or any_certificate:
        context.check_hostname = False
    if any_certificate:
        context.verify_mode = ssl.CERT_NONE
    elif ca is None:
        context.load_default_certs()
    else:
        for path in _files(ca):
            try:
                context.load_verify_locations(path)
            except OSError as error:
                raise BadTLSFile(f"--tls-ca: {_unusable('certificates in PEM', path, error)}") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        except OSError as error:
            expected = "a certificate and its key, in PEM and without a passphrase"
            where = f"{certificate} and {key}" if key is not None else certificate
            raise BadTLSFile(f"--tls-certificate: {_unusable(expected, where, error)}") from None
    return context


def tls_reason(error: Exception) -> str:
    """Why a handshake or connection failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":  # of the first record
        return "the peer does not speak TLS"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    try:
        files = sorted(str(file) for file in Path(path).iterdir() if file.suffix in _SUFFIXES)
    except OSError as error:
        raise BadTLSFile(f"--tls-ca: {_unusable('a directory', path, error)}") from None
    if not files:
        raise BadTLSFile(f"--tls-ca: expected a directory with {', '.join(_SUFFIXES)} files, got {path!r}")
    return files


def _unusable(expected: str, path: str, error: OSError) -> str:
    # What OpenSSL says of a file's content would lead further than the operator can go.
    reason = "" if isinstance(error, ssl.SSLError) else f": {error.strerror}"
    return f"expected {expected}, got {path!r}{reason}"


def _no_passphrase() -> str:
    return ""  # else OpenSSL would ask at the terminal
