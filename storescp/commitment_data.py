"""What storage commitment says: requests and reports, PS3.4 Annex J, and their encoding. No I/O.

What belongs here: the data sets of N-ACTION and N-EVENT-REPORT, which are bounded. What is not asked for in a request
is passed over.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias, Union

from storescp.sop_classes import PLAIN_TRANSFER_SYNTAXES

#: Action Type ID: Request Storage Commitment, PS3.4 Table J.3-1.
REQUEST_STORAGE_COMMITMENT = 1

#: Bytes that a referenced SOP instance takes at most in a request: two UIDs, a title, a file-set, and what is around.
ITEM_BYTES = 512

#: Bytes of a request beside them.
OTHER_BYTES = 4096

_TRANSACTION_UID = 0x00081195
_REFERENCED_SOP_SEQUENCE = 0x00081199
_FAILED_SOP_SEQUENCE = 0x00081198
_REFERENCED_SOP_CLASS_UID = 0x00081150
_REFERENCED_SOP_INSTANCE_UID = 0x00081155
_FAILURE_REASON = 0x00081197
_WANTED = frozenset((_TRANSACTION_UID, _REFERENCED_SOP_CLASS_UID, _REFERENCED_SOP_INSTANCE_UID))

_ITEM, _ITEM_DELIMITATION, _SEQUENCE_DELIMITATION = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))

# Sequences in each other; a request has one, and others might be around it.
_DEEPEST = 8

_Dataset: TypeAlias = dict[int, Union[bytes, "list[_Dataset]"]]

_IMPLICIT, _, _BIG_ENDIAN = PLAIN_TRANSFER_SYNTAXES


class ActionStatus(enum.IntEnum):
    """The statuses that a request is answered with, PS3.7 §10.1.4.1.10."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_SOP_INSTANCE = 0x0112
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_SOP_CLASS = 0x0118
    NO_SUCH_ACTION = 0x0123
    UNRECOGNIZED_OPERATION = 0x0211
    RESOURCE_LIMITATION = 0x0213


class FailureReason(enum.IntEnum):
    """Failure Reason (0008,1197), PS3.3 §C.14.1.1: those that are given."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    REFERENCED_SOP_CLASS_NOT_SUPPORTED = 0x0122


class Reference(NamedTuple):
    """A SOP instance that is referred to, by UIDs without blanks."""

    sop_class_uid: str
    sop_instance_uid: str


class Request(NamedTuple):
    """Storage Commitment Request, PS3.4 §J.3.2; at least one reference."""

    transaction_uid: str
    references: tuple[Reference, ...]


class Report(NamedTuple):
    """Storage Commitment Result, PS3.4 §J.3.3."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, FailureReason], ...]

    @property
    def event_type_id(self) -> int:
        """1: storage commitment request successful; 2: complete, failures exist (PS3.4 Table J.3-2)."""
        return 2 if self.failed else 1

    @property
    def reasons(self) -> str:
        """Why instances failed, and how many, in words for the log; empty if none did."""
        counts: dict[FailureReason, int] = {}
        for _, reason in self.failed:
            counts[reason] = counts.get(reason, 0) + 1
        return ", ".join(f"{count} x {reason:04X}H" for reason, count in sorted(counts.items()))


class BadRequest(ValueError):
    """A request that cannot be taken, with its ``status``; the message is for the peer."""

    def __init__(self, status: ActionStatus, comment: str) -> None:
        super().__init__(comment)
        self.status = status


def decode_request(data: bytes, transfer_syntax_uid: str, most: int) -> Request:
    """The Action Information of an N-ACTION-RQ, with *most* references or fewer. Raises BadRequest."""
    try:
        dataset = _Reader(data, transfer_syntax_uid, most).dataset()
    except BadRequest:
        raise
    except (ValueError, struct.error):
        raise BadRequest(ActionStatus.INVALID_ARGUMENT_VALUE, "undecodable Action Information") from None
    transaction_uid = _uid(dataset, _TRANSACTION_UID, "Transaction UID")
    items = dataset.get(_REFERENCED_SOP_SEQUENCE)
    if not items or not isinstance(items, list):
        raise BadRequest(ActionStatus.INVALID_ARGUMENT_VALUE, "no Referenced SOP Sequence")
    references = tuple(
        Reference(
            _uid(item, _REFERENCED_SOP_CLASS_UID, "Referenced SOP Class UID"),
            _uid(item, _REFERENCED_SOP_INSTANCE_UID, "Referenced SOP Instance UID"),
        )
        for item in items
    )
    return Request(transaction_uid, references)


def encode_request(request: Request, transfer_syntax_uid: str) -> bytes:
    """The Action Information of an N-ACTION-RQ, PS3.4 Table J.3-1."""
    write = _Writer(transfer_syntax_uid)
    items = (write.reference(reference) for reference in request.references)
    return write.uid(_TRANSACTION_UID, request.transaction_uid) + write.sequence(
        _REFERENCED_SOP_SEQUENCE, items
    )


