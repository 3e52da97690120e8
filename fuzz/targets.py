"""What is fuzzed: a function of bytes for each decoder, and one for a whole conversation.

A target returns when all is well, and raises (AssertionError, or whatever escapes) when it is not. What a decoder may
raise by its contract is no finding. Nothing here needs the fuzzer: the seeds and findings are replayed as tests.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Callable, Iterator

from fuzz import HERE, NAMES
from storescp import dataset_head, dimse, extended_negotiation, pdu, stored_file
from storescp.commitment_data import BadRequest, decode_request, encode_request
from storescp.dataset_head import Head, HeadError, HeadReader
from storescp.extended_negotiation import CommonExtendedNegotiation, ExtendedNegotiation, RoleSelection
from storescp.negotiation import Policy, negotiate
from storescp.pdu_reader import PDUReader
from storescp.presentation import resolve_accepted
from storescp.sop_classes import PLAIN_TRANSFER_SYNTAXES, VERIFICATION
from storescp.stored_file import NotAnInstance
from tests.conversation import World

_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",
)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """*data* in pieces of *size* bytes, 0 for all at once."""
    for start in range(0, len(data), size or max(len(data), 1)):
        yield data[start : start + (size or len(data))]


# -- PDUs --


def _stream(data: bytes, size: int, maximum_length: int) -> list[object]:
    """What a reader makes of the stream: PDUs, PDVs put together, and the violation that ended it."""
    reader = PDUReader(maximum_length)
    found: list[object] = []
    pdv: list[bytes] = []
    try:
        for piece in pieces(data, size):
            reader.feed(piece)
            while (item := reader.next()) is not None:
                if isinstance(item, pdu.Fragment):
                    pdv.append(bytes(item.data))
                    if item.is_last:
                        found.append((item.presentation_context_id, item.is_command, b"".join(pdv)))
                        pdv.clear()
                else:
                    found.append(item)
    except pdu.ProtocolViolation as violation:
        found.append((type(violation), str(violation)))
    return [*found, b"".join(pdv)]


def pdus(data: bytes) -> None:
    """A stream of PDUs: the same whatever the pieces are that it comes in, and PDUs survive being encoded."""
    if not data:
        return
    whole, size = data[1:], 1 + data[0] % 64
    maximum_length = 0 if data[0] & 64 else 16384
    found = _stream(whole, 0, maximum_length)
    assert found == _stream(whole, size, maximum_length), (found, size)
    for item in found:
        if isinstance(item, pdu.AAssociateRQ | pdu.AAssociateAC | pdu.AAssociateRJ | pdu.AAbort):
            encoded = item.encode()
            assert pdu.decode(encoded).encode() == encoded


_CT, _UNKNOWN, _EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", "1.2.840.10008.1.2.1"
_CONTEXTS = tuple(
    pdu.PresentationContext(2 * n + 1, uid, (_EXPLICIT,))
    for n, uid in enumerate((_CT, VERIFICATION, _UNKNOWN))
)
_POLICY = Policy(
    called_ae_titles=None,
    abstract_syntaxes=frozenset((_CT, VERIFICATION)),
    accept=resolve_accepted(("CT", "declared")),
    transfer_syntaxes=frozenset((_EXPLICIT,)),
    maximum_length=16384,
    implementation_class_uid="1.2.3",
    implementation_version_name="FUZZ",
    operations_window=64,
)


def user_information(data: bytes) -> None:
    """The user information items of an A-ASSOCIATE-RQ, and what is answered to them."""
    request = pdu.AAssociateRQ("A", "B", _CONTEXTS).encode()
    item = request.index(pdu.UserInformation().encode())
    body = request[6:item] + struct.pack(">BxH", 0x50, len(data[:65535])) + data[:65535]
    try:
        decoded = pdu.decode(struct.pack(">BxI", 1, len(body)) + body)
    except pdu.ProtocolViolation:
        return
    assert isinstance(decoded, pdu.AAssociateRQ)
    assert pdu.decode(decoded.encode()) == decoded
    answer = negotiate(decoded, _POLICY)
    assert isinstance(answer, pdu.AAssociateAC)
    assert pdu.decode(answer.encode()) == answer
    assert {item for item, _ in answer.user_information.other} <= {0x53, 0x54, 0x56}
    others = decoded.user_information.other
    for role in extended_negotiation.decoded(RoleSelection, others).values():
        assert RoleSelection.decode(role.item[1]) == role
    for extended in extended_negotiation.decoded(ExtendedNegotiation, others).values():
        assert ExtendedNegotiation.decode(extended.item[1]) == extended
    for common in extended_negotiation.decoded(CommonExtendedNegotiation, others).values():
        assert CommonExtendedNegotiation.decode(common.item[1]) == common


# -- messages --


def command(data: bytes) -> None:
    """A command set, what is asked of it, and a response to it."""
    try:
        decoded = dimse.decode_command(data)
        decoded.uid(dimse.AFFECTED_SOP_CLASS_UID)
        decoded.uid(dimse.AFFECTED_SOP_INSTANCE_UID)
        decoded.message_id  # noqa: B018 - raises where there is none
    except dimse.InvalidMessage:
        return
    try:
        response = dimse.encode_response(decoded, dimse.Status.SUCCESS, "a comment")
    except struct.error as error:
        raise AssertionError(error) from None
    assert dimse.decode_command(response).integer(dimse.STATUS) == 0


# -- data sets and files --


def _head(syntax: str, data: bytes, size: int) -> dict[int, bytes] | str:
    reader = HeadReader(syntax)
    try:
        for piece in pieces(data, size):
            if reader.feed(piece):
                break
        head = reader.finish()
    except HeadError as error:
        return str(error)
    _ask(head)
    return head.raw


def _ask(head: Head) -> None:
    for tag in head.raw:
        head.text(tag)
        head.integer(tag)
        try:
            head.uid(tag)
        except HeadError:
            pass
    assert all(len(value) <= dataset_head.MAX_VALUE for value in head.raw.values())


def head(data: bytes) -> None:
    """The head of a data set: the same whatever the pieces are that it comes in, and when read again."""
    if not data:
        return
    syntax, size, data = _SYNTAXES[data[0] % len(_SYNTAXES)], 1 + data[0] // len(_SYNTAXES), data[1:]
    found = _head(syntax, data, 0)
    assert found == _head(syntax, data, 0)
    in_pieces = _head(syntax, data, size)
    assert type(found) is type(in_pieces), (found, in_pieces, size)
    assert isinstance(found, str) or found == in_pieces, (found, in_pieces, size)


_file = os.memfd_create("fuzz")


def stored(data: bytes) -> None:
    """The File Meta Information and the head of a file."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    try:
        head = stored_file.read_file_head(_file)
        assert head.data_set_offset >= 132
        _ask(stored_file.read_data_set_head(_file, head))
    except NotAnInstance:
        pass


