"""The operator's command, ``storescp`` or ``python -m storescp``: its options, and what it prints. No Twisted.

What belongs here: words and numbers for people and, with --json, for scripts. The work is done elsewhere.
Exit status: 0 when all is well, 1 when there were findings or the work could not be done, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from storescp import __version__
from storescp.config import OPTIONS, Config, ConfigError, load
from storescp.index import Index, IndexUnavailable
from storescp.operator_archive import (
    Archive,
    ArchiveError,
    Finding,
    Reindexing,
    Verification,
    Workers,
)
from storescp.operator_config import add_parser as add_config_parser
from storescp.operator_send import SUCCESS, Sending, status_text
from storescp.pdu import UserIdentity
from storescp.scu import SCU, AssociationError, ContextNotAccepted
from storescp.settings import CONFIG_VARIABLE
from storescp.sop_classes import VERIFICATION

#: Seconds to wait for the server when it is writing into the index.
BUSY_TIMEOUT = 60.0

_IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

#: Where the passcode of --user is, unless in a file. Not on the command line, which everybody can see.
PASSWORD_VARIABLE = "STORESCP_PASSWORD"

#: Bytes of a user's name and passcode together: no more goes into an item.
MAX_FIELD = 4096

T = TypeVar("T")


class WrongUsage(Exception):
    """Options that make no sense together, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status. Raises SystemExit for wrong usage, as argparse does."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except WrongUsage as error:
        parser.error(str(error))
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ConfigError, IndexUnavailable, ArchiveError) as error:
        return _fail(str(error))
    except BrokenProcessPool:
        return _fail("a process that read files was killed")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")


def _fail(why: str) -> int:
    print(f"storescp: {why}", file=sys.stderr)
    return 1


# -- verify, reindex, stats --


