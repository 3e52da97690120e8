"""storescp.upper_layer: PS3.8 §9.2, cell by cell and in whole conversations."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import (
    PDU,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    Fragment,
    PresentationContext,
    PresentationContextResult,
    UserInformation,
)
from storescp.pdu_reader import PDUReader
from storescp.state_table import TABLE, Input, State
from storescp.upper_layer import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    Indication,
    ReleaseConfirmation,
    ReleaseIndication,
    UpperLayer,
)
from tests.strategies import PDV, p_data, p_datas, pdus, piece_sizes, pieces, steady

#: PS3.8 Table 9-10: the rows are the events 1 to 19, the columns the states 1 to 13.
TABLE_9_10 = """
    AE-1   -     -     -     -     -     -     -     -     -      -     -     -
    -      -     -     AE-2  -     -     -     -     -     -      -     -     -
    -      AA-1  AA-8  -     AE-3  AA-8  AA-8  AA-8  AA-8  AA-8   AA-8  AA-8  AA-6
    -      AA-1  AA-8  -     AE-4  AA-8  AA-8  AA-8  AA-8  AA-8   AA-8  AA-8  AA-6
    AE-5   -     -     -     -     -     -     -     -     -      -     -     -
    -      AE-6  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8   AA-8  AA-8  AA-7
    -      -     AE-7  -     -     -     -     -     -     -      -     -     -
    -      -     AE-8  -     -     -     -     -     -     -      -     -     -
    -      -     -     -     -     DT-1  -     AR-7  -     -      -     -     -
    -      AA-1  AA-8  -     AA-8  DT-2  AR-6  AA-8  AA-8  AA-8   AA-8  AA-8  AA-6
    -      -     -     -     -     AR-1  -     -     -     -      -     -     -
    -      AA-1  AA-8  -     AA-8  AR-2  AR-8  AA-8  AA-8  AA-8   AA-8  AA-8  AA-6
    -      AA-1  AA-8  -     AA-8  AA-8  AR-3  AA-8  AA-8  AR-10  AR-3  AA-8  AA-6
    -      -     -     -     -     -     -     AR-4  AR-9  -      -     AR-4  -
    -      -     AA-1  AA-2  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1   AA-1  AA-1  -
    -      AA-2  AA-3  -     AA-3  AA-3  AA-3  AA-3  AA-3  AA-3   AA-3  AA-3  AA-2
    -      AA-5  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4   AA-4  AA-4  AR-5
    -      AA-2  -     -     -     -     -     -     -     -      -     -     AA-2
    -      AA-1  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8   AA-8  AA-8  AA-7
