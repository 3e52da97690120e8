"""Limits under attack: storescp.limits, and what the protocol and the services make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.access import Access, Callers
from storescp.dimse import Status
from storescp.flow import HIGH_WATER, WRITE_TIMEOUT
from storescp.limits import BURST, MAX_ADDRESSES, Admission, network_of, plain
from storescp.naming import Naming
from storescp.pdu import AAbort, AAssociateAC, AAssociateRJ
from storescp.store import BATCH_BYTES
from tests.conversation import Conversation, World, a_associate_rq, c_store, command, data_set, p_data
from tests.strategies import steady
from tests.test_store import StoreTestCase

KIB, MIB = 1024, 1024 * 1024


def lines(events: Sequence[LogEvent], text: str) -> list[LogEvent]:
    """The events, but for debugging, whose format has *text* in it."""
    return [
        event
        for event in events
        if text in str(event.get("log_format")) and event["log_level"] > LogLevel.debug
    ]


class AdmissionTests(SynchronousTestCase):
    """Admission and network_of()."""

    def test_network(self) -> None:
        """An IPv4 address is one, however written; of IPv6 a whole /64, and a link's name does not matter."""
        self.assertEqual(plain("0:0::ffff:c000:201"), "192.0.2.1")
        for other in ("192.0.2.1", "2001:db8::1", "fe80::1%eth0", "no:address", ""):
            self.assertEqual(plain(other), other)
        for host, network in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::/64"),
            ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
            ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("no:address", "no:address"),
        ):
            self.assertEqual(network_of(host), network)

    @steady
    @given(
        st.floats(0.01, 1000),
        st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["a", "b"])), max_size=60),
    )
    def test_rate(self, rate: float, arrivals: list[tuple[float, str]]) -> None:
        """In no span of time does an address get more than its rate and one burst, or at once less than one."""
        admission = Admission(0, rate)
        now = 1e6
        admitted: dict[str, list[float]] = {"a": [], "b": []}
        for delay, host in arrivals:
            now += delay
            if not admission.admit(host, now):
                admitted[host].append(now)
            else:
                self.assertTrue(admitted[host])
        for times in admitted.values():
            for first, began in enumerate(times):
                for last in range(first, len(times)):
                    most = max(rate * BURST, 1) + rate * (times[last] - began)
                    self.assertLessEqual(last - first + 1, most + 1e-6)

    def test_patience(self) -> None:
        """Who keeps to the rate is never refused, and who was refused only has to wait."""
        admission = Admission(0, 2)
        self.assertEqual({admission.admit("a", 100 + n / 2) for n in range(1000)}, {""})
        self.assertEqual([admission.admit("b", 7.0) for _ in range(11)].count(""), 10)
        self.assertEqual(admission.admit("b", 7.6), "")

    def test_memory(self) -> None:
        """However many addresses there are, not more than a bound are remembered, and none of them is shut out."""
        admission = Admission(0, 0.01)
        for number in range(3 * MAX_ADDRESSES):
            self.assertEqual(admission.admit(f"10.{number}", 1.0), "")
        self.assertLessEqual(len(admission._due), MAX_ADDRESSES)
        counting = Admission(1, 0)
        for number in range(100):
            counting.admit(f"10.{number}", 0.0)
            counting.leave(f"10.{number}")
        self.assertEqual(counting._counts, {})

    def test_other_limits(self) -> None:
        """Other limits are judged by at once; connections that came without one do not count."""
        admission = Admission(0, 0)
        self.assertEqual([admission.admit("a", 0.0) for _ in range(9)], [""] * 9)
        self.assertFalse(admission.counted)
        admission.limit(2, 0)
        self.assertEqual([admission.admit("a", 0.0) for _ in range(3)].count(""), 2)
        admission.limit(3, 0)
        self.assertEqual([admission.admit("a", 0.0) for _ in range(2)].count(""), 1)
        for _ in range(3):
            admission.leave("a")
        self.assertEqual(admission._counts, {})
        admission.limit(0, 1)
        self.assertEqual([admission.admit("b", 0.0) for _ in range(9)].count(""), int(BURST))

    def test_local_sockets(self) -> None:
        """Peers without an address are never too many."""
        admission = Admission(1, 0.01)
        self.assertEqual({(admission.admit("", 0.0), admission.counted) for _ in range(10)}, {("", False)})