def encode_report(report: Report, transfer_syntax_uid: str) -> bytes:
    """The Event Information of an N-EVENT-REPORT-RQ, PS3.4 Table J.3-2."""
    write = _Writer(transfer_syntax_uid)
    data = write.uid(_TRANSACTION_UID, report.transaction_uid)
    if report.failed:
        failed = (
            write.reference(reference) + write.us(_FAILURE_REASON, reason)
            for reference, reason in report.failed
        )
        data += write.sequence(_FAILED_SOP_SEQUENCE, failed)
    if report.committed:
        items = (write.reference(reference) for reference in report.committed)
        data += write.sequence(_REFERENCED_SOP_SEQUENCE, items)
    return data


class _Writer:
    """Encodes elements, PS3.5 §7.1."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._implicit = transfer_syntax_uid == _IMPLICIT
        order = ">" if transfer_syntax_uid == _BIG_ENDIAN else "<"
        self._us = struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}HHI")
        self._short = struct.Struct(f"{order}HH2sH")
        self._sequence = struct.Struct(f"{order}HH2s2xI")

    def uid(self, tag: int, uid: str) -> bytes:
        value = uid.encode("ascii")
        return self._element(tag, b"UI", value + b"\0" * (len(value) & 1))

    def us(self, tag: int, value: int) -> bytes:
        return self._element(tag, b"US", self._us.pack(value))

    def reference(self, reference: Reference) -> bytes:
        return self.uid(_REFERENCED_SOP_CLASS_UID, reference.sop_class_uid) + self.uid(
            _REFERENCED_SOP_INSTANCE_UID, reference.sop_instance_uid
        )

    def sequence(self, tag: int, items: Iterable[bytes]) -> bytes:
        value = b"".join(self._long.pack(0xFFFE, 0xE000, len(item)) + item for item in items)
        if self._implicit:
            return self._long.pack(tag >> 16, tag & 0xFFFF, len(value)) + value
        return self._sequence.pack(tag >> 16, tag & 0xFFFF, b"SQ", len(value)) + value

    def _element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        if self._implicit:
            return self._long.pack(tag >> 16, tag & 0xFFFF, len(value)) + value
        return self._short.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value


class _Reader:
    """Reads what is wanted of a data set, PS3.5 §7, with *most* items in a sequence.

    Raises ValueError and struct.error for what is none.
    """

    def __init__(self, data: bytes, transfer_syntax_uid: str, most: int) -> None:
        self._data = data
        self._most = most
        self._position = 0
        self._implicit = transfer_syntax_uid == _IMPLICIT
        order = ">" if transfer_syntax_uid == _BIG_ENDIAN else "<"
        self._long = struct.Struct(f"{order}HHI").unpack_from
        self._short = struct.Struct(f"{order}HH2sH").unpack_from
        self._length = struct.Struct(f"{order}I").unpack_from

    def dataset(self, end: int | None = -1, depth: int = 0) -> _Dataset:
        """Elements up to *end* (-1: that of all), or up to an Item Delimitation Item if that is None."""
        stop = len(self._data) if end is None or end < 0 else end
        dataset: _Dataset = {}
        while self._position < stop:
            tag, vr, length = self._header()
            if tag == _ITEM_DELIMITATION:
                if end is None:
                    return dataset
                raise ValueError("an Item Delimitation Item without an item")
            if vr == b"SQ" or length == _UNDEFINED or tag == _REFERENCED_SOP_SEQUENCE:
                items = self._items(length, stop, depth + 1)
                if tag == _REFERENCED_SOP_SEQUENCE:
                    dataset[tag] = items
            else:
                self._position += length
                if tag in _WANTED:
                    dataset[tag] = self._data[self._position - length : self._position]
        if end is None or self._position > stop:
            raise ValueError("it ends within an element")
        return dataset

    def _items(self, length: int, stop: int, depth: int) -> list[_Dataset]:
        if depth > _DEEPEST:
            raise ValueError("too many sequences in each other")
        end = stop if length == _UNDEFINED else self._position + length
        items: list[_Dataset] = []
        while self._position < end:
            group, element, size = self._long(self._data, self._position)
            self._position += 8
            tag = group << 16 | element
            if tag == _SEQUENCE_DELIMITATION and length == _UNDEFINED:
                return items
            if tag != _ITEM:
                raise ValueError("no item in a sequence")
            if len(items) >= self._most:
                raise BadRequest(
                    ActionStatus.RESOURCE_LIMITATION, f"more than {self._most} items in a sequence"
                )
            items.append(self.dataset(None if size == _UNDEFINED else self._position + size, depth))
        if length == _UNDEFINED or self._position > end or end > stop:
            raise ValueError("it ends within a sequence")
        return items

    def _header(self) -> tuple[int, bytes, int]:
        """Tag, VR (empty where it is not told) and length of the element that begins here."""
        group, element, length = self._long(self._data, self._position)
        vr = b""
        self._position += 8
        if not self._implicit and group != 0xFFFE:
            group, element, vr, length = self._short(self._data, self._position - 8)
            if vr in _LONG:
                (length,) = self._length(self._data, self._position)
                self._position += 4
        return group << 16 | element, vr, length


def _uid(dataset: _Dataset, tag: int, name: str) -> str:
    """A UID as it was sent, valid or not, as long as it is one word."""
    value = dataset.get(tag, b"")
    uid = value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else ""
    if not 1 <= len(uid) <= 64 or not all("!" <= character <= "~" for character in uid):
        raise BadRequest(ActionStatus.INVALID_ARGUMENT_VALUE, f"no {name}, or one that is no UID")
    return uid
