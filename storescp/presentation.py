"""Which SOP classes are taken and which transfer syntaxes preferred, as operators say it. Values; no I/O.

What belongs here: what a presentation context is judged by. How it is answered is the business of
:mod:`storescp.negotiation`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from storescp.extended_negotiation import STORAGE_SERVICE_CLASS, CommonExtendedNegotiation
from storescp.sop_classes import (
    STORAGE_SOP_CLASSES,
    TRANSFER_SYNTAXES,
    is_registered,
    resolve_sop_classes,
    resolve_transfer_syntaxes,
)

#: Transfer syntaxes by rank: of the first set that has any of those proposed, the one proposed first is chosen.
Preference: TypeAlias = tuple[frozenset[str], ...]

#: What stands for SOP classes that PS3.6 does not list, each in words.
OTHER_CLASSES: Final = {
    "unknown": "all of them",
    "private": "those outside the standard's root 1.2.840.10008",
    "declared": "those of the Storage Service Class, or related to a class that is taken, as the sender says",
}

UNCOMPRESSED: Final = frozenset(
    {
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian, PS3.5 §A.4.11
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    }
)
"""The transfer syntaxes in which nothing is compressed."""

# Beneath these: what of JPEG, JPEG 2000, MPEG, JPEG XL is encapsulated; RLE Lossless; deflated frames.
_COMPRESSED = r"1\.2\.840\.10008\.1\.2\.(1\.99|4\..*|5|8\.1)"
# JPIP: the data set has the address of the pixels in their place.
_REFERENCED = (
    "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.4.204",
    "1.2.840.10008.1.2.4.205",
)
COMPRESSED: Final = frozenset(filter(re.compile(_COMPRESSED).fullmatch, TRANSFER_SYNTAXES)) - {*_REFERENCED}
"""The transfer syntaxes in which pixels, or whole data sets, are compressed, with loss or without."""

_GROUPS: Final = {"compressed": COMPRESSED, "uncompressed": UNCOMPRESSED}

_is_pattern = re.compile(r"[0-9.]{0,64}\*[0-9.*]{0,64}").fullmatch
_is_uid = re.compile(r"(?=.{3,64}\Z)[0-2](\.[0-9]+)+").fullmatch
_STANDARD = "1.2.840.10008."


@dataclass(frozen=True, slots=True)
class AcceptedClasses:
    """SOP classes to be stored: ``uids``, and of the others, which PS3.6 does not list, those that ``patterns`` match
    (``*`` stands for any characters) and those of ``others``, words of OTHER_CLASSES.

    What PS3.6 lists as something else than a storage SOP class is never among them.
    """

    uids: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()

    def __or__(self, other: AcceptedClasses) -> AcceptedClasses:
        return AcceptedClasses(
            self.uids | other.uids, self.patterns | other.patterns, self.others | other.others
        )

    def takes(self, uid: str, said: CommonExtendedNegotiation | None = None) -> bool:
        """Whether the class *uid* is to be stored, of which the sender has *said* what it is."""
        if uid in self.uids:
            return True
        if not (self.patterns or self.others) or is_registered(uid) or not _is_uid(uid):
            return False
        return (
            "unknown" in self.others
            or ("private" in self.others and not uid.startswith(_STANDARD))
            or (bool(self.patterns) and _compiled(self.patterns).fullmatch(uid) is not None)
            or ("declared" in self.others and said is not None and self._is_storage(said))
        )

    def _is_storage(self, said: CommonExtendedNegotiation) -> bool:
        return said.service_class_uid == STORAGE_SERVICE_CLASS or any(
            map(self.takes, said.related_general_sop_class_uids)
        )


def resolve_accepted(names: Iterable[str]) -> AcceptedClasses:
    """What is meant by names of SOP classes, patterns of their UIDs and words of OTHER_CLASSES.

    Raises ValueError, one line, which names the first name that is unknown.
    """
    known: list[str] = []
    patterns: set[str] = set()
    others: set[str] = set()
    for name in names:
        if name.lower() in OTHER_CLASSES:
            others.add(name.lower())
        elif _is_pattern(name):
            patterns.add(name)
        else:
            known.append(name)
    try:
        uids = resolve_sop_classes(known)
    except ValueError as error:
        raise ValueError(
            f"{error}; or a pattern such as 1.2.840.10008.5.1.4.1.1.*, or {', '.join(map(repr, OTHER_CLASSES))}"
        ) from None
    if patterns:
        uids |= set(filter(_compiled(frozenset(patterns)).fullmatch, STORAGE_SOP_CLASSES))
    return AcceptedClasses(uids, frozenset(patterns), frozenset(others))


def resolve_preference(names: Iterable[str]) -> Preference:
    """What is meant by names of transfer syntaxes, "compressed" and "uncompressed", the best first.

    Raises ValueError, one line, which names the first name that is unknown.
    """
    preference: list[frozenset[str]] = []
    for name in names:
        group = _GROUPS.get(name.lower())
        preference.append(group if group is not None else frozenset(resolve_transfer_syntaxes((name,))))
    return tuple(dict.fromkeys(preference))


@functools.lru_cache(maxsize=64)
def _compiled(patterns: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(pattern).replace(r"\*", ".*") for pattern in sorted(patterns)))
