"""The optional items of the user information, PS3.7 Annex D.3.3: what a requestor says, and what is said to that.

What belongs here: the bytes of these items as typed values, and the answers that do not depend on settings. An item
that makes no sense counts as absent, and the default that the standard has for that goes: it is no reason to refuse
images. Of several for one SOP class the first counts; there may be but one.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

STORAGE_SERVICE_CLASS: Final = "1.2.840.10008.4.2"

# PS3.4 Table B.3-2: level 2 (Full), digital signatures level 3 (bit preserving), no element is coerced. Every data
# set is kept byte for byte as it was received.
STORAGE_INFORMATION: Final = bytes((2, 0, 3, 0, 0))

#: Items that are looked at: 128 SOP classes can be proposed, each with three. What comes after these is not.
MAXIMUM_ITEMS: Final = 512

#: Related general SOP classes of one; the standard gives a class a few at most (PS3.4 §B.3.1.4).
MAXIMUM_RELATED: Final = 64

_LENGTH = struct.Struct(">H")
_WINDOW = struct.Struct(">HH")


@dataclass(frozen=True, slots=True)
class OperationsWindow:
    """The asynchronous operations window, PS3.7 §D.3.3.3: how many operations may be outstanding at a time.

    ``invoked`` are those that the association requestor invokes, ``performed`` those that it performs, in its request
    as in the answer to it; 0 is no limit. Without the item both are 1.
    """

    ITEM_TYPE: ClassVar[int] = 0x53

    invoked: int = 1
    performed: int = 1

    @property
    def item(self) -> tuple[int, bytes]:
        """Type and value."""
        return self.ITEM_TYPE, _WINDOW.pack(self.invoked, self.performed)

    @classmethod
    def decode(cls, value: bytes) -> OperationsWindow:
        """The item of this value. Raises ValueError."""
        if len(value) != _WINDOW.size:
            raise ValueError(f"a window of {len(value)} bytes")
        return cls(*_WINDOW.unpack(value))


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU Role Selection, PS3.7 §D.3.3.4: which roles the requestor proposes for itself, or is granted."""

    ITEM_TYPE: ClassVar[int] = 0x54

    sop_class_uid: str
    scu: bool
    scp: bool

    @property
    def item(self) -> tuple[int, bytes]:
        """Type and value."""
        return self.ITEM_TYPE, _sized(self.sop_class_uid) + bytes((self.scu, self.scp))

    @classmethod
    def decode(cls, value: bytes) -> RoleSelection:
        """The item of this value. Raises ValueError."""
        sop_class_uid, roles = _uid(value)
        if len(roles) != 2:
            raise ValueError(f"roles of {len(roles)} bytes")
        return cls(sop_class_uid, roles[0] == 1, roles[1] == 1)


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP Class Extended Negotiation, PS3.7 §D.3.3.5; *information* is what the service class defines."""

    ITEM_TYPE: ClassVar[int] = 0x56

    sop_class_uid: str
    information: bytes

    @property
    def item(self) -> tuple[int, bytes]:
        """Type and value."""
        return self.ITEM_TYPE, _sized(self.sop_class_uid) + self.information

    @classmethod
    def decode(cls, value: bytes) -> ExtendedNegotiation:
        """The item of this value. Raises ValueError."""
        return cls(*_uid(value))


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP Class Common Extended Negotiation, PS3.7 §D.3.3.6: of what kind a SOP class is. Never answered."""

    ITEM_TYPE: ClassVar[int] = 0x57

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_class_uids: tuple[str, ...] = ()

    @property
    def item(self) -> tuple[int, bytes]:
        """Type and value."""
        related = b"".join(map(_sized, self.related_general_sop_class_uids))
        value = (
            _sized(self.sop_class_uid) + _sized(self.service_class_uid) + _LENGTH.pack(len(related)) + related
        )
        return self.ITEM_TYPE, value

    @classmethod
    def decode(cls, value: bytes) -> CommonExtendedNegotiation:
        """The item of this value. Raises ValueError."""
        sop_class_uid, rest = _uid(value)
        service_class_uid, rest = _uid(rest)
        related, _ = _field(rest)  # what a later version of the item has behind it is ignored, §D.3.3.6.1
        uids = []
        while related:
            uid, related = _uid(related)
            uids.append(uid)
            if len(uids) > MAXIMUM_RELATED:
                raise ValueError("too many related classes")
        return cls(sop_class_uid, service_class_uid, tuple(uids))


Item = TypeVar("Item", RoleSelection, ExtendedNegotiation, CommonExtendedNegotiation)


def decoded(kind: type[Item], items: Iterable[tuple[int, bytes]]) -> dict[str, Item]:
    """Those of one *kind* among *items* of a user information, by SOP class."""
    found: dict[str, Item] = {}
    for item_type, value in items:
        if item_type == kind.ITEM_TYPE:
            try:
                item = kind.decode(value)
            except ValueError:
                continue
            found.setdefault(item.sop_class_uid, item)
    return found


def operations_window(items: Iterable[tuple[int, bytes]]) -> OperationsWindow | None:
    """The window among *items* of a user information, if there is one."""
    for item_type, value in items:
        if item_type == OperationsWindow.ITEM_TYPE:
            try:
                return OperationsWindow.decode(value)
            except ValueError:
                continue
    return None


def answered(
    roles: Iterable[RoleSelection],
    extended: Iterable[ExtendedNegotiation],
    accepted: Collection[str],
    storage: Collection[str],
) -> tuple[tuple[int, bytes], ...]:
    """The acceptor's items for the requestor's: for SOP classes of accepted contexts alone.

    We are the SCP of all that is *accepted*, so the requestor may be the SCU where it proposes that, and never the
    SCP. The classes of *storage* are those of the Storage Service Class.
    """
    return (
        *(
            RoleSelection(role.sop_class_uid, role.scu, False).item
            for role in roles
            if role.sop_class_uid in accepted
        ),
        *(
            ExtendedNegotiation(item.sop_class_uid, STORAGE_INFORMATION).item
            for item in extended
            if item.sop_class_uid in storage
        ),
    )


def _sized(uid: str) -> bytes:
    value = uid.encode("ascii")
    return _LENGTH.pack(len(value)) + value


def _field(value: bytes) -> tuple[bytes, bytes]:
    """The field that *value* begins with, behind its length, and the rest."""
    end = 2 + int.from_bytes(value[:2], "big")
    if not 2 <= end <= len(value):
        raise ValueError("a field is cut short")
    return value[2:end], value[end:]


def _uid(value: bytes) -> tuple[str, bytes]:
    field, rest = _field(value)
    return field.decode("ascii").strip("\0 "), rest  # UnicodeDecodeError is a ValueError
