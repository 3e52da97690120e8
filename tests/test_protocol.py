"""storescp.protocol: associations on a transport, their limits, timers and ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.connections import GRACE
from storescp.flow import HIGH_WATER, LOW_WATER
from storescp.negotiation import LOCAL_LIMIT_EXCEEDED
from storescp.pdu import AAbort, AAssociateAC, AReleaseRP, AReleaseRQ
from storescp.protocol import CLOSE_TIMEOUT
from tests.conversation import Conversation, Response, World, a_associate_rq, c_echo, c_store, p_data
from tests.strategies import steady

RELEASED = [AReleaseRP()]
ABORTED_BY_USER = [AAbort(0, 0)]

PDUS = [
    a_associate_rq().encode(),
    AAssociateAC("", "", ()).encode(),
    LOCAL_LIMIT_EXCEEDED.encode(),
    AReleaseRQ().encode(),
    AReleaseRP().encode(),
    AAbort(0, 0).encode(),
    p_data(1, True, dimse.encode_command(c_echo())),
    p_data(3, True, dimse.encode_command(c_store("1.2.3"))),
    p_data(3, False, b"data", is_last=False),
    p_data(9, True, dimse.encode_command(c_echo())),
    p_data(1, True, b"\0\0\0"),
]


def loud(events: Sequence[LogEvent]) -> list[LogEvent]:
    """The events that an operator sees without asking for more."""
    return [event for event in events if event["log_level"] > LogLevel.debug]


class LimitTests(SynchronousTestCase):
    """How many associations and connections there may be."""

    def setUp(self) -> None:
        self.world = World(max_assoc=1, max_pending=3)

    def test_rejected_above_max_assoc(self) -> None:
        """The association too many is rejected: transient, presentation provider, local limit exceeded."""
        self.world.associated()
        peer = self.world.connect()
        self.assertEqual(peer.associate(), LOCAL_LIMIT_EXCEEDED)
        self.assertEqual((LOCAL_LIMIT_EXCEEDED.encode()[7:]), b"\x02\x03\x02")
        self.assertEqual(self.world.statistics.rejected, 1)
        peer.hang_up()
        self.assertFalse(peer.is_open)

    def test_released_slot_is_free(self) -> None:
        """After a release there is room again, before the peer has closed the connection."""
        peer = self.world.associated()
        peer.release()
        self.assertEqual(peer.heard(), RELEASED)
        self.assertTrue(peer.is_open)
        self.world.associated()

    def test_aborted_slot_is_free(self) -> None:
        """After an abort by the peer there is room again."""
        self.world.associated().abort()
        self.world.associated()

    def test_violators_slot_is_free(self) -> None:
        """After an abort for a protocol violation there is room again."""
        peer = self.world.associated()
        peer.say(b"\x04\0\xff\xff\xff\xff")
        self.assertEqual(peer.heard(), [AAbort(2, 6)])
        self.world.associated()

    def test_lost_slot_is_free(self) -> None:
        """After the loss of the connection, and after a close without release, there is room again."""
        self.world.associated().drop()
        self.world.associated().hang_up()
        self.world.associated()

    def test_oldest_pending_is_dropped(self) -> None:
        """Of too many connections without an association the oldest ones go, at once."""
        peers = [self.world.connect() for _ in range(5)]
        self.assertEqual([peer.is_open for peer in peers], [False, False, True, True, True])

    def test_burst(self) -> None:
        """The bound holds as well for connections that are accepted before the transports can close any."""
        peers = [Conversation(self.world.factory, self.world.clock) for _ in range(20)]
        self.world.clock.advance(0)
        self.assertEqual([peer.is_open for peer in peers], [False] * 17 + [True] * 3)

    def test_associated_are_not_dropped(self) -> None:
        """An association does not count among the pending connections."""
        associated = self.world.associated()
        for _ in range(10):
            self.world.connect()
        self.assertTrue(associated.is_open)

    def test_loss_drops_nobody(self) -> None:
        """The end of a connection with an association costs no pending connection its place."""
        associated = self.world.associated()
        peers = [self.world.connect() for _ in range(3)]
        associated.drop()
        self.assertTrue(all(peer.is_open for peer in peers))


class TimerTests(SynchronousTestCase):
    """Nothing waits for ever."""

    def setUp(self) -> None:
        self.world = World(timeout=100, artim_timeout=30)

    def test_artim(self) -> None:
        """A connection that does not ask for an association is closed when ARTIM runs out."""
        peer = self.world.connect()
        self.world.clock.advance(29.9)
        self.assertTrue(peer.is_open)
        self.world.clock.advance(0.1)
        self.assertFalse(peer.is_open)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_artim_in_crumbs(self) -> None:
        """Sending the beginning of a request byte by byte does not put ARTIM off."""
        peer = self.world.connect()
        for byte in b"\x01\x00\x00\x00":
            self.world.clock.advance(10)
            peer.say(bytes([byte]))
        self.assertFalse(peer.is_open)

    def test_artim_ends_with_the_request(self) -> None:
        """ARTIM does not run during an association."""
        peer = self.world.associated()
        self.world.clock.advance(31)
        self.assertTrue(peer.is_open)

    def test_artim_after_release(self) -> None:
        """A peer that does not close after the release is not waited for beyond ARTIM."""
        peer = self.world.associated()
        peer.release()
        self.world.clock.advance(30)
        self.assertFalse(peer.is_open)
        self.assertFalse(peer.transport.aborted)

    def test_artim_after_reject(self) -> None:
        """Nor is one that was rejected."""
        peer = World(max_assoc=0).connect()
        self.assertEqual(peer.associate(), LOCAL_LIMIT_EXCEEDED)
        peer.clock.advance(30)
        self.assertFalse(peer.is_open)

    def assert_idle_from_now(self, peer: Conversation) -> None:
        """When the timeout, 100 s, has passed, the peer is told of it, and no sooner."""
        self.world.clock.advance(99.9)
        self.assertEqual(peer.heard(), [])
        self.world.clock.advance(0.1)
        self.assertEqual(peer.heard(), ABORTED_BY_USER)

    def test_idle(self) -> None:
        """An association on which nothing happens is aborted after the timeout, and then closed."""
        peer = self.world.associated()
        self.assert_idle_from_now(peer)
        self.world.clock.advance(30)
        self.assertFalse(peer.is_open)

    def test_idle_looks_back(self) -> None:
        """The timeout counts from what was heard last, though one timer runs and is not re-armed at each read."""
        peer = self.world.associated()
        for _ in range(10):
            self.world.clock.advance(60)
            calls = len(self.world.clock.getDelayedCalls())
            peer.echo()
            self.assertEqual(peer.statuses(), [0])
            self.assertEqual(len(self.world.clock.getDelayedCalls()), calls)
        self.assert_idle_from_now(peer)

    def test_half_a_message_is_idle(self) -> None:
        """A peer that stops in the middle of a data set is idle, and the instance is cancelled."""
        peer = self.world.associated()
        peer.message(c_store("1.2.3"), context_id=3)
        peer.say(p_data(3, False, b"half", is_last=False))
        self.world.clock.advance(100)
        self.assertEqual(peer.heard(), ABORTED_BY_USER)
        self.assertTrue(self.world.memory.instances[0].cancelled)

    def test_not_idle_while_storing(self) -> None:
        """The time that storage takes is not charged to the peer: its silence begins with our answer."""
        peer = self.world.associated()
        peer.store(b"data", "1.2.3")
        self.world.clock.pump([50] * 5)
        self.world.memory.instances[0].end()
        self.assertEqual(peer.statuses(), [0])
        self.assert_idle_from_now(peer)

    def test_not_idle_while_not_read(self) -> None:
        """Nor is the time in which we do not read because storage is slow."""
        peer = self.world.associated()
        peer.message(c_store("1.2.3"), context_id=3)
        for _ in range(HIGH_WATER // 16000 + 1):
            peer.say(p_data(3, False, bytes(16000), is_last=False))
        self.assertFalse(peer.transport.is_reading)
        self.world.clock.pump([50] * 5)
        self.world.memory.instances[0].written()
        self.assert_idle_from_now(peer)

    def test_no_timeout(self) -> None:
        """A timeout of 0 is none."""
        peer = World(timeout=0).associated()
        peer.clock.advance(10_000_000)
        peer.echo()
        self.assertEqual(peer.statuses(), [0])

    def test_abort_timer(self) -> None:
        """A peer that neither closes nor takes our last bytes is cut off some time after we closed."""
        peer = self.world.associated()
        peer.stop_reading()
        peer.say(b"\xff" * 20)
        self.world.clock.advance(30)
        self.assertTrue(peer.is_open)
        self.world.clock.advance(CLOSE_TIMEOUT)
        self.assertFalse(peer.is_open)
        self.assertTrue(peer.transport.aborted)

    def test_nothing_is_left(self) -> None:
        """A connection that is gone leaves no timer behind."""
        released, lost = self.world.associated(), self.world.associated()
        released.release()
        released.hang_up()
        lost.drop()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertFalse(self.world.factory.associations or self.world.factory.pending)


class FlowTests(SynchronousTestCase):
    """Neither slow storage nor a peer that does not read costs memory."""

    def setUp(self) -> None:
        self.world = World(timeout=100)
        self.peer = self.world.associated()

    def test_slow_storage_pauses_reading(self) -> None:
        """Above HIGH_WATER nothing more is read, until LOW_WATER is reached."""
        peer = self.peer
        peer.message(c_store("1.2.3"), context_id=3)
        (instance,) = self.world.memory.instances
        for _ in range(2 * HIGH_WATER // 16000):
            peer.say(p_data(3, False, bytes(16000), is_last=False))
        self.assertFalse(peer.transport.is_reading)
        self.assertLess(len(instance.data), HIGH_WATER + 16001)
        self.peer.protocol.released(HIGH_WATER - LOW_WATER - 1)
        self.assertFalse(peer.transport.is_reading)
        self.peer.protocol.released(16001)
        self.assertTrue(peer.transport.is_reading)
        peer.turn()
        self.assertGreater(len(instance.data), HIGH_WATER + 16001)

    def test_all_arrives(self) -> None:
        """However often reading was paused, the data set arrives whole and is answered."""
        peer = self.peer
        data = bytes(range(256)) * (10 * HIGH_WATER // 256)
        peer.store(data, "1.2.3", fragment=16000, read_size=256 * 1024)
        (instance,) = self.world.memory.instances
        pauses = 0
        while instance.finished is None:
            pauses += not peer.transport.is_reading
            instance.written()
            peer.turn()
        self.assertGreater(pauses, 5)
        self.assertEqual(instance.data, data)
        instance.end()
        self.assertEqual(peer.statuses(), [0])

    def test_loss_while_paused(self) -> None:
        """A connection that is lost while reading is paused cancels the instance, and resumes nothing."""
        self.peer.message(c_store("1.2.3"), context_id=3)
        self.peer.protocol.held(HIGH_WATER + 1)
        self.peer.drop()
        self.assertTrue(self.world.memory.instances[0].cancelled)
        self.peer.protocol.released(HIGH_WATER + 1)
        self.assertFalse(self.world.factory.associations)

    def test_peer_that_does_not_read(self) -> None:
        """Requests are not read on while the peer does not read the answers, and it is cut off after the timeout."""
        peer, clock = self.peer, self.world.clock
        messages = peer.ask_unread()
        for _ in range(messages):
            peer.echo()
        self.assertEqual(self.world.statistics.messages, messages)
        self.assertLess(len(peer.transport.unsent), peer.transport.bufferSize + 1000)
        clock.advance(99)
        self.assertTrue(peer.is_open)
        clock.advance(1)
        self.assertFalse(peer.is_open)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_peer_that_reads_late(self) -> None:
        """A peer that reads its answers after all is served on, and not cut off later."""
        peer = self.peer
        messages = peer.ask_unread()
        peer.echo()
        self.world.clock.advance(99)
        peer.read_on()
        self.assertEqual(peer.statuses(), [0] * (messages + 1))
        self.world.clock.advance(99)
        self.assertTrue(peer.is_open)

    def test_closed_while_not_reading(self) -> None:
        """A peer that reads what is left after we closed gets all of it, and the connection ends in order."""
        peer = self.peer
        messages = peer.ask_unread()
        self.world.factory.abort_all()
        self.world.factory.pending.clear()  # but for the second that abort_all() gives
        self.world.clock.advance(31)
        self.assertTrue(peer.is_open)
        peer.read_on()
        self.assertFalse(peer.is_open or peer.transport.aborted)
        *responses, last = peer.heard()
        self.assertEqual((len(responses), [last]), (messages, ABORTED_BY_USER))

    def test_both_reasons_to_pause(self) -> None:
        """Reading goes on only when storage has caught up and the peer has read its answers."""
        peer = self.peer
        peer.protocol.held(HIGH_WATER + 1)
        peer.protocol._flow.pauseProducing()
        peer.protocol.released(HIGH_WATER + 1)
        self.assertFalse(peer.transport.is_reading)
        peer.protocol.held(HIGH_WATER + 1)
        peer.protocol._flow.resumeProducing()
        self.assertFalse(peer.transport.is_reading)
        peer.protocol.released(HIGH_WATER + 1)
        self.assertTrue(peer.transport.is_reading)


class AcknowledgeTests(SynchronousTestCase):
    """When the peer's kernel is told at once that its bytes have arrived."""

    def test_only_where_it_may_wait(self) -> None:
        """Within a message the peer may wait for an ACK before it writes on; a response takes the ACK along."""
        peer = World().associated()
        acknowledged: list[None] = []
        self.patch(peer.protocol, "_acknowledge", lambda: acknowledged.append(None))
        whole = p_data(3, True, dimse.encode_command(c_store("1.2.3"))) + p_data(3, False, bytes(1000), 500)
        counts = []
        for data in (whole[:6], whole[6:200], whole[200:-100], whole[-100:], whole):
            peer.say(data)
            counts.append(len(acknowledged))
        self.assertEqual(counts, [1, 2, 3, 3, 3])


