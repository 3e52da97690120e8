"""The settings that say who may send: their options, and the section ``callers`` of the YAML file.

What belongs here: what may stand there. What follows from it is the business of :mod:`storescp.access`.
"""

from __future__ import annotations

import difflib
import ipaddress
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import yaml

from storescp.access import ANYONE, MAX_CALLERS, Address, Caller, Callers, Network, is_pattern
from storescp.config_file import ConfigError, is_null, kind, line
from storescp.naming import Duplicate, is_safe_uid
from storescp.option_values import (
    Option,
    Values,
    accept,
    ae_title,
    file_or_none,
    flag,
    names,
    number,
    one_of,
    prefer,
    text_or_none,
    unexpected,
)
from storescp.presentation import AcceptedClasses, Preference, resolve_accepted
from storescp.sop_classes import resolve_transfer_syntaxes

T = TypeVar("T")

#: The longest sub-directory of a caller, in characters: there must be room for UIDs after it.
MAX_DIRECTORY: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may send, validated. Times are in seconds."""

    callers: Callers
    auth: tuple[str, ...] = field(repr=False)
    """What checks a user's passcode, as strings of twisted.cred.strcred; they may hold passwords."""
    auth_required: bool
    auth_timeout: float
    jwt_key: pathlib.Path | None
    """What a user's token is signed with; None where tokens are not taken."""
    jwt_audience: str | None
    jwt_issuer: str | None

    @property
    def checks_users(self) -> bool:
        """Whether there is something to check users with."""
        return bool(self.auth) or self.jwt_key is not None


