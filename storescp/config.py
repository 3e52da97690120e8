"""The options: one table for the command line, the YAML file and the documentation, and load(), to read them.

Every value, wherever it comes from, is text until its option's parser has judged it. The parser's ValueError
says what was expected and what was there; load() puts the place in front: one line for the operator.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

import yaml

from storescp.naming import Naming
from storescp.sop_classes import resolve_sop_classes, resolve_transfer_syntaxes
from storescp.space import SpaceLimit

__all__ = ["OPTIONS", "Config", "ConfigError", "Duplicate", "LogLevel", "Option", "Sync", "load"]

# Far beyond any sensible file; keeps --config /dev/zero from eating the memory.
MAX_FILE_SIZE: Final = 1 << 20

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
E = TypeVar("E", bound=enum.Enum)
N = TypeVar("N", int, float)


class ConfigError(Exception):
    """A mistake of the operator's. str() is one line: the place, what was expected there, what was got."""


class LogLevel(enum.Enum):
    """The least important events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Duplicate(enum.Enum):
    """What becomes of an instance that is already stored."""

    REJECT = "reject"
    REPLACE = "replace"
    IGNORE = "ignore"
    SAME = "same"


class Sync(enum.Enum):
    """Whether an answer of Success waits for the disk."""

    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a server, validated. Times are in seconds, sizes in bytes."""

    listen: tuple[str, ...]
    """Twisted endpoint strings, at least one."""
    ae_title: str
    """1 to 16 characters, without the insignificant spaces around them."""
    storage_dir: pathlib.Path
    index_db: str | None
    """Path of the SQLite database; None for no index."""
    accept: frozenset[str]
    """UIDs of the SOP classes to be stored."""
    accept_names: tuple[str, ...]
    """`accept` as the operator put it."""
    prefer: tuple[str, ...]
    """UIDs of transfer syntaxes, best first; empty: the first one proposed."""
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
    log_patient_data: bool
    log_level: LogLevel


