"""The options: one table for the command line, the YAML file and the documentation, and load(), to read them.

Every value, wherever it comes from, is text until its option's parser has judged it. The parser's ValueError
says what was expected and what was there; the place in front is that of :mod:`storescp.settings`.
"""

from __future__ import annotations

import enum
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from storescp import config_limits as limits
from storescp.beneath import Modes
from storescp.config_access import ACCESS_OPTIONS, AccessConfig, read_access
from storescp.config_callers import mistakes_in_callers, place_in_rule
from storescp.config_commitment import COMMITMENT_OPTIONS, CommitmentSettings, read_commitment
from storescp.config_file import ConfigError
from storescp.config_limits import LIMIT_OPTIONS
from storescp.config_logs import LOG_OPTIONS, LOG_PATIENT_DATA, read_logs
from storescp.config_modes import MODE_OPTIONS, read_modes
from storescp.config_negotiation import ASYNC_WINDOW, NEGOTIATION_OPTIONS, PREFER_FOR
from storescp.config_tls import TLS_OPTIONS, read_tls
from storescp.config_web import HTTP, WEB_OPTIONS
from storescp.log_settings import LogSettings
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
    workers,
)
from storescp.presentation import AcceptedClasses, Preference, resolve_accepted
from storescp.settings import Settings
from storescp.space import SpaceLimit
from storescp.tls_settings import TLSSettings

__all__ = [
    "OPTIONS",
    "Config",
    "ConfigError",
    "Duplicate",
    "Option",
    "Sync",
    "configured",
    "gathered",
    "judge",
    "load",
]


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
    modes: Modes
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
    async_window: int
    """At least 1."""
    max_per_address: int
    """0 for no limit, here and in the following ones."""
    max_rate: float
    max_object_size: int
    max_in_flight: int
    min_rate: int
    progress_timeout: float
    check_called_ae: bool
    access: AccessConfig
    http: str | None
    """Twisted endpoint string; None for no metrics and no page."""
    commitment: CommitmentSettings | None
    """None if it is not given."""
    log_patient_data: bool
    logs: LogSettings


_PORT = Option("port", "PORT", "11112", "TCP port to listen on", number(int, "a port", 1, 65535), short="p")
_LISTEN = Option(
    "listen",
    "ENDPOINT",
    "tcp:PORT",
    "Twisted endpoint to listen on, instead of --port; may be repeated",
    endpoints,
    is_list=True,
)
_AE_TITLE = Option("ae-title", "TITLE", "STORESCP", "our AE title", ae_title, short="a", reloads=True)
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
    reloads=True,
)
_PREFER = Option(
    "prefer",
    "NAMES",
    "proposed",
    "transfer syntaxes (keywords, UIDs, compressed or uncompressed) to choose first, best first; or the first one"
    " proposed",
    prefer,
    is_list=True,
    reloads=True,
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
    reloads=True,
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
    reloads=True,
)
_MIN_FREE = Option(
    "min-free",
    "SPACE",
    "100M",
    "take no more images while less than this is free: bytes (K, M, G, T) or percent; 0: no limit",
    free_space,
    reloads=True,
)
_WORKERS = Option(
    "workers",
    "N",
    "1",
    "processes that serve associations: a number, or auto for one a CPU; 1 (or 0): the server's own and no other",
    workers,
)
_CHECK_CALLED_AE = Option(
    "check-called-ae", "", "false", "reject associations that call another AE title", flag, reloads=True
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
    *MODE_OPTIONS,
    _SYNC,
    _DIGEST,
    _MIN_FREE,
    _WORKERS,
    *LIMIT_OPTIONS,
    _CHECK_CALLED_AE,
    *ACCESS_OPTIONS,
    *COMMITMENT_OPTIONS,
    *WEB_OPTIONS,
    *LOG_OPTIONS,
)
"""Every option but --config, in the order in which they are shown."""