def _verify(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    with Workers(options.jobs) as workers, _archive(options) as archive:
        progress = Progress(archive.index.totals().instances)
        verification = Verification(
            archive,
            digest=options.digest,
            report=lambda finding: output.finding(finding, progress),
            progress=progress.show,
        )
        verification.run(workers)
        progress.clear()
    seconds = output.seconds()
    output.summary(
        {
            "files": verification.files,
            "rows": verification.rows,
            "bytes": verification.bytes,
            "findings": verification.findings,
            "seconds": seconds,
        },
        f"{verification.files} files ({size_text(verification.bytes)}), {verification.rows} rows"
        f" in {seconds} s: {_findings_text(verification.findings)}",
    )
    return 1 if verification.findings else 0


def _reindex(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    with Workers(options.jobs) as workers, _archive(options, create=True) as archive:
        progress = Progress(archive.index.totals().instances)
        reindexing = Reindexing(
            archive,
            all_files=options.all,
            digest=options.digest,
            report=lambda finding: output.finding(finding, progress),
            progress=progress.show,
        )
        reindexing.run(workers)
        progress.clear()
    seconds = output.seconds()
    output.summary(
        {
            "files": reindexing.files,
            "entered": reindexing.entered,
            "unchanged": reindexing.unchanged,
            "removed": reindexing.removed,
            "findings": reindexing.findings,
            "seconds": seconds,
        },
        f"{reindexing.files} files in {seconds} s: {reindexing.entered} entered, {reindexing.unchanged} unchanged,"
        f" {reindexing.removed} rows removed; {_findings_text(reindexing.findings)}",
    )
    return 1 if reindexing.findings else 0


def _stats(options: argparse.Namespace) -> int:
    with _archive(options) as archive:
        totals = archive.index.totals()
        modalities = archive.index.modalities()
        received = archive.index.received()
    usage = shutil.disk_usage(archive.root)
    database = sum(
        os.stat(path).st_size
        for path in (archive.index_path, archive.index_path + "-wal")
        if os.path.exists(path)
    )
    if options.json:
        _print_json(
            {
                **totals._asdict(),
                "modalities": [counts._asdict() for counts in modalities],
                "first_received": received and received[0],
                "last_received": received and received[1],
                "database_bytes": database,
                "free_bytes": usage.free,
                "total_bytes": usage.total,
            }
        )
        return 0
    rows = [(name, str(number)) for name, number in totals._asdict().items() if name != "bytes"]
    rows.append(("bytes", f"{totals.bytes} ({size_text(totals.bytes)})"))
    if received is not None:
        rows += zip(("first received", "last received"), map(_time_text, received), strict=True)
    rows.append(("database", f"{size_text(database)}, {archive.index_path}"))
    rows.append(("free", f"{size_text(usage.free)} of {size_text(usage.total)}, {archive.root}"))
    for name, text in rows:
        print(f"{name:<15} {text}")
    if modalities:
        print(f"\n{'modality':<15} {'series':>10} {'instances':>12} {'bytes':>18}")
    for modality, series, instances, size in modalities:
        print(f"{_printable(modality or '-'):<15} {series:>10} {instances:>12} {size:>18}")
    return 0


@contextlib.contextmanager
def _archive(options: argparse.Namespace, *, create: bool = False) -> Iterator[Archive]:
    """What the settings name; the index is made only if *create*."""
    given = {
        name: value
        for name in ("storage-dir", "index-db")
        if (value := getattr(options, name.replace("-", "_"))) is not None
    }
    config: Config = load(options.config or os.environ.get(CONFIG_VARIABLE), given, os.environ)
    root = os.path.abspath(config.storage_dir)
    if not os.path.isdir(root):
        raise ArchiveError(f"storage directory {root}: no such directory")
    if config.index_db is None:
        raise ArchiveError("the configuration says no-index: there is no index to work with")
    index_path = os.path.abspath(config.index_db)
    if not create and not os.path.exists(index_path):
        raise ArchiveError(f"index {index_path}: no such file")
    index = Index(index_path, busy_timeout=BUSY_TIMEOUT)
    try:
        yield Archive(root, index_path, index)
    finally:
        index.close()


# -- echo, send --


def _echo(options: argparse.Namespace) -> int:
    context = VERIFICATION, _IMPLICIT_VR_LITTLE_ENDIAN
    try:
        with SCU(
            options.host,
            options.port,
            [context],
            calling_ae_title=options.calling,
            called_ae_title=options.called,
            timeout=options.timeout,
            user=_user(options),
        ) as scu:
            started = time.monotonic()
            response = scu.echo(*context)
            milliseconds = (time.monotonic() - started) * 1000
    except (AssociationError, ContextNotAccepted) as error:
        return _fail(f"{options.host} port {options.port}: {error}")
    print(f"{options.host} port {options.port}: {status_text(response.status)} in {milliseconds:.1f} ms")
    return 0 if response.status == SUCCESS else 1


def _send(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    progress = Progress()
    sending = Sending(
        options.host,
        options.port,
        calling_ae_title=options.calling,
        called_ae_title=options.called,
        timeout=options.timeout,
        user=_user(options),
        report=lambda path, why, status: output.unsent(path, why, status, progress),
        progress=progress.show,
    )
    error: AssociationError | None = None
    try:
        sending.run(options.paths)
    except AssociationError as caught:
        error = caught
    progress.clear()
    if not sending.statuses and not sending.unsent:
        return _fail("no files to send")
    seconds = output.seconds()
    statuses = sorted(sending.statuses.items())
    texts = [f"{count} x {status_text(status)}" for status, count in statuses]
    if sending.unsent:
        texts.append(f"{sending.unsent} not sent")
    output.summary(
        {
            "statuses": {f"{status:04X}": count for status, count in statuses},
            "not_sent": sending.unsent,
            "bytes": sending.bytes,
            "seconds": seconds,
        },
        f"{', '.join(texts)}; {size_text(sending.bytes)} in {seconds} s",
    )
    if error is not None:
        return _fail(f"{options.host} port {options.port}: {error}")
    return 0 if set(sending.statuses) == {SUCCESS} and not sending.unsent else 1


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


# -- output --


class Progress:
    """A line on stderr that is drawn anew now and then, where that is a terminal."""

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._started = self._drawn = time.monotonic()
        self._shown = False
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, total: int | None = None) -> None:
        """Show that *done* files of *total* are through."""
        now = time.monotonic()
        if not self._terminal or now < self._drawn + 0.1:
            return
        self._drawn = now
        self._shown = True
        total = max(self._total if total is None else total, done, 1)
        bar = "#" * (30 * done // total)
        rate = done / (now - self._started)
        print(
            f"\r[{bar:<30}] {done} of {total} files, {rate:.0f}/s\x1b[K", end="", file=sys.stderr, flush=True
        )

    def clear(self) -> None:
        """Make room for other lines."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


class Output:
    """The lines of one run: for people, or as JSON, an object a line."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self._started, 1)

    def finding(self, finding: Finding, progress: Progress) -> None:
        """A finding about the archive."""
        progress.clear()
        if self._as_json:
            _print_json(finding._asdict())
        else:
            print(f"{finding.kind}: {_printable(finding.path)}: {_printable(finding.what)}", flush=True)

    def unsent(self, path: str, why: str, status: int | None, progress: Progress) -> None:
        """A file that was not stored."""
        progress.clear()
        if self._as_json:
            _print_json({"path": path, "what": why, "status": None if status is None else f"{status:04X}"})
        else:
            print(f"{_printable(path)}: {_printable(why)}", flush=True)

    def summary(self, values: Mapping[str, object], text: str) -> None:
        """The last line."""
        if self._as_json:
            _print_json({"summary": values})
        else:
            print(text, flush=True)


def _print_json(values: Mapping[str, object]) -> None:
    print(json.dumps(values), flush=True)


def _printable(text: str) -> str:
    """*text* in one line that a terminal can take, whatever a file's name or a peer's comment has in it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _findings_text(findings: Mapping[str, int]) -> str:
    if not findings:
        return "no findings"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.items()))
    return f"{sum(findings.values())} findings ({kinds})"


def size_text(size: float) -> str:
    """A number of bytes in three digits and a decimal unit."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.3g} {_UNITS[unit]}"


def _time_text(posix_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(posix_seconds))


# -- the command line --


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storescp",
        description="Look after an archive of storescp, and try a server. The server itself is: twistd -n storescp",
    )
    parser.add_argument("--version", action="version", version=f"storescp {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    verify = commands.add_parser("verify", help="compare every file with the index")
    _add_archive_options(verify)
    _add_jobs(verify)
    verify.add_argument(
        "--no-digest", dest="digest", action="store_false", help="do not read the files to their ends"
    )
    verify.set_defaults(command=_verify)

    reindex = commands.add_parser("reindex", help="rebuild the index from the files; it may be repeated")
    _add_archive_options(reindex)
    _add_jobs(reindex)
    reindex.add_argument(
        "--all", action="store_true", help="read every file, also those whose row looks right"
    )
    reindex.add_argument(
        "--digest", metavar="ALGORITHM", type=_algorithm, help="compute digests, for example sha256"
    )
    reindex.set_defaults(command=_reindex)

    stats = commands.add_parser("stats", help="how much is stored")
    _add_archive_options(stats)
    stats.set_defaults(command=_stats)

    add_config_parser(commands)

    echo = commands.add_parser("echo", help="ask a server whether it is there (C-ECHO)")
    _add_peer_options(echo)
    echo.set_defaults(command=_echo)

    send = commands.add_parser("send", help="send DICOM files to a server (C-STORE)")
    _add_peer_options(send)
    send.add_argument(
        "paths", metavar="PATH", nargs="+", help="file, or directory with files anywhere below it"
    )
    send.add_argument("--json", action="store_true", help="print JSON, an object a line")
    send.set_defaults(command=_send)
    return parser


def _add_archive_options(parser: argparse.ArgumentParser) -> None:
    """Those of the server that say where things are, by the same names."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"the server's YAML file; or {CONFIG_VARIABLE} in the environment",
    )
    for option in OPTIONS:
        if option.name in ("storage-dir", "index-db"):
            names = [f"-{option.short}"] if option.short else []
            parser.add_argument(
                *names,
                f"--{option.name}",
                metavar=option.metavar,
                help=f"{option.help} [default: {option.default}]",
            )
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_number(int, 1, 1024),
        default=len(os.sched_getaffinity(0)),
        help="processes that read files [default: one a core]",
    )


def _add_peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("port", metavar="PORT", type=_number(int, 1, 65535))
    parser.add_argument(
        "--calling", metavar="AE", type=_ae_title, default="STORESCU", help="our AE title [default: STORESCU]"
    )
    parser.add_argument(
        "--called", metavar="AE", type=_ae_title, default="STORESCP", help="its AE title [default: STORESCP]"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_number(float, 0.001, 86400.0),
        default=30.0,
        help="how long to wait for the connection, and for each answer [default: 30]",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"who sends; the passcode is in --password-file or in {PASSWORD_VARIABLE}",
    )
    parser.add_argument("--password-file", metavar="FILE", help="file with the passcode of --user")


def _number(kind: Callable[[str], T], low: T, high: T) -> Callable[[str], T]:
    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            pass
        else:
            if low <= value <= high:  # type: ignore[operator]
                return value
        raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text!r:.60}")

    return parse


def _ae_title(text: str) -> str:
    option = next(option for option in OPTIONS if option.name == "ae-title")
    try:
        return str(option.parse((text,)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _algorithm(text: str) -> str:
    """A name that hashlib knows, of a digest of fixed size."""
    if text not in hashlib.algorithms_available or not hashlib.new(text).digest_size:
        known = ", ".join(sorted(hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}))
        raise argparse.ArgumentTypeError(f"expected one of {known}, got {text!r:.60}")
    return text
