"""The options: one table for the command line, the YAML file and the documentation, and load(), to read them.

Every value, wherever it comes from, is text until its option's parser has judged it. The parser's ValueError
says what was expected and what was there; load() puts the place in front: one line for the operator.
"""

from __future__ import annotations

import difflib
import enum
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import yaml

from storescp.config_access import ACCESS_OPTIONS, AccessConfig, read_access
from storescp.config_file import ConfigError, composed, is_null, kind, line
from storescp.config_negotiation import NEGOTIATION_OPTIONS, PREFER_FOR
from storescp.config_tls import TLS_OPTIONS, read_tls
from storescp.naming import Duplicate, Naming
from storescp.option_values import (
    Option,
    accept,
    ae_title,
    database,
    digest,
    endpoints,
    flag,
    free_space,
    number,
    one_of,
    path,
    prefer,
    size,
    workers,
)
from storescp.presentation import AcceptedClasses, Preference, resolve_accepted
from storescp.space import SpaceLimit
from storescp.tls_settings import TLSSettings

__all__ = ["OPTIONS", "Config", "ConfigError", "Duplicate", "LogLevel", "Option", "Sync", "load"]

T = TypeVar("T")


class LogLevel(enum.Enum):
    """The least important events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Sync(enum.Enum):
    """Whether an answer of Success waits for the disk."""

    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a server, validated. Times are in seconds, sizes in bytes."""

    listen: tuple[str, ...]
    """Twisted endpoint strings, and our own ``tls:``, which are those of ``tcp:``; at least one."""
    tls: TLSSettings | None
    """None unless an endpoint is ``tls:``."""
    ae_title: str
    """1 to 16 characters, without the insignificant spaces around them."""
    storage_dir: pathlib.Path
    index_db: str | None
    """Path of the SQLite database; None for no index."""
    accept: AcceptedClasses
    """The SOP classes to be stored."""
    accept_names: tuple[str, ...]
    """`accept` as the operator put it."""
    prefer: Preference
    """Transfer syntaxes, best first; empty: the first one proposed."""
    prefer_for: Mapping[str, Preference]
    """The same for some SOP classes, by UID."""
    naming: Naming
    duplicate: Duplicate
    sync: Sync
    digest: str | None
    """Name of an algorithm of hashlib; None for no digests."""
    min_free: SpaceLimit
    workers: int
    """More than 1: so many processes beside the server's own, which share the limits below."""
    max_assoc: int
    max_pending: int
    timeout: float
    """0 for none."""
    artim_timeout: float
    stop_timeout: float
    max_pdu: int
    """0 for no limit."""
    max_per_address: int
    """0 for no limit, here and in the following ones."""
    max_rate: float
    max_object_size: int
    max_in_flight: int
    min_rate: int
    progress_timeout: float
    check_called_ae: bool
    access: AccessConfig
    log_patient_data: bool
    log_level: LogLevel