class OtherThreadTests(SynchronousTestCase):
    """Answers that another thread sends, over a descriptor of its own."""

    def setUp(self) -> None:
        self.world = World()
        self.peer = self.world.associated()
        self.protocol = self.peer.protocol
        self.protocol._outlet.shared, self.wire = socket.socketpair()
        self.wire.setblocking(False)
        self.protocol._outlet.shared.setblocking(False)
        self.addCleanup(self.wire.close)
        self.peer.store(b"data", "1.2.3")
        (self.instance,) = self.world.memory.instances
        assert self.instance.answer is not None
        self.answer = self.instance.answer

    def received(self) -> bytes:
        """What has come by the descriptor."""
        try:
            return self.wire.recv(1 << 20)
        except BlockingIOError:
            return b""

    def test_answer(self) -> None:
        """The answer is a response like any other, and the reactor's thread sends none."""
        self.assertTrue(self.answer(dimse.Status.SUCCESS, ""))
        sent = self.received()
        self.instance.end(is_answered=True)
        self.assertEqual(self.peer.heard(), [])
        self.peer.store(b"data", "1.2.3")
        self.world.memory.instances[-1].end()
        self.protocol._outlet.write(b"")
        self.assertEqual(self.peer.statuses(), [0])
        self.assertEqual(sent[12:], dimse.encode_response(self.command(), 0))

    def command(self) -> dimse.Command:
        """The request that is answered."""
        return dimse.decode_command(dimse.encode_command(c_store("1.2.3", 1)))

    def test_is_a_sign_of_life(self) -> None:
        """An association is not idle while its answers are sent."""
        timeout = self.world.factory.limits.timeout
        self.world.clock.advance(timeout - 1)
        self.assertTrue(self.answer(dimse.Status.SUCCESS, ""))
        self.instance.end(is_answered=True)
        self.world.clock.advance(timeout - 1)
        self.assertTrue(self.peer.is_open)
        self.world.clock.advance(1)
        self.assertEqual(self.peer.heard(), ABORTED_BY_USER)

    def test_release_does_not_wait(self) -> None:
        """A release asks for the results that nobody was in a hurry to hear of."""
        self.assertTrue(self.answer(dimse.Status.SUCCESS, ""))
        self.world.memory.results.append(lambda: self.instance.end(is_answered=True))
        self.peer.release()
        self.assertEqual(self.peer.heard(), RELEASED)

    def test_not_after_the_end(self) -> None:
        """After an abort, the peer's or ours, or the loss of the connection nothing is sent."""
        ends: tuple[Callable[[], object], ...] = (
            lambda: self.peer.say(AAbort(0, 0).encode()),
            lambda: self.protocol.abort("a reason"),
            lambda: self.peer.say(b"GET / HTTP/1.0"),
            lambda: self.peer.drop(),
        )
        for end in ends:
            end()
            self.assertFalse(self.answer(dimse.Status.SUCCESS, ""))
            self.assertEqual(self.received(), b"")
            self.instance.end()
            self.wire.close()
            self.setUp()

    def test_full(self) -> None:
        """A peer that does not read leaves the answer, or the rest of it, to the transport, in order."""
        while self.answer(dimse.Status.SUCCESS, ""):
            if self.protocol._outlet.rest:
                break
        came = self.received()
        while more := self.received():
            came += more
        self.assertIsNone(self.protocol._outlet.shared)
        self.assertFalse(self.answer(dimse.Status.SUCCESS, ""))
        before = len(self.peer.written())
        self.protocol.sent_from_thread()
        self.peer.turn()
        size = len(dimse.encode_response(self.command(), 0)) + 12
        rest = size - len(came) % size if len(came) % size else 0
        self.assertEqual(len(self.peer.written()) - before, rest)


