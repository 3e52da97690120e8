"""``storescp echo`` and ``storescp send``: their options, and what they say of a peer. No Twisted.

Exit status: 0 when all was answered with Success (0000H), 1 when not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import ssl
import sys
import time
from typing import Any

from storescp.dimse import Status, status_text
from storescp.operator_arguments import WrongUsage, ae_title, number
from storescp.operator_output import Output, Progress
from storescp.operator_send import Sending
from storescp.pdu import UserIdentity
from storescp.scu import SCU
from storescp.scu_errors import AssociationError, ContextNotAccepted
from storescp.scu_tls import BadTLSFile, client_context
from storescp.sop_classes import VERIFICATION
from storescp.space import size_text

#: Where the passcode of --user is, unless in a file. Not on the command line, which everybody can see.
PASSWORD_VARIABLE = "STORESCP_PASSWORD"

#: Bytes of a user's name and passcode together: no more goes into an item.
MAX_FIELD = 4096

#: Operations outstanding at a time: their answers, which are not read while we send, must fit into the network.
MAX_WINDOW = 1024

#: What C-ECHO is asked in: Verification, in Implicit VR Little Endian.
ECHO_CONTEXT = VERIFICATION, "1.2.840.10008.1.2"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both to the operator's *commands*."""
    echo = commands.add_parser("echo", help="ask a server whether it is there (C-ECHO)")
    _add_peer_options(echo)
    echo.set_defaults(command=_echo)

    send = commands.add_parser("send", help="send DICOM files to a server (C-STORE)")
    _add_peer_options(send)
    send.add_argument(
        "paths", metavar="PATH", nargs="+", help="file, or directory with files anywhere below it"
    )
    send.add_argument(
        "--async",
        dest="window",
        metavar="N",
        type=number(int, 1, MAX_WINDOW),
        default=1,
        help="wait for an answer only when so many are missing, if the server allows it [default: 1]",
    )
    send.add_argument(
        "-j", "--jobs", metavar="N", type=number(int, 1, 256), default=1, help="associations [default: 1]"
    )
    send.add_argument(
        "--retries",
        metavar="N",
        type=number(int, 0, 10**9),
        default=0,
        help="try again so often what may succeed later: no connection, or a lost one; a transient rejection; A700H"
        " [default: 0]",
    )
    send.add_argument(
        "--retry-delay",
        metavar="SECONDS",
        type=number(float, 0.0, 3600.0),
        default=1.0,
        help="before it is tried again; twice as long each time, up to a minute [default: 1]",
    )
    send.add_argument("--json", action="store_true", help="print JSON, an object a line")
    send.set_defaults(command=_send)


def _add_peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("port", metavar="PORT", type=number(int, 1, 65535))
    parser.add_argument(
        "--calling", metavar="AE", type=ae_title, default="STORESCU", help="our AE title [default: STORESCU]"
    )
    parser.add_argument(
        "--called", metavar="AE", type=ae_title, default="STORESCP", help="its AE title [default: STORESCP]"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=number(float, 0.001, 86400.0),
        default=30.0,
        help="how long to wait for the connection, and for each answer [default: 30]",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"who sends; the passcode is in --password-file or in {PASSWORD_VARIABLE}",
    )
    parser.add_argument("--password-file", metavar="FILE", help="file with the passcode of --user")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="connect with TLS")
    tls.add_argument(
        "--tls-ca", metavar="PATH", help="authorities of its certificate [default: the system's]"
    )
    tls.add_argument("--tls-certificate", metavar="FILE", help="our certificate in PEM, if it asks for one")
    tls.add_argument("--tls-key", metavar="FILE", help="its key in PEM [default: in the same file]")
    tls.add_argument("--tls-any-name", action="store_true", help="take a certificate for another host")
    tls.add_argument("--tls-any-certificate", action="store_true", help="take any certificate")


def _peer(options: argparse.Namespace) -> dict[str, Any]:
    """What an association needs."""
    return {
        "calling_ae_title": options.calling,
        "called_ae_title": options.called,
        "timeout": options.timeout,
        "user": _user(options),
        "tls": _tls(options),
    }


