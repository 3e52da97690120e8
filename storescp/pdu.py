"""The protocol data units of the DICOM Upper Layer, PS3.8 §9.3, as values and as bytes.

What belongs here: the bytes of one PDU and nothing about what it means in which state. PDUs are frozen
values with ``encode()``; :func:`decode` is its inverse. How they are cut out of a stream is the business of
:mod:`storescp.pdu_reader`.

Lengths are in bytes; integers are big endian (PS3.8 §9.3.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple, TypeAlias

APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"

#: 128 contexts that each propose all of some 70 transfer syntaxes stay below this; nothing honest is larger.
MAXIMUM_ASSOCIATE_LENGTH = 512 * 1024

#: Their IDs are the odd numbers of a byte, PS3.8 §9.3.2.2.
MAXIMUM_CONTEXTS = 128

#: Transfer syntaxes of one context; there are some 70.
MAXIMUM_TRANSFER_SYNTAXES = 256

PDU_HEADER = struct.Struct(">BxI")
_ITEM = struct.Struct(">BxH")
_FIXED = struct.Struct(">H2x16s16s32x")
_CONTEXT = struct.Struct(">BxBx")
_IDENTITY = struct.Struct(">BBH")
P_DATA_ONE_PDV = struct.Struct(">BxIIBB")


class ProtocolViolation(Exception):
    """The peer broke the protocol; ``source`` and ``reason`` are those of the A-ABORT that it earns.

    PS3.8 Table 9-26: source 2 is the service provider, 0 the service user (whose reason is always 0).
    """

    source: ClassVar[int] = 2
    reason: ClassVar[int] = 0


class UnrecognizedPDU(ProtocolViolation):
    """A PDU type that PS3.8 does not know."""

    reason = 1


class UnexpectedPDU(ProtocolViolation):
    """A PDU that the state does not allow."""

    reason = 2


class InvalidPDU(ProtocolViolation):
    """A PDU with a wrong length or a value that its field does not allow."""

    reason = 6


class Fragment(NamedTuple):
    """A piece of a presentation data value, PS3.8 §9.3.5.1 and Annex E.2, as it came off the wire.

    ``data`` is a view into the bytes received. A PDV that arrives in several reads gives several pieces;
    only the one that holds its final byte can have ``is_last``.
    """

    presentation_context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """A proposed presentation context, PS3.8 §9.3.2.2."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]

    def encode(self) -> bytes:
        syntaxes = b"".join(_item(0x40, name.encode("ascii")) for name in self.transfer_syntaxes)
        return _item(
            0x20, _CONTEXT.pack(self.id, 0) + _item(0x30, self.abstract_syntax.encode("ascii")) + syntaxes
        )


@dataclass(frozen=True, slots=True)
class PresentationContextResult:
    """The answer to one proposed presentation context, PS3.8 §9.3.3.2.

    ``result``: 0 acceptance, 1 user rejection, 2 no reason, 3 abstract syntax not supported, 4 transfer
    syntaxes not supported. ``transfer_syntax`` is not significant unless accepted.
    """

    id: int
    result: int
    transfer_syntax: str

    def encode(self) -> bytes:
        return _item(
            0x21, _CONTEXT.pack(self.id, self.result) + _item(0x40, self.transfer_syntax.encode("ascii"))
        )


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """Who a requestor says that its user is, PS3.7 §D.3.3.7.1. repr() keeps secrets.

    ``type``: 1 username, 2 username and passcode, 3 Kerberos service ticket, 4 SAML assertion, 5 JSON Web Token.
    ``primary`` is the username, ticket, assertion or token; ``secondary`` the passcode, of type 2 alone.
    """

    type: int
    primary: bytes = field(repr=False)
    secondary: bytes = field(default=b"", repr=False)
    positive_response_requested: bool = False

    def encode(self) -> bytes:
        head = _IDENTITY.pack(self.type, self.positive_response_requested, len(self.primary))
        return _item(0x58, head + self.primary + struct.pack(">H", len(self.secondary)) + self.secondary)


