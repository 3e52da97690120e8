"""storescp.dimse: command sets and messages of PS3.7, judged by pynetdicom."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import dimse_messages as judge
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.pdu_primitives import P_DATA
from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.dimse import (
    Command,
    InvalidMessage,
    MessageReader,
    Status,
    decode_command,
    encode_command,
    encode_response,
)
from storescp.pdu import Fragment
from tests.strategies import piece_sizes, pieces, steady

CT, INSTANCE = b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.826.0.1.99"
us = struct.Struct("<H").pack
STORE = {
    dimse.AFFECTED_SOP_CLASS_UID: CT,
    dimse.COMMAND_FIELD: us(dimse.C_STORE_RQ),
    dimse.MESSAGE_ID: us(65535),
    dimse.PRIORITY: us(2),
    dimse.COMMAND_DATA_SET_TYPE: us(0),
    dimse.AFFECTED_SOP_INSTANCE_UID: INSTANCE,
}
ECHO = {
    dimse.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
    dimse.COMMAND_FIELD: us(dimse.C_ECHO_RQ),
    dimse.MESSAGE_ID: us(7),
    dimse.COMMAND_DATA_SET_TYPE: us(dimse.NO_DATA_SET),
}


def fragments(
    data: bytes, sizes: Iterable[int], context_id: int = 1, is_command: bool = True
) -> list[Fragment]:
    """*data* as fragments of *sizes*; one, when there is none."""
    cut = list(pieces(data, sizes)) or [b""]
    return [
        Fragment(context_id, is_command, number == len(cut), memoryview(piece))
        for number, piece in enumerate(cut, 1)
    ]


class CommandTests(SynchronousTestCase):
    """Command sets to bytes and back."""

    @given(st.dictionaries(st.integers(1, 0xFFFF), st.binary(max_size=40), max_size=10), st.booleans())
    @steady
    def test_inverse(self, elements: dict[int, bytes], has_data_set: bool) -> None:
        """Decoding what was encoded gives the same elements, behind their true group length."""
        elements[dimse.COMMAND_FIELD] = us(0x0020)
        elements[dimse.COMMAND_DATA_SET_TYPE] = us(1 if has_data_set else dimse.NO_DATA_SET)
        data = encode_command(elements)
        self.assertEqual(data[:8], bytes.fromhex("00000000 04000000"))
        self.assertEqual(int.from_bytes(data[8:12], "little"), len(data) - 12)
        command = decode_command(data)
        self.assertEqual(command.elements.pop(0), data[8:12])
        self.assertEqual(command.elements, elements)
        self.assertEqual((command.command_field, command.has_data_set), (0x0020, has_data_set))

    def test_judge_sends(self) -> None:
        """The requests of pynetdicom are read as meant, Move Originator and all."""
        store = C_STORE()
        store.MessageID, store.Priority = 11, 1
        store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = (
            UID("1.2.840.10008.5.1.4.1.1.2"),
            UID("1.2.3"),
        )
        store.MoveOriginatorApplicationEntityTitle, store.MoveOriginatorMessageID = "MOVER", 12
        store.DataSet = io.BytesIO(b"data")
        echo = C_ECHO()
        echo.MessageID, echo.AffectedSOPClassUID = 13, UID("1.2.840.10008.1.1")
        commands = []
        for message, primitive in ((judge.C_STORE_RQ(), store), (judge.C_ECHO_RQ(), echo)):
            message.primitive_to_message(primitive)
            pdata = next(message.encode_msg(1, 0))
            ((_, value),) = pdata.presentation_data_value_list
            self.assertEqual(value[0], 3)
            commands.append(decode_command(value[1:]))
        first, second = commands
        self.assertEqual((first.command_field, first.message_id, first.has_data_set), (1, 11, True))
        self.assertEqual(first.uid(dimse.AFFECTED_SOP_CLASS_UID), "1.2.840.10008.5.1.4.1.1.2")
        self.assertEqual(first.uid(dimse.AFFECTED_SOP_INSTANCE_UID), "1.2.3")
        self.assertEqual(first.integer(dimse.PRIORITY), 1)
        self.assertEqual(first.integer(dimse.MOVE_ORIGINATOR_MESSAGE_ID), 12)
        title = first.elements[dimse.MOVE_ORIGINATOR_APPLICATION_ENTITY_TITLE]
        self.assertEqual(title.strip(), b"MOVER")
        self.assertEqual((second.command_field, second.message_id, second.has_data_set), (0x30, 13, False))

    def test_values(self) -> None:
        """UIDs lose their padding, missing ones are empty; a value that is no US or no UID is no message."""
        command = Command({**ECHO, 0x1000: b"1.2 \0", 0x1001: b"\xe9", 0x0700: b"\1", 0x0110: b""})
        self.assertEqual(command.uid(0x1000), "1.2")
        self.assertEqual(command.uid(0x0003), "")
        self.assertRaises(InvalidMessage, command.uid, 0x1001)
        self.assertRaises(InvalidMessage, command.integer, 0x0700)
        self.assertRaises(InvalidMessage, command.integer, 0x0900)
        self.assertRaises(InvalidMessage, lambda: command.message_id)

    def test_invalid(self) -> None:
        """What is no command set is aborted as by the service user, PS3.8 Table 9-26."""
        good = encode_command(ECHO)
        for data in (
            b"",
            good[:-1],
            good[:-10],
            good + b"\0",
            good + struct.pack("<HHI", 0, 0x1000, 1),
            good + struct.pack("<HHI", 0, 0x1000, 2**32 - 1),
            good + struct.pack("<HHI", 8, 0x18, 0),
            good + struct.pack("<HHI", 0, 0x1000, 65536) + bytes(65536),
            *(
                encode_command({tag: value for tag, value in ECHO.items() if tag != gone})
                for gone in (0x100, 0x800)
            ),
            encode_command({**ECHO, 0x100: b"\x30"}),
            encode_command({**ECHO, 0x800: b"\1\1\0\0"}),
        ):
            with self.assertRaises(InvalidMessage, msg=data[:100].hex()) as raised:
                decode_command(data)
            self.assertEqual((raised.exception.source, raised.exception.reason), (0, 0))

    @given(st.binary(max_size=60), st.booleans())
    @steady
    def test_random_bytes(self, data: bytes, at_end: bool) -> None:
        """Any bytes are a command set or an InvalidMessage."""
        try:
            self.assertEqual(
                decode_command(encode_command(ECHO) + data if at_end else data).command_field, 0x30
            )
        except InvalidMessage as violation:
            self.assertTrue(str(violation))


class ResponseTests(SynchronousTestCase):
    """Responses, PS3.7 §9.3 and §10.3."""

    def judged(self, data: bytes) -> judge.DIMSEMessage:
        """What pynetdicom makes of a response."""
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((1, b"\x03" + data))
        message = judge.DIMSEMessage()
        self.assertTrue(message.decode_msg(primitive))
        return message

    def test_judged(self) -> None:
        """pynetdicom and pydicom read the responses as meant: fields in ascending order, all of them, no more."""
        for elements, status, comment, kind, extra in (
            (STORE, Status.SUCCESS, "", judge.C_STORE_RSP, []),
            (STORE, Status.DUPLICATE_SOP_INSTANCE, "odd", judge.C_STORE_RSP, ["ErrorComment"]),
            (STORE, Status.CANNOT_UNDERSTAND, "even", judge.C_STORE_RSP, ["ErrorComment"]),
            (ECHO, Status.SUCCESS, "", judge.C_ECHO_RSP, []),
        ):
            data = encode_response(Command(elements), status, comment)
            self.assertIsInstance(self.judged(data), kind)
            dataset = decode(io.BytesIO(data), True, True)
            instance = ["AffectedSOPInstanceUID"] if elements is STORE else []
            self.assertEqual(
                dataset.dir(),
                sorted(
                    [
                        "AffectedSOPClassUID",
                        "CommandDataSetType",
                        "CommandField",
                        "CommandGroupLength",
                        "MessageIDBeingRespondedTo",
                        "Status",
                        *extra,
                        *instance,
                    ]
                ),
            )
            command = decode_command(data)
            self.assertEqual(list(command.elements), sorted(command.elements))
            self.assertEqual(dataset.CommandGroupLength, len(data) - 12)
            self.assertEqual(dataset.AffectedSOPClassUID, Command(elements).uid(0x0002))
            self.assertEqual(dataset.CommandField, Command(elements).command_field | 0x8000)
            self.assertEqual(dataset.MessageIDBeingRespondedTo, Command(elements).message_id)
            self.assertEqual((dataset.CommandDataSetType, dataset.Status), (0x0101, status))
            self.assertEqual(dataset.get("ErrorComment", ""), comment)
            if instance:
                self.assertEqual(dataset.AffectedSOPInstanceUID, INSTANCE.decode())

    def test_comment(self) -> None:
        """An Error Comment is a valid LO, whatever it came from, and of even length."""
        for comment, expected in (
            ("x" * 100, b"x" * 64),
            ("x" * 63, b"x" * 63 + b" "),
            ("a\\b\nc\0\xe9\u20ac", b"a?b?c???"),
        ):
            command = decode_command(encode_response(Command(STORE), 0xC000, comment))
            self.assertEqual(command.elements[dimse.ERROR_COMMENT], expected)

    def test_what_is_echoed(self) -> None:
        """UIDs that are missing stay so, those of odd length get their padding, any command has its response."""
        request = Command({**ECHO, 0x0002: b"1.2", 0x1000: b"", 0x0100: us(0x0150)})
        command = decode_command(encode_response(request, Status.UNRECOGNIZED_OPERATION))
        self.assertEqual(command.elements[0x0002], b"1.2\0")
        self.assertNotIn(0x1000, command.elements)
        self.assertEqual((command.command_field, command.integer(dimse.STATUS)), (0x8150, 0x0211))
        without = Command({tag: value for tag, value in STORE.items() if tag != dimse.MESSAGE_ID})
        self.assertRaises(InvalidMessage, encode_response, without, 0)

    def test_statuses(self) -> None:
        """The numbers are those of PS3.7 Annex C and PS3.4 Table B.2-1."""
        self.assertEqual(
            {status.name: f"{status:04X}" for status in Status},
            {
                "SUCCESS": "0000",
                "PROCESSING_FAILURE": "0110",
                "DUPLICATE_SOP_INSTANCE": "0111",
                "SOP_CLASS_NOT_SUPPORTED": "0122",
                "DUPLICATE_INVOCATION": "0210",
                "UNRECOGNIZED_OPERATION": "0211",
                "OUT_OF_RESOURCES": "A700",
                "DATA_SET_DOES_NOT_MATCH_SOP_CLASS": "A900",
                "CANNOT_UNDERSTAND": "C000",
            },
        )


class MessageReaderTests(SynchronousTestCase):
    """Messages out of fragments."""

    @given(st.lists(st.tuples(st.booleans(), piece_sizes, st.sampled_from((1, 3))), max_size=5))
    @steady
    def test_any_cut(self, messages: list[tuple[bool, list[int], int]]) -> None:
        """However messages are cut, each command set comes out once, whole, with its last fragment."""
        reader = MessageReader()
        for is_store, sizes, context_id in messages:
            elements = STORE if is_store else ECHO
            *some, last = fragments(encode_command(elements), sizes, context_id)
            for fragment in some:
                self.assertIsNone(reader.command(fragment))
            command = reader.command(last)
            assert command is not None
            del command.elements[0]
            self.assertEqual(command.elements, elements)
            if is_store:
                for fragment in fragments(b"data set", sizes, context_id, False):
                    reader.data_set(fragment)

    def test_empty_fragments(self) -> None:
        """Fragments without a byte are no harm; the last may be one."""
        reader = MessageReader()
        empty = Fragment(1, True, False, memoryview(b""))
        for fragment in (empty, *fragments(encode_command(STORE), [200])):
            self.assertIsNone(reader.command(fragment._replace(is_last=False)))
        self.assertIsNotNone(reader.command(empty._replace(is_last=True)))
        for fragment in fragments(b"", [1], 1, False):
            reader.data_set(fragment)
        self.assertIsNotNone(reader.command(*fragments(encode_command(ECHO), [200])))

    def test_out_of_place(self) -> None:
        """Fragments that cannot belong together are no message: the service user aborts."""
        (store,) = fragments(encode_command(STORE), [200])
        (echo,) = fragments(encode_command(ECHO), [200])
        begun = echo._replace(is_last=False, data=echo.data[:20])
        rest = echo._replace(data=echo.data[20:])
        (data,) = fragments(b"data", [200], 1, False)
        more = data._replace(is_last=False)
        for sequence in (
            (data,),
            (more,),
            (echo, data),
            (begun, data),
            (begun, rest._replace(presentation_context_id=3)),
            (store, data._replace(presentation_context_id=3)),
            (store, more, more._replace(presentation_context_id=3)),
            (store, echo),
            (store, more, echo),
            (store, more, begun),
            (store, data, data),
            (store, data, begun, data),
        ):
            reader = MessageReader()
            for fragment in sequence[:-1]:
                reader.command(fragment) if fragment.is_command else reader.data_set(fragment)
            last = sequence[-1]
            with self.assertRaises(InvalidMessage, msg=sequence) as raised:
                reader.command(last) if last.is_command else reader.data_set(last)
            self.assertEqual((raised.exception.source, raised.exception.reason), (0, 0))

    def test_bounded(self) -> None:
        """A command set is refused as soon as more than its bound has come, in one piece or in many."""
        piece = memoryview(bytes(dimse.MAXIMUM_COMMAND_LENGTH // 2))
        reader = MessageReader()
        for _ in range(2):
            self.assertIsNone(reader.command(Fragment(1, True, False, piece)))
        self.assertRaises(InvalidMessage, reader.command, Fragment(1, True, False, piece[:1]))
        whole = encode_command({**ECHO, 0x1000: bytes(dimse.MAXIMUM_COMMAND_LENGTH)})
        self.assertRaises(InvalidMessage, MessageReader().command, Fragment(1, True, True, memoryview(whole)))