@dataclass(frozen=True, slots=True)
class Option(Generic[T_co]):
    """One row of the table: `--name` on the command line, `name:` in YAML."""

    name: str
    metavar: str
    """What stands for the value in a usage text; empty for a flag."""
    default: str
    """As text. Words in capitals stand for the values of other options."""
    help: str
    parse: Callable[[tuple[str, ...]], T_co]
    """The texts given (exactly one unless `is_list`) -> value. Raises ValueError: "expected ..., got ..."."""
    short: str = ""
    """A single letter, or empty."""
    is_list: bool = False
    """Whether it may be given several times, and as a list in YAML."""

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value on the command line (in YAML it is true or false)."""
        return not self.metavar


def _unexpected(expected: str, got: str) -> ValueError:
    return ValueError(f"expected {expected}, got {got!r:.60}")


def _number(
    kind: Callable[[str], N], what: str, low: N, high: N, *, or_zero: bool = False
) -> Callable[[tuple[str, ...]], N]:
    def parse(texts: tuple[str, ...]) -> N:
        try:
            value = kind(texts[0])
        except ValueError:
            pass
        else:
            if low <= value <= high or (or_zero and value == 0):  # NaN is in no range
                return value
        raise _unexpected(f"{'0 or ' if or_zero else ''}{what} from {low:.10g} to {high:.10g}", texts[0])

    return parse


def _workers(texts: tuple[str, ...]) -> int:
    if texts[0] == "auto":
        return len(os.sched_getaffinity(0))
    return _number(int, "auto or a whole number", 0, 256)(texts)


def _one_of(choices: type[E]) -> Callable[[tuple[str, ...]], E]:
    by_value = {str(choice.value): choice for choice in choices}

    def parse(texts: tuple[str, ...]) -> E:
        if texts[0] not in by_value:
            raise _unexpected(f"one of {', '.join(by_value)}", texts[0])
        return by_value[texts[0]]

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_space = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT]?)(?:i?B)?|(%))", re.IGNORECASE).fullmatch


def _size(low: int) -> Callable[[tuple[str, ...]], int]:
    """A parser of a number of bytes that is 0 or at least *low*."""

    def parse(texts: tuple[str, ...]) -> int:
        match = _space(texts[0].strip())
        if match is not None and not match[3]:
            value = int(float(match[1]) * _UNITS[match[2].upper()])
            if value >= low or not value:
                return value
        raise _unexpected(f"0 or a size such as 500K, 20M or 2G, at least {low}", texts[0])

    return parse


def _free_space(texts: tuple[str, ...]) -> SpaceLimit:
    match = _space(texts[0].strip())
    if match is not None:
        number, unit, percent = match.groups()
        if percent and float(number) <= 100:
            return SpaceLimit(float(number), True)
        if not percent:
            return SpaceLimit(float(number) * _UNITS[unit.upper()], False)
    raise _unexpected("a size such as 500M or 2G, or a percentage up to 100%", texts[0])


def _digest(texts: tuple[str, ...]) -> str | None:
    name = texts[0].lower()
    # SHAKE has digests of any length: none is the one.
    known = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_"))
    if name != "none" and name not in known:
        raise _unexpected(f"none or one of {', '.join(known)}", texts[0])
    return None if name == "none" else name


def _flag(texts: tuple[str, ...]) -> bool:
    text = texts[0].lower()
    if text not in ("true", "yes", "on", "false", "no", "off"):
        raise _unexpected("true or false", texts[0])
    return text in ("true", "yes", "on")


def _ae_title(texts: tuple[str, ...]) -> str:
    """VR AE, PS3.5 §6.2: leading and trailing spaces mean nothing, and one of spaces only is none."""
    title = texts[0].strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not all(" " <= char <= "~" for char in title):
        raise _unexpected(
            "1 to 16 ASCII characters, no backslash, no control characters, not spaces only", texts[0]
        )
    return title


def _path(texts: tuple[str, ...]) -> pathlib.Path:
    if not texts[0].strip() or "\0" in texts[0]:
        raise _unexpected("a path", texts[0])
    return pathlib.Path(texts[0])


def _database(texts: tuple[str, ...]) -> str:
    if not texts[0].strip() or "\0" in texts[0] or "://" in texts[0]:
        raise _unexpected("the path of a SQLite database", texts[0])
    return texts[0]


def _endpoints(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Only their outer form: "type:arguments". Twisted judges the rest."""
    for text in texts or ("",):
        kind, colon, _ = text.partition(":")
        if not (colon and kind.isidentifier() and kind.isascii() and text.isprintable()):
            raise _unexpected("a Twisted endpoint such as tcp:11112:interface=127.0.0.1", text)
    return texts


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for text in texts for part in text.split(",") if (name := part.strip()))


def _accept(texts: tuple[str, ...]) -> tuple[str, ...]:
    names = _names(texts)
    if not resolve_sop_classes(names):
        raise _unexpected("modality groups, storage SOP classes (keywords or UIDs) or 'all'", ",".join(texts))
    return names


def _prefer(texts: tuple[str, ...]) -> tuple[str, ...]:
    names = _names(texts)
    if names == ("proposed",):
        return ()
    if not names:
        raise _unexpected("'proposed' or transfer syntaxes (keywords or UIDs)", ",".join(texts))
    try:
        return resolve_transfer_syntaxes(names)
    except ValueError as error:
        raise ValueError(f"{error}; or 'proposed' alone") from None


