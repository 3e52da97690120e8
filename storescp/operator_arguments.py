"""Options of the operator's command that more than one of its parts has, and what may stand there. No Twisted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from storescp.config import OPTIONS

T = TypeVar("T")


class WrongUsage(Exception):
    """Options that make no sense together, in one line."""


def number(kind: Callable[[str], T], low: T, high: T) -> Callable[[str], T]:
    """Reads a number in a range."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            pass
        else:
            if low <= value <= high:  # type: ignore[operator]
                return value
        raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text!r:.60}")

    return parse


def ae_title(text: str) -> str:
    """An AE title, as the server takes it."""
    option = next(option for option in OPTIONS if option.name == "ae-title")
    try:
        return str(option.parse((text,)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
