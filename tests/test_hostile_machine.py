"""A hostile peer as a state machine: any interleaving of right and wrong, against real protocol, services and storage.

Only the network, the clock and the threads are simulated: nothing happens but what a rule does.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.dimse import Status
from storescp.naming import Naming
from storescp.negotiation import LOCAL_LIMIT_EXCEEDED
from storescp.pdu import AAbort, AAssociateAC, AReleaseRP, AReleaseRQ
from tests.conversation import (
    Conversation,
    Response,
    World,
    a_associate_rq,
    c_echo,
    c_store,
    data_set,
    p_data,
)
from tests.strategies import steady
from tests.test_store import StoreTestCase

KIB = 1024

#: Everything, in whatever state it is said.
SAYINGS = (
    a_associate_rq().encode(),
    AAssociateAC("", "", ()).encode(),
    LOCAL_LIMIT_EXCEEDED.encode(),
    AReleaseRQ().encode(),
    AReleaseRP().encode(),
    AAbort(0, 0).encode(),
    p_data(1, True, dimse.encode_command(c_echo(60000))),
    p_data(1, True, dimse.encode_command(c_echo(60000)), is_last=False),
    p_data(3, True, dimse.encode_command(c_store("1.2.3", 60000))),
    p_data(3, True, dimse.encode_command(c_store("1.2.3", 60000, has_data_set=False))),
    p_data(3, False, bytes(5000), is_last=False),
    p_data(5, False, b""),
    p_data(9, True, dimse.encode_command(c_echo(60000))),
    p_data(1, True, b"\0\0\0"),
    b"\x04\0\xff\xff\xff\xff",
    b"\x42\0\0\0\0\0",
)


class Storage(StoreTestCase):
    """The real storage, on a directory of its own, whose threads are turned by hand."""

    naming = Naming.FLAT

    def runTest(self) -> None:
        """It is no test."""


class Peer:
    """A conversation, what was sent on it to the end, and what was heard."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.sent: dict[int, str] = {}  # message ID -> UID

    def answers(self) -> dict[str, int]:
        """The statuses of the instances that were answered since the last time."""
        heard = (item for item in self.conversation.heard() if isinstance(item, Response))
        return {
            self.sent[response.message_id]: response.status
            for response in heard
            if response.message_id in self.sent
        }