# Two ways of saying one thing. Only one may be given; who has more to say overrules with one the other of who has less.
_EITHER_OR = (("port", "listen"), ("no-index", "index-db"))

# What stands in the file alone, and is more than a value.
_SECTIONS = ("callers",)


def load(
    file: str | os.PathLike[str] | None,
    given: Mapping[str, str | bool | Sequence[str]],
    environment: Mapping[str, str] | None = None,
) -> Config:
    """What :func:`configured` makes of :func:`gathered`."""
    return configured(gathered(file, given, environment))


def gathered(
    file: str | os.PathLike[str] | None,
    given: Mapping[str, str | bool | Sequence[str]],
    environment: Mapping[str, str] | None = None,
    mistakes: list[str] | None = None,
) -> Settings:
    """The settings: of the command line, else of *environment*, else of *file* (YAML), else the defaults.

    *given* maps names of options to what the command line gave; a flag that is False counts as not given.
    Raises ConfigError at the first mistake; *mistakes* collects them instead, but for a file that cannot be read.
    """
    settings = Settings(OPTIONS, _EITHER_OR, _SECTIONS, mistakes)
    if file is not None:
        settings.add_file(os.fspath(file))
    settings.add_environment(environment or {})
    settings.add_command_line(given)
    return settings


def judge(settings: Settings, mistakes: list[str]) -> None:
    """Add to the *mistakes* of what was gathered those of each value, and in each caller's rule."""
    settings.judge()
    for callers in settings.sections.values():
        mistakes += mistakes_in_callers(callers, settings.file)


def configured(settings: Settings) -> Config:
    """The server that *settings* describe. Raises ConfigError."""
    value, place = settings.value, settings.place
    storage_dir = value(_STORAGE_DIR)
    index_db: str | None = str(storage_dir / ".storescp" / "index.db")
    if settings.is_given("index-db"):
        index_db = value(_INDEX_DB)
    accept_names = value(_ACCEPT)
    listen = value(_LISTEN) if settings.is_given("listen") else (f"tcp:{value(_PORT)}",)
    listen, tls = read_tls(value, place, listen)
    if value(_NO_INDEX):
        index_db = None
    callers = settings.sections.get("callers")
    access = read_access(value, place, settings.file, callers)
    return Config(
        listen=listen,
        tls=tls,
        ae_title=value(_AE_TITLE),
        storage_dir=storage_dir,
        index_db=index_db,
        accept=resolve_accepted(accept_names),
        accept_names=accept_names,
        prefer=value(_PREFER),
        prefer_for=value(PREFER_FOR),
        naming=value(_NAMING),
        duplicate=value(_DUPLICATE),
        modes=read_modes(value),
        sync=value(_SYNC),
        digest=value(_DIGEST),
        min_free=value(_MIN_FREE),
        workers=value(_WORKERS),
        max_assoc=value(limits.MAX_ASSOC),
        max_pending=value(limits.MAX_PENDING),
        timeout=value(limits.TIMEOUT),
        artim_timeout=value(limits.ARTIM_TIMEOUT),
        stop_timeout=value(limits.STOP_TIMEOUT),
        max_pdu=value(limits.MAX_PDU),
        async_window=value(ASYNC_WINDOW),
        max_per_address=value(limits.MAX_PER_ADDRESS),
        max_rate=value(limits.MAX_RATE),
        max_object_size=value(limits.MAX_OBJECT_SIZE),
        max_in_flight=value(limits.MAX_IN_FLIGHT),
        min_rate=value(limits.MIN_RATE),
        progress_timeout=value(limits.PROGRESS_TIMEOUT),
        check_called_ae=value(_CHECK_CALLED_AE),
        access=access,
        commitment=read_commitment(
            value,
            partial(place_in_rule, callers, settings.file),
            access.callers,
            tls,
            has_index=index_db is not None,
        ),
        http=value(HTTP),
        log_patient_data=value(LOG_PATIENT_DATA),
        logs=read_logs(value, place),
    )
