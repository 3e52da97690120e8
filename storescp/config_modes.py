"""The permissions of what is stored: their options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from storescp.beneath import Modes
from storescp.option_values import Option, Values, unexpected

_octal = re.compile(r"(?:0o)?0?([0-7]{3,4})").fullmatch


def _mode(what: str, needed: int, allowed: int) -> Callable[[tuple[str, ...]], int | None]:
    """Octal digits, as for chmod(1): with the bits *needed*, and none but those *allowed*."""

    def parse(texts: tuple[str, ...]) -> int | None:
        if texts[0] == "umask":
            return None
        match = _octal(texts[0])
        mode = int(match[1], 8) if match is not None else 0
        if mode & needed != needed or mode & ~allowed:
            raise unexpected(f"umask, or {what}, in octal digits", texts[0])
        return mode

    return parse


_FILE = Option(
    "file-mode",
    "MODE",
    "umask",
    "permissions of stored files in octal, such as 0640, exactly; umask: 0666 without those of the umask",
    _mode(
        "a mode from 0400 to 0666 such as 0640, readable for its owner and executable for nobody",
        0o400,
        0o666,
    ),
)
_DIRECTORY = Option(
    "directory-mode",
    "MODE",
    "umask",
    "permissions of directories that are made, such as 0750 or 2750; umask: 0777 without those of the umask",
    _mode("a mode from 0700 to 3777 such as 0750, with all rights for its owner", 0o700, 0o3777),
)

MODE_OPTIONS: Final[tuple[Option[object], ...]] = (_FILE, _DIRECTORY)


def read_modes(value: Values) -> Modes:
    """The permissions, by the options that *value* knows."""
    return Modes(value(_FILE), value(_DIRECTORY))
