"""``storescp health``: whether the server that the settings describe is well, for containers. No Twisted.

What belongs here: where such a server can be asked, on its own machine, and what counts as an answer.
Exit status: 0 when it is well, 1 when not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys

from storescp.config import Config, configured
from storescp.operator_config import CONFIG, add_options, given_settings
from storescp.operator_output import printable
from storescp.operator_peer import ECHO_CONTEXT
from storescp.scu import SCU
from storescp.scu_errors import AssociationError, Rejected
from storescp.scu_tls import client_context
from storescp.tls_settings import beneath, is_secure

#: Seconds to wait for the connection, and for each answer.
TIMEOUT = 5.0

#: Bytes that are read of what a server says of its health.
_MAX_ANSWER = 4096

# Twisted's endpoint strings: arguments between colons, in which a backslash protects one.
_PORT = re.compile(r"tcp6?:(?:port=)?(\d+)(?::|$)")
_INTERFACE = re.compile(r":interface=((?:\\.|[^:\\])+)")


class _Unwell(Exception):
    """The server gives no answer, or says that it is not well; str() is one line."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``health`` to the operator's *commands*."""
    parser = commands.add_parser(
        "health",
        usage="%(prog)s [the server's options] [-c FILE]",
        help="ask the server of these settings, on this machine, whether it is well",
        description="Ask the server that runs on this machine with these options and in this environment whether it is"
        " well: by /healthz if it has --http, else by an association. A rejection is an answer, too.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help=CONFIG)
    add_options(parser)
    parser.set_defaults(command=_health)


def _health(options: argparse.Namespace) -> int:
    config = configured(given_settings(options))
    # Plain ones first: one with TLS may want a certificate.
    endpoints = sorted(config.listen, key=is_secure) if config.http is None else [config.http]
    reachable = [endpoint for endpoint in endpoints if _PORT.match(beneath(endpoint))]
    if not reachable:
        print(f"storescp: expected tcp: or tls: to ask, got {', '.join(endpoints)}", file=sys.stderr)
        return 1
    host, port = _address(beneath(reachable[0]))
    try:
        if config.http is None:
            answer = _associate(config, host, port, is_tls=is_secure(reachable[0]))
        else:
            answer = _healthz(host, port)
    except _Unwell as error:
        print(f"storescp: {host} port {port}: {error}", file=sys.stderr)
        return 1
    print(f"{host} port {port}: {answer}")
    return 0


def _address(endpoint: str) -> tuple[str, int]:
    """Where what listens on an *endpoint* can be reached from this machine."""
    port, interface = _PORT.match(endpoint), _INTERFACE.search(endpoint)
    assert port is not None
    host = re.sub(r"\\(.)", r"\1", interface[1]) if interface is not None else ""
    return host if host not in ("", "0.0.0.0", "::") else "localhost", int(port[1])


def _associate(config: Config, host: str, port: int, *, is_tls: bool) -> str:
    """Ask for an association, and release it again."""
    try:
        with SCU(
            host,
            port,
            [ECHO_CONTEXT],
            calling_ae_title="STORESCP",
            called_ae_title=config.ae_title,
            timeout=TIMEOUT,
            tls=client_context(any_certificate=True) if is_tls else None,
        ):
            return "association accepted"
    except Rejected as rejected:  # by rules for callers, or because there are too many: it turns
        return str(rejected)
    except AssociationError as error:
        raise _Unwell(str(error)) from None


def _healthz(host: str, port: int) -> str:
    """Ask for what a Probe of :mod:`storescp.web` says; its few bytes need no library that reads HTTP."""
    answer = b""
    try:
        with socket.create_connection((host, port), TIMEOUT) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            while len(answer) < _MAX_ANSWER and (data := connection.recv(_MAX_ANSWER)):
                answer += data
    except OSError as error:
        raise _Unwell(f"no answer by HTTP: {error.strerror or error}") from None
    found = re.match(rb"HTTP/1\.[01] (\d{3}) .*?\r\n\r\n(.*)", answer, re.DOTALL)
    if found is None:
        raise _Unwell("no answer by HTTP: the connection was lost")
    status, body = (part.decode("utf-8", "replace") for part in found.groups())
    text = printable("; ".join(body.splitlines()))
    if status != "200":
        raise _Unwell(f"{status}: {text}")
    return text
