"""The section ``callers`` of the YAML file: the rules that say what each caller may do.

What belongs here: what may stand there. What follows from it is the business of :mod:`storescp.access`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import yaml

from storescp.access import ANYONE, MAX_CALLERS, Address, Caller, Network, is_pattern
from storescp.config_file import ConfigError, is_null, kind, line
from storescp.naming import Duplicate, is_safe_uid
from storescp.option_values import accept, ae_title, is_host, names, number, one_of, prefer, unexpected
from storescp.presentation import AcceptedClasses, Preference, resolve_accepted
from storescp.settings import nearest
from storescp.sop_classes import resolve_transfer_syntaxes

T = TypeVar("T")

#: The longest sub-directory of a caller, in characters: there must be room for UIDs after it.
MAX_DIRECTORY: Final = 200


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


def mistakes_in_callers(node: yaml.Node, file: str) -> list[str]:
    """All that is wrong with the section, a line each."""
    mistakes: list[str] = []
    read_callers(node, file, lambda error: mistakes.append(str(error)))
    return mistakes


def _raise(error: ConfigError) -> None:
    raise error from None


def read_callers(
    node: yaml.Node, file: str, mistaken: Callable[[ConfigError], None] = _raise
) -> tuple[tuple[Caller, ...], Caller]:
    """The rules of the section, with what the default says in place of what they do not, and the default.

    Here and below what is *mistaken* is left out, unless that raises it.
    """
    rules: dict[str, dict[str, object]] = {}
    expected = "an AE title, or a pattern with * and ?"
    for title, where, rule in _entries(node, f"{file}:", "callers", expected, mistaken):
        try:
            if title != "default":
                title = _judged_text(where, title, _title)
            if title in rules:  # for spaces around it mean nothing
                raise ConfigError(f"{where}: expected once, got a second time")
        except ConfigError as error:
            mistaken(error)
        rules[title] = dict(_read_rule(rule, f"{file}:", f"callers.{title:.60}", mistaken))
    default = rules.pop("default", {})
    if len(rules) > MAX_CALLERS:
        mistaken(
            ConfigError(
                f"{file}:{line(node)}: callers: expected at most {MAX_CALLERS} entries, got {len(rules)}"
            )
        )
    known = tuple(
        replace(ANYONE, name=title, number=place, **(default | rule))  # type: ignore[arg-type]
        for place, (title, rule) in enumerate(rules.items(), 1)
    )
    return known, replace(ANYONE, **default)  # type: ignore[arg-type]


def _read_rule(
    node: yaml.Node, file: str, path: str, mistaken: Callable[[ConfigError], None]
) -> Iterator[tuple[str, object]]:
    if is_null(node):
        return
    for name, where, value in _entries(node, file, path, f"one of {', '.join(KEYS)}", mistaken):
        try:
            yield _read_key(name, where, value)
        except ConfigError as error:
            mistaken(error)


def _read_key(name: str, where: str, value: yaml.Node) -> tuple[str, object]:
    """The attribute of a Caller that is meant, and its value."""
    key = name.replace("_", "-")
    if key not in KEYS:
        raise ConfigError(f"{where}: expected one of {', '.join(KEYS)}, got {name!r:.60}{nearest(key, KEYS)}")
    attribute, parse = KEYS[key]
    if isinstance(parse, _List):
        return attribute, parse.made([_judged(*item, parse.item) for item in _items(value, where)])
    if isinstance(value, yaml.ScalarNode):
        return attribute, _judged(where, value, parse)
    raise ConfigError(f"{where}: expected one value, got {kind(value)}")


def _entries(
    node: yaml.Node, file: str, path: str, keys: str, mistaken: Callable[[ConfigError], None]
) -> Iterator[tuple[str, str, yaml.Node]]:
    """Key, place and value of each entry of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        mistaken(
            ConfigError(
                f"{file}{line(node)}: {path}: expected lines of the form 'key: value', got {kind(node)}"
            )
        )
        return
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            mistaken(ConfigError(f"{file}{line(key)}: {path}: expected {keys}, got {kind(key)}"))
            continue
        where = f"{file}{line(value)}: {path}.{key.value:.60}"
        if key.value in seen:
            mistaken(ConfigError(f"{where}: expected once, got a second time"))
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
    networks: list[Network] = []
    for name in [] if text == "any" else names((text,)) or ("",):
        try:
            network = ipaddress.ip_network(name)
        except ValueError:
            raise unexpected("any, an address, or a network such as 10.0.0.0/8 or fd00::/8", name) from None
        if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
            mapped = network.network_address.ipv4_mapped  # peers are judged by their plain addresses
            if mapped is not None:
                network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
        networks.append(network)
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
    if match is not None and 1 <= int(match[3]) <= 65535 and is_host(host := match[2].strip("[]")):
        return Address(host, int(match[3]), bool(match[1]))
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