def _echo(options: argparse.Namespace) -> int:
    peer = _peer(options)
    try:
        with SCU(options.host, options.port, [ECHO_CONTEXT], **peer) as scu:
            started = time.monotonic()
            response = scu.echo(*ECHO_CONTEXT)
            milliseconds = (time.monotonic() - started) * 1000
    except (AssociationError, ContextNotAccepted) as error:
        return _fail(options, error)
    print(f"{options.host} port {options.port}: {status_text(response.status)} in {milliseconds:.1f} ms")
    return 0 if response.status == Status.SUCCESS else 1


def _send(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    progress = Progress()
    sending = Sending(
        options.host,
        options.port,
        **_peer(options),
        window=options.window,
        jobs=options.jobs,
        retries=options.retries,
        delay=options.retry_delay,
        report=lambda path, why, status: output.unsent(path, why, status, progress),
        progress=lambda done, known: progress.show(done, known, sending.bytes),
    )
    error: AssociationError | None = None
    try:
        sending.run(options.paths)
    except AssociationError as caught:
        error = caught
    except KeyboardInterrupt:
        progress.clear()
        if sending.done:
            _summarize(sending, output)
        raise
    progress.clear()
    if not sending.statuses and not sending.unsent:
        print("storescp: no files to send", file=sys.stderr)
        return 1
    _summarize(sending, output)
    if error is not None:
        return _fail(options, error)
    if sending.errors:  # the other associations have done the work
        _fail(options, sending.errors[0])
    return 0 if set(sending.statuses) == {Status.SUCCESS} and not sending.unsent else 1


def _summarize(sending: Sending, output: Output) -> None:
    seconds = output.seconds()
    statuses = sorted(sending.statuses.items())
    texts = [f"{count} x {status_text(status)}" for status, count in statuses]
    if sending.unsent:
        texts.append(f"{sending.unsent} not sent")
    if sending.retried:
        texts.append(f"{sending.retried} sent again")
    rates = ""
    if seconds:
        rates = f", {sending.statuses.total() / seconds:.3g}/s, {size_text(sending.bytes / seconds)}/s"
    output.summary(
        {
            "statuses": {f"{status:04X}": count for status, count in statuses},
            "not_sent": sending.unsent,
            "sent_again": sending.retried,
            "bytes": sending.bytes,
            "seconds": seconds,
        },
        f"{', '.join(texts)}; {size_text(sending.bytes)} in {seconds} s{rates}",
    )


def _fail(options: argparse.Namespace, error: Exception) -> int:
    print(f"storescp: {options.host} port {options.port}: {error}", file=sys.stderr)
    return 1


def _user(options: argparse.Namespace) -> UserIdentity | None:
    """Who sends, and the passcode: of a file, else of the environment; without one it is the name alone."""
    if options.user is None:
        if options.password_file is not None:
            raise WrongUsage("--password-file: expected --user with it, got none")
        return None
    passcode = os.environb.get(PASSWORD_VARIABLE.encode())
    if options.password_file is not None:
        with open(options.password_file, "rb") as file:
            passcode = file.read(MAX_FIELD + 2).rstrip(b"\r\n")
    name = options.user.encode()
    if len(name) + len(passcode or b"") > MAX_FIELD:
        raise WrongUsage(f"--user: expected a name and passcode of at most {MAX_FIELD} bytes, got more")
    if passcode is None:
        return UserIdentity(1, name, positive_response_requested=True)
    return UserIdentity(2, name, passcode, positive_response_requested=True)


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    given = {
        "--tls-ca": options.tls_ca,
        "--tls-certificate": options.tls_certificate,
        "--tls-key": options.tls_key,
        "--tls-any-name": options.tls_any_name,
        "--tls-any-certificate": options.tls_any_certificate,
    }
    if not options.tls:
        for name, value in given.items():
            if value:
                raise WrongUsage(f"{name}: expected --tls with it, got none")
        return None
    if options.tls_key is not None and options.tls_certificate is None:
        raise WrongUsage("--tls-key: expected --tls-certificate with it, got none")
    try:
        return client_context(
            options.tls_ca,
            options.tls_certificate,
            options.tls_key,
            any_name=options.tls_any_name,
            any_certificate=options.tls_any_certificate,
        )
    except BadTLSFile as error:
        raise WrongUsage(str(error)) from None