class NewSettingsTests(SynchronousTestCase):
    """Connections.use(): what changes for whom."""

    def setUp(self) -> None:
        self.world = World(max_assoc=2, max_pending=4, timeout=100, max_in_flight=1000)

    def test_first_limit_of_an_address(self) -> None:
        """Connections that came before there was one make no room for others when they end."""
        before = [self.world.connect() for _ in range(2)]
        self.use(max_per_address=1)
        counted = self.world.connect()
        for peer in before:
            peer.drop()
        self.assertFalse(self.world.connect().is_open)
        counted.drop()
        self.assertTrue(self.world.connect().is_open)

    def use(self, maximum_length: int = 16384, **limits: int) -> None:
        factory = self.world.factory
        policy = replace(factory.policy, maximum_length=maximum_length)
        factory.use(policy, replace(factory.limits, **limits), Access(Callers(), policy), None)

    def test_associations_stay(self) -> None:
        """An association keeps the maximum length that it was told; one that begins now is told the new one."""
        old = self.world.associated()
        new = self.world.connect()
        self.use(maximum_length=32768)
        answer = new.associate()
        assert isinstance(answer, AAssociateAC)
        self.assertEqual(answer.user_information.maximum_length, 32768)
        for peer, is_open in ((new, True), (old, False)):
            peer.say(p_data(1, True, bytes(20000), is_last=False))
            self.assertEqual(peer.heard() == [], is_open)

    def test_timeout(self) -> None:
        """The idle time of an association is that of when it began, longer or shorter."""
        old = self.world.associated()
        self.use(timeout=10)
        new = self.world.associated()
        self.world.clock.advance(11)
        self.assertEqual((old.is_open, new.heard()), (True, [AAbort(0, 0)]))
        self.use(timeout=0)
        self.world.clock.advance(90)
        self.assertEqual(old.heard(), [AAbort(0, 0)])

    def test_places(self) -> None:
        """More or fewer associations are allowed at once; nobody has to go for it."""
        peers = [self.world.associated() for _ in range(2)]
        self.use(max_assoc=3)
        peers.append(self.world.associated())
        self.use(max_assoc=1)
        self.assertIsInstance(self.world.connect().associate(), AAssociateRJ)
        self.assertTrue(all(peer.is_open for peer in peers))
        for peer in peers:
            peer.release()
        self.world.associated()

    def test_pending(self) -> None:
        """Connections without an association beyond the new number go at once, the oldest first."""
        peers = [self.world.connect() for _ in range(4)]
        self.use(max_pending=2)
        for peer in peers:
            peer.turn()
        self.assertEqual([peer.is_open for peer in peers], [False, False, True, True])

    def test_in_flight(self) -> None:
        """What may wait for storage is another number from the next bytes on."""
        self.use(max_in_flight=10)
        self.assertEqual(self.world.factory.in_flight.limit, 10)


class ConnectionTests(SynchronousTestCase):
    """Too many connections from one address."""

    def test_per_address(self) -> None:
        """One address gets so many connections and no more, others theirs; who leaves makes room."""
        world = World(max_per_address=3)
        peers = [world.connect() for _ in range(5)]
        self.assertEqual([peer.is_open for peer in peers], [True] * 3 + [False] * 2)
        self.assertTrue(world.connect("192.0.2.2").is_open)
        peers[0].drop()
        self.assertTrue(world.connect().is_open)
        self.assertFalse(world.connect().is_open)
        self.assertEqual(world.statistics.refused, 3)

    def test_associations_count(self) -> None:
        """With an association or without one, a connection counts until it is closed."""
        world = World(max_per_address=1)
        peer = world.associated()
        peer.release()
        self.assertFalse(world.connect().is_open)
        peer.hang_up()
        self.assertTrue(world.connect().is_open)

    def test_rate(self) -> None:
        """A flood of connections is closed at once, without an answer, until the time for the next has come."""
        world = World(max_rate=1)
        peers = [world.connect() for _ in range(100)]
        self.assertEqual([peer.is_open for peer in peers].count(True), 5)
        self.assertEqual({peer.written() for peer in peers}, {b""})
        world.clock.advance(1)
        self.assertTrue(world.connect().is_open)
        self.assertFalse(world.connect().is_open)

    def test_all_at_once(self) -> None:
        """The bound holds as well for connections that are accepted before the transports can close any."""
        world = World(max_per_address=3)
        peers = [Conversation(world.factory, world.clock) for _ in range(20)]
        world.clock.advance(0)
        self.assertEqual([peer.is_open for peer in peers], [True] * 3 + [False] * 17)
        for peer in peers:
            peer.drop()
        self.assertEqual(world.factory.admission.count("192.0.2.1"), 0)

    def test_logged_once_in_a_while(self) -> None:
        """The first refusal of an address is told at once, the others once a minute as a number."""
        world = World(max_per_address=1, max_pending=2)
        with capturedLogs() as events:
            for host in ("192.0.2.1", "192.0.2.2"):
                for _ in range(50):
                    world.connect(host)
            refused = lines(events, "refused")
            self.assertEqual(len(refused), 2)
            world.clock.advance(60)
        self.assertEqual([event.get("more") for event in lines(events, "refused")], [None, None, 48, 48])

    def test_drops_and_rejections(self) -> None:
        """Connections dropped for room and rejected associations are counted, and told in the same way."""
        world = World(max_assoc=1, max_pending=2)
        world.associated()
        with capturedLogs() as events:
            for _ in range(30):
                world.connect().associate()
            world.clock.advance(61)
        self.assertEqual(world.statistics.rejected, 30)
        self.assertEqual(world.statistics.dropped, 28)
        self.assertEqual([event.get("more") for event in lines(events, "rejected")], [None, 29])
        self.assertEqual([event.get("more") for event in lines(events, "dropped")], [None, 27])