class StrangerTests(SynchronousTestCase):
    """What connects and is no DICOM peer costs next to nothing."""

    def setUp(self) -> None:
        self.world = World()

    def test_probe(self) -> None:
        """A connection that is closed without a byte, as load balancers do, is logged at debug only."""
        with capturedLogs() as events:
            self.world.connect().hang_up()
            self.world.connect().drop()
        self.assertEqual(len(events), 2)
        self.assertEqual(loud(events), [])
        self.assertFalse(self.world.factory.pending)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_other_protocols(self) -> None:
        """Random bytes, HTTP and TLS get an A-ABORT and a line, and are closed; all that they send on is ignored."""
        for greeting, why in (
            (b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", "PDU type 47H: does it speak HTTP?"),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
                "PDU type 16H: does it speak TLS?",
            ),
            (
                b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 104\r\n",
                "PDU type 50H: does it speak the PROXY protocol?",
            ),
            (b"\r\n\r\n\0\r\nQUIT\n!\x11", "PDU type 0DH: does it speak the PROXY protocol?"),
            (b"\x00" * 100, "PDU type 00H"),
            (b"\xff" * 100, "PDU type FFH"),
            # An A-ASSOCIATE-RQ of 4 GiB, and one of 4 bytes.
            (b"\x01\x00\xff\xff\xff\xff\x00\x01", "PDU type 01H of 4294967295 bytes"),
            (b"\x01\x00\x00\x00\x00\x04abcd", "PDU type 01H of 4 bytes"),
            (AReleaseRQ().encode(), "the peer did not begin with A-ASSOCIATE-RQ"),
        ):
            world = World()
            with capturedLogs() as events:
                peer = world.connect()
                peer.say(greeting)
                self.assertEqual(peer.heard(), ABORTED_BY_USER, greeting)
                peer.say(greeting * 1000)
                self.assertEqual(peer.heard(), [], greeting)
                world.clock.advance(30)
            self.assertFalse(peer.is_open, greeting)
            line = f"192.0.2.1:50000 aborted without an association: {why}"
            self.assertEqual([formatEvent(event) for event in loud(events)], [line])
            self.assertEqual(world.statistics.aborted, 0)

    def test_crowd(self) -> None:
        """Those of one address are told of once a minute."""
        with capturedLogs() as events:
            for _ in range(100):
                self.world.connect().say(b"GET / HTTP/1.1\r\n\r\n")
            self.world.clock.advance(60)
        first, last = (formatEvent(event) for event in loud(events))
        self.assertTrue(last.startswith(first.replace(":50000 ", ":50099 ")), last)
        self.assertIn("(99 more like this in 60 s)", last)

    def test_abort_without_association(self) -> None:
        """An A-ABORT from a peer without an association closes the connection, whatever follows it."""
        with capturedLogs() as events:
            peer = self.world.connect()
            peer.say(AAbort(0, 0).encode() * 3 + b"GET /")
        self.assertFalse(peer.is_open)
        self.assertEqual(loud(events), [])

    def test_rejected_peer_goes_on(self) -> None:
        """A peer that does not wait for our answer, and is rejected, is not listened to."""
        peer = World(max_assoc=0).connect()
        peer.associate()
        peer.echo()
        self.assertEqual(peer.heard(), [])

    def test_second_request(self) -> None:
        """A second A-ASSOCIATE-RQ on one connection is aborted as an unexpected PDU."""
        peer = self.world.associated()
        self.assertEqual(peer.associate(), AAbort(2, 2))


