"""``storescp run``, the server without a word about twistd, and ``storescp completion`` for shells.

What belongs here: what there is to type. twistd and the completions' library are imported where they are asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from storescp import interrupts
from storescp.config import OPTIONS
from storescp.operator_config import CONFIG, add_option

RUN = "run"

SHELLS = ("bash", "zsh", "tcsh")


class CannotComplete(Exception):
    """The library that knows shells is not there; str() is one line for the operator."""


def add_run_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` to the operator's *commands*: for the help and the completions. twistd reads what is typed."""
    parser = commands.add_parser(
        RUN, help="start the server, in the foreground, as twistd -n storescp does", add_help=False
    )
    parser.add_argument("-c", "--config", metavar="FILE", help=CONFIG)
    for option in OPTIONS:
        add_option(parser, option)


def add_completion_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: argparse.ArgumentParser
) -> None:
    """Add ``completion`` to the operator's *commands*, which are those of *parser*."""
    completion = commands.add_parser(
        "completion",
        help="print what makes a shell complete this command",
        description="For example: storescp completion bash >/etc/bash_completion.d/storescp",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command=partial(_completion, parser))


def run(arguments: Sequence[str]) -> int:
    """Be ``twistd -n --pidfile= storescp`` with these *arguments*; the exit status. Raises SystemExit as that does."""
    interrupts.end_at_once()
    from twisted.scripts import twistd

    from storescp.tap import Options

    interrupts.end_at_once()  # importing that has ended it
    Options.command = "storescp run"
    sys.argv[:] = [sys.argv[0], "-n", "--pidfile=", "storescp", *arguments]
    start: Callable[[], None] = twistd.run
    start()
    return 0


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise CannotComplete(
            "completion: expected the package that pip install 'storescp[completion]' brings"
        ) from None
    for action in _actions(parser):
        if action.metavar in ("FILE", "PATH"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All that may be typed, of the subcommands, too."""
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                found += _actions(action.choices[name])
    return found