class SizeTests(SynchronousTestCase):
    """Objects that are too large."""

    def setUp(self) -> None:
        self.world = World(max_object_size=100_000)
        self.peer = self.world.associated()

    def test_as_large_as_may_be(self) -> None:
        """An object of exactly that size is stored, again and again."""
        for number in range(3):
            self.peer.store(bytes(100_000), f"1.2.{number}", fragment=16000)
            self.world.memory.instances[-1].end()
            self.assertEqual(self.peer.statuses(), [Status.SUCCESS])

    def test_larger(self) -> None:
        """One byte more: A700H when all has come, and on the same association the next one is stored."""
        self.peer.store(bytes(100_001), "1.2.3", fragment=16000)
        (instance,) = self.world.memory.instances
        self.assertTrue(instance.cancelled)
        self.assertEqual(instance.finished, None)
        response = self.peer.response()
        self.assertEqual(
            (response.status, response.comment), (Status.OUT_OF_RESOURCES, "larger than 100000 bytes")
        )
        self.peer.store(b"small", "1.2.4")
        self.world.memory.instances[-1].end()
        self.assertEqual(self.peer.statuses(), [Status.SUCCESS])
        statistics = self.world.statistics
        self.assertEqual(
            (statistics.oversized, statistics.instances_failed, statistics.instances_stored), (1, 1, 1)
        )

    def test_given_up_early(self) -> None:
        """As soon as it is too large nothing of it is held any more, whatever comes after."""
        self.peer.message(c_store("1.2.3"), context_id=3)
        for _ in range(7):
            self.peer.say(p_data(3, False, bytes(16000), is_last=False))
        (instance,) = self.world.memory.instances
        self.assertTrue(instance.cancelled)
        self.assertEqual(self.world.factory.in_flight.total, 0)
        for _ in range(100):
            self.peer.say(p_data(3, False, bytes(16000), is_last=False))
        self.assertEqual((self.world.factory.in_flight.total, len(instance.data)), (0, 6 * 16000))
        self.assertEqual(self.peer.heard(), [])
        self.peer.say(p_data(3, False, b""))
        self.assertEqual(self.peer.statuses(), [Status.OUT_OF_RESOURCES])


