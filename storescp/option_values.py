"""Options and their values: each parser makes one of the texts that an operator gave, or says what was expected.

What belongs here: what a value may look like, wherever it stands. A parser takes the texts given, exactly one
unless it says otherwise, and raises ValueError: "expected ..., got ...".
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import os
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from storescp.presentation import OTHER_CLASSES, Preference, resolve_accepted, resolve_preference
from storescp.sop_classes import resolve_sop_classes
from storescp.space import SpaceLimit

E = TypeVar("E", bound=enum.Enum)
N = TypeVar("N", int, float)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Option(Generic[T_co]):
    """One row of the table: ``--name`` on the command line, ``name:`` in YAML, ``STORESCP_NAME`` in the environment.

    To add one: a row in the module of its area (``config_AREA.py``; of a new area, its tuple into ``OPTIONS`` of
    :mod:`storescp.config`, its reader into ``configured`` there), a field of ``Config`` or of what that holds, a
    line in ``etc/storescp.yaml``, and ``make reference`` for ``docs/options.rst``. What it says together with
    others is checked by the reader, which knows by ``place`` what to put in front of a mistake. One that
    ``reloads`` is obeyed by ``Receiver.use`` and, where the parent of workers has a part in it,
    ``Supervisor.configure``: for the associations that come.
    """

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
    reloads: bool = False
    """Whether a running server takes another value at SIGHUP; if not, it says that this needs a restart."""
    masked: Callable[[str], str] | None = None
    """What is shown of a text given for it, where that may hold secrets; its parser takes nothing that is masked."""

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value on the command line (in YAML it is true or false)."""
        return not self.metavar


def shown(option: Option[object], texts: tuple[str, ...]) -> tuple[str, ...]:
    """*texts* as they may be shown."""
    return tuple(map(option.masked, texts)) if option.masked is not None else texts


class Values(Protocol):
    """The value of each option."""

    def __call__(self, option: Option[T]) -> T: ...


def unexpected(expected: str, got: str) -> ValueError:
    """What a parser raises."""
    return ValueError(f"expected {expected}, got {got!r:.60}")


def number(
    kind: Callable[[str], N], what: str, low: N, high: N, *, or_zero: bool = False
) -> Callable[[tuple[str, ...]], N]:
    """A number in a range, or perhaps 0; *what* names it."""

    def parse(texts: tuple[str, ...]) -> N:
        try:
            value = kind(texts[0])
        except ValueError:
            pass
        else:
            if low <= value <= high or (or_zero and value == 0):  # NaN is in no range
                return value
        raise unexpected(f"{'0 or ' if or_zero else ''}{what} from {low:.10g} to {high:.10g}", texts[0])

    return parse


def workers(texts: tuple[str, ...]) -> int:
    """A number of processes."""
    if texts[0] == "auto":
        return len(os.sched_getaffinity(0))
    return number(int, "auto or a whole number", 0, 256)(texts)


def one_of(choices: type[E]) -> Callable[[tuple[str, ...]], E]:
    """The member of an enumeration that has this value."""
    by_value = {str(choice.value): choice for choice in choices}

    def parse(texts: tuple[str, ...]) -> E:
        if texts[0] not in by_value:
            raise unexpected(f"one of {', '.join(by_value)}", texts[0])
        return by_value[texts[0]]

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_space = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT]?)(?:i?B)?|(%))", re.IGNORECASE).fullmatch


def size(low: int) -> Callable[[tuple[str, ...]], int]:
    """A number of bytes that is 0 or at least *low*."""

    def parse(texts: tuple[str, ...]) -> int:
        match = _space(texts[0].strip())
        if match is not None and not match[3]:
            value = int(float(match[1]) * _UNITS[match[2].upper()])
            if value >= low or not value:
                return value
        raise unexpected(f"0 or a size such as 500K, 20M or 2G, at least {low}", texts[0])

    return parse


def free_space(texts: tuple[str, ...]) -> SpaceLimit:
    """Bytes, or a share of the file system."""
    match = _space(texts[0].strip())
    if match is not None:
        number, unit, percent = match.groups()
        if percent and float(number) <= 100:
            return SpaceLimit(float(number), True)
        if not percent:
            return SpaceLimit(float(number) * _UNITS[unit.upper()], False)
    raise unexpected("a size such as 500M or 2G, or a percentage up to 100%", texts[0])