@dataclass(frozen=True, slots=True)
class UserInformation:
    """The user information item, PS3.8 §9.3.2.3 and PS3.7 Annex D.3.3.

    ``maximum_length`` is the largest variable field of a P-DATA-TF that its sender takes; 0 means no limit.
    ``other`` keeps the sub-items that have no field of their own, in order, as (item type, value).
    ``user_identity`` is a request's, ``user_identity_response`` what the acceptor says to it, PS3.7 §D.3.3.7.2.
    """

    maximum_length: int = 0
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    other: tuple[tuple[int, bytes], ...] = ()
    user_identity: UserIdentity | None = None
    user_identity_response: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        body = _item(0x51, struct.pack(">I", self.maximum_length))
        if self.implementation_class_uid:
            body += _item(0x52, self.implementation_class_uid.encode("ascii"))
        if self.implementation_version_name:
            body += _item(0x55, self.implementation_version_name.encode("latin-1"))
        body += b"".join(_item(kind, value) for kind, value in self.other)
        if self.user_identity is not None:
            body += self.user_identity.encode()
        if self.user_identity_response is not None:
            response = self.user_identity_response
            body += _item(0x59, struct.pack(">H", len(response)) + response)
        return _item(0x50, body)


@dataclass(frozen=True, slots=True)
class AAssociateRQ:
    """A-ASSOCIATE-RQ, PS3.8 §9.3.2. AE titles are without their padding."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContext, ...]
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = 1

    def encode(self) -> bytes:
        return _encode_associate(0x01, self)


@dataclass(frozen=True, slots=True)
class AAssociateAC:
    """A-ASSOCIATE-AC, PS3.8 §9.3.3. The AE titles repeat those of the request and are never tested."""

    called_ae_title: str
    calling_ae_title: str
    presentation_contexts: tuple[PresentationContextResult, ...]
    user_information: UserInformation = field(default_factory=UserInformation)
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = 1

    def encode(self) -> bytes:
        return _encode_associate(0x02, self)


@dataclass(frozen=True, slots=True)
class AAssociateRJ:
    """A-ASSOCIATE-RJ, PS3.8 §9.3.4: the three numbers of Table 9-21."""

    result: int
    source: int
    reason: int

    def encode(self) -> bytes:
        return struct.pack(">BxIxBBB", 0x03, 4, self.result, self.source, self.reason)


@dataclass(frozen=True, slots=True)
class AReleaseRQ:
    """A-RELEASE-RQ, PS3.8 §9.3.6."""

    def encode(self) -> bytes:
        return b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class AReleaseRP:
    """A-RELEASE-RP, PS3.8 §9.3.7."""

    def encode(self) -> bytes:
        return b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class AAbort:
    """A-ABORT, PS3.8 §9.3.8: source 0 is the service user, 2 the service provider."""

    source: int
    reason: int

    def encode(self) -> bytes:
        return struct.pack(">BxIxxBB", 0x07, 4, self.source, self.reason)


PDU: TypeAlias = AAssociateRQ | AAssociateAC | AAssociateRJ | AReleaseRQ | AReleaseRP | AAbort


def encode_p_data(
    presentation_context_id: int,
    is_command: bool,
    data: bytes,
    maximum_length: int = 0,
    *,
    is_last: bool = True,
) -> bytes:
    """One command or data set as P-DATA-TF PDUs, PS3.8 §9.3.5, none longer than the peer takes.

    ``maximum_length`` is what the peer announced, 0 for no limit; each PDU carries one PDV. Unless ``is_last``,
    more of it follows; then *data* has an even number of bytes.
    """
    flag = 1 if is_command else 0
    final = 2 if is_last else 0
    # Every fragment has an even number of bytes (PS3.8 Annex E.1), even where an odd maximum was announced.
    # A peer that announces less than one PDV header and two bytes cannot be served at all: send it those.
    room = max((maximum_length - 6) & ~1, 2) if maximum_length else len(data)
    if len(data) <= room:
        size = len(data)
        return P_DATA_ONE_PDV.pack(4, size + 6, size + 2, presentation_context_id, flag | final) + data
    pieces = []
    for start in range(0, len(data), room):
        piece = data[start : start + room]
        last = final if start + room >= len(data) else 0
        pieces.append(
            P_DATA_ONE_PDV.pack(4, len(piece) + 6, len(piece) + 2, presentation_context_id, flag | last)
        )
        pieces.append(piece)
    return b"".join(pieces)


def decode(data: bytes) -> PDU:
    """One whole PDU, its 6-byte header included, of any type but P-DATA-TF.

    Raises UnrecognizedPDU and InvalidPDU.
    """
    if len(data) < 6:
        raise InvalidPDU(f"a PDU of {len(data)} bytes")
    kind, length = PDU_HEADER.unpack_from(data)
    body = data[6:]
    if length != len(body):
        raise InvalidPDU(f"PDU type {kind:02X}H claims {length} bytes, it has {len(body)}")
    if kind in (0x01, 0x02):
        # What may have the secrets of a user identity item is not remembered.
        known = length <= _KNOWN_LENGTH and b"\x58\0" not in body
        return _known_associate(kind, body) if known else _decode_associate(kind, body)
    if kind not in (0x03, 0x05, 0x06, 0x07):
        raise UnrecognizedPDU(f"PDU type {kind:02X}H")
    if len(body) < 4:
        raise InvalidPDU(f"PDU type {kind:02X}H of {len(body)} bytes")
    if kind == 0x03:
        return AAssociateRJ(body[1], body[2], body[3])
    if kind == 0x07:
        return AAbort(body[2], body[3])
    return AReleaseRQ() if kind == 0x05 else AReleaseRP()


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if len(data) - position < 4:
            raise InvalidPDU("an item header is cut short")
        kind, length = _ITEM.unpack_from(data, position)
        position += 4
        if length > len(data) - position:
            raise InvalidPDU(f"item {kind:02X}H claims {length} bytes where {len(data) - position} are left")
        yield kind, data[position : position + length]
        position += length


def _text(value: bytes) -> str:
    """A UID or name; NUL and blanks around it are padding that some senders add."""
    try:
        return value.decode("ascii").strip("\0 ")
    except UnicodeDecodeError:
        raise InvalidPDU(f"a name that is not ASCII: {value[:64]!r}") from None


def _encode_associate(kind: int, pdu: AAssociateRQ | AAssociateAC) -> bytes:
    body = b"".join(
        (
            _FIXED.pack(
                pdu.protocol_version,
                pdu.called_ae_title.encode("latin-1").ljust(16),
                pdu.calling_ae_title.encode("latin-1").ljust(16),
            ),
            _item(0x10, pdu.application_context_name.encode("ascii")),
            *(context.encode() for context in pdu.presentation_contexts),
            pdu.user_information.encode(),
        )
    )
    return PDU_HEADER.pack(kind, len(body)) + body


def _decode_associate(kind: int, body: bytes) -> AAssociateRQ | AAssociateAC:
    if len(body) < _FIXED.size:
        raise InvalidPDU(f"PDU type {kind:02X}H of {len(body)} bytes")
    version, called, calling = _FIXED.unpack_from(body)
    # Latin-1 cannot fail: whether a title is acceptable is for the negotiation to say, with the right reject.
    titles = (called.decode("latin-1").strip("\0 "), calling.decode("latin-1").strip("\0 "))
    application_context_name = ""
    user_information = UserInformation()
    proposed: list[PresentationContext] = []
    results: list[PresentationContextResult] = []
    for item, value in _items(body[_FIXED.size :]):
        if item == 0x10:
            application_context_name = _text(value)
        elif item == 0x20 and kind == 0x01:
            proposed.append(_decode_context(value))
            if len(proposed) > MAXIMUM_CONTEXTS:
                raise InvalidPDU(f"more than {MAXIMUM_CONTEXTS} presentation contexts")
        elif item == 0x21 and kind == 0x02:
            results.append(_decode_context_result(value))
        elif item == 0x50:
            user_information = _decode_user_information(value)
    ids = [context.id for context in proposed or results]
    if len(set(ids)) != len(ids):
        raise InvalidPDU("a presentation context ID is used twice")
    if kind == 0x01:
        return AAssociateRQ(*titles, tuple(proposed), user_information, application_context_name, version)
    return AAssociateAC(*titles, tuple(results), user_information, application_context_name, version)


#: Who associates for every image says the same each time. PDUs up to this length are remembered: a few MiB in all.
_KNOWN_LENGTH = 8192
_known_associate = lru_cache(maxsize=128)(_decode_associate)


def _context_head(value: bytes) -> tuple[int, int]:
    if len(value) < 4:
        raise InvalidPDU("a presentation context item is cut short")
    context_id, result = _CONTEXT.unpack_from(value)
    if context_id % 2 == 0:
        raise InvalidPDU(f"presentation context ID {context_id} is not odd")
    return context_id, result


def _decode_context(value: bytes) -> PresentationContext:
    context_id, _ = _context_head(value)
    abstract_syntax = ""
    transfer_syntaxes = []
    for item, name in _items(value[4:]):
        if item == 0x30:
            abstract_syntax = _text(name)
        elif item == 0x40:
            transfer_syntaxes.append(_text(name))
            if len(transfer_syntaxes) > MAXIMUM_TRANSFER_SYNTAXES:
                raise InvalidPDU(f"more than {MAXIMUM_TRANSFER_SYNTAXES} transfer syntaxes in a context")
    return PresentationContext(context_id, abstract_syntax, tuple(transfer_syntaxes))


def _decode_context_result(value: bytes) -> PresentationContextResult:
    context_id, result = _context_head(value)
    transfer_syntax = ""
    for item, name in _items(value[4:]):
        if item == 0x40:
            transfer_syntax = _text(name)
    return PresentationContextResult(context_id, result, transfer_syntax)


def _decode_user_information(value: bytes) -> UserInformation:
    maximum_length = 0
    class_uid = version_name = ""
    other = []
    identity: UserIdentity | None = None
    response: bytes | None = None
    for item, content in _items(value):
        if item == 0x51:
            if len(content) != 4:
                raise InvalidPDU(f"a maximum length of {len(content)} bytes")
            maximum_length = int.from_bytes(content, "big")
        elif item == 0x52:
            class_uid = _text(content)
        elif item == 0x55:
            # It should be ASCII, but nothing hangs on it.
            version_name = content.decode("latin-1").strip("\0 ")
        elif item == 0x58:
            identity = _decode_user_identity(content)
        elif item == 0x59:
            response, _ = _field(content, 0)
        else:
            other.append((item, content))
    return UserInformation(maximum_length, class_uid, version_name, tuple(other), identity, response)


def _decode_user_identity(value: bytes) -> UserIdentity:
    if len(value) < 2:
        raise InvalidPDU("a user identity item is cut short")
    primary, position = _field(value, 2)
    # Some leave out the length of a secondary field that their type does not have.
    secondary = _field(value, position)[0] if position < len(value) else b""
    return UserIdentity(value[0], primary, secondary, value[1] != 0)


def _field(value: bytes, position: int) -> tuple[bytes, int]:
    """The field at *position*, which follows its length in two bytes, and where it ends."""
    start = position + 2
    end = start + int.from_bytes(value[position:start], "big")
    if not start <= end <= len(value):
        raise InvalidPDU("a field of a user identity item is cut short")
    return value[start:end], end