class InFlightTests(SynchronousTestCase):
    """Bytes of all associations that wait for storage."""

    def setUp(self) -> None:
        self.world = World(max_in_flight=4 * MIB, max_assoc=50)
        self.peers = [self.world.associated() for _ in range(50)]
        for peer in self.peers:
            peer.message(c_store("1.2.3"), context_id=3)

    def send(self, peer: Conversation, pieces: int) -> None:
        for _ in range(pieces):
            peer.transport.arrive(p_data(3, False, bytes(16000), is_last=False))
        peer.turn()

    def test_bound(self) -> None:
        """Fifty that send as much as they can hold no more than the limit and a read each, while storage hangs."""
        for peer in self.peers:
            self.send(peer, HIGH_WATER // 16000)
        self.assertLessEqual(self.world.factory.in_flight.total, 4 * MIB + 50 * 16000)
        self.assertTrue(all(peer.is_open for peer in self.peers))

    def test_nobody_starves(self) -> None:
        """However the storage takes its turns, each of them gets on, nobody is refused, and all of it arrives."""
        for peer in self.peers:
            self.send(peer, 30)
            peer.transport.arrive(p_data(3, False, b""))
        instances = self.world.memory.instances
        for _ in range(40):
            before = [len(instance.data) for instance in instances]
            for instance in reversed(instances):
                instance.written()
            self.world.clock.advance(0)
            after = [len(instance.data) for instance in instances]
            self.assertTrue(all(b > a or b == 480_000 for a, b in zip(before, after, strict=True)))
        for instance in instances:
            self.assertEqual(len(instance.data), 480_000)
            instance.end()
        self.assertEqual({tuple(peer.statuses()) for peer in self.peers}, {(Status.SUCCESS,)})
        self.assertEqual(self.world.factory.in_flight.total, 0)

    def test_lost_connections_give_back(self) -> None:
        """What is held for a connection that breaks is given back when storage lets go of it."""
        for peer in self.peers:
            self.send(peer, 40)
            peer.drop()
        self.assertEqual(self.world.factory.in_flight.total, 0)


class StorageTests(StoreTestCase):
    """The real storage with little room in flight: it must not wait for more before it begins."""

    naming = Naming.FLAT

    def test_no_deadlock(self) -> None:
        """A transport that is paused below a batch goes on, because storage is given what there is."""
        world = World(self.instances, max_in_flight=64 * KIB)
        data = data_set("1.2.3", pixels=bytes(3 * MIB))
        peers = [world.associated() for _ in range(2)]
        for peer in peers:
            peer.store(data, "1.2.3", fragment=16000, read_size=20000)
        most = 0
        worker = self.instances.worker
        while worker.outstanding:
            most = max(most, world.factory.in_flight.total)
            worker.turn()
            self.reactor.turn()
            world.clock.advance(0)
        self.assertLess(most, BATCH_BYTES // 2)
        self.assertEqual(world.factory.in_flight.total, 0)
        self.assertEqual(
            sorted(status for peer in peers for status in peer.statuses()),
            [Status.SUCCESS, Status.DUPLICATE_SOP_INSTANCE],
        )
        self.assertEqual((self.root / "1.2.3.dcm").read_bytes()[-len(data) :], data)

    def test_small_instance_in_a_large_read(self) -> None:
        """Small instances that wait do not keep what else came in the same read."""
        world = World(self.instances)
        peer = world.associated()
        ignored = p_data(1, True, dimse.encode_command(command(dimse.C_CANCEL_RQ))) * 3000
        instances = []
        for number in range(5):
            request = p_data(3, True, dimse.encode_command(c_store(f"1.2.{number}", number)))
            data = p_data(3, False, data_set(f"1.2.{number}"), 50)
            peer.say(ignored + request + data)
            instances.append(self.instances.worker._jobs._items[-1])
        pieces = [piece for job in instances if job is not None for piece in job.chunk]
        kept = sum(memoryview(memoryview(piece).obj).nbytes for piece in pieces)
        self.assertLess(kept, 5 * KIB)
        self.assertGreater(len(ignored), 150 * KIB)
        self.work()
        self.assertEqual(peer.statuses(), [Status.SUCCESS] * 5)


class ProgressTests(SynchronousTestCase):
    """Peers that begin and do not get on."""

    def setUp(self) -> None:
        self.world = World(min_rate=1000, progress_timeout=60, timeout=300)
        self.peer = self.world.associated()

    def until_closed(self, say: Callable[[], object], *, every: float, most: float) -> float:
        """Have the peer *say* something again and again; after how many seconds it was aborted."""
        began = self.world.clock.seconds()
        while not self.peer.heard():
            self.assertLess(self.world.clock.seconds() - began, most, "still there")
            self.world.clock.advance(every)
            say()
        return self.world.clock.seconds() - began

    def begin(self) -> None:
        self.peer.message(c_store("1.2.3"), context_id=3)
        self.peer.say(p_data(3, False, bytes(1000), is_last=False))

    def test_slow_data_set(self) -> None:
        """A data set that comes by a byte now and then is aborted, though its sender is never idle."""
        self.begin()
        seconds = self.until_closed(
            lambda: self.peer.say(p_data(3, False, b"\0\0", is_last=False)), every=10, most=150
        )
        self.assertLessEqual(seconds, 130)
        self.assertTrue(self.world.memory.instances[0].cancelled)
        self.assertEqual((self.world.statistics.slow, self.world.statistics.aborted), (1, 1))

    def test_slow_pdu(self) -> None:
        """So is a PDU that is never complete, of whatever type, header or not."""
        for begun in (b"\x05", b"\x05\0\0\0\0\4", p_data(1, True, bytes(100))[:40], b"\x04\0\0\0\1\0"):
            self.peer = self.world.associated()
            self.peer.say(begun)
            self.until_closed(lambda: None, every=10, most=150)

    def test_command_without_end(self) -> None:
        """And a command of fragments without a byte."""
        self.until_closed(lambda: self.peer.say(p_data(1, True, b"", is_last=False)), every=1, most=150)

    def test_fast_enough(self) -> None:
        """Who brings a little more than the rate is left alone for an hour, and his image is stored."""
        self.begin()
        for _ in range(360):
            self.world.clock.advance(10)
            self.peer.say(p_data(3, False, bytes(10_100), is_last=False))
        self.peer.say(p_data(3, False, b""))
        self.world.memory.instances[0].end()
        self.assertEqual(self.peer.statuses(), [Status.SUCCESS])

    def test_small_images(self) -> None:
        """Who sends a small image now and then is not slow, even if he is within one whenever that is looked at."""
        for number in range(100):
            self.peer.message(c_store(f"1.2.{number}"), context_id=3)
            self.world.clock.advance(30)
            self.peer.say(p_data(3, False, b"small"))
            self.world.memory.instances[-1].end()
            self.assertEqual(self.peer.statuses(), [Status.SUCCESS])

    def test_pauses_between_messages(self) -> None:
        """Between messages only the idle timeout counts."""
        self.peer.echo()
        self.world.clock.advance(299)
        self.assertEqual(self.peer.statuses(), [Status.SUCCESS])
        self.world.clock.advance(2)
        self.assertEqual(self.peer.heard(), [AAbort(0, 0)])
        self.assertEqual(self.world.statistics.slow, 0)

    def test_our_own_slowness(self) -> None:
        """Time in which we did not read is not the peer's, however long; after it he has his time again."""
        self.begin()
        protocol = self.peer.protocol
        for _ in range(20):
            self.world.clock.advance(1)
            protocol.held(HIGH_WATER + 1)
            self.world.clock.advance(1000)
            protocol.released(HIGH_WATER + 1)
        self.assertEqual(self.peer.heard(), [])
        self.until_closed(lambda: None, every=1, most=120)

    def test_switched_off(self) -> None:
        """Without a rate or a period nobody is judged."""
        for world in (World(min_rate=1000), World(progress_timeout=60)):
            peer = world.associated()
            peer.message(c_store("1.2.3"), context_id=3)
            for _ in range(50):
                world.clock.advance(100)
                peer.say(p_data(3, False, b"\0\0", is_last=False))
            self.assertEqual(peer.heard(), [])

    def test_answers_not_taken(self) -> None:
        """Who does not read our answers for that long is cut off, and it is said why."""
        self.peer.ask_unread()
        with capturedLogs() as events:
            self.world.clock.advance(59)
            self.assertTrue(self.peer.is_open)
            self.world.clock.advance(1)
        self.assertFalse(self.peer.is_open)
        self.assertEqual(self.world.statistics.slow, 1)
        self.assertEqual(len(lines(events, "association aborted")), 1)
        self.assertEqual(self.world.factory.occupancy.associations, 0)

    def test_answers_not_taken_without_options(self) -> None:
        """A peer that does not read is cut off even where all timeouts are switched off."""
        world = World(timeout=0)
        peer = world.associated()
        peer.ask_unread()
        world.clock.advance(WRITE_TIMEOUT)
        self.assertFalse(peer.is_open)


class RequestTests(SynchronousTestCase):
    """A-ASSOCIATE-RQs that want too much."""

    def test_in_crumbs(self) -> None:
        """A request that comes in single bytes is put together, and answered as soon as it is whole."""
        peer = World().connect()
        request = a_associate_rq().encode()
        peer.say(request[:-1], read_size=1)
        self.assertEqual(peer.heard(), [])
        peer.say(request[-1:] + p_data(1, True, dimse.encode_command({}))[:3])
        (answer,) = peer.heard()
        self.assertIsInstance(answer, AAssociateAC)

    def test_too_many_contexts(self) -> None:
        """More contexts than there are IDs are refused before all of them are looked at."""
        self.check(bytes([0x20, 0, 0, 4, 1, 0, 0, 0]) * 60_000)

    def test_too_many_transfer_syntaxes(self) -> None:
        """So are more transfer syntaxes in a context than anybody has."""
        syntaxes = bytes([0x40, 0, 0, 0]) * 257
        self.check(bytes([0x20, 0, *(len(syntaxes) + 4).to_bytes(2, "big"), 1, 0, 0, 0]) + syntaxes)

    def check(self, items: bytes) -> None:
        """A request with these items is no request."""
        body = a_associate_rq(()).encode()[6:74] + items
        peer = World().connect()
        peer.say(bytes([1, 0]) + len(body).to_bytes(4, "big") + body)
        self.assertEqual(peer.heard(), [AAbort(0, 0)])
