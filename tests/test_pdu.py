"""storescp.pdu: the layouts of PS3.8 §9.3, judged by pynetdicom, in any cut and against any claim."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from hypothesis import example, given
from hypothesis import strategies as st
from pynetdicom import pdu as judge
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context
from twisted.trial.unittest import SynchronousTestCase

from storescp import pdu
from storescp.pdu import (
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    Fragment,
    InvalidPDU,
    PresentationContext,
    PresentationContextResult,
    ProtocolViolation,
    UnrecognizedPDU,
    UserIdentity,
    UserInformation,
    encode_p_data,
)
from storescp.pdu_reader import PDUReader
from tests.strategies import PDV, p_data, p_datas, pdus, pdvs, piece_sizes, pieces, steady

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
USER = UserInformation(16384, "1.2.826.0.1", "VERSION_1", ((0x53, b"\0\1\0\1"),))
REQUEST = AAssociateRQ(
    "CALLED",
    "CALLING",
    (PresentationContext(1, CT, (IMPLICIT, EXPLICIT)), PresentationContext(3, CT, ())),
    USER,
)
RESPONSE = AAssociateAC(
    "CALLED",
    "CALLING",
    (PresentationContextResult(1, 0, EXPLICIT), PresentationContextResult(3, 4, IMPLICIT)),
    USER,
)

Item: TypeAlias = "pdu.PDU | PDV"


def read(data: Iterable[bytes], maximum_length: int = 0) -> Iterator[pdu.PDU | Fragment]:
    """What a reader makes of a stream that arrives in pieces."""
    reader = PDUReader(maximum_length)
    for piece in data:
        reader.feed(piece)
        while (item := reader.next()) is not None:
            yield item


def joined(items: Iterable[pdu.PDU | Fragment | PDV]) -> list[Item]:
    """Fragments put together up to the last one, or to where another kind begins; nothing else changes."""
    result: list[Item] = []
    for item in items:
        if not isinstance(item, Fragment | PDV):
            result.append(item)
            continue
        new = PDV(item.presentation_context_id, item.is_command, item.is_last, bytes(item.data))
        before = result[-1] if result else None
        if isinstance(before, PDV) and not before.is_last and before[:2] == new[:2]:
            result[-1] = new._replace(data=before.data + new.data)
        elif new.data or new.is_last:
            result.append(new)
    return result


def header(kind: int, length: int) -> bytes:
    """The first six bytes of a PDU."""
    return struct.pack(">BxI", kind, length)


def item(kind: int, value: bytes) -> bytes:
    """An item or sub-item."""
    return struct.pack(">BxH", kind, len(value)) + value


def associate(*items: bytes, kind: int = 1) -> bytes:
    """An A-ASSOCIATE PDU of *items*, encoded independently of the package."""
    body = struct.pack(">H2x16s16s32x", 1, b"CALLED".ljust(16), b"CALLING".ljust(16)) + b"".join(items)
    return header(kind, len(body)) + body


class CodecTests(SynchronousTestCase):
    """PDUs to bytes and back."""

    @given(pdus)
    @steady
    def test_inverse(self, value: pdu.PDU) -> None:
        """Decoding what was encoded gives the same value, and the length in the header is the true one."""
        data = value.encode()
        self.assertEqual(int.from_bytes(data[2:6], "big"), len(data) - 6)
        self.assertEqual(pdu.decode(data), value)

    def test_layouts(self) -> None:
        """The short PDUs are, byte for byte, those of PS3.8 Tables 9-21 and 9-24 to 9-26."""
        for value, expected in (
            (AAssociateRJ(1, 2, 3), "03 00 00000004 00 01 02 03"),
            (AReleaseRQ(), "05 00 00000004 00000000"),
            (AReleaseRP(), "06 00 00000004 00000000"),
            (AAbort(2, 6), "07 00 00000004 00 00 02 06"),
        ):
            self.assertEqual(value.encode(), bytes.fromhex(expected))

    def test_judged(self) -> None:
        """pynetdicom reads from each PDU what was put in, and encodes it to the same bytes."""
        request, response, reject, abort = (
            judge.A_ASSOCIATE_RQ(),
            judge.A_ASSOCIATE_AC(),
            judge.A_ASSOCIATE_RJ(),
            judge.A_ABORT_RQ(),
        )
        for value, theirs in (
            (REQUEST, request),
            (RESPONSE, response),
            (AAssociateRJ(1, 1, 7), reject),
            (AReleaseRQ(), judge.A_RELEASE_RQ()),
            (AReleaseRP(), judge.A_RELEASE_RP()),
            (AAbort(2, 6), abort),
        ):
            theirs.decode(value.encode())
            self.assertEqual(theirs.encode(), value.encode())
        self.assertEqual((request.called_ae_title, request.calling_ae_title), ("CALLED", "CALLING"))
        self.assertEqual(request.application_context_name, pdu.APPLICATION_CONTEXT_NAME)
        self.assertEqual(
            [
                (c.presentation_context_id, c.abstract_syntax, c.transfer_syntax)
                for c in request.presentation_context
            ],
            [(1, CT, [IMPLICIT, EXPLICIT]), (3, CT, [])],
        )
        self.assertEqual(
            [(c.presentation_context_id, c.result, c.transfer_syntax) for c in response.presentation_context],
            [(1, 0, EXPLICIT), (3, 4, IMPLICIT)],
        )
        for theirs in (request, response):
            user = theirs.user_information
            assert user is not None
            self.assertEqual(
                (user.maximum_length, user.implementation_class_uid, user.implementation_version_name),
                (16384, "1.2.826.0.1", "VERSION_1"),
            )
        self.assertEqual((reject.result, reject.source, reject.reason_diagnostic), (1, 1, 7))
        self.assertEqual((abort.source, abort.reason_diagnostic), (2, 6))

    def test_judge_sends(self) -> None:
        """A request that pynetdicom makes out of its own values is read as meant."""
        primitive = A_ASSOCIATE()
        primitive.application_context_name = pdu.APPLICATION_CONTEXT_NAME
        primitive.calling_ae_title, primitive.called_ae_title = "CALLING", "CALLED"
        length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
        length.maximum_length_received = 32768
        implementation.implementation_class_uid = "1.2.3"
        identity = UserIdentityNegotiation()
        identity.user_identity_type, identity.positive_response_requested = 2, True
        identity.primary_field, identity.secondary_field = b"alice", b"sesame"
        primitive.user_information = [length, implementation, identity]
        context = build_context(CT, [EXPLICIT, IMPLICIT])
        context.context_id = 5
        primitive.presentation_context_definition_list = [context]
        theirs = judge.A_ASSOCIATE_RQ()
        theirs.from_primitive(primitive)
        self.assertEqual(
            pdu.decode(theirs.encode()),
            AAssociateRQ(
                "CALLED",
                "CALLING",
                (PresentationContext(5, CT, (EXPLICIT, IMPLICIT)),),
                UserInformation(32768, "1.2.3", user_identity=UserIdentity(2, b"alice", b"sesame", True)),
            ),
        )

    def test_secrets(self) -> None:
        """What proves a user's identity is in no repr(), and a request that has it is decoded anew each time."""
        request = AAssociateRQ(
            "A", "B", (), UserInformation(user_identity=UserIdentity(2, b"open", b"sesame"))
        )
        self.assertNotIn("sesame", repr(request))
        self.assertNotIn("open", repr(request))
        encoded = request.encode()
        self.assertIsNot(pdu.decode(encoded), pdu.decode(encoded))
        other = AAssociateRQ("A", "B", ()).encode()
        self.assertIs(pdu.decode(other), pdu.decode(other))

    def test_lenient(self) -> None:
        """Padding of names, unknown items and a trailing NUL in the titles do not matter; they are skipped."""
        value = pdu.decode(
            associate(
                item(0x99, b"what is this"),
                item(0x10, b"1.2.840.10008.3.1.1.1\0"),
                item(0x20, b"\x01\0\xff\0" + item(0x77, b"?") + item(0x30, b"1.2 ") + item(0x40, b"1.3\0")),
                item(0x21, b"\x02\0"),
                item(
                    0x50,
                    item(0x51, bytes(4))
                    + item(0x52, b"1.4\0")
                    + item(0x55, b"V\xe9 ")
                    + item(0x58, b"\1\0\0\1a"),
                ),
            ).replace(b"CALLED  ", b" CALLED\0")
        )
        self.assertEqual(
            value,
            AAssociateRQ(
                "CALLED",
                "CALLING",
                (PresentationContext(1, "1.2", ("1.3",)),),
                UserInformation(0, "1.4", "V\xe9", user_identity=UserIdentity(1, b"a")),
            ),
        )

    def test_invalid(self) -> None:
        """Each malformed PDU is a violation whose A-ABORT reason is "invalid PDU parameter value" (6)."""
        context = item(0x30, b"1.2") + item(0x40, b"1.3")
        for data in (
            b"",
            header(5, 4),
            header(5, 4) + bytes(5),
            *(header(kind, size) + bytes(size) for kind in (3, 5, 6, 7) for size in range(4)),
            header(1, 67) + bytes(67),
            associate(b"\x10"),
            associate(b"\x10\0\0\x05abcd"),
            associate(b"\x10\0\xff\xff"),
            associate(item(0x10, b"\xe9")),
            associate(item(0x20, b"\1\0\0")),
            associate(item(0x20, b"\0\0\0\0" + context)),
            associate(item(0x20, b"\x02\0\0\0" + context)),
            associate(item(0x20, b"\1\0\0\0" + context), item(0x20, b"\1\0\0\0" + context)),
            associate(item(0x20, b"\1\0\0\0" + b"\x30\0\xff\xff1.2")),
            associate(item(0x20, b"\1\0\0\0" + item(0x30, b"\xff"))),
            associate(item(0x50, item(0x51, bytes(3)))),
            associate(item(0x50, item(0x52, b"\x80"))),
            *(
                associate(item(0x50, item(0x58, b"\2\1\0\2ab\0\2cd"[:size])))
                for size in (0, 1, 2, 3, 5, 7, 9)
            ),
            *(associate(item(0x50, item(0x59, b"\0\2ab"[:size])), kind=2) for size in (0, 1, 3)),
            associate(item(0x50, b"\x51\0\0")),
            associate(item(0x21, b"\4\0\0\0"), kind=2),
        ):
            with self.assertRaises(InvalidPDU, msg=data.hex()) as raised:
                pdu.decode(data)
            self.assertEqual((raised.exception.source, raised.exception.reason), (2, 6))

    @given(st.sampled_from((1, 2)), st.binary(max_size=200), st.data())
    @steady
    def test_random_items(self, kind: int, tail: bytes, data: st.DataObject) -> None:
        """An association PDU with any bytes in it, anywhere, is read or is a violation, nothing else."""
        whole = bytearray((REQUEST if kind == 1 else RESPONSE).encode() + tail)
        for place in data.draw(st.lists(st.integers(6, len(whole) - 1), max_size=4)):
            whole[place] = data.draw(st.integers(0, 255))
        whole[2:6] = (len(whole) - 6).to_bytes(4, "big")
        try:
            self.assertIsInstance(pdu.decode(bytes(whole)), AAssociateRQ if kind == 1 else AAssociateAC)
        except InvalidPDU as violation:
            self.assertTrue(str(violation))


