"""DIMSE messages, PS3.7: command sets, statuses, and messages out of fragments.

What belongs here: what a message is, not what to do about it. A command set is always Implicit VR Little
Endian (PS3.7 §6.3.1); a data set passes through untouched.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

from storescp.pdu import Fragment, ProtocolViolation

#: A command set has at most some twenty short elements; PS3.7 gives no bound, memory needs one.
MAXIMUM_COMMAND_LENGTH = 65536

AFFECTED_SOP_CLASS_UID = 0x00000002
REQUESTED_SOP_CLASS_UID = 0x00000003
COMMAND_FIELD = 0x00000100
MESSAGE_ID = 0x00000110
MESSAGE_ID_BEING_RESPONDED_TO = 0x00000120
PRIORITY = 0x00000700
COMMAND_DATA_SET_TYPE = 0x00000800
STATUS = 0x00000900
ERROR_COMMENT = 0x00000902
AFFECTED_SOP_INSTANCE_UID = 0x00001000
REQUESTED_SOP_INSTANCE_UID = 0x00001001
EVENT_TYPE_ID = 0x00001002
ACTION_TYPE_ID = 0x00001008
MOVE_ORIGINATOR_APPLICATION_ENTITY_TITLE = 0x00001030
MOVE_ORIGINATOR_MESSAGE_ID = 0x00001031

C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000  # the bit that makes a response of a request's command field
NO_DATA_SET = 0x0101

_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<H")
_RESPONSE_FIELDS = struct.Struct("<HHIH HHIH HHIH HHIH")


class Status(enum.IntEnum):
    """The statuses that this application entity answers with: PS3.7 Annex C, PS3.4 Table B.2-1."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000


# PS3.7 Annex C and PS3.4 Table B.2-1, in the standard's words: those of other application entities, too.
_STATUSES = {
    0x0000: "Success",
    0x0110: "Processing failure",
    0x0111: "Duplicate SOP Instance",
    0x0117: "Invalid SOP Instance",
    0x0122: "SOP Class not supported",
    0x0124: "Not authorized",
    0x0210: "Duplicate invocation",
    0x0211: "Unrecognized operation",
    0x0212: "Mistyped argument",
    0xB000: "Warning: Coercion of Data Elements",
    0xB006: "Warning: Elements Discarded",
    0xB007: "Warning: Data Set does not match SOP Class",
}
_STATUS_RANGES = (
    (0xA700, 0xA7FF, "Refused: Out of Resources"),
    (0xA900, 0xA9FF, "Error: Data Set does not match SOP Class"),
    (0xC000, 0xCFFF, "Error: Cannot understand"),
)


def status_text(status: int) -> str:
    """A status with its meaning, for people."""
    meaning = _STATUSES.get(status) or next(
        (text for first, last, text in _STATUS_RANGES if first <= status <= last), "unknown status"
    )
    return f"{status:04X}H {meaning}"


class InvalidMessage(ProtocolViolation):
    """Fragments that make no message, or a command set that cannot be read: the DIMSE user aborts."""

    source = 0