class HostilePeers(RuleBasedStateMachine):
    """Up to eight peers, one of which does something at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[LogEvent] = []
        globalLogPublisher.addObserver(self.observe)  # type: ignore[arg-type]
        self.storage = Storage()
        self.storage.setUp()
        self.world = World(
            self.storage.instances,
            max_assoc=3,
            max_pending=4,
            timeout=100,
            artim_timeout=30,
            max_object_size=100 * KIB,
            max_per_address=6,
            min_rate=1000,
            progress_timeout=20,
            max_in_flight=64 * KIB,
            async_window=3,
        )
        self.peers: list[Peer] = []
        self.numbers = iter(range(1, 60000))
        self.whole: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}

    def observe(self, event: LogEvent) -> None:
        """Keep what should not have been logged."""
        if "log_failure" in event:
            self.failures.append(event)

    def peer(self, which: int) -> Peer:
        """One of the last eight."""
        return self.peers[-1 - which % min(len(self.peers), 8)]

    # -- what happens --

    @rule()
    def connect(self) -> None:
        """Somebody comes."""
        self.peers.append(Peer(self.world.connect()))

    @rule(window=st.sampled_from((None, None, 0, 2)))
    def come_in(self, window: int | None) -> None:
        """Somebody comes, and has an association if there is room; some ask for several operations at a time."""
        self.peers.append(Peer(self.world.connect()))
        self.peers[-1].conversation.say(a_associate_rq(window=window).encode())

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 7), what=st.sampled_from(SAYINGS), cut=st.integers(1, 5000))
    def say(self, which: int, what: bytes, cut: int) -> None:
        """Anything, or its beginning."""
        peer = self.peer(which)
        peer.conversation.say(what[:cut])

    @precondition(lambda self: self.peers)
    @rule(
        which=st.integers(0, 7),
        pixels=st.sampled_from((2, 20 * KIB, 99 * KIB, 200 * KIB)),
        fragment=st.sampled_from((1000, 16000)),
        read_size=st.sampled_from((0, 700, 20000)),
    )
    def store(self, which: int, pixels: int, fragment: int, read_size: int) -> None:
        """A whole instance."""
        peer, number = self.peer(which), next(self.numbers)
        uid = f"1.2.{number}"
        data = self.whole[uid] = data_set(uid, pixels=bytes(pixels))
        peer.sent[number] = uid
        peer.conversation.store(data, uid, number, fragment=fragment, read_size=read_size)

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 7), size=st.sampled_from((10, 3000, 30000)))
    def begin(self, which: int, size: int) -> None:
        """The beginning of an instance that never ends."""
        uid = f"1.2.{next(self.numbers)}"
        conversation = self.peer(which).conversation
        conversation.message(c_store(uid, 1), context_id=3)
        conversation.say(p_data(3, False, data_set(uid, pixels=bytes(size)), 16000, is_last=False))

    @precondition(lambda self: self.peers)
    @rule(
        which=st.integers(0, 7),
        what=st.sampled_from(("hang_up", "drop", "stop_reading", "read_on", "release", "abort")),
    )
    def do(self, which: int, what: str) -> None:
        """What else a peer can do."""
        getattr(self.peer(which).conversation, what)()

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 7), times=st.integers(1, 2000))
    def echo(self, which: int, times: int) -> None:
        """Many C-ECHOs, whose answers a peer may not read."""
        self.peer(which).conversation.say(SAYINGS[6] * times)

    @rule(pixels=st.sampled_from((2, 90 * KIB)))
    def good(self, pixels: int) -> None:
        """An honest peer comes from elsewhere: if it is given an association its image is stored, now."""
        conversation, number = self.world.connect("192.0.2.9"), next(self.numbers)
        uid = f"1.2.{number}"
        if isinstance(conversation.associate(), AAssociateAC):
            data = self.whole[uid] = data_set(uid, pixels=bytes(pixels))
            conversation.store(data, uid, number, fragment=16000, read_size=20000)
            self.work(200)
            assert conversation.statuses() == [Status.SUCCESS]
            conversation.release()
            assert conversation.heard() == [AReleaseRP()]
        conversation.hang_up()

    @rule(seconds=st.sampled_from((0.5, 5, 19, 31, 101)))
    def wait(self, seconds: float) -> None:
        """Time passes, for which storage does nothing."""
        self.world.clock.advance(seconds)

    @rule(times=st.integers(1, 20))
    def work(self, times: int) -> None:
        """Storage does something."""
        worker = self.storage.instances.worker
        for _ in range(times):
            if worker.outstanding and len(worker._jobs):
                worker.turn()
            self.storage.reactor.turn()
            self.world.clock.advance(0)

    # -- what holds --

    @invariant()
    def counts_agree(self) -> None:
        """What is counted is what is there, and within its limits."""
        factory = self.world.factory
        assert factory.occupancy.associations == len(factory.associations) <= 3
        assert len(factory.pending) <= 4
        assert 0 <= factory.in_flight.total < 64 * KIB + 3 * 450 * KIB
        assert not self.failures, self.failures

    @invariant()
    def answers_are_true(self) -> None:
        """Success means that the file is there, with what was sent; anything else that it is not."""
        for peer in self.peers:
            for uid, status in peer.answers().items():
                assert uid not in self.statuses
                self.statuses[uid] = status
                assert (status == Status.SUCCESS) == (uid in self.files()), (uid, status)

    def files(self) -> dict[str, bytes]:
        """What can be seen, by UID."""
        return {path.stem: path.read_bytes() for path in self.storage.root.glob("*.dcm")}

    def teardown(self) -> None:
        """When nobody says anything any more everything ends, and nothing is left but what was sent whole."""
        try:
            for _ in range(60):
                self.work(50)
                self.world.clock.advance(10)
            self.work(50)
            self.answers_are_true()
            factory = self.world.factory
            assert not any(peer.conversation.is_open for peer in self.peers)
            assert not factory.associations and not factory.pending and not factory.occupancy.associations
            assert factory.in_flight.total == 0 and factory.admission.count("192.0.2.1") == 0
            assert self.storage.instances.worker.outstanding == 0
            for uid, content in self.files().items():
                assert content.endswith(self.whole[uid]), uid
                assert self.statuses.get(uid, Status.SUCCESS) == Status.SUCCESS
            assert not self.failures, self.failures
            assert not [call for call in self.world.clock.getDelayedCalls() if call.getTime() > 1e9]
        finally:
            globalLogPublisher.removeObserver(self.observe)  # type: ignore[arg-type]
            self.storage.doCleanups()


class HostilePeersTests(SynchronousTestCase):
    """The machine above."""

    def test_machine(self) -> None:
        """Whatever peers do: no exception escapes, all ends by its deadline, all counts return to zero, no litter."""
        run_state_machine_as_test(
            HostilePeers,
            settings=settings(steady, max_examples=60, stateful_step_count=40),
        )