_PORT = Option("port", "PORT", "11112", "TCP port to listen on", _number(int, "a port", 1, 65535), short="p")
_LISTEN = Option(
    "listen",
    "ENDPOINT",
    "tcp:PORT",
    "Twisted endpoint to listen on, instead of --port; may be repeated",
    _endpoints,
    is_list=True,
)
_AE_TITLE = Option("ae-title", "TITLE", "STORESCP", "our AE title", _ae_title, short="a")
_STORAGE_DIR = Option(
    "storage-dir", "DIR", "received", "where images go; created if missing", _path, short="d"
)
_INDEX_DB = Option(
    "index-db", "FILE", "STORAGE-DIR/.storescp/index.db", "SQLite database of what was received", _database
)
_NO_INDEX = Option("no-index", "", "false", "keep no database", _flag)
_ACCEPT = Option(
    "accept",
    "NAMES",
    "all",
    "what to store: modality groups (CT,MR,...), SOP class keywords or UIDs",
    _accept,
    is_list=True,
)
_PREFER = Option(
    "prefer",
    "NAMES",
    "proposed",
    "transfer syntaxes (keywords or UIDs) to choose first, best first; or the first one proposed",
    _prefer,
    is_list=True,
)
_NAMING = Option(
    "naming",
    "SCHEME",
    "hierarchical",
    "hierarchical: Study/Series/SOP.dcm; date: YYYY/MM/DD/Study/SOP.dcm; flat: SOP.dcm",
    _one_of(Naming),
)
_DUPLICATE = Option(
    "duplicate",
    "POLICY",
    "reject",
    "an image that is stored already: reject it with 0111H, replace the stored one, ignore the new one, or take it"
    " for stored if it is the same to the byte and reject it if not",
    _one_of(Duplicate),
)
_SYNC = Option(
    "sync",
    "WHEN",
    "always",
    "answer Success when the image is on the disk (always), or when the operating system has it (never)",
    _one_of(Sync),
)
_DIGEST = Option(
    "digest",
    "ALGORITHM",
    "none",
    "compute this digest of each file and keep it in the index: none, sha256, blake2b, ...",
    _digest,
)
_MIN_FREE = Option(
    "min-free",
    "SPACE",
    "100M",
    "take no more images while less than this is free: bytes (K, M, G, T) or percent; 0: no limit",
    _free_space,
)
_WORKERS = Option(
    "workers",
    "N",
    "1",
    "processes that serve associations: a number, or auto for one a CPU; 1 (or 0): the server's own and no other",
    _workers,
)
_MAX_ASSOC = Option(
    "max-assoc",
    "N",
    "10",
    "associations at a time; more are rejected",
    _number(int, "a whole number", 1, 65535),
)
_MAX_PENDING = Option(
    "max-pending",
    "N",
    "100",
    "connections at a time that have not asked for an association yet; more are closed",
    _number(int, "a whole number", 1, 65535),
)
_TIMEOUT = Option(
    "timeout",
    "SECONDS",
    "300",
    "abort an association that was idle for so long; 0: never",
    _number(float, "a number of seconds", 0.0, 604800.0),
)
_ARTIM_TIMEOUT = Option(
    "artim-timeout",
    "SECONDS",
    "30",
    "close a connection that has not asked for an association, or not hung up, by then",
    _number(float, "a number of seconds", 0.1, 3600.0),
)
_STOP_TIMEOUT = Option(
    "stop-timeout",
    "SECONDS",
    "30",
    "how long a stop waits for associations before it aborts them",
    _number(float, "a number of seconds", 0.0, 3600.0),
)
_MAX_PDU = Option(
    "max-pdu",
    "BYTES",
    "262144",
    "the longest P-DATA-TF PDU we announce to take; 0: no limit",
    _number(int, "a number of bytes", 4096, 1 << 24, or_zero=True),
)
_MAX_PER_ADDRESS = Option(
    "max-per-address",
    "N",
    "0",
    "connections at a time from one address; more are closed; 0: no limit",
    _number(int, "a whole number", 1, 65535, or_zero=True),
)
_MAX_RATE = Option(
    "max-rate",
    "N",
    "0",
    "new connections a second from one address, on average; more are closed; 0: no limit",
    _number(float, "a number", 0.01, 100000.0, or_zero=True),
)
_MAX_OBJECT_SIZE = Option(
    "max-object-size",
    "SIZE",
    "0",
    "refuse images of more bytes (K, M, G, T) with A700H; 0: no limit",
    _size(1),
)
_MAX_IN_FLIGHT = Option(
    "max-in-flight",
    "SIZE",
    "256M",
    "bytes of all associations that may wait for storage: senders have to wait then; 0: no limit",
    _size(1 << 20),
)
_MIN_RATE = Option(
    "min-rate",
    "SIZE",
    "1K",
    "abort an association whose image, or PDU, comes with fewer bytes a second; 0: never",
    _size(1),
)
_PROGRESS_TIMEOUT = Option(
    "progress-timeout",
    "SECONDS",
    "60",
    "what --min-rate is judged over, and the time for a peer to take our answers; 0: none of that",
    _number(float, "a number of seconds", 0.1, 86400.0, or_zero=True),
)
_CHECK_CALLED_AE = Option(
    "check-called-ae", "", "false", "reject associations that call another AE title", _flag
)
_LOG_PATIENT_DATA = Option("log-patient-data", "", "false", "let patients' names and IDs into the log", _flag)