def _auth(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Only the outer form; and nothing of it is repeated: there may be passwords in it."""
    if texts == ("none",):
        return ()
    for text in texts:
        name = text.partition(":")[0]
        if not (name.isidentifier() and name.isascii()) or name == "none":
            raise ValueError(
                "expected none or TYPE:ARGUMENTS such as file:/etc/storescp.passwd, got something else"
            )
    return texts


def _without_secrets(text: str) -> str:
    """A string of strcred but for its arguments, unless they are the name of a file."""
    kind, colon, _ = text.partition(":")
    return f"{kind} (masked)" if colon and kind != "file" else text


_REJECT_UNKNOWN = Option(
    "reject-unknown-callers",
    "",
    "false",
    "reject calling AE titles that have no entry in the section callers of the YAML file",
    flag,
    reloads=True,
)
_AUTH = Option(
    "auth",
    "TYPE:ARGUMENTS",
    "none",
    "what checks users and their passcodes, such as file:/etc/storescp.passwd; may be repeated; see --help-auth",
    _auth,
    is_list=True,
    reloads=True,
    masked=_without_secrets,
)
_AUTH_REQUIRED = Option(
    "auth-required", "", "false", "reject associations without a user identity", flag, reloads=True
)
_AUTH_TIMEOUT = Option(
    "auth-timeout",
    "SECONDS",
    "10",
    "reject an association whose user has not been checked by then",
    number(float, "a number of seconds", 0.1, 300.0),
    reloads=True,
)
_JWT_KEY = Option(
    "jwt-key",
    "FILE",
    "none",
    "take users' JSON Web Tokens signed with this key: a public one in PEM, or a secret of at least 32 bytes",
    file_or_none,
    reloads=True,
)
_JWT_AUDIENCE = Option(
    "jwt-audience", "TEXT", "none", "the audience (aud) that a token must be for", text_or_none, reloads=True
)
_JWT_ISSUER = Option(
    "jwt-issuer", "TEXT", "none", "the issuer (iss) that a token must be from", text_or_none, reloads=True
)

ACCESS_OPTIONS: Final[tuple[Option[object], ...]] = (
    _REJECT_UNKNOWN,
    _AUTH,
    _AUTH_REQUIRED,
    _AUTH_TIMEOUT,
    _JWT_KEY,
    _JWT_AUDIENCE,
    _JWT_ISSUER,
)


def read_access(
    value: Values, place: Callable[[str], str], file: str, callers: yaml.Node | None
) -> AccessConfig:
    """Who may send, by the options that *value* knows (*place* where they stand) and the section of *file*.

    Raises ConfigError.
    """
    only_known = value(_REJECT_UNKNOWN)
    known, default = ((), ANYONE) if callers is None else _read_callers(callers, file)
    config = AccessConfig(
        callers=Callers(known, default, only_known),
        auth=value(_AUTH),
        auth_required=value(_AUTH_REQUIRED),
        auth_timeout=value(_AUTH_TIMEOUT),
        jwt_key=value(_JWT_KEY),
        jwt_audience=value(_JWT_AUDIENCE),
        jwt_issuer=value(_JWT_ISSUER),
    )
    if only_known and not known:
        raise ConfigError(f"{place(_REJECT_UNKNOWN.name)}: expected entries in the section callers, got none")
    if config.checks_users:
        return config
    if config.auth_required:
        raise ConfigError(f"{place(_AUTH_REQUIRED.name)}: expected auth or jwt-key with it, got neither")
    for caller in (default, *known):
        if caller.user:
            where = place_in_rule(callers, file, caller.name, "user")
            raise ConfigError(f"{where}: expected auth or jwt-key with it, got neither")
    return config


def place_in_rule(callers: yaml.Node | None, file: str, name: str, key: str) -> str:
    """Where the rule *name* of the section in *file* has the *key*: for a message about it."""
    lines = [
        line(found)
        for title, rule in (callers.value if callers is not None else ())
        if title.value.strip(" ") == name
        for found, _ in rule.value
        if found.value == key
    ]
    return f"{file}:{lines[0]}: callers.{name}.{key}" if lines else f"{file}: callers.{name}.{key}"


def _read_callers(node: yaml.Node, file: str) -> tuple[tuple[Caller, ...], Caller]:
    """The rules of the section, with what the default says in place of what they do not, and the default."""
    rules: dict[str, dict[str, object]] = {}
    for title, where, rule in _entries(node, f"{file}:", "callers", "an AE title, or a pattern with * and ?"):
        if title != "default":
            title = _judged_text(where, title, _title)
        if title in rules:  # for spaces around it mean nothing
            raise ConfigError(f"{where}: expected once, got a second time")
        rules[title] = dict(_read_rule(rule, f"{file}:", f"callers.{title}"))
    default = rules.pop("default", {})
    if len(rules) > MAX_CALLERS:
        raise ConfigError(
            f"{file}:{line(node)}: callers: expected at most {MAX_CALLERS} entries, got {len(rules)}"
        )
    known = tuple(
        replace(ANYONE, name=title, number=place, **(default | rule))  # type: ignore[arg-type]
        for place, (title, rule) in enumerate(rules.items(), 1)
    )
    return known, replace(ANYONE, **default)  # type: ignore[arg-type]


def _read_rule(node: yaml.Node, file: str, path: str) -> Iterator[tuple[str, object]]:
    if is_null(node):
        return
    for name, where, value in _entries(node, file, path, f"one of {', '.join(KEYS)}"):
        key = name.replace("_", "-")
        if key not in KEYS:
            nearest = difflib.get_close_matches(key[:60], KEYS, n=1)
            hint = f" (nearest known: {nearest[0]})" if nearest else ""
            raise ConfigError(f"{where}: expected one of {', '.join(KEYS)}, got {name!r:.60}{hint}")
        attribute, parse = KEYS[key]
        if isinstance(parse, _List):
            yield attribute, parse.made([_judged(*item, parse.item) for item in _items(value, where)])
        elif isinstance(value, yaml.ScalarNode):
            yield attribute, _judged(where, value, parse)
        else:
            raise ConfigError(f"{where}: expected one value, got {kind(value)}")


def _entries(node: yaml.Node, file: str, path: str, keys: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """Key, place and value of each entry of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{file}{line(node)}: {path}: expected lines of the form 'key: value', got {kind(node)}"
        )
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            raise ConfigError(f"{file}{line(key)}: {path}: expected {keys}, got {kind(key)}")
        where = f"{file}{line(value)}: {path}.{key.value:.60}"
        if key.value in seen:
            raise ConfigError(f"{where}: expected once, got a second time")
        seen.add(key.value)
        yield key.value, where, value


def _items(node: yaml.Node, where: str) -> Iterator[tuple[str, yaml.Node]]:
    """Place and value of each item of a list, or of what stands in the place of one."""
    if not isinstance(node, yaml.SequenceNode):
        yield where, node
        return
    if not node.value:
        raise ConfigError(f"{where}: expected at least one value, got an empty list")
    for place, item in enumerate(node.value):
        yield f"{where}[{place}]", item


