"""The options for what is negotiated with a requestor beyond which SOP classes are taken."""

from __future__ import annotations

from typing import Final

from storescp.option_values import Option, number, prefer, sop_classes, unexpected
from storescp.presentation import Preference


def _prefer_for(texts: tuple[str, ...]) -> dict[str, Preference]:
    """SOP class UID -> preference, of the last text that has the class."""
    found: dict[str, Preference] = {}
    for text in texts if texts != ("none",) else ():
        names, equals, syntaxes = text.partition("=")
        if not equals:
            raise unexpected("CLASSES=SYNTAXES such as CT,MR=JPEG2000Lossless,uncompressed", text)
        found |= dict.fromkeys(sorted(sop_classes((names,))), prefer((syntaxes,)))
    return found


PREFER_FOR: Final = Option(
    "prefer-for",
    "CLASSES=SYNTAXES",
    "none",
    "the same for some SOP classes or modality groups alone, such as CT,MR=compressed; may be repeated: the last that"
    " has a class counts",
    _prefer_for,
    is_list=True,
    reloads=True,
)

ASYNC_WINDOW: Final = Option(
    "async-window",
    "N",
    "64",
    "operations that a sender which asks for it may have outstanding on an association; 1: it has to wait for each",
    number(int, "a whole number", 1, 65535),
    reloads=True,
)

NEGOTIATION_OPTIONS: Final[tuple[Option[object], ...]] = (PREFER_FOR, ASYNC_WINDOW)
