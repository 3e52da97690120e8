"""What was given for the options, and by whom: the command line, the environment, a YAML file. No value is known here.

What belongs here: sources, their order, and the place that stands in front of a mistake in each. What an option's
value may be is the business of its parser, and what all of them say together that of :mod:`storescp.config`.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, NamedTuple, TypeVar

import yaml

from storescp.config_file import ConfigError, composed, composed_text, is_null, kind, line
from storescp.option_values import Option

T = TypeVar("T")

#: What the name of an option's environment variable begins with: STORESCP_MAX_ASSOC.
PREFIX: Final = "STORESCP_"

#: Variables with that prefix which are no options: the file's name, the passcode of the operator's command, and what
#: etc/supervisord.conf wants.
CONFIG_VARIABLE: Final = "STORESCP_CONFIG"
RESERVED: Final = frozenset(
    (CONFIG_VARIABLE, "STORESCP_PASSWORD", "STORESCP_VENV", "STORESCP_HOME", "STORESCP_OPTIONS")
)

# What Kubernetes and Docker tell the containers beside a service of our name: STORESCP_SERVICE_HOST,
# STORESCP_PORT_11112_TCP, and STORESCP_PORT with the value tcp://10.0.0.1:11112.
_of_a_service = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.DOTALL
).fullmatch
_begins_with_name = re.compile(r"(?:--)?([a-z-]+)(?=: )").match
_url_of_a_service = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL).fullmatch


class Source(enum.Enum):
    """Who has given something. Each overrules those before it."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


class Setting(NamedTuple):
    """What was given for an option, and where: as it stands in front of a message, and as it is shown."""

    source: Source
    where: str
    origin: str
    texts: tuple[str, ...]


