"""storescp.commitment: what is said and heard on the requester's association, in memory."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.commitment import MOST_AT_ONCE, RESPONSE_TIMEOUT, CommitmentSCP
from storescp.commitment_data import FailureReason, Reference, Report, Request, encode_report, encode_request
from storescp.commitment_ledger import Ledger
from storescp.config import load
from storescp.index import Index
from storescp.pdu import AAbort, AReleaseRP, Fragment
from storescp.pdu_reader import PDUReader
from storescp.scp import StorageSCP
from storescp.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, VERIFICATION
from storescp.worker import Aside
from tests.conversation import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Conversation,
    MemoryReactor,
    World,
    c_echo,
    c_store,
    command,
    ui,
    us,
)

CONTEXTS = (
    (VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,)),
    (STORAGE_COMMITMENT, ("1.2.840.10008.1.2.4.70", IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)),
    (CT_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,)),
)
CONTEXT_ID = 3


class Stepwise(Aside):
    """Calls functions when the test says so, on its own thread."""

    def __init__(self, reactor: IReactorFromThreads, waiting: list[Callable[[], None]]) -> None:
        super().__init__(reactor)
        self._waiting = waiting

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()

        def run() -> None:
            try:
                result = function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - as on a thread
                deferred.errback(Failure())
            else:
                deferred.callback(result)

        self._waiting.append(run)
        return deferred


def request(number: int = 1, count: int = 2) -> Request:
    """One with a Transaction UID of its own."""
    return Request(f"1.2.{number}", tuple(Reference(CT_IMAGE_STORAGE, f"1.3.{i}") for i in range(count)))


def n_action(message_id: int = 1, **changes: bytes) -> dict[int, bytes]:
    """N-ACTION-RQ, PS3.7 §10.3.3.1; *changes* by the names of elements in dimse."""
    elements = {
        "REQUESTED_SOP_CLASS_UID": ui(STORAGE_COMMITMENT),
        "COMMAND_FIELD": us(dimse.N_ACTION_RQ),
        "MESSAGE_ID": us(message_id),
        "COMMAND_DATA_SET_TYPE": us(1),
        "REQUESTED_SOP_INSTANCE_UID": ui(STORAGE_COMMITMENT_INSTANCE),
        "ACTION_TYPE_ID": us(1),
    }
    return {getattr(dimse, name): value for name, value in (elements | changes).items()}


class Heard(NamedTuple):
    """A message of the server."""

    field: int
    elements: dict[int, bytes]
    data_set: bytes


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        root = pathlib.Path(self.mktemp()).absolute()
        config = load(None, {"storage-dir": os.fspath(root), "commitment-max-items": "4"})
        assert config.index_db is not None
        self.index_db = pathlib.Path(config.index_db)
        Index(config.index_db).close()
        self.waiting: list[Callable[[], None]] = []
        self.told = 0
        self.now = 1000.0
        self.ledger = Ledger(
            config,
            MemoryReactor(),
            os.fspath(root),
            0,
            self.tell,
            wall_clock=lambda: self.now,
            aside=partial(Stepwise, waiting=self.waiting),
        )
        self.addCleanup(self.ledger.store.close)
        self.world = World(commitment=self.service)
        self.peer = self.connect()

    def tell(self) -> None:
        self.told += 1

    def service(self, user: StorageSCP) -> CommitmentSCP:
        return CommitmentSCP(user, self.ledger, self.world.clock)

    def connect(self) -> Conversation:
        peer = self.world.connect()
        peer.associate(CONTEXTS, calling="CT1", called="ARCHIVE")
        self.read = len(peer.written())
        return peer

    def work(self) -> None:
        """Do what waits for the threads, and what follows."""
        while self.waiting:
            self.waiting.pop(0)()
        self.peer.turn()

    def ask(self, what: Request | None = None, message_id: int = 1, **changes: bytes) -> None:
        data = encode_request(what or request(), IMPLICIT_VR_LITTLE_ENDIAN)
        self.peer.message(n_action(message_id, **changes), data, context_id=CONTEXT_ID)

    def heard(self) -> list[object]:
        """What the server has said since the last time, requests of its own among it."""
        self.peer.turn()
        said, reader, messages = self.peer.written(), PDUReader(0), dimse.MessageReader()
        reader.feed(said[self.read :])
        self.read = len(said)
        heard: list[object] = []
        begun: dimse.Command | None = None
        data = b""
        while (item := reader.next()) is not None:
            if not isinstance(item, Fragment):
                heard.append(item)
            elif item.is_command:
                begun, data = messages.command(item), b""
                if begun is not None and not begun.has_data_set:
                    heard.append(Heard(begun.command_field, begun.elements, b""))
            else:
                messages.data_set(item)
                data += bytes(item.data)
                if item.is_last:
                    assert begun is not None
                    heard.append(Heard(begun.command_field, begun.elements, data))
        return heard

    def statuses(self) -> list[int]:
        found = []
        for heard in self.heard():
            assert isinstance(heard, Heard), heard
            found.append(int.from_bytes(heard.elements[dimse.STATUS], "little"))
        return found

    def asked(self) -> None:
        """Ask, and have it answered."""
        self.ask()
        self.work()
        self.assertEqual(self.statuses(), [0])

    def reported(self) -> Heard:
        """The report that is due."""
        self.world.clock.advance(1)
        self.work()
        (report,) = self.heard()
        assert isinstance(report, Heard)
        return report

    def confirm(self, report: Heard, status: int = 0, *, data_set: bytes | None = None) -> None:
        """Answer to a report."""
        response = {
            dimse.COMMAND_FIELD: us(0x8100),
            dimse.MESSAGE_ID_BEING_RESPONDED_TO: report.elements[dimse.MESSAGE_ID],
            dimse.COMMAND_DATA_SET_TYPE: us(0x0101 if data_set is None else 1),
            dimse.STATUS: us(status),
        }
        self.peer.message(response, data_set, context_id=CONTEXT_ID)
        self.work()

    def due(self) -> float | None:
        return self.ledger.store.next_due()


class RequestTests(_TestCase):
    """N-ACTION."""

    def test_answer(self) -> None:
        """In any pieces; the answer comes when it is owed, and names what is affected: PS3.7 §10.3.3.2."""
        for number, (fragment, read_size) in enumerate(((0, 0), (2, 0), (0, 1), (6, 5))):
            data = encode_request(request(number), IMPLICIT_VR_LITTLE_ENDIAN)
            self.peer.message(
                n_action(7), data, context_id=CONTEXT_ID, fragment=fragment, read_size=read_size
            )
            self.assertEqual(self.heard(), [])
            self.work()
            (answer,) = self.heard()
            assert isinstance(answer, Heard)
            self.assertEqual(
                {tag: value for tag, value in answer.elements.items() if tag},
                {
                    dimse.AFFECTED_SOP_CLASS_UID: ui(STORAGE_COMMITMENT),
                    dimse.COMMAND_FIELD: us(0x8130),
                    dimse.MESSAGE_ID_BEING_RESPONDED_TO: us(7),
                    dimse.COMMAND_DATA_SET_TYPE: us(0x0101),
                    dimse.STATUS: us(0),
                    dimse.AFFECTED_SOP_INSTANCE_UID: ui(STORAGE_COMMITMENT_INSTANCE),
                },
            )

    def test_refused(self) -> None:
        """What is no request for commitment is refused when all of it has come, and nothing is owed."""
        cases: tuple[tuple[int, dict[str, Any]], ...] = (
            (0x0118, {"REQUESTED_SOP_CLASS_UID": ui(CT_IMAGE_STORAGE)}),
            (0x0112, {"REQUESTED_SOP_INSTANCE_UID": ui("1.2.3")}),
            (0x0123, {"ACTION_TYPE_ID": us(2)}),
            (0x0211, {"COMMAND_FIELD": us(0x0120)}),
        )
        for status, changes in cases:
            self.ask(**changes)
            self.assertEqual(self.statuses(), [status])
        self.peer.message(n_action(COMMAND_DATA_SET_TYPE=us(0x0101)), context_id=CONTEXT_ID)
        self.assertEqual(self.statuses(), [0x0115])
        self.peer.message(n_action(), b"\x08\0", context_id=CONTEXT_ID)
        self.work()
        self.assertEqual(self.statuses(), [0x0115])
        self.assertFalse(self.ledger.store.exists)

    def test_other_services(self) -> None:
        """Echo and storage are no operations of this service, nor is its of theirs."""
        self.peer.message(c_echo(), context_id=CONTEXT_ID)
        self.assertEqual(self.statuses(), [0x0211])
        store = c_store("1.2.3", sop_class_uid=STORAGE_COMMITMENT)
        self.peer.message(store, b"\0" * 8, context_id=CONTEXT_ID)
        self.assertEqual(self.statuses(), [0x0211])
        for context_id in (1, 5):
            self.peer.message(n_action(), b"\0" * 8, context_id=context_id)
            self.assertEqual(self.statuses(), [0x0211])

    def test_too_large(self) -> None:
        """What has more bytes than so many references can is refused, and not kept meanwhile."""
        self.peer.message(n_action(), b"\0" * 2_000_000, context_id=CONTEXT_ID, fragment=10_000)
        self.assertEqual(self.statuses(), [0x0213])
        self.assertEqual(self.waiting, [])
        self.ask(request(count=5))
        self.work()
        self.assertEqual(self.statuses(), [0x0213])
        self.asked()

    def test_many_at_once(self) -> None:
        """A peer that does not wait for its answers is told so: memory is bounded."""
        for number in range(MOST_AT_ONCE + 2):
            self.ask(request(number), number)
        self.assertEqual(self.statuses(), [0x0213] * 2)
        self.work()
        self.assertEqual(self.statuses(), [0] * MOST_AT_ONCE)

    def test_half(self) -> None:
        """A request of which the rest never comes is none."""
        self.peer.message(n_action(), context_id=CONTEXT_ID)
        self.peer.abort()
        self.work()
        self.assertFalse(self.ledger.store.exists)

    def test_no_books(self) -> None:
        """When nothing can be written down nothing is promised, and the operator is told."""
        self.ledger.store._path = "/proc/nowhere/commitment.db"
        self.ask()
        with capturedLogs() as events:
            self.work()
        self.assertEqual(self.statuses(), [0x0213])
        self.assertIn("/proc/nowhere/commitment.db", "\n".join(map(str, map(formatEvent, events))))

    def test_release(self) -> None:
        """A release waits for the answer; the report is left to others then."""
        self.ask()
        self.peer.release()
        self.assertEqual(self.heard(), [])
        self.work()
        answer, released = self.heard()
        assert isinstance(answer, Heard)
        self.assertEqual((answer.field, released), (0x8130, AReleaseRP()))
        self.assertEqual((self.told, self.due()), (1, 1000.0))
        self.world.clock.advance(100)
        self.assertEqual(self.waiting, [])

    def test_lost_before_the_answer(self) -> None:
        """Who is gone before it is answered is owed a report all the same: it may not know that we know."""
        self.ask()
        self.peer.abort()
        self.work()
        self.assertEqual((self.told, self.due()), (1, 1000.0))


class ReportTests(_TestCase):
    """N-EVENT-REPORT on the requester's association."""

    def test_report(self) -> None:
        """It comes after a moment, in the transfer syntax of the context, and is owed until it is confirmed."""
        self.asked()
        self.world.clock.advance(0.9)
        self.assertEqual(self.waiting, [])
        self.world.clock.advance(0.1)
        self.work()
        (report,) = self.heard()
        assert isinstance(report, Heard)
        self.assertEqual(
            {tag: value for tag, value in report.elements.items() if tag},
            {
                dimse.AFFECTED_SOP_CLASS_UID: ui(STORAGE_COMMITMENT),
                dimse.COMMAND_FIELD: us(0x0100),
                dimse.MESSAGE_ID: us(1),
                dimse.COMMAND_DATA_SET_TYPE: us(1),
                dimse.AFFECTED_SOP_INSTANCE_UID: ui(STORAGE_COMMITMENT_INSTANCE),
                dimse.EVENT_TYPE_ID: us(2),
            },
        )
        reason = FailureReason.NO_SUCH_OBJECT_INSTANCE
        expected = Report("1.2.1", (), tuple((reference, reason) for reference in request().references))
        self.assertEqual(report.data_set, encode_report(expected, IMPLICIT_VR_LITTLE_ENDIAN))
        self.assertEqual(self.ledger.store.begin(self.now), 1)
        self.confirm(report, data_set=b"\0" * 8)
        self.assertEqual(self.ledger.store.begin(self.now), 0)
        self.peer.echo()
        self.assertEqual(self.statuses(), [0])

    def test_not_confirmed(self) -> None:
        """A failure, or no response for a minute: others have to report it."""
        self.asked()
        report = self.reported()
        self.confirm(report, 0x0110)
        self.assertEqual((self.told, self.due()), (1, 1000.0))
        self.confirm(report)  # too late
        self.assertEqual(self.due(), 1000.0)
        self.ask(request(2))
        self.work()
        self.assertEqual(self.statuses(), [0])
        self.reported()
        self.world.clock.advance(RESPONSE_TIMEOUT)
        self.work()
        self.assertEqual(self.told, 2)

    def test_association_ends(self) -> None:
        """However it ends, before the report, while it is made, or before it is confirmed: others have to."""
        for number in range(3):
            self.ask(request(number))
            self.work()
            self.assertEqual(self.statuses(), [0])
            if number > 0:
                self.world.clock.advance(1)
            if number > 1:
                self.work()
                self.assertEqual(len(self.heard()), 1)
            self.peer.drop()
            self.work()
            self.assertEqual(self.told, number + 1)
            self.peer = self.connect()
        self.assertEqual(len(self.ledger.store.claim(self.now, 9)), 3)

    def test_released_while_made(self) -> None:
        """Nothing is sent to a peer that waits for its release and nothing else."""
        self.asked()
        self.world.clock.advance(1)
        self.peer.message(c_store("1.2.9"), b"\0" * 8, context_id=5)  # which keeps the association
        self.peer.release()
        self.work()
        self.assertEqual((self.heard(), self.told), ([], 1))
        self.world.memory.instances[-1].end()
        self.assertEqual(self.heard()[1:], [AReleaseRP()])

    def test_no_index(self) -> None:
        """What cannot be told at present is not told: it is tried again later, and no index made for it."""
        self.index_db.unlink()
        self.asked()
        self.world.clock.advance(1)
        self.work()
        self.assertEqual((self.heard(), self.due()), ([], 1060.0))
        (owed,) = self.ledger.store.claim(1060.0, 9)
        self.assertEqual((owed.attempts, self.ledger.delay(owed)), (1, 120.0))
        self.assertFalse(self.index_db.exists())

    def test_repeated(self) -> None:
        """A request that is repeated on another association is answered, and reported once."""
        self.asked()
        first, self.peer = self.peer, self.connect()
        self.asked()
        self.world.clock.advance(1)
        self.work()
        self.assertEqual(self.heard(), [])
        self.assertIn(b"1.2.1", first.written())

    def test_nonsense(self) -> None:
        """Responses to what was never asked are ignored; a response without a status is no message."""
        self.asked()
        report = self.reported()
        self.confirm(report._replace(elements={dimse.MESSAGE_ID: us(99)}))
        self.peer.message(command(0x8130), context_id=CONTEXT_ID)
        self.assertEqual(self.heard(), [])
        self.peer.message(command(0x8100), context_id=CONTEXT_ID)
        self.assertEqual(self.heard(), [AAbort(0, 0)])
        self.work()
        self.assertEqual(self.told, 1)