_PORT = Option("port", "PORT", "11112", "TCP port to listen on", number(int, "a port", 1, 65535), short="p")
_LISTEN = Option(
    "listen",
    "ENDPOINT",
    "tcp:PORT",
    "Twisted endpoint to listen on, instead of --port; may be repeated",
    endpoints,
    is_list=True,
)
_AE_TITLE = Option("ae-title", "TITLE", "STORESCP", "our AE title", ae_title, short="a")
_STORAGE_DIR = Option(
    "storage-dir", "DIR", "received", "where images go; created if missing", path, short="d"
)
_INDEX_DB = Option(
    "index-db", "FILE", "STORAGE-DIR/.storescp/index.db", "SQLite database of what was received", database
)
_NO_INDEX = Option("no-index", "", "false", "keep no database", flag)
_ACCEPT = Option(
    "accept",
    "NAMES",
    "all",
    "what to store: modality groups (CT,MR,...), SOP class keywords, UIDs, patterns of UIDs (1.2.840.*), all; and of"
    " classes that are not in PS3.6 those unknown, private or declared",
    accept,
    is_list=True,
)
_PREFER = Option(
    "prefer",
    "NAMES",
    "proposed",
    "transfer syntaxes (keywords, UIDs, compressed or uncompressed) to choose first, best first; or the first one"
    " proposed",
    prefer,
    is_list=True,
)
_NAMING = Option(
    "naming",
    "SCHEME",
    "hierarchical",
    "hierarchical: Study/Series/SOP.dcm; date: YYYY/MM/DD/Study/SOP.dcm; flat: SOP.dcm",
    one_of(Naming),
)
_DUPLICATE = Option(
    "duplicate",
    "POLICY",
    "reject",
    "an image that is stored already: reject it with 0111H, replace the stored one, ignore the new one, or take it"
    " for stored if it is the same to the byte and reject it if not",
    one_of(Duplicate),
)
_SYNC = Option(
    "sync",
    "WHEN",
    "always",
    "answer Success when the image is on the disk (always), or when the operating system has it (never)",
    one_of(Sync),
)
_DIGEST = Option(
    "digest",
    "ALGORITHM",
    "none",
    "compute this digest of each file and keep it in the index: none, sha256, blake2b, ...",
    digest,
)
_MIN_FREE = Option(
    "min-free",
    "SPACE",
    "100M",
    "take no more images while less than this is free: bytes (K, M, G, T) or percent; 0: no limit",
    free_space,
)
_WORKERS = Option(
    "workers",
    "N",
    "1",
    "processes that serve associations: a number, or auto for one a CPU; 1 (or 0): the server's own and no other",
    workers,
)
_MAX_ASSOC = Option(
    "max-assoc",
    "N",
    "10",
    "associations at a time; more are rejected",
    number(int, "a whole number", 1, 65535),
)
_MAX_PENDING = Option(
    "max-pending",
    "N",
    "100",
    "connections at a time that have not asked for an association yet; more are closed",
    number(int, "a whole number", 1, 65535),
)
_TIMEOUT = Option(
    "timeout",
    "SECONDS",
    "300",
    "abort an association that was idle for so long; 0: never",
    number(float, "a number of seconds", 0.0, 604800.0),
)
_ARTIM_TIMEOUT = Option(
    "artim-timeout",
    "SECONDS",
    "30",
    "close a connection that has not asked for an association, or not hung up, by then",
    number(float, "a number of seconds", 0.1, 3600.0),
)
_STOP_TIMEOUT = Option(
    "stop-timeout",
    "SECONDS",
    "30",
    "how long a stop waits for associations before it aborts them",
    number(float, "a number of seconds", 0.0, 3600.0),
)
_MAX_PDU = Option(
    "max-pdu",
    "BYTES",
    "262144",
    "the longest P-DATA-TF PDU we announce to take; 0: no limit",
    number(int, "a number of bytes", 4096, 1 << 24, or_zero=True),
)
_MAX_PER_ADDRESS = Option(
    "max-per-address",
    "N",
    "0",
    "connections at a time from one address; more are closed; 0: no limit",
    number(int, "a whole number", 1, 65535, or_zero=True),
)
_MAX_RATE = Option(
    "max-rate",
    "N",
    "0",
    "new connections a second from one address, on average; more are closed; 0: no limit",
    number(float, "a number", 0.01, 100000.0, or_zero=True),
)
_MAX_OBJECT_SIZE = Option(
    "max-object-size",
    "SIZE",
    "0",
    "refuse images of more bytes (K, M, G, T) with A700H; 0: no limit",
    size(1),
)
_MAX_IN_FLIGHT = Option(
    "max-in-flight",
    "SIZE",
    "256M",
    "bytes of all associations that may wait for storage: senders have to wait then; 0: no limit",
    size(1 << 20),
)
_MIN_RATE = Option(
    "min-rate",
    "SIZE",
    "1K",
    "abort an association whose image, or PDU, comes with fewer bytes a second; 0: never",
    size(1),
)
_PROGRESS_TIMEOUT = Option(
    "progress-timeout",
    "SECONDS",
    "60",
    "what --min-rate is judged over, and the time for a peer to take our answers; 0: none of that",
    number(float, "a number of seconds", 0.1, 86400.0, or_zero=True),
)
_CHECK_CALLED_AE = Option(
    "check-called-ae", "", "false", "reject associations that call another AE title", flag
)
_LOG_PATIENT_DATA = Option("log-patient-data", "", "false", "let patients' names and IDs into the log", flag)