class EncodePDataTests(SynchronousTestCase):
    """Messages cut for the peer."""

    @given(st.binary(max_size=300), st.sampled_from((0, *range(8, 60), 2**32 - 1)), st.booleans())
    @example(b"", 8, True)
    @steady
    def test_maximum_length(self, data: bytes, maximum_length: int, is_command: bool) -> None:
        """The fragments join to the data, the last alone is marked, no PDU is longer than announced, and each
        fragment but the last is even (PS3.8 Annex E.1).
        """
        stream = encode_p_data(7, is_command, data, maximum_length)
        fragments = [item for item in read([stream], maximum_length) if isinstance(item, Fragment)]
        self.assertEqual(b"".join(fragment.data for fragment in fragments), data)
        self.assertEqual([fragment.is_last for fragment in fragments[:-1]], [False] * (len(fragments) - 1))
        self.assertEqual(fragments[-1][:3], (7, is_command, True))
        self.assertFalse(any(len(fragment.data) % 2 for fragment in fragments[:-1]))

    def test_impossible_maximum_length(self) -> None:
        """A peer that announces less than any fragment needs gets the smallest there is."""
        for maximum_length in range(1, 8):
            self.assertEqual(
                encode_p_data(1, False, b"abc", maximum_length),
                p_data([PDV(1, False, False, b"ab")]) + p_data([PDV(1, False, True, b"c")]),
            )

    def test_judged(self) -> None:
        """pynetdicom reads one PDV with the right control header from the PDU."""
        theirs = judge.P_DATA_TF()
        theirs.decode(encode_p_data(3, True, b"abcd"))
        (value,) = theirs.presentation_data_value_items
        self.assertEqual((value.presentation_context_id, value.presentation_data_value), (3, b"\x03abcd"))