class Command:
    """A command set: element values by tag ``0xGGGGEEEE``, padding kept. Raises InvalidMessage."""

    __slots__ = ("command_field", "elements", "has_data_set")

    def __init__(self, elements: dict[int, bytes]) -> None:
        self.elements = elements
        self.command_field = self.integer(COMMAND_FIELD)
        self.has_data_set = self.integer(COMMAND_DATA_SET_TYPE) != NO_DATA_SET

    def integer(self, tag: int) -> int:
        """A US value that must be there."""
        try:
            value: int = _US.unpack(self.elements[tag])[0]
        except (KeyError, struct.error):
            raise InvalidMessage(
                f"the command set has no usable ({tag >> 16:04X},{tag & 0xFFFF:04X})"
            ) from None
        return value

    def uid(self, tag: int) -> str:
        """A UID value without its padding; empty when the element is missing."""
        try:
            return self.elements.get(tag, b"").rstrip(b"\0 ").decode("ascii")
        except UnicodeDecodeError:
            raise InvalidMessage(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is no UID") from None

    @property
    def message_id(self) -> int:
        return self.integer(MESSAGE_ID)


def decode_command(data: bytes | bytearray) -> Command:
    """A command set, PS3.7 §6.3.1. Raises InvalidMessage."""
    data = bytes(data)  # no copy of what is bytes already
    elements: dict[int, bytes] = {}
    position, end = 0, len(data)
    if end > MAXIMUM_COMMAND_LENGTH:
        raise InvalidMessage(f"a command set of {end} bytes")
    unpack = _ELEMENT.unpack_from
    while position < end:
        if end - position < 8:
            raise InvalidMessage("the command set ends within an element")
        group, element, length = unpack(data, position)
        if group:
            raise InvalidMessage(f"an element of group {group:04X} in a command set")
        position += 8
        if length > end - position:
            raise InvalidMessage(f"(0000,{element:04X}) claims {length} bytes, {end - position} are left")
        elements[element] = data[position : position + length]
        position += length
    return Command(elements)


def encode_command(elements: Mapping[int, bytes]) -> bytes:
    """A command set of *elements*, in ascending order, with its group length in front."""
    body = b"".join(
        _ELEMENT.pack(0, tag, len(value)) + value for tag, value in sorted(elements.items()) if tag
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


def encode_response(request: Command, status: int, comment: str = "") -> bytes:
    """The response without a data set to *request*, PS3.7 §9.3 and §10.3.

    ``comment`` becomes the Error Comment (LO: 64 characters, no backslash, no control characters).
    """
    elements = request.elements
    tail = _uid_element(elements, AFFECTED_SOP_INSTANCE_UID)
    if comment:
        text = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in comment[:64]).encode("ascii")
        text += b" " * (len(text) & 1)
        tail = _ELEMENT.pack(0, ERROR_COMMENT, len(text)) + text + tail
    body = b"".join(
        (
            _uid_element(elements, AFFECTED_SOP_CLASS_UID),
            _RESPONSE_FIELDS.pack(
                *(0, COMMAND_FIELD, 2, request.command_field | RESPONSE),
                *(0, MESSAGE_ID_BEING_RESPONDED_TO, 2, request.message_id),
                *(0, COMMAND_DATA_SET_TYPE, 2, NO_DATA_SET),
                *(0, STATUS, 2, status),
            ),
            tail,
        )
    )
    return _ELEMENT.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


class MessageReader:
    """Puts the command sets of one association together and keeps data set fragments in their place.

    PS3.7 §6.3.1 and PS3.8 Annex E.2: the fragments of one message follow each other on one presentation
    context, the command first.
    """

    def __init__(self) -> None:
        self._context_id = 0
        self._command = bytearray()
        self._in_command = False
        self._data_set_of: Command | None = None

    @property
    def incomplete(self) -> object:
        """What stands for the message of which some is still to come, and for no other; None when none is begun."""
        return self._data_set_of or (self._command if self._in_command else None)

    def command(self, fragment: Fragment) -> Command | None:
        """Take a command fragment; the command set once it is whole. Raises InvalidMessage."""
        if self._data_set_of is not None:
            raise InvalidMessage("a command fragment before the data set was complete")
        context_id, _, is_last, data = fragment
        if is_last and not self._in_command:
            command = decode_command(bytes(data))
        else:
            if self._in_command and context_id != self._context_id:
                raise InvalidMessage("a command set changes its presentation context")
            self._command += data
            if len(self._command) > MAXIMUM_COMMAND_LENGTH:
                raise InvalidMessage(f"a command set of more than {MAXIMUM_COMMAND_LENGTH} bytes")
            self._in_command = not is_last
            self._context_id = context_id
            if not is_last:
                return None
            command = decode_command(self._command)
            self._command = bytearray()
        self._context_id = context_id
        self._data_set_of = command if command.has_data_set else None
        return command

    def data_set(self, fragment: Fragment) -> None:
        """Take note of a data set fragment. Raises InvalidMessage when it belongs to no command."""
        if self._data_set_of is None:
            raise InvalidMessage("a data set fragment without a command that announced it")
        if fragment.presentation_context_id != self._context_id:
            raise InvalidMessage("a data set on another presentation context than its command")
        if fragment.is_last:
            self._data_set_of = None


def _uid_element(elements: Mapping[int, bytes], tag: int) -> bytes:
    value = elements.get(tag)
    if not value:
        return b""
    if len(value) & 1:
        value += b"\0"  # the peer's omission is not ours
    return _ELEMENT.pack(0, tag, len(value)) + value
