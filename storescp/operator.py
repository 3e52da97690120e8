"""The operator's command, ``storescp`` or ``python -m storescp``: its options, and what it prints. No Twisted.

What belongs here: words and numbers for people and, with --json, for scripts. The work is done elsewhere.
Exit status: 0 when all is well, 1 when there were findings or the work could not be done, 2 for wrong usage; Ctrl-C
is 130 for shells.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from storescp import __version__
from storescp.commitment_store import CommitmentsUnavailable
from storescp.config import OPTIONS, Config, ConfigError, load
from storescp.counting import Count
from storescp.index import Index, IndexUnavailable
from storescp.operator_archive import Archive, ArchiveError, Finding, Pass, Workers, look_at
from storescp.operator_arguments import WrongUsage, number
from storescp.operator_commitments import add_parser as add_commitments_parser
from storescp.operator_config import add_parser as add_config_parser
from storescp.operator_health import add_parser as add_health_parser
from storescp.operator_output import Output, Progress, findings_text, print_json, printable, time_text
from storescp.operator_peer import add_commands as add_peer_commands
from storescp.operator_reindex import Reindexing
from storescp.operator_run import RUN, CannotComplete, add_completion_parser, add_run_parser, run
from storescp.operator_verify import Verification
from storescp.priorities import complain
from storescp.settings import CONFIG_VARIABLE
from storescp.space import no_room, size_text

#: Seconds to wait for the server when it is writing into the index.
BUSY_TIMEOUT = 60.0

P = TypeVar("P", bound=Pass)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status.

    Raises SystemExit for wrong usage, as argparse does, and KeyboardInterrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _prepare_output()
    status = 0
    try:
        status = run(arguments[1:]) if list(arguments[:1]) == [RUN] else _operate(arguments)
    except BrokenPipeError:  # nobody reads on
        status = 1
    finally:
        _end_output(is_told=status != 0)
    return status


def _operate(arguments: Sequence[str]) -> int:
    parser = _parser()
    if arguments and _is_of_server(arguments[0]):  # DCMTK's program of this name takes a port
        port = "--port " if arguments[0].isdecimal() else ""
        parser.error(f"expected a command; storescp run {port}{' '.join(arguments)} starts the server")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except WrongUsage as error:
        parser.error(str(error))
    except (ConfigError, IndexUnavailable, ArchiveError, CannotComplete, CommitmentsUnavailable) as error:
        return _fail(str(error))
    except BrokenProcessPool:
        return _fail("a process that read files was killed")
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        )
    except KeyboardInterrupt:
        complain("interrupted")
        raise


def _prepare_output() -> None:
    """Have any character printed somehow, and the rest go nowhere where nobody wants it."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(why: str) -> int:
    complain(why)
    return 1


def _end_output(*, is_told: bool) -> None:
    """Write what was printed, while it can still be told that it cannot be, unless it *is_told* already."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not (is_told or isinstance(error, BrokenPipeError)):
            complain(f"standard output: {error.strerror}")
        sys.exit(1)


# -- verify, reindex, stats --


def _verify(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    verification = _go_through(options, output, partial(Verification, digest=options.digest))
    seconds = output.seconds()
    output.summary(
        {
            "files": verification.files,
            "rows": verification.rows,
            "bytes": verification.bytes,
            "findings": verification.findings,
            "seconds": seconds,
        },
        f"{Count(verification.files):file} ({size_text(verification.bytes)}), {Count(verification.rows):row}"
        f" in {seconds} s: {findings_text(verification.findings)}",
    )
    return 1 if verification.findings else 0


def _reindex(options: argparse.Namespace) -> int:
    output = Output(as_json=options.json)
    begin = partial(Reindexing, all_files=options.all, digest=options.digest)
    reindexing = _go_through(options, output, begin, create=True)
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
        f"{Count(reindexing.files):file} in {seconds} s: {reindexing.entered} entered,"
        f" {reindexing.unchanged} unchanged, {Count(reindexing.removed):row} removed;"
        f" {findings_text(reindexing.findings)}",
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
        print_json(
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
        rows += zip(("first received", "last received"), map(time_text, received), strict=True)
    rows.append(("database", f"{size_text(database)}, {archive.index_path}"))
    rows.append(("free", f"{size_text(usage.free)} of {size_text(usage.total)}, {archive.root}"))
    for name, text in rows:
        print(f"{name:<15} {text}")
    if modalities:
        print(f"\n{'modality':<15} {'series':>10} {'instances':>12} {'bytes':>18}")
    for modality, series, instances, size in modalities:
        print(f"{printable(modality or '-'):<15} {series:>10} {instances:>12} {size:>18}")
    return 0


def _go_through(
    options: argparse.Namespace,
    output: Output,
    begin: Callable[[Archive, Callable[[Finding], None], Callable[[int], None]], P],
    *,
    create: bool = False,
) -> P:
    """Do what *begin* makes, with the processes that the options allow; it has the counts."""
    with Workers(options.jobs) as workers, _archive(options, create=create) as archive:
        progress = Progress(archive.index.totals().instances)
        work = begin(archive, lambda finding: output.finding(finding, progress), progress.show)
        try:
            work.run(workers)
        finally:
            progress.clear()
    return work


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
    look_at("storage directory", f"{root}/")
    if config.index_db is None:
        raise ArchiveError("the configuration says no-index: there is no index to work with")
    index_path = os.path.abspath(config.index_db)
    look_at("index", index_path, may_be_missing=create)  # SQLite would not say why it cannot be opened
    try:
        index = Index(index_path, busy_timeout=BUSY_TIMEOUT)
        try:
            yield Archive(root, index_path, index)
        finally:
            index.close()
    except IndexUnavailable as error:
        raise IndexUnavailable(f"{error}{no_room(index_path)}") from None


# -- the command line --


def _is_of_server(argument: str) -> bool:
    """Whether it is a port, or an option of the server."""
    names = {f"--{option.name}" for option in OPTIONS} | {
        f"-{option.short}" for option in OPTIONS if option.short
    }
    return argument.isdecimal() or argument.partition("=")[0] in names | {"-c", "--config"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storescp",
        description="Run a DICOM Storage SCP, look after its archive, try a server.",
    )
    parser.add_argument("--version", action="version", version=f"storescp {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    add_run_parser(commands)

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

    add_commitments_parser(commands)
    add_config_parser(commands)
    add_peer_commands(commands)
    add_health_parser(commands)
    add_completion_parser(commands, parser)
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
        type=number(int, 1, 1024),
        default=len(os.sched_getaffinity(0)),
        help="processes that read files [default: one a core]",
    )


def _algorithm(text: str) -> str:
    """A name that hashlib knows, of a digest of fixed size."""
    if text not in hashlib.algorithms_available or not hashlib.new(text).digest_size:
        known = ", ".join(sorted(hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}))
        raise argparse.ArgumentTypeError(f"expected one of {known}, got {text!r:.60}")
    return text