class Settings:
    """What was given for *options*, added source by source, and the value of each.

    Of two *alternatives* a source may give only one, and overrules with it both of the sources before. *sections* of
    a file are no options, but nodes to be read elsewhere. The first mistake is raised; if there are to be more, they
    go into *mistakes*, and what is mistaken is as good as not given.
    """

    def __init__(
        self,
        options: Sequence[Option[object]],
        alternatives: Iterable[tuple[str, str]] = (),
        sections: Iterable[str] = (),
        mistakes: list[str] | None = None,
    ) -> None:
        self.options = options
        self.file = ""
        self.sections: dict[str, yaml.Node] = {}
        self._by_name = {option.name: option for option in options}
        self._alternatives = tuple(alternatives)
        self._sections = frozenset(sections)
        self._mistakes = mistakes
        self._given: dict[str, Setting] = {}

    # -- what is in force --

    def setting(self, option: Option[object]) -> Setting:
        """What is in force for *option*."""
        return self._given.get(option.name) or Setting(
            Source.DEFAULT, f"default of {option.name}", "default", (option.default,)
        )

    def value(self, option: Option[T]) -> T:
        """The value of *option*. Raises ConfigError."""
        setting = self.setting(option)
        if len(setting.texts) != 1 and not option.is_list:
            raise ConfigError(f"{setting.where}: expected one value, got a list of {len(setting.texts)}")
        try:
            return option.parse(setting.texts)
        except ValueError as error:
            raise ConfigError(f"{setting.where}: {error}") from None

    def judge(self) -> None:
        """Judge every value. Raises ConfigError."""
        for option in self.options:
            try:
                self.value(option)
            except ConfigError as error:
                self._mistaken(str(error))
                del self._given[option.name]

    def place(self, name: str) -> str:
        """Where the option *name* was given: for a message about it."""
        return self._given[name].where if name in self._given else f"--{name}"

    def placed(self, message: str) -> str:
        """*message* that begins with the name of an option, with the place where that was given in front instead."""
        match = _begins_with_name(message)
        return (
            self.place(match[1]) + message[match.end(1) :] if match and self.is_given(match[1]) else message
        )

    def is_given(self, name: str) -> bool:
        """Whether anybody has given the option *name*."""
        return name in self._given

    def holding(self, names: Set[str], other: Settings) -> Settings:
        """These, but for the options of these *names*: they are as in *other*."""
        mixed = Settings(self.options, self._alternatives, self._sections)
        mixed.file, mixed.sections = self.file, self.sections
        mixed._given = {name: given for name, given in self._given.items() if name not in names}
        mixed._given |= {name: given for name, given in other._given.items() if name in names}
        return mixed

    # -- sources, in this order --

    def add_file(self, file: str) -> None:
        """Add what a YAML file has. Raises ConfigError."""
        self.file = file
        self._add(self._from_file(file))

    def add_environment(self, variables: Mapping[str, str]) -> None:
        """Add what the variables of the environment have that are named after options. Raises ConfigError.

        An empty one is as good as none. Of a list, [...] are several values.
        """
        self._add(self._from_environment(variables))

    def add_command_line(self, given: Mapping[str, str | bool | Sequence[str]]) -> None:
        """Add what the command line has, by names of options; a flag that is False is not given. Raises ConfigError."""
        self._add(self._from_command_line(given))

    def _mistaken(self, mistake: str) -> None:
        if self._mistakes is None:
            raise ConfigError(mistake)
        self._mistakes.append(mistake)

    def _add(self, entries: Iterable[tuple[Option[object], Setting]]) -> None:
        layer: dict[str, Setting] = {}
        for option, setting in entries:
            if option.name in layer:
                self._mistaken(f"{setting.where}: expected once, got a second time")
            layer[option.name] = setting
        said = {name for name, setting in layer.items() if not self._is_false(self._by_name[name], setting)}
        for pair in self._alternatives:
            if said.issuperset(pair):
                one, other = pair
                self._mistaken(f"{layer[other].where}: expected either {one} or {other}, got both")
                del layer[other]
            if not said.isdisjoint(pair):
                for name in pair:
                    self._given.pop(name, None)
        self._given |= layer

    def _is_false(self, option: Option[object], setting: Setting) -> bool:
        """Whether it is a flag that is false: that contradicts nothing."""
        if not option.is_flag:
            return False
        try:
            return not option.parse(setting.texts)
        except ValueError:
            return False  # :meth:`value` says so

    def _named(self, name: str, where: str) -> Option[object] | None:
        option = self._by_name.get(name.replace("_", "-"))
        if option is None:
            hint = nearest(name.replace("_", "-"), self._by_name)
            self._mistaken(f"{where}: expected the name of an option, got {name!r:.60}{hint}")
        return option

    def _from_command_line(
        self, given: Mapping[str, str | bool | Sequence[str]]
    ) -> Iterator[tuple[Option[object], Setting]]:
        for name, value in given.items():
            option = self._named(name, f"--{name}")
            if option is not None and value is not False:
                texts = (str(value),) if isinstance(value, str | bool) else tuple(value)
                yield option, Setting(Source.COMMAND_LINE, f"--{name}", f"--{name}", texts)

    def _from_environment(self, variables: Mapping[str, str]) -> Iterator[tuple[Option[object], Setting]]:
        for option in self.options:
            name = variable(option.name)
            text = variables.get(name, "")
            if not text or _is_of_a_service(name, text):
                continue
            texts: tuple[str, ...] = (text,)
            if option.is_list and text.startswith("["):
                texts = self._texts(composed_text(text, name), name)
            yield option, Setting(Source.ENVIRONMENT, name, name, texts)

    def _from_file(self, file: str) -> Iterator[tuple[Option[object], Setting]]:
        """The entries that are options; the others go into ``sections``.

        The file is only composed, not constructed: nodes know their lines, and scalars stay text (the AE title NO).
        """
        root = composed(file)
        if root is None or is_null(root):
            return
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{file}:{line(root)}: expected lines of the form 'option: value', got {kind(root)}"
            )
        for key, node in root.value:
            origin = f"{file}:{line(key)}"
            if not isinstance(key, yaml.ScalarNode):
                self._mistaken(f"{origin}: expected the name of an option, got {kind(key)}")
                continue
            if key.value in self._sections:
                if key.value in self.sections:
                    self._mistaken(f"{origin}: {key.value}: expected once, got a second time")
                self.sections[key.value] = node
                continue
            option = self._named(key.value, origin)
            if option is not None:
                where = f"{origin}: {option.name}"
                if texts := self._texts(node, where):
                    yield option, Setting(Source.FILE, where, origin, texts)

    def _texts(self, node: yaml.Node | None, where: str) -> tuple[str, ...]:
        """The scalar that *node* is, or the list of them."""
        items: list[yaml.Node | None] = node.value if isinstance(node, yaml.SequenceNode) else [node]
        texts: list[str] = []
        for item in items:
            if not isinstance(item, yaml.ScalarNode) or is_null(item):
                self._mistaken(f"{where}: expected a value, got {'nothing' if item is None else kind(item)}")
                return ()
            texts.append(item.value)
        if not texts:
            self._mistaken(f"{where}: expected at least one value, got an empty list")
        return tuple(texts)


def variable(name: str) -> str:
    """The environment variable of the option *name*."""
    return PREFIX + name.upper().replace("-", "_")


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the *known* names may be meant: the end of a message, empty where none is near."""
    close = difflib.get_close_matches(name[:60], list(known), n=1)
    return f" (nearest known: {close[0]})" if close else ""


def unknown_variables(options: Iterable[Option[object]], variables: Mapping[str, str]) -> list[str]:
    """A line for each environment variable that has our prefix, but is none of ours or of a service's.

    No mistake that ends a server: who runs containers does not always choose what they are told.
    """
    known = {variable(option.name) for option in options} | RESERVED
    return [
        f"{name!r:.80} names no option, and is ignored{nearest(name, known)}"
        for name in sorted(variables)
        if name.startswith(PREFIX) and name not in known and not _is_of_a_service(name, variables[name])
    ]


def _is_of_a_service(name: str, text: str) -> bool:
    return (name.endswith("_PORT") and _url_of_a_service(text) is not None) or (
        _of_a_service(name) is not None
    )
