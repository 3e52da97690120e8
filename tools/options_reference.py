"""Print docs/options.rst: what the table of options knows, with what etc/storescp.yaml says of each.

``make reference`` writes it.
"""

from __future__ import annotations

import pathlib
import re
import textwrap
from collections.abc import Iterator

from storescp.config import OPTIONS
from storescp.option_values import Option
from storescp.settings import variable

EXAMPLE = pathlib.Path(__file__).parent.parent / "etc" / "storescp.yaml"

_HEAD = """\
Options
=======

.. Made by "make reference" of the table of options and etc/storescp.yaml.

Each may be given on the command line (``--max-assoc 20``), in the environment (``STORESCP_MAX_ASSOC=20``), and in
the YAML file that ``--config FILE`` or ``STORESCP_CONFIG`` names (``max-assoc: 20``): the command line wins, then
the environment. ``storescp config check FILE`` finds mistakes, ``storescp config show`` prints what is in force and
where it comes from.

In the environment flags are ``true`` or ``false``, several values are a list as in YAML (``STORESCP_LISTEN='[tcp:104,
tls:2762]'``), and an empty variable is as good as none. A variable with our prefix that names no option is ignored with
a warning in the log; what Kubernetes and Docker tell of services (``STORESCP_PORT=tcp://...``) without one.

Options marked with *SIGHUP* can change while the server runs: ``SIGHUP`` has all that was said read again, except
that the command line and the environment stay what they were. The new values are for the associations that come;
those that are there keep what they were admitted under. Of the others the log says that they need a restart. A
mistake anywhere changes nothing, and the log says which.
"""

_BY_NAME = {option.name: option for option in OPTIONS}
_heading = re.compile(r"# --- (.+?) -+").fullmatch
_key = re.compile(r"(?:# )?([a-z-]+): \S.*").fullmatch


def blocks(text: str) -> Iterator[list[str]]:
    """The lines between empty ones."""
    for block in re.split(r"\n\n+", text.strip("\n")):
        yield block.split("\n")


def reference() -> str:
    """The whole text."""
    return "\n".join((_HEAD, *_parts()))


def _parts() -> Iterator[str]:
    for said in blocks(EXAMPLE.read_text()):
        if heading := _heading(said[0]):
            yield f"{heading[1]}\n{'-' * len(heading[1])}\n"
            continue
        options = _options(said)
        section = next((number for number, line in enumerate(said) if line == "# callers:"), len(said))
        words = [
            line.removeprefix("# ").removeprefix("#")
            for line in said[: min(section, len(said) - len(options))]
        ]
        if options:
            yield f"{', '.join(map(_term, options))}\n{_paragraph(_escaped(words), '    ')}"
            for option in options:
                yield _paragraph(_facts(option, named=len(options) > 1), "    ")
        elif section < len(said):
            yield f"``callers``\n{_paragraph(_escaped(words) + ' *SIGHUP*::', '    ')}"
            yield textwrap.indent("".join(f"{line.removeprefix('# ')}\n" for line in said[section:]), " " * 8)
        elif not said[0].startswith("# Settings of"):
            yield _paragraph(_escaped(words), "")


def _options(said: list[str]) -> list[Option[object]]:
    """Those that the last lines are about; what stands before is an example."""
    options: list[Option[object]] = []
    for line in reversed(said):
        match = _key(line)
        option = _BY_NAME.get(match[1]) if match is not None else None
        if option is None or option in options:
            break
        options.insert(0, option)
    return options


def _term(option: Option[object]) -> str:
    name = f"--{option.name} {option.metavar}".rstrip()
    return f"``{name}``, ``-{option.short}``" if option.short else f"``{name}``"


def _facts(option: Option[object], *, named: bool) -> str:
    return "".join(
        (
            f"``{option.name}``: " if named else "",
            f"``{variable(option.name)}``, default ``{option.default}``",
            ", *SIGHUP*" if option.reloads else "",
            ".",
        )
    )


def _escaped(lines: list[str]) -> str:
    return re.sub(r"([\\*|`])", r"\\\1", " ".join(lines))


def _paragraph(text: str, indent: str) -> str:
    return textwrap.fill(text, 118, initial_indent=indent, subsequent_indent=indent) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
