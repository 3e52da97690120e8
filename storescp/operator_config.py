"""The operator's commands about the server's settings: ``storescp config check`` and ``config show``.

What belongs here: what they find and print. The rules are those of :mod:`storescp.config`; what needs Twisted to be
judged is imported when it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

import yaml

from storescp.config import OPTIONS, Config, ConfigError, configured, gathered, judge
from storescp.config_file import is_null, line
from storescp.counting import Count
from storescp.exposure import exposed
from storescp.option_values import Option, shown
from storescp.settings import CONFIG_VARIABLE, Setting, Settings, Source, unknown_variables

#: What --config is for.
CONFIG = f"YAML file; or {CONFIG_VARIABLE}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` to the operator's *commands*."""
    parser = commands.add_parser("config", help="look at the server's settings")
    parser.set_defaults(command=lambda options: _help(parser))
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND")
    check = subcommands.add_parser(
        "check",
        usage="%(prog)s [the server's options] [--json] [FILE]",
        help="find the mistakes in the server's settings",
        description="Judge all that can be judged without starting the server: the file and the environment, with the"
        " options given here, and the files that they name.",
    )
    check.add_argument("config", metavar="FILE", nargs="?", help=CONFIG)
    check.set_defaults(command=_check)
    show = subcommands.add_parser(
        "show",
        usage="%(prog)s [the server's options] [--json] [-c FILE]",
        help="print the settings in force, and where each comes from",
        description="Print the settings that a server would have with these options, in this environment: as a YAML"
        " file that can be used as one. Secrets are masked.",
    )
    show.add_argument("-c", "--config", metavar="FILE", help=CONFIG)
    show.set_defaults(command=_show)
    for command in (check, show):
        command.add_argument("--json", action="store_true", help="print JSON")
        add_options(command)


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all of the server's options to the *parser* of a command, as a group of their own."""
    group = parser.add_argument_group("the server's options")
    for option in OPTIONS:
        add_option(group, option)


def add_option(group: argparse._ActionsContainer, option: Option[object]) -> None:
    """Add the server's *option*, by its own name; it is judged later."""
    names = [*([f"-{option.short}"] if option.short else []), f"--{option.name}"]
    if option.is_flag:
        group.add_argument(*names, action="store_true", help=option.help)
    else:
        group.add_argument(
            *names,
            action="append" if option.is_list else "store",
            metavar=option.metavar,
            help=option.help.replace("%", "%%"),
        )


def given_settings(options: argparse.Namespace, mistakes: list[str] | None = None) -> Settings:
    """gathered() for the parsed *options* of a command that has all of the server's."""
    given = {option.name: getattr(options, option.name.replace("-", "_")) for option in OPTIONS}
    return gathered(
        options.config or os.environ.get(CONFIG_VARIABLE),
        {name: value for name, value in given.items() if value is not None},
        os.environ,
        mistakes,
    )


# -- check --


def _check(options: argparse.Namespace) -> int:
    mistakes: list[str] = []
    warnings = unknown_variables(OPTIONS, os.environ)
    try:
        settings = given_settings(options, mistakes)
        judge(settings, mistakes)
        if not mistakes:  # else what they say together makes no sense
            from storescp.checking import mistakes_of

            config = configured(settings)
            mistakes += map(settings.placed, mistakes_of(config, warnings))
            warnings += exposed(config, settings)
    except ConfigError as error:
        mistakes.append(str(error))
    if options.json:
        print(json.dumps({"mistakes": mistakes, "warnings": warnings}))
    else:
        for text in mistakes:
            print(text)
        for text in warnings:
            print(f"warning: {text}")
        print(
            f"{Count(len(mistakes)):mistake}, {Count(len(warnings)):warning}"
            if mistakes or warnings
            else "no mistakes"
        )
    return 1 if mistakes else 0


# -- show --


def _show(options: argparse.Namespace) -> int:
    settings = given_settings(options)
    config = configured(settings)
    in_force = list(_in_force(settings, config))
    callers = settings.sections.get("callers")
    if options.json:
        _show_json(in_force, callers)
        return 0
    lines = [(_yaml(option, shown(option, setting.texts)), setting.origin) for option, setting in in_force]
    width = min(max(len(text) for text, _ in lines), 48)
    for text, origin in lines:
        print(f"{text:<{width}}  # {origin}")
    if callers is not None:
        print(f"\ncallers:{'':<{width - 8}}  # {settings.file}:{line(callers)}")
        text = yaml.serialize(callers, Dumper=yaml.SafeDumper, allow_unicode=True, width=sys.maxsize)
        print("".join(f"  {row}\n" for row in text.splitlines()), end="")
    return 0


def _in_force(settings: Settings, config: Config) -> Iterator[tuple[Option[object], Setting]]:
    """The options that say something, with what they say: of two alternatives that which is in force."""
    for option in OPTIONS:
        setting = settings.setting(option)
        if option.name == "index-db" and config.index_db is not None:
            setting = setting._replace(texts=(config.index_db,))
        elif option.name in ("listen", "index-db") and setting.source is Source.DEFAULT:
            continue
        if option.name != "port" or not settings.is_given("listen"):
            yield option, setting


def _show_json(in_force: list[tuple[Option[object], Setting]], callers: yaml.Node | None) -> None:
    def value(option: Option[object], setting: Setting) -> object:
        if option.is_flag:
            return option.parse(setting.texts)
        texts = shown(option, setting.texts)
        return list(texts) if option.is_list else texts[0]

    print(
        json.dumps(
            {
                "options": {
                    option.name: {
                        "value": value(option, setting),
                        "source": setting.source.value,
                        "origin": setting.origin,
                    }
                    for option, setting in in_force
                },
                "callers": None if callers is None else _plain(callers),
            }
        )
    )


def _plain(node: yaml.Node) -> object:
    """*node* as objects of JSON; scalars stay text."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return None if is_null(node) else node.value


def _yaml(option: Option[object], texts: tuple[str, ...]) -> str:
    """A line of YAML, that is read as these texts."""
    written = [_scalar(text) for text in texts]
    return f"{option.name}: {written[0]}" if len(written) == 1 else f"{option.name}: [{', '.join(written)}]"


def _scalar(text: str) -> str:
    """*text* as YAML that means it, alone and in a list, without quotes if that is possible."""
    try:
        node = yaml.compose(f"key: {text}  # \nlist: [{text}, x]", Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        node = None
    if isinstance(node, yaml.MappingNode) and len(node.value) == 2:
        (_, value), (_, items) = node.value
        found = [value, *items.value] if isinstance(items, yaml.SequenceNode) else []
        if [item.value for item in found] == [text, text, "x"] and not is_null(value):
            return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize)
    return quoted.rstrip("\n")