"""

#: PS3.8 Tables 9-6 to 9-9: the next state, what is sent and indicated, what becomes of ARTIM and of the connection.
#: AR-8 is that of an acceptor here.
ACTIONS: dict[str, tuple[int, type | None, type | None, str]] = {
    "AE-1": (4, None, None, ""),
    "AE-2": (5, AAssociateRQ, None, ""),
    "AE-3": (6, None, AssociateConfirmation, ""),
    "AE-4": (1, None, AssociateConfirmation, "close"),
    "AE-5": (2, None, None, "start"),
    "AE-6": (3, None, AssociateIndication, "stop"),
    "AE-7": (6, AAssociateAC, None, ""),
    "AE-8": (13, AAssociateRJ, None, "start"),
    "DT-1": (6, Fragment, None, ""),
    "DT-2": (6, None, Fragment, ""),
    "AR-1": (7, AReleaseRQ, None, ""),
    "AR-2": (8, None, ReleaseIndication, ""),
    "AR-3": (1, None, ReleaseConfirmation, "close"),
    "AR-4": (13, AReleaseRP, None, "start"),
    "AR-5": (1, None, None, "stop"),
    "AR-6": (7, None, Fragment, ""),
    "AR-7": (8, Fragment, None, ""),
    "AR-8": (10, None, ReleaseIndication, ""),
    "AR-9": (11, AReleaseRP, None, ""),
    "AR-10": (12, None, ReleaseConfirmation, ""),
    "AA-1": (13, AAbort, None, "start"),
    "AA-2": (1, None, None, "stop close"),
    "AA-3": (1, None, AbortIndication, "close"),
    "AA-4": (1, None, AbortIndication, ""),
    "AA-5": (1, None, None, "stop"),
    "AA-6": (13, None, None, ""),
    "AA-7": (13, AAbort, None, ""),
    "AA-8": (13, AAbort, AbortIndication, "start"),
}

IMPLICIT = "1.2.840.10008.1.2"
REQUEST = AAssociateRQ("SCP", "SCU", (PresentationContext(1, "1.2.3", (IMPLICIT,)),), UserInformation(14))
RESPONSE = AAssociateAC("SCP", "SCU", (PresentationContextResult(1, 0, IMPLICIT),), UserInformation(20))
REJECTION = AAssociateRJ(1, 1, 7)
DATA = p_data([PDV(1, False, True, b"data")])
GARBAGE = b"GET / HTTP/1.1\r\n\r\n"
RELEASE_RQ, RELEASE_RP, ABORT = AReleaseRQ().encode(), AReleaseRP().encode(), AAbort(0, 0).encode()


def receive(layer: UpperLayer, *data: bytes) -> list[Indication]:
    """What *layer* indicates while *data* arrive."""
    indications = []
    for piece in data:
        layer.receive_data(piece)
        while (indication := layer.next_event()) is not None:
            indications.append(indication)
    return indications


def sent(layer: UpperLayer) -> list[PDU | Fragment]:
    """What *layer* has to send, as the peer reads it."""
    reader = PDUReader(0)
    reader.feed(layer.data_to_send())
    return list(iter(reader.next, None))


def acceptor(state: State = State.DATA_TRANSFER) -> UpperLayer:
    """An acceptor that got to *state* in an honest way."""
    layer = UpperLayer(16384)
    layer.connection_made()
    if state is State.AWAITING_ASSOCIATE_RQ:
        return layer
    receive(layer, REQUEST.encode())
    if state is State.AWAITING_LOCAL_ASSOCIATE_RESPONSE:
        return layer
    layer.accept(RESPONSE)
    if state is State.AWAITING_LOCAL_RELEASE_RESPONSE:
        receive(layer, RELEASE_RQ)
    elif state is State.AWAITING_RELEASE_RP:
        layer.release()
    elif state is State.AWAITING_TRANSPORT_CLOSE:
        receive(layer, RELEASE_RQ)
        layer.release_response()
    assert layer.state is state
    layer.data_to_send()
    return layer


ASSOCIATED = (State.DATA_TRANSFER, State.AWAITING_LOCAL_RELEASE_RESPONSE, State.AWAITING_RELEASE_RP)


class TableTests(SynchronousTestCase):
    """Each event in each state."""

    def setUp(self) -> None:
        rows = [row.split() for row in TABLE_9_10.split("\n") if row.strip()]
        self.cells = {
            (event, state): None if cell == "-" else cell
            for event, row in zip(Input, rows, strict=True)
            for state, cell in zip(State, row, strict=True)
        }

    def test_table(self) -> None:
        """The table is, cell by cell, that of the standard, blank cells included, and so are the next states."""
        for (event, state), expected in self.cells.items():
            action, following = TABLE[event].get(state, (None, None))
            self.assertEqual(action and action.value, expected, (event, state))
            if expected is not None:
                # AR-8 has two next states: the table gives that of the requestor.
                self.assertEqual(following, 9 if expected == "AR-8" else ACTIONS[expected][0], (event, state))

    def test_effects(self) -> None:
        """Each cell sends, indicates, runs ARTIM, closes, and goes on as its action says; a blank one is a
        mistake of the caller, and changes nothing.
        """
        happen: dict[Input, Callable[[UpperLayer], object]] = {
            Input.ASSOCIATE_AC_PDU: lambda layer: receive(layer, RESPONSE.encode()),
            Input.ASSOCIATE_RJ_PDU: lambda layer: receive(layer, REJECTION.encode()),
            Input.TRANSPORT_INDICATION: lambda layer: layer.connection_made(),
            Input.ASSOCIATE_RQ_PDU: lambda layer: receive(layer, REQUEST.encode()),
            Input.ASSOCIATE_RESPONSE_ACCEPT: lambda layer: layer.accept(RESPONSE),
            Input.ASSOCIATE_RESPONSE_REJECT: lambda layer: layer.reject(REJECTION),
            Input.P_DATA_REQUEST: lambda layer: layer.send_data(1, True, b"data"),
            Input.P_DATA_PDU: lambda layer: receive(layer, DATA),
            Input.RELEASE_REQUEST: lambda layer: layer.release(),
            Input.RELEASE_RQ_PDU: lambda layer: receive(layer, RELEASE_RQ),
            Input.RELEASE_RP_PDU: lambda layer: receive(layer, RELEASE_RP),
            Input.RELEASE_RESPONSE: lambda layer: layer.release_response(),
            Input.ABORT_REQUEST: lambda layer: layer.abort(),
            Input.ABORT_PDU: lambda layer: receive(layer, ABORT),
            Input.TRANSPORT_CLOSED: lambda layer: [layer.connection_lost()],
            Input.ARTIM_EXPIRED: lambda layer: layer.artim_expired(),
            Input.INVALID_PDU: lambda layer: receive(layer, GARBAGE),
        }
        for (event, state), cell in self.cells.items():
            if event not in happen or (state, event) == (State.IDLE, Input.TRANSPORT_CLOSED):
                continue  # associate() is E1 and E2 in one; the loss of what has ended is told to everybody
            where = (event, state, cell)
            layer = UpperLayer(16384)
            layer.state = state
            layer.artim_running = ran = state in (State.AWAITING_ASSOCIATE_RQ, State.AWAITING_TRANSPORT_CLOSE)
            if cell is None:
                with self.assertRaises(RuntimeError, msg=where):
                    happen[event](layer)
                self.assertEqual((layer.state, sent(layer)), (state, []), where)
                continue
            following, sends, indicates, effect = ACTIONS[cell]
            outcome = happen[event](layer)
            indications = [one for one in outcome if one is not None] if isinstance(outcome, list) else []
            if cell == "AA-1" and event is not Input.ABORT_REQUEST:
                indicates = (
                    AbortIndication  # more than the standard asks for: why it ended is worth a log line
                )
            self.assertEqual(layer.state, following, where)
            self.assertEqual([type(one) for one in sent(layer)], [sends] if sends else [], where)
            self.assertEqual([type(one) for one in indications], [indicates] if indicates else [], where)
            self.assertIs(layer.transport_closing, "close" in effect, where)
            self.assertIs(layer.artim_running, "start" in effect or (ran and "stop" not in effect), where)


class ConversationTests(SynchronousTestCase):
    """What an acceptor lives through, from the connection to its end."""

    def test_whole(self) -> None:
        """Association, data both ways, release by the peer, and the end of the connection."""
        layer = UpperLayer(16384)
        layer.connection_made()
        self.assertTrue(layer.artim_running)
        self.assertEqual(receive(layer, REQUEST.encode()), [AssociateIndication(REQUEST)])
        self.assertFalse(layer.artim_running or layer.is_established)
        layer.accept(RESPONSE)
        self.assertEqual(sent(layer), [RESPONSE])
        self.assertTrue(layer.is_established and layer.can_send_data)
        self.assertEqual(receive(layer, DATA), [Fragment(1, False, True, memoryview(b"data"))])
        layer.send_data(1, True, b"answer")
        self.assertEqual(sent(layer), [Fragment(1, True, True, memoryview(b"answer"))])
        self.assertEqual(receive(layer, RELEASE_RQ), [ReleaseIndication()])
        layer.release_response()
        self.assertEqual(layer.data_to_send(), RELEASE_RP)
        self.assertEqual(layer.data_to_send(), b"")
        self.assertTrue(layer.artim_running)
        self.assertFalse(layer.is_established or layer.can_send_data or layer.transport_closing)
        self.assertIsNone(layer.connection_lost())
        self.assertEqual((layer.state, layer.artim_running), (State.IDLE, False))

    def test_peer_maximum_length(self) -> None:
        """What is sent is cut to what the peer announced when it asked, or when it accepted."""
        requestor = UpperLayer(0)
        requestor.associate(REQUEST)
        receive(requestor, RESPONSE.encode())
        requestor.data_to_send()
        for layer, size in ((acceptor(), 14 - 6), (requestor, 20 - 6)):
            layer.send_data(1, False, bytes(20))
            pdvs = [PDV(1, False, False, bytes(size)), PDV(1, False, True, bytes(20 - size))]
            if size == 8:
                pdvs[1:] = [PDV(1, False, False, bytes(8)), PDV(1, False, True, bytes(4))]
            self.assertEqual(layer.data_to_send(), b"".join(p_data([pdv]) for pdv in pdvs))

    def test_reject(self) -> None:
        """A rejection is sent, and the peer has as long as ARTIM to close."""
        layer = acceptor(State.AWAITING_LOCAL_ASSOCIATE_RESPONSE)
        layer.reject(REJECTION)
        self.assertEqual(sent(layer), [REJECTION])
        self.assertTrue(layer.artim_running)
        layer.artim_expired()
        self.assertTrue(layer.transport_closing)
        self.assertFalse(layer.artim_running)

    def test_protocol_version(self) -> None:
        """Only bit 0 of the version is tested; without it the provider itself rejects (PS3.8 Table 9-21)."""
        for version, expected in ((1, None), (3, None), (0xFFFF, None), (0, 2), (2, 2), (0xFFFE, 2)):
            layer = acceptor(State.AWAITING_ASSOCIATE_RQ)
            request = AAssociateRQ("SCP", "SCU", (), protocol_version=version)
            self.assertEqual(
                receive(layer, request.encode()), [] if expected else [AssociateIndication(request)]
            )
            self.assertEqual(sent(layer), [AAssociateRJ(1, 2, 2)] if expected else [])
            self.assertEqual(layer.state, 13 if expected else 3)
            self.assertIs(layer.artim_running, expected is not None)

    def test_artim(self) -> None:
        """Who never asks for an association, or never closes, is closed, without a word."""
        for state in (State.AWAITING_ASSOCIATE_RQ, State.AWAITING_TRANSPORT_CLOSE):
            layer = acceptor(state)
            layer.artim_expired()
            self.assertTrue(layer.transport_closing)
            self.assertEqual((layer.state, layer.artim_running, sent(layer)), (State.IDLE, False, []))

    def test_answers_after_release_request(self) -> None:
        """AR-7: what is still owed can be sent after the peer asked for release, and before we agree."""
        layer = acceptor(State.AWAITING_LOCAL_RELEASE_RESPONSE)
        self.assertTrue(layer.can_send_data)
        layer.send_data(1, True, b"owed")
        layer.release_response()
        self.assertEqual(sent(layer), [Fragment(1, True, True, memoryview(b"owed")), AReleaseRP()])
        self.assertRaises(RuntimeError, layer.send_data, 1, True, b"too late")
        self.assertEqual(sent(layer), [])

    def test_collision(self) -> None:
        """Both sides ask for release: the requestor agrees first, then the acceptor, and both know the end."""
        requestor, other = UpperLayer(16384), acceptor()
        requestor.associate(REQUEST)
        self.assertEqual(sent(requestor), [REQUEST])
        self.assertEqual(receive(requestor, RESPONSE.encode()), [AssociateConfirmation(RESPONSE)])
        requestor.release()
        other.release()
        self.assertEqual(receive(other, requestor.data_to_send()), [ReleaseIndication()])
        self.assertEqual(receive(requestor, other.data_to_send()), [ReleaseIndication()])
        self.assertEqual((requestor.state, other.state), (9, 10))
        self.assertRaises(RuntimeError, other.release_response)
        requestor.release_response()
        self.assertEqual(receive(other, requestor.data_to_send()), [ReleaseConfirmation()])
        self.assertEqual((requestor.state, other.state), (11, 12))
        other.release_response()
        self.assertEqual(receive(requestor, other.data_to_send()), [ReleaseConfirmation()])
        self.assertEqual((requestor.state, requestor.transport_closing), (State.IDLE, True))
        self.assertEqual((other.state, other.artim_running), (State.AWAITING_TRANSPORT_CLOSE, True))

    def test_own_release(self) -> None:
        """After our own request for release data still arrive, until the peer agrees and we close."""
        layer = acceptor(State.AWAITING_RELEASE_RP)
        self.assertEqual(
            receive(layer, DATA + RELEASE_RP),
            [Fragment(1, False, True, memoryview(b"data")), ReleaseConfirmation()],
        )
        self.assertTrue(layer.transport_closing)

    def test_rejected(self) -> None:
        """A requestor that is rejected learns why, and closes."""
        layer = UpperLayer(0)
        layer.associate(REQUEST)
        self.assertEqual(receive(layer, REJECTION.encode()), [AssociateConfirmation(REJECTION)])
        self.assertTrue(layer.transport_closing)

    def test_abort(self) -> None:
        """Our abort is sent once, as the service user's unless said otherwise, and the peer gets time to close."""
        for arguments, expected in (((), AAbort(0, 0)), ((2, 6), AAbort(2, 6))):
            layer = acceptor()
            layer.abort(*arguments)
            self.assertEqual(sent(layer), [expected])
            self.assertEqual((layer.state, layer.artim_running), (State.AWAITING_TRANSPORT_CLOSE, True))
            self.assertRaises(RuntimeError, layer.abort)
            self.assertEqual(receive(layer, DATA + RELEASE_RQ), [])
            self.assertEqual(sent(layer), [])

    def test_aborted(self) -> None:
        """The peer's abort closes; who has an association learns of it; nothing behind it is read."""
        for state in (*ASSOCIATED, State.AWAITING_LOCAL_ASSOCIATE_RESPONSE, State.AWAITING_ASSOCIATE_RQ):
            layer = acceptor(state)
            heard = receive(layer, AAbort(2, 1).encode() + DATA + GARBAGE, REQUEST.encode())
            if state is State.AWAITING_ASSOCIATE_RQ:
                self.assertEqual(heard, [])
            else:
                self.assertEqual(heard, [AbortIndication(2, 1, True, "A-ABORT received")])
            self.assertEqual((layer.state, sent(layer)), (State.IDLE, []))
            self.assertTrue(layer.transport_closing)

    def test_lost(self) -> None:
        """A loss is indicated once to who has an association; afterwards nothing is sent and nothing read."""
        for state in (*ASSOCIATED, State.AWAITING_LOCAL_ASSOCIATE_RESPONSE):
            layer = acceptor(state)
            if layer.can_send_data:
                layer.send_data(1, True, b"nobody will read this")
            layer.receive_data(DATA)
            indication = layer.connection_lost()
            assert isinstance(indication, AbortIndication)
            self.assertTrue(indication.by_peer)
            self.assertIsNone(layer.connection_lost())
            self.assertEqual(receive(layer, RELEASE_RQ), [])
            self.assertEqual((layer.data_to_send(), layer.can_send_data), (b"", False))
            self.assertRaises(RuntimeError, layer.send_data, 1, True, b"")
        for state in (State.AWAITING_ASSOCIATE_RQ, State.AWAITING_TRANSPORT_CLOSE):
            layer = acceptor(state)
            self.assertIsNone(layer.connection_lost())
            self.assertFalse(layer.artim_running)

    def test_violations(self) -> None:
        """Each kind of violation is answered by A-ABORT with its reason of PS3.8 Table 9-26; where there is no
        association yet, as the service user (AA-1), whose reason is always 0.
        """
        pdv = p_data([PDV(1, False, False, b"")])
        invalid = (
            b"\4\0\xff\xff\xff\xff",
            b"\1\0\xff\xff\xff\xff",
            pdv[:6] + b"\xff\xff\xff\xff" + pdv[10:],
            b"\5\0\0\0\0\5",
            b"\1\0\0\0\0\4....",
        )
        for state in (State.AWAITING_LOCAL_ASSOCIATE_RESPONSE, *ASSOCIATED, State.AWAITING_ASSOCIATE_RQ):
            unexpected = [RESPONSE.encode(), REJECTION.encode()]
            if state is not State.AWAITING_RELEASE_RP:
                unexpected.append(RELEASE_RP)
            if state is State.AWAITING_ASSOCIATE_RQ:
                unexpected += [DATA, RELEASE_RQ]
            else:
                unexpected.append(REQUEST.encode())
            for reason, offences in ((1, [GARBAGE, b"\x16\3\1\2\0\1"]), (2, unexpected), (6, invalid)):
                for offence in offences:
                    layer = acceptor(state)
                    expected = (0, 0) if state is State.AWAITING_ASSOCIATE_RQ else (2, reason)
                    (indication,) = receive(layer, offence + DATA, RELEASE_RQ)
                    assert isinstance(indication, AbortIndication)
                    self.assertEqual((indication.source, indication.reason), expected, offence)
                    self.assertTrue(indication.why and not indication.by_peer)
                    self.assertEqual(sent(layer), [AAbort(*expected)])
                    self.assertEqual((layer.state, layer.artim_running), (13, True))

    def test_nothing_kept_after_violation(self) -> None:
        """Once a stream makes no sense, what still arrives is not even kept."""
        layer = acceptor()
        receive(layer, GARBAGE)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(receive(layer, *(bytes(65536) for _ in range(50))), [])
        self.assertLess(tracemalloc.get_traced_memory()[0], 65536)

    def test_violations_at_the_end(self) -> None:
        """AA-7: while the peer is to close, a request or garbage is aborted again, all else ignored."""
        for data, expected in (
            (REQUEST.encode(), [AAbort(2, 2)]),
            (GARBAGE + GARBAGE, [AAbort(2, 1)]),
            (b"\5\0\0\0\0\0", [AAbort(2, 6)]),
            (DATA + RELEASE_RQ + RELEASE_RP + RESPONSE.encode() + REJECTION.encode(), []),
        ):
            layer = acceptor(State.AWAITING_TRANSPORT_CLOSE)
            self.assertEqual(receive(layer, data), [])
            self.assertEqual(sent(layer), expected)
            self.assertEqual(layer.state, State.AWAITING_TRANSPORT_CLOSE)

    @given(st.lists(st.one_of(pdus, p_datas, st.binary(max_size=12)), max_size=6), st.booleans(), piece_sizes)
    @example([AAbort(0, 0), AReleaseRQ()], True, [50])
    @example([REQUEST, AReleaseRQ(), AReleaseRQ(), b"garbage"], False, [50])
    @steady
    def test_anything(
        self, received: list[PDU | list[PDV] | bytes], associated: bool, sizes: list[int]
    ) -> None:
        """Whatever a peer sends, in whatever cut, raises nothing and gets the same answer, which is made of
        PDUs; ARTIM runs just while the peer has to act, and the connection closes when all is over.
        """
        stream = b"".join(
            one if isinstance(one, bytes) else p_data(one) if isinstance(one, list) else one.encode()
            for one in received
        )
        results = []
        for cut in (sizes, [len(stream) + 1]):
            layer = acceptor(State.DATA_TRANSFER if associated else State.AWAITING_ASSOCIATE_RQ)
            output = self.converse(layer, pieces(stream, cut))
            waits = layer.state in (State.AWAITING_ASSOCIATE_RQ, State.AWAITING_TRANSPORT_CLOSE)
            self.assertIs(layer.artim_running, waits)
            self.assertIs(layer.transport_closing, layer.state is State.IDLE)
            results.append((layer.state, output))
        self.assertEqual(*results)

    def converse(self, layer: UpperLayer, received: Iterable[bytes]) -> list[PDU | Fragment]:
        """Let a user agree to everything; the PDUs that *layer* sends meanwhile."""
        output = []
        for piece in received:
            layer.receive_data(piece)
            while (indication := layer.next_event()) is not None:
                if isinstance(indication, AssociateIndication):
                    layer.accept(RESPONSE)
                elif isinstance(indication, ReleaseIndication):
                    layer.release_response()
            output += sent(layer)
        return output