class ReaderTests(SynchronousTestCase):
    """PDUs and fragments out of a byte stream."""

    @given(st.lists(st.one_of(pdus, p_datas), max_size=6), piece_sizes)
    @example([[PDV(1, True, True, b""), PDV(1, False, False, b""), PDV(1, False, True, b"")]], [1])
    @steady
    def test_any_cut(self, sent: list[pdu.PDU | list[PDV]], sizes: list[int]) -> None:
        """However the stream is cut, the same PDUs and data come out, each last PDV marked exactly once."""
        stream = b"".join(p_data(one) if isinstance(one, list) else one.encode() for one in sent)
        flat = (value for one in sent for value in (one if isinstance(one, list) else [one]))
        self.assertEqual(joined(read(pieces(stream, sizes))), joined(flat))

    @given(st.lists(pdvs, min_size=1, max_size=4), piece_sizes)
    @steady
    def test_nothing_waits(self, sent: list[PDV], sizes: list[int]) -> None:
        """All bytes of data that have arrived have been handed over: nothing waits for a whole PDV or PDU."""
        stream, reader, arrived, handed = p_data(sent), PDUReader(0), 0, 0
        # For each byte of the stream, how many bytes of data lie before its end.
        before = [0] * 6
        for pdv in sent:
            before += [before[-1]] * 6 + list(range(before[-1] + 1, before[-1] + len(pdv.data) + 1))
        for piece in pieces(stream, sizes):
            reader.feed(piece)
            arrived += len(piece)
            while (fragment := reader.next()) is not None:
                assert isinstance(fragment, Fragment)
                handed += len(fragment.data)
            self.assertEqual(handed, before[arrived - 1])

    def test_views(self) -> None:
        """Fragments are views into what was fed: no byte of data is copied."""
        reader = PDUReader(0)
        data = p_data([PDV(1, False, True, bytes(100))])
        reader.feed(data)
        fragment = reader.next()
        assert isinstance(fragment, Fragment)
        self.assertIs(fragment.data.obj, data)

    def test_claims(self) -> None:
        """A length that cannot be is refused as soon as its header is there, with the right A-ABORT reason."""
        huge = 2**32 - 1
        for claim, reason in (
            (header(4, huge), 6),
            (header(4, 16385), 6),
            (header(4, 5), 6),
            (header(4, 0), 6),
            (header(1, huge), 6),
            (header(1, pdu.MAXIMUM_ASSOCIATE_LENGTH + 1), 6),
            (header(2, huge), 6),
            *((header(kind, 5), 6) for kind in (3, 5, 6, 7)),
            (header(0, 4), 1),
            (header(8, huge), 1),
            (header(4, 100) + struct.pack(">IBB", huge, 1, 0), 6),
            (header(4, 100) + struct.pack(">IBB", 97, 1, 0), 6),
            (header(4, 100) + struct.pack(">IBB", 1, 1, 0), 6),
            (header(4, 100) + struct.pack(">IBB", 0, 1, 0), 6),
            (p_data([PDV(1, False, False, b"")])[:2] + b"\0\0\0\x07" + PDV(1, False, False, b"").encode(), 6),
            (b"GET / HTTP/1.1\r\n", 1),
            (bytes.fromhex("160301020001"), 1),
        ):
            with self.assertRaises(ProtocolViolation, msg=claim.hex()) as raised:
                list(read(pieces(claim, [1]), 16384))
            self.assertEqual((raised.exception.source, raised.exception.reason), (2, reason), claim.hex())
            self.assertIsInstance(raised.exception, UnrecognizedPDU if reason == 1 else InvalidPDU)

    def test_longest(self) -> None:
        """What was announced is taken; with nothing announced, a P-DATA-TF of 4 GiB passes through unbuffered."""
        list(read([header(4, 16384)], 16384))
        fragments = list(read([header(4, 2**32 - 1) + struct.pack(">IBB", 2**32 - 5, 1, 2), b"abc"], 0))
        self.assertEqual(joined(fragments), [PDV(1, False, False, b"abc")])

    @given(st.binary(max_size=100), piece_sizes, st.sampled_from((b"", b"\1", b"\2", b"\4\0\0\0")))
    @steady
    def test_random_bytes(self, data: bytes, sizes: list[int], beginning: bytes) -> None:
        """Random bytes are a violation, sooner or later, and nothing worse."""
        try:
            for item in read(pieces(beginning + data, sizes), 16384):
                self.assertIsInstance(item, pdu.PDU | Fragment)
        except ProtocolViolation as violation:
            self.assertIn(violation.reason, (1, 6))