# -- all together --


def conversation(data: bytes) -> None:
    """A connection on which *data* arrives: nothing escapes, and all of it ends in time and leaves nothing.

    The first byte says in which pieces, and whether the peer goes at the end, breaks off or falls silent.
    """
    if not data:
        return
    world = World()
    peer = world.connect()
    for piece in pieces(data[1:], (0, 1, 7, 64, 300, 4096, 0, 0)[data[0] & 7]):
        peer.say(piece)
        if data[0] & 8:
            world.clock.advance(1)
        for instance in world.memory.instances:
            if instance.finished is not None and not instance.finished.called:
                instance.end()
            elif data[0] & 16:
                instance.written()
    if data[0] & 32:
        peer.hang_up()
    elif data[0] & 64:
        peer.drop()
    for _ in range(40):  # idle timeout, ARTIM, and the time to close
        world.clock.advance(10)
        for instance in world.memory.instances:
            if instance.finished is not None and not instance.finished.called:
                instance.end()
    assert not peer.is_open
    assert not world.clock.getDelayedCalls(), world.clock.getDelayedCalls()
    assert not world.factory.associations and not world.factory.pending
    assert world.factory.occupancy.associations == 0
    assert all(i.cancelled or (i.finished and i.finished.called) for i in world.memory.instances)


def commitment(data: bytes) -> None:
    """A request for storage commitment: refused, or what it was when it is encoded and read again."""
    if not data:
        return
    syntax = PLAIN_TRANSFER_SYNTAXES[data[0] % 3]
    try:
        request = decode_request(data[1:], syntax, 50)
    except BadRequest:
        return
    assert decode_request(encode_request(request, syntax), syntax, 50) == request


TARGETS: dict[str, Callable[[bytes], None]] = {name: globals()[name] for name in NAMES}


def samples(target: str) -> Iterator[pathlib.Path]:
    """The seeds and findings that there are for *target*."""
    for kind in ("seeds", "findings"):
        yield from sorted((HERE / kind / target).glob("*"))