def digest(texts: tuple[str, ...]) -> str | None:
    """The name of an algorithm of hashlib."""
    name = texts[0].lower()
    # SHAKE has digests of any length: none is the one.
    known = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_"))
    if name != "none" and name not in known:
        raise unexpected(f"none or one of {', '.join(known)}", texts[0])
    return None if name == "none" else name


def flag(texts: tuple[str, ...]) -> bool:
    """True or false."""
    text = texts[0].lower()
    if text not in ("true", "yes", "on", "false", "no", "off"):
        raise unexpected("true or false", texts[0])
    return text in ("true", "yes", "on")


def ae_title(texts: tuple[str, ...]) -> str:
    """VR AE, PS3.5 §6.2: leading and trailing spaces mean nothing, and one of spaces only is none."""
    title = texts[0].strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not all(" " <= char <= "~" for char in title):
        raise unexpected(
            "1 to 16 ASCII characters, no backslash, no control characters, not spaces only", texts[0]
        )
    return title


def path(texts: tuple[str, ...]) -> pathlib.Path:
    """A path, that need not exist."""
    if not texts[0].strip() or "\0" in texts[0]:
        raise unexpected("a path", texts[0])
    return pathlib.Path(texts[0])


def database(texts: tuple[str, ...]) -> str:
    """The path of a database."""
    if not texts[0].strip() or "\0" in texts[0] or "://" in texts[0]:
        raise unexpected("the path of a SQLite database", texts[0])
    return texts[0]


def endpoints(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Only their outer form: "type:arguments". Twisted judges the rest."""
    for text in texts or ("",):
        kind, colon, _ = text.partition(":")
        if not (colon and kind.isidentifier() and kind.isascii() and text.isprintable()):
            raise unexpected("a Twisted endpoint such as tcp:11112:interface=127.0.0.1", text)
    return texts


_is_host_name = re.compile(r"(?=.{1,254}\Z)([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?").fullmatch


def is_host(text: str) -> bool:
    """Whether *text* is an IP address, or a name that can be looked up: with underscores, which many sites have."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _is_host_name(text) is not None
    return True


def names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """One or several lists with commas."""
    return tuple(name for text in texts for part in text.split(",") if (name := part.strip()))


def accept(texts: tuple[str, ...]) -> tuple[str, ...]:
    """SOP classes by any of their names, as they were given."""
    given = names(texts)
    if not given:
        raise unexpected(
            "modality groups, storage SOP classes (keywords or UIDs), patterns of UIDs, 'all' or"
            f" {', '.join(map(repr, OTHER_CLASSES))}",
            ",".join(texts),
        )
    resolve_accepted(given)
    return given


def sop_classes(texts: tuple[str, ...]) -> frozenset[str]:
    """UIDs of SOP classes, by any of their names."""
    uids = resolve_sop_classes(names(texts))
    if not uids:
        raise unexpected("modality groups or storage SOP classes (keywords or UIDs)", ",".join(texts))
    return uids


def prefer(texts: tuple[str, ...]) -> Preference:
    """Transfer syntaxes, the best first; none for "proposed"."""
    given = names(texts)
    if given == ("proposed",):
        return ()
    if not given:
        raise unexpected(
            "'proposed', 'compressed', 'uncompressed' or transfer syntaxes (keywords or UIDs)",
            ",".join(texts),
        )
    try:
        return resolve_preference(given)
    except ValueError as error:
        raise ValueError(f"{error}, or 'compressed' or 'uncompressed'; or 'proposed' alone") from None


def file_or_none(texts: tuple[str, ...]) -> pathlib.Path | None:
    """The path of a file, or "none"."""
    return None if texts[0] == "none" else path(texts)


def files(texts: tuple[str, ...]) -> tuple[pathlib.Path, ...]:
    """Paths of files; none for "none"."""
    return () if texts == ("none",) else tuple(path((text,)) for text in texts)


def text_or_none(texts: tuple[str, ...]) -> str | None:
    """Any text of one line, or "none"."""
    if not texts[0].strip() or not texts[0].isprintable():
        raise unexpected("a text, or none", texts[0])
    return None if texts[0] == "none" else texts[0]
