"""New settings for a server that runs: what they change, what has to wait for a restart. Blocking; no Twisted.

What belongs here: the comparison of two settings, in words for the operator too. Who obeys the new ones is the
business of :mod:`storescp.receiver` and :mod:`storescp.supervisor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from storescp.access import MAX_CALLERS, Caller, Callers
from storescp.config import Config, configured
from storescp.config_tls import TLS_OPTIONS
from storescp.exposure import exposed
from storescp.option_values import Option, shown
from storescp.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read: the settings that go on from now on, and the server they describe.

    ``changed`` and ``waiting``, what has to wait for a restart, in words, a line each.
    """

    settings: Settings
    config: Config
    changed: Sequence[str]
    waiting: Sequence[str]


class Reloading:
    """Has *gather* read the settings again, for a server that runs with *settings*."""

    def __init__(self, gather: Callable[[], Settings], settings: Settings, config: Config) -> None:
        self._gather = gather
        self._settings = settings
        self._config = config
        self.placed = settings.placed
        """See Settings: those that were read last."""
        self._numbers = {caller.name: caller.number for caller in config.access.callers.known}

    def read(self) -> Reading:
        """What the sources say now, as far as a running server can follow. Raises ConfigError, and changes nothing."""
        new = self._gather()
        self.placed = new.placed
        held = {option.name for option in new.options if not option.reloads}
        # All of it must make sense, also what has to wait; and then what does not wait must make sense without it.
        if configured(new).tls is None or self._config.tls is None:
            held.update(option.name for option in TLS_OPTIONS)
        mixed = new.holding(held, self._settings)
        config = configured(mixed)
        callers, numbers = renumbered(config.access.callers, self._numbers)
        config = replace(config, access=replace(config.access, callers=callers))
        changes = _changes(new, self._settings)
        reading = Reading(
            settings=mixed,
            config=config,
            changed=[line for name, line in changes if name not in held]
            + _changes_of_callers(callers, self._config.access.callers),
            waiting=[line for name, line in changes if name in held],
        )
        self._numbers = numbers
        return reading

    def warnings(self) -> list[str]:
        """What the operator should know of those in force, a line each."""
        return exposed(self._config, self._settings)

    def take(self, reading: Reading) -> None:
        """It is in force now."""
        self._settings, self._config = reading.settings, reading.config


def _changes(new: Settings, old: Settings) -> list[tuple[str, str]]:
    """The name of each option whose value differs, and a line about it."""
    return [
        (
            option.name,
            f"{option.name}: {_text(option, old)} -> {_text(option, new)} ({new.setting(option).origin})",
        )
        for option in new.options
        if new.value(option) != old.value(option)
    ]


def _text(option: Option[object], settings: Settings) -> str:
    return f"{', '.join(shown(option, settings.setting(option).texts)):.200}"


def _changes_of_callers(new: Callers, old: Callers) -> list[str]:
    was, now = _rules(old), _rules(new)
    words = {
        "changed": [name for name in now if name in was and now[name] != was[name]],
        "new": [name for name in now if name not in was],
        "gone": [name for name in was if name not in now],
    }
    return [f"callers: {word}: {', '.join(names):.200}" for word, names in words.items() if names]


def _rules(callers: Callers) -> dict[str, Caller]:
    return {caller.name: caller for caller in (callers.default, *callers.known)}


def renumbered(callers: Callers, numbers: dict[str, int]) -> tuple[Callers, dict[str, int]]:
    """*callers* with the *numbers* that rules of their names have had, and all numbers that are taken then.

    Associations count by the number of the rule that has admitted them: one that is taken is given to another rule
    only when there are no more, those of rules that have gone.
    """
    known = {caller.name for caller in callers.known}
    taken = dict(numbers)
    free = sorted(set(range(1, MAX_CALLERS + 1)) - set(numbers.values()), reverse=True)
    gone = [name for name in reversed(numbers) if name not in known]
    for caller in callers.known:
        if caller.name not in taken:
            taken[caller.name] = free.pop() if free else taken.pop(gone.pop())
    known_callers = tuple(replace(caller, number=taken[caller.name]) for caller in callers.known)
    return replace(callers, known=known_callers), taken
