"""The YAML file of the settings, as nodes that know their lines, and the mistakes that an operator can make."""

from __future__ import annotations

import contextlib
from typing import Final

import yaml

# Far beyond any sensible file; keeps --config /dev/zero from eating the memory.
MAX_FILE_SIZE: Final = 1 << 20

#: From so many bytes on libyaml reads it, where PyYAML has that: ten times as fast, for a server that runs meanwhile.
LARGE: Final = 1 << 15

#: What the commonest mistakes are that YAML complains of in these words.
_COMMON: Final = {
    "found character '\\t'": " (indent with spaces, not with tabs)",
    "mapping values": " (is there a space after each colon, and is the indentation right?)",
    "could not find expected ':'": " (is there a colon, and a space after it?)",
}


class ConfigError(Exception):
    """A mistake of the operator's. str() is one line: the place, what was expected there, what was got."""


def composed(file: str) -> yaml.Node | None:
    """The root node of a file, None for an empty one. Raises ConfigError."""
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file!r}: expected a readable YAML file, got: {reason}") from None
    if len(content) > MAX_FILE_SIZE:
        raise ConfigError(f"{file}: expected a YAML file of at most {MAX_FILE_SIZE} bytes, got more")
    return composed_text(content, file)


def composed_text(content: str | bytes, where: str) -> yaml.Node | None:
    """The root node of what stands at *where*, None for nothing. Raises ConfigError."""
    if len(content) >= LARGE and yaml.__with_libyaml__:
        # What is wrong with it is better told by the other one.
        with contextlib.suppress(yaml.YAMLError):
            return yaml.compose(content, Loader=yaml.CSafeLoader)
    try:
        return yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        place = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = next((hint for words, hint in _COMMON.items() if str(error.problem).startswith(words)), "")
        raise ConfigError(f"{where}{place}: expected YAML, got: {error.problem!r:.120}{hint}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{where}: expected YAML, got at byte {error.position}: {error.reason}") from None
    # The composer recurses, and lets int() and chr() judge some escapes and directives.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: expected YAML, got: {type(error).__name__}") from None


def line(node: yaml.Node) -> int:
    """The line where *node* begins, from 1."""
    return node.start_mark.line + 1


def is_null(node: yaml.Node) -> bool:
    """Whether nothing stands there."""
    return bool(node.tag == "tag:yaml.org,2002:null")


def kind(node: yaml.Node) -> str:
    """What stands there, in words for an error."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)[:60] if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