_LOG_LEVEL = Option(
    "log-level",
    "LEVEL",
    "info",
    "log what is at least so important: debug, info, warn, error",
    one_of(LogLevel),
)

OPTIONS: Final[tuple[Option[object], ...]] = (
    _PORT,
    _LISTEN,
    *TLS_OPTIONS,
    _AE_TITLE,
    _STORAGE_DIR,
    _INDEX_DB,
    _NO_INDEX,
    _ACCEPT,
    _PREFER,
    *NEGOTIATION_OPTIONS,
    _NAMING,
    _DUPLICATE,
    _SYNC,
    _DIGEST,
    _MIN_FREE,
    _WORKERS,
    _MAX_ASSOC,
    _MAX_PENDING,
    _TIMEOUT,
    _ARTIM_TIMEOUT,
    _STOP_TIMEOUT,
    _MAX_PDU,
    _MAX_PER_ADDRESS,
    _MAX_RATE,
    _MAX_OBJECT_SIZE,
    _MAX_IN_FLIGHT,
    _MIN_RATE,
    _PROGRESS_TIMEOUT,
    _CHECK_CALLED_AE,
    *ACCESS_OPTIONS,
    _LOG_PATIENT_DATA,
    _LOG_LEVEL,
)
"""Every option but --config, in the order in which they are shown."""

_BY_NAME = {option.name: option for option in OPTIONS}

# Two ways of saying one thing. Only one may be given; on the command line it overrules the other in the file.
_EITHER_OR = (("port", "listen"), ("no-index", "index-db"))


# What stands in the file alone, and is more than a value.
_SECTIONS = ("callers",)


class _Setting(NamedTuple):
    where: str
    texts: tuple[str, ...]


def load(file: str | os.PathLike[str] | None, given: Mapping[str, str | bool | Sequence[str]]) -> Config:
    """The settings: of the command line, else of `file` (YAML), else the defaults.

    `given` maps names of options to what the command line gave; a flag that is False counts as not given.
    Raises ConfigError.
    """
    typed = _collect(_from_command_line(given))
    sections: dict[str, yaml.Node] = {}
    settings = {} if file is None else _collect(_from_file(os.fspath(file), sections))
    for one, other in _EITHER_OR:
        if one in typed or other in typed:
            settings.pop(one, None)
            settings.pop(other, None)
    settings |= typed

    def value(option: Option[T]) -> T:
        where, texts = settings.get(option.name) or (f"default of {option.name}", (option.default,))
        return _judged(option, where, texts)

    def place(name: str) -> str:
        return settings[name].where if name in settings else f"--{name}"

    storage_dir = value(_STORAGE_DIR)
    index_db = value(_INDEX_DB) if "index-db" in settings else str(storage_dir / ".storescp" / "index.db")
    accept_names = value(_ACCEPT)
    listen = value(_LISTEN) if "listen" in settings else (f"tcp:{value(_PORT)}",)
    listen, tls = read_tls(value, place, listen)
    return Config(
        listen=listen,
        tls=tls,
        ae_title=value(_AE_TITLE),
        storage_dir=storage_dir,
        index_db=None if value(_NO_INDEX) else index_db,
        accept=resolve_accepted(accept_names),
        accept_names=accept_names,
        prefer=value(_PREFER),
        prefer_for=value(PREFER_FOR),
        naming=value(_NAMING),
        duplicate=value(_DUPLICATE),
        sync=value(_SYNC),
        digest=value(_DIGEST),
        min_free=value(_MIN_FREE),
        workers=value(_WORKERS),
        max_assoc=value(_MAX_ASSOC),
        max_pending=value(_MAX_PENDING),
        timeout=value(_TIMEOUT),
        artim_timeout=value(_ARTIM_TIMEOUT),
        stop_timeout=value(_STOP_TIMEOUT),
        max_pdu=value(_MAX_PDU),
        max_per_address=value(_MAX_PER_ADDRESS),
        max_rate=value(_MAX_RATE),
        max_object_size=value(_MAX_OBJECT_SIZE),
        max_in_flight=value(_MAX_IN_FLIGHT),
        min_rate=value(_MIN_RATE),
        progress_timeout=value(_PROGRESS_TIMEOUT),
        check_called_ae=value(_CHECK_CALLED_AE),
        access=read_access(value, place, os.fspath(file or ""), sections.get("callers")),
        log_patient_data=value(_LOG_PATIENT_DATA),
        log_level=value(_LOG_LEVEL),
    )