_LOG_LEVEL = Option(
    "log-level",
    "LEVEL",
    "info",
    "log what is at least so important: debug, info, warn, error",
    _one_of(LogLevel),
)

OPTIONS: Final[tuple[Option[object], ...]] = (
    _PORT,
    _LISTEN,
    _AE_TITLE,
    _STORAGE_DIR,
    _INDEX_DB,
    _NO_INDEX,
    _ACCEPT,
    _PREFER,
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
    _LOG_PATIENT_DATA,
    _LOG_LEVEL,
)
"""Every option but --config, in the order in which they are shown."""

_BY_NAME = {option.name: option for option in OPTIONS}

# Two ways of saying one thing. Only one may be given; on the command line it overrules the other in the file.
_EITHER_OR = (("port", "listen"), ("no-index", "index-db"))


class _Setting(NamedTuple):
    where: str
    texts: tuple[str, ...]


def load(file: str | os.PathLike[str] | None, given: Mapping[str, str | bool | Sequence[str]]) -> Config:
    """The settings: of the command line, else of `file` (YAML), else the defaults.

    `given` maps names of options to what the command line gave; a flag that is False counts as not given.
    Raises ConfigError.
    """
    typed = _collect(_from_command_line(given))
    settings = {} if file is None else _collect(_from_file(os.fspath(file)))
    for one, other in _EITHER_OR:
        if one in typed or other in typed:
            settings.pop(one, None)
            settings.pop(other, None)
    settings |= typed

    def value(option: Option[T]) -> T:
        where, texts = settings.get(option.name) or (f"default of {option.name}", (option.default,))
        return _judged(option, where, texts)

    storage_dir = value(_STORAGE_DIR)
    index_db = value(_INDEX_DB) if "index-db" in settings else str(storage_dir / ".storescp" / "index.db")
    accept_names = value(_ACCEPT)
    return Config(
        listen=value(_LISTEN) if "listen" in settings else (f"tcp:{value(_PORT)}",),
        ae_title=value(_AE_TITLE),
        storage_dir=storage_dir,
        index_db=None if value(_NO_INDEX) else index_db,
        accept=resolve_sop_classes(accept_names),
        accept_names=accept_names,
        prefer=value(_PREFER),
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


def _from_file(file: str) -> Iterator[tuple[Option[object], _Setting]]:
    """The entries of a YAML file.

    It is only composed, not constructed: nodes know their lines, and scalars stay text (the AE title NO).
    """
    root = _composed(file)
    if root is None or _is_null(root):
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{file}:{_line(root)}: expected lines of the form 'option: value', got {_kind(root)}"
        )
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{file}:{_line(key)}: expected the name of an option, got {_kind(key)}")
        option = _named(key.value, f"{file}:{_line(key)}")
        where = f"{file}:{_line(key)}: {option.name}"
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for item in items:
            if not isinstance(item, yaml.ScalarNode) or _is_null(item):
                raise ConfigError(f"{where}: expected a value, got {_kind(item)}")
        yield option, _Setting(where, tuple(item.value for item in items))


def _composed(file: str) -> yaml.Node | None:
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file!r}: expected a readable YAML file, got: {reason}") from None
    if len(content) > MAX_FILE_SIZE:
        raise ConfigError(f"{file}: expected a YAML file of at most {MAX_FILE_SIZE} bytes, got more")
    try:
        return yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: expected YAML, got: {error.problem!r:.120}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{file}: expected YAML, got at byte {error.position}: {error.reason}") from None
    # The composer recurses, and lets int() and chr() judge some escapes and directives.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{file}: expected YAML, got: {type(error).__name__}") from None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)[:60] if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