class AnyBytesTests(SynchronousTestCase):
    """No bytes at all bring anything but answers and closed connections."""

    @steady
    @given(st.booleans(), st.lists(st.sampled_from(PDUS) | st.binary(max_size=40), max_size=8), st.booleans())
    def test_any_order(self, associated: bool, said: list[bytes], in_one_read: bool) -> None:
        """PDUs in any order, cut and mixed with garbage, raise nothing; afterwards no connection is left."""
        world = World()
        peer = world.associated() if associated else world.connect()
        for data in [b"".join(said)] if in_one_read else said:
            peer.say(data)
        world.clock.pump([300, 30, 30, 10])
        self.assertFalse(peer.is_open)
        self.assertFalse(world.factory.associations or world.factory.pending)
        self.assertEqual(world.clock.getDelayedCalls(), [])


class EndTests(SynchronousTestCase):
    """How associations end."""

    def setUp(self) -> None:
        self.world = World()
        self.peer = self.world.associated()

    def test_release(self) -> None:
        """A release is answered, counted, and the connection closes when the peer closes it."""
        self.peer.release()
        self.assertEqual(self.peer.heard(), RELEASED)
        self.peer.hang_up()
        self.assertFalse(self.peer.is_open)
        self.assertEqual((self.world.statistics.released, self.world.statistics.aborted), (1, 0))

    def test_release_while_storing(self) -> None:
        """A release is answered after the responses that are outstanding, which may be sent until then."""
        self.peer.store(b"data", "1.2.3", 7)
        self.peer.store(b"data", "1.2.4", 8)
        self.peer.release()
        self.assertEqual(self.peer.heard(), [])
        self.world.memory.instances[0].end()
        self.assertEqual(self.peer.response().message_id, 7)
        self.world.memory.instances[1].end()
        response, released = self.peer.heard()
        assert isinstance(response, Response)
        self.assertEqual((response.message_id, [released]), (8, RELEASED))

    def test_release_within_a_data_set(self) -> None:
        """A release in the middle of a data set is answered at once; the instance is cancelled."""
        self.peer.message(c_store("1.2.3"), context_id=3)
        self.peer.say(p_data(3, False, b"half", is_last=False))
        self.peer.release()
        self.assertEqual(self.peer.heard(), RELEASED)
        self.assertTrue(self.world.memory.instances[0].cancelled)

    def test_data_after_release(self) -> None:
        """A request after the release, while that waits for storage, is a violation; nothing is answered then."""
        self.peer.store(b"data", "1.2.3")
        self.peer.release()
        self.peer.echo()
        self.assertEqual(self.peer.heard(), [AAbort(2, 2)])
        self.world.memory.instances[0].end()
        self.assertEqual(self.peer.heard(), [])

    def test_abort_while_storing(self) -> None:
        """An abort by the peer closes the connection; what was complete is stored on, without an answer."""
        self.peer.store(b"data", "1.2.3")
        self.peer.abort()
        self.assertFalse(self.peer.is_open)
        (instance,) = self.world.memory.instances
        self.assertFalse(instance.cancelled)
        instance.end()
        self.assertEqual(self.peer.heard(), [])
        self.assertEqual(self.world.statistics.instances_stored, 1)
        self.assertEqual(self.world.statistics.aborted, 1)

    def test_abort_and_more(self) -> None:
        """What follows an A-ABORT on the wire is ignored."""
        self.peer.say(AAbort(0, 0).encode() * 2 + p_data(3, True, b"") + b"GET /")
        self.assertFalse(self.peer.is_open)
        self.assertEqual(self.peer.heard(), [])

    def test_in_one_read(self) -> None:
        """Request, message and release may come in one read, or byte by byte."""
        for read_size in (0, 1):
            peer = self.world.connect()
            message = p_data(1, True, dimse.encode_command(c_echo()))
            peer.say(a_associate_rq().encode() + message + AReleaseRQ().encode(), read_size=read_size)
            accepted, response, released = peer.heard()
            self.assertIsInstance(accepted, AAssociateAC)
            assert isinstance(response, Response)
            self.assertEqual((response.status, [released]), (0, RELEASED))