def _judged(where: str, node: yaml.Node, parse: Callable[[str], T]) -> T:
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise ConfigError(f"{where}: expected a value, got {kind(node)}")
    return _judged_text(where, node.value, parse)


def _judged_text(where: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


# -- the keys of an entry --


@dataclass(frozen=True, slots=True)
class _List:
    """Values of which there may be several: what *item* makes of each is put together by *made*."""

    item: Callable[[str], Iterable[object]]
    made: Callable[[list[Iterable[object]]], object]


def _tuple(groups: list[Iterable[object]]) -> object:
    return tuple(value for group in groups for value in group)


def _set(groups: list[Iterable[object]]) -> object:
    return frozenset(value for group in groups for value in group)


def _title(text: str) -> str:
    if not is_pattern(text):
        return ae_title((text,))
    if len(text) > 64 or "\\" in text:
        raise unexpected("a pattern of at most 64 characters, no backslash", text)
    return text.strip(" ")


def _networks(text: str) -> list[Network]:
    networks = []
    for name in [] if text == "any" else names((text,)) or ("",):
        try:
            networks.append(ipaddress.ip_network(name))
        except ValueError:
            raise unexpected("any, an address, or a network such as 10.0.0.0/8 or fd00::/8", name) from None
    return networks


def _called(text: str) -> tuple[str, ...]:
    return () if text == "any" else (ae_title((text,)),)


def _patterns(text: str) -> tuple[str, ...]:
    if not text.strip() or not text.isprintable():
        raise unexpected("none, or a pattern with * and ?", text)
    return () if text == "none" else (text,)


def _sop_classes(text: str) -> list[AcceptedClasses]:
    return [resolve_accepted(accept((text,)))]


def _accepted(groups: list[Iterable[object]]) -> object:
    accepted = AcceptedClasses()
    for group in groups:
        for classes in group:
            assert isinstance(classes, AcceptedClasses)
            accepted |= classes
    return accepted


def _preference(text: str) -> Preference:
    return prefer((text,))


def _transfer_syntaxes(text: str) -> tuple[str, ...]:
    if not names((text,)):
        raise unexpected("transfer syntaxes (keywords or UIDs)", text)
    return resolve_transfer_syntaxes(names((text,)))


def _directory(text: str) -> str:
    """Of components that could be UIDs, too: none of them is hidden, an option or a way up."""
    if text == ".":
        return ""
    if len(text) > MAX_DIRECTORY or not all(map(is_safe_uid, text.split("/"))):
        raise unexpected(
            f"a path below the storage directory of at most {MAX_DIRECTORY} characters, each part of letters, digits,"
            " '.', '-' and '_', the first no '.', '-' or '_'",
            text,
        )
    return text


_host_and_port = re.compile(r"(tls:)?(\[[0-9A-Fa-f:.%]+\]|[0-9A-Za-z_.-]+):([0-9]{1,5})").fullmatch


def _address(text: str) -> Address | None:
    match = _host_and_port(text)
    if match is not None and 1 <= int(match[3]) <= 65535:
        return Address(match[2].strip("[]"), int(match[3]), bool(match[1]))
    if text == "none":
        return None
    raise unexpected("none, or where reports go: HOST:PORT, [IPV6]:PORT, or tls:HOST:PORT", text)


KEYS: dict[str, tuple[str, _List | Callable[[str], object]]] = {
    "addresses": ("addresses", _List(_networks, _tuple)),
    "called": ("called", _List(_called, _tuple)),
    "accept": ("accept", _List(_sop_classes, _accepted)),
    "prefer": ("prefer", _List(_preference, _tuple)),
    "transfer-syntaxes": ("transfer_syntaxes", _List(_transfer_syntaxes, _set)),
    "max-assoc": ("max_assoc", lambda text: number(int, "a whole number", 1, 65535, or_zero=True)((text,))),
    "directory": ("directory", _directory),
    "duplicate": ("duplicate", lambda text: one_of(Duplicate)((text,))),
    "certificate": ("certificate", _List(_patterns, _tuple)),
    "user": ("user", _List(_patterns, _tuple)),
    "commitment": ("commitment", _address),
}
