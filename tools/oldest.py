"""Prints constraints for pip: the oldest versions that setup.cfg allows, of what is always needed and of extras."""

from __future__ import annotations

import configparser
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

SETUP = pathlib.Path(__file__).parent.parent / "setup.cfg"

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])? >= (?P<version>[\w.]+)")


def constraints(extras: Sequence[str]) -> Iterator[str]:
    """A line for each package. Raises KeyError for an extra that there is not, ValueError for another requirement."""
    setup = configparser.ConfigParser(comment_prefixes=("#",))
    setup.read(SETUP)
    texts = [
        setup["options"]["install_requires"],
        *(setup["options.extras_require"][name] for name in extras),
    ]
    found: dict[str, str] = {}
    for line in "\n".join(texts).split("\n"):
        if not line:
            continue
        match = _REQUIREMENT.fullmatch(line)
        if match is None:
            raise ValueError(f"{SETUP.name}: expected NAME >= VERSION, got {line!r}")
        name, version = match["name"].lower(), match["version"]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{SETUP.name}: {name} has two lower bounds, {found[name]} and {version}")
    return (f"{name} == {version}" for name, version in found.items())


if __name__ == "__main__":
    print(*constraints(sys.argv[1:]), sep="\n")