class DrainTests(SynchronousTestCase):
    """The ordered stop."""

    def setUp(self) -> None:
        self.world = World()

    def drain(self) -> Deferred[None]:
        drained = self.world.factory.drain(20)
        self.world.clock.advance(0)
        return drained

    def test_nothing_to_wait_for(self) -> None:
        """Without a connection there is nothing to wait for."""
        self.successResultOf(self.drain())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_associations_may_end(self) -> None:
        """An association that stands is served on, until the peer releases it and closes."""
        peer = self.world.associated()
        drained = self.drain()
        peer.store(b"data", "1.2.3")
        self.world.memory.instances[0].end()
        self.assertEqual(peer.statuses(), [0])
        peer.release()
        self.assertEqual(peer.heard(), RELEASED)
        self.assertNoResult(drained)
        peer.hang_up()
        self.successResultOf(drained)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_pending_are_dropped(self) -> None:
        """A connection without an association delays the stop by no more than the moment that it has to ask for one."""
        peer = self.world.connect()
        drained = self.drain()
        self.assertTrue(peer.is_open)
        self.world.clock.advance(GRACE)
        self.world.clock.advance(0)
        self.successResultOf(drained)
        self.assertFalse(peer.is_open)

    def test_on_its_way(self) -> None:
        """Who was connected when the stop began may still associate, and is served to the end."""
        peer = self.world.connect()
        drained = self.drain()
        self.assertIsInstance(peer.associate(), AAssociateAC)
        self.world.clock.advance(GRACE)
        peer.store(b"data", "1.2.3")
        self.world.memory.instances[0].end()
        self.assertEqual(peer.statuses(), [0])
        peer.release()
        peer.hang_up()
        self.successResultOf(drained)

    def test_last_words_are_delivered(self) -> None:
        """Who has been answered a release, but has not closed yet, is not cut off from the answer."""
        peer = self.world.associated()
        peer.stop_reading()
        peer.release()
        drained = self.drain()
        peer.read_on()
        self.assertEqual(peer.heard(), RELEASED)
        peer.hang_up()
        self.successResultOf(drained)

    def test_newcomers_are_rejected(self) -> None:
        """Who asks for an association later is rejected like one too many."""
        self.world.associated()
        self.drain()
        self.world.clock.advance(GRACE)
        self.assertEqual(self.world.connect().associate(), LOCAL_LIMIT_EXCEEDED)

    def test_deadline(self) -> None:
        """What is left at the deadline is aborted, and cut off a second later if it does not close."""
        polite, rude = self.world.associated(), self.world.associated()
        drained = self.drain()
        rude.stop_reading()
        self.world.clock.advance(20)
        self.assertEqual(polite.heard(), ABORTED_BY_USER)
        polite.hang_up()
        self.assertNoResult(drained)
        self.world.clock.advance(1)
        self.world.clock.advance(0)
        self.successResultOf(drained)
        self.assertFalse(rude.is_open)


class LogTests(SynchronousTestCase):
    """One line for each association that begins, is refused or ends."""

    def test_lines(self) -> None:
        """The lines name AE titles and address."""
        world = World(max_assoc=1)
        with capturedLogs() as events:
            peer = world.connect()
            peer.associate(calling="MODALITY", called="ARCHIVE")
            world.connect().associate(calling="OTHER")
            world.clock.advance(2)
            peer.release()
            world.associated().drop()
        formats = [str(event["log_format"]).format(**event) for event in loud(events)]
        self.assertEqual(
            formats,
            [
                "association accepted: MODALITY at 192.0.2.1:50000 to ARCHIVE, 3 of 3 contexts",
                "association rejected: 'OTHER' at 192.0.2.1:50001 to 'STORESCP': local limit exceeded: max-assoc "
                "allows 1 association",
                "association released: MODALITY at 192.0.2.1:50000 after 2.000 s",
                "association accepted: SCU at 192.0.2.1:50002 to STORESCP, 3 of 3 contexts",
                "association aborted: SCU at 192.0.2.1:50002: the connection was lost (source 2, reason 0)",
            ],
        )