def _judged(option: Option[T], where: str, texts: tuple[str, ...]) -> T:
    if len(texts) != 1 and not option.is_list:
        raise ConfigError(f"{where}: expected one value, got a list of {len(texts)}")
    try:
        return option.parse(texts)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _collect(entries: Iterable[tuple[Option[object], _Setting]]) -> dict[str, _Setting]:
    """Name of the option -> what one source gave for it, without the flags that are false."""
    settings: dict[str, _Setting] = {}
    for option, setting in entries:
        if option.name in settings:
            raise ConfigError(f"{setting.where}: expected once, got a second time")
        settings[option.name] = setting
    for option in OPTIONS:
        if option.is_flag and option.name in settings and not _judged(option, *settings[option.name]):
            del settings[option.name]
    for one, other in _EITHER_OR:
        if one in settings and other in settings:
            raise ConfigError(f"{settings[other].where}: expected either {one} or {other}, got both")
    return settings


def _named(name: str, where: str) -> Option[object]:
    option = _BY_NAME.get(name.replace("_", "-"))
    if option is None:
        nearest = difflib.get_close_matches(name[:60].replace("_", "-"), _BY_NAME, n=1)
        hint = f" (nearest known: {nearest[0]})" if nearest else ""
        raise ConfigError(f"{where}: expected the name of an option, got {name!r:.60}{hint}")
    return option


def _from_command_line(
    given: Mapping[str, str | bool | Sequence[str]],
) -> Iterator[tuple[Option[object], _Setting]]:
    for name, value in given.items():
        if isinstance(value, bool):
            value = str(value)
        option = _named(name, f"--{name}")
        yield option, _Setting(f"--{name}", (value,) if isinstance(value, str) else tuple(value))


def _from_file(file: str, sections: dict[str, yaml.Node]) -> Iterator[tuple[Option[object], _Setting]]:
    """The entries of a YAML file, without those that are no options: they go into *sections*.

    It is only composed, not constructed: nodes know their lines, and scalars stay text (the AE title NO).
    """
    root = composed(file)
    if root is None or is_null(root):
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{file}:{line(root)}: expected lines of the form 'option: value', got {kind(root)}"
        )
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{file}:{line(key)}: expected the name of an option, got {kind(key)}")
        if key.value in _SECTIONS:
            if key.value in sections:
                raise ConfigError(f"{file}:{line(key)}: {key.value}: expected once, got a second time")
            sections[key.value] = node
            continue
        option = _named(key.value, f"{file}:{line(key)}")
        where = f"{file}:{line(key)}: {option.name}"
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode) or is_null(item):
                raise ConfigError(f"{where}: expected a value, got {kind(item)}")
        yield option, _Setting(where, tuple(item.value for item in items))
