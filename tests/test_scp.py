"""storescp.scp: which message gets which response."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from storescp import dimse, tags
from storescp.dataset_head import Head
from storescp.dimse import Status
from storescp.extended_negotiation import OperationsWindow
from storescp.interfaces import Answer, IFlow, IIncomingInstance, IInstanceStore, Origin, Outcome
from storescp.pdu import AAbort, AAssociateAC, AReleaseRP
from tests.conversation import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    MR_IMAGE_STORAGE,
    Response,
    World,
    c_echo,
    c_store,
    command,
    p_data,
    ui,
    us,
)

ABORTED = [AAbort(0, 0)]


class SCPTestCase(SynchronousTestCase):
    """An association, and a store that waits to be told what becomes of instances."""

    def setUp(self) -> None:
        self.world = World()
        self.instances = self.world.memory.instances
        self.told = self.world.memory.told
        self.peer = self.world.associated()


class VerificationTests(SCPTestCase):
    """C-ECHO, PS3.7 §9.1.5."""

    def test_echo(self) -> None:
        """C-ECHO is answered with Success, under the message ID of the request and on its context."""
        self.peer.echo(4711)
        response = self.peer.response()
        self.assertEqual(response[:5], (1, 0x8030, 4711, 0, ""))

    def test_in_any_pieces(self) -> None:
        """Commands may come in any fragments, cut into reads anywhere."""
        for fragment in (1, 2, 7, 0):
            for read_size in (1, 5, 0):
                self.peer.message(c_echo(), context_id=1, fragment=fragment, read_size=read_size)
                self.assertEqual(self.peer.statuses(), [0])

    def test_pieces_of_nothing(self) -> None:
        """Fragments without a byte, the last one among them, are fragments like any other."""
        encoded = dimse.encode_command(c_echo())
        self.peer.say(
            p_data(1, True, b"", is_last=False)
            + p_data(1, True, encoded, is_last=False)
            + p_data(1, True, b"")
        )
        self.assertEqual(self.peer.statuses(), [0])

    def test_several_at_once(self) -> None:
        """Messages that come in one read are all answered."""
        self.peer.say(p_data(1, True, dimse.encode_command(c_echo())) * 10)
        self.assertEqual(self.peer.statuses(), [0] * 10)

    def test_on_a_storage_context(self) -> None:
        """C-ECHO belongs to the Verification service: elsewhere it is no operation."""
        self.peer.echo(context_id=3)
        self.assertEqual(self.peer.statuses(), [0x0211])


class StorageTests(SCPTestCase):
    """C-STORE, PS3.7 §9.1.1."""

    def test_store(self) -> None:
        """The store learns what command, context and association say, gets the bytes, and its status is sent."""
        self.peer.store(b"0123456789", "1.2.3", 77)
        (instance,) = self.instances
        expected = Origin(
            CT_IMAGE_STORAGE,
            "1.2.3",
            EXPLICIT_VR_LITTLE_ENDIAN,
            "SCU",
            "STORESCP",
            association_id=self.peer.protocol.association_id,
        )
        self.assertEqual(instance.origin, expected)
        self.assertEqual(instance.data, b"0123456789")
        self.assertEqual(self.peer.heard(), [])
        instance.end()
        response = self.peer.response()
        self.assertEqual(response[:5], (3, 0x8001, 77, 0, ""))
        self.assertEqual(response.elements[dimse.AFFECTED_SOP_CLASS_UID], ui(CT_IMAGE_STORAGE))
        self.assertEqual(response.elements[dimse.AFFECTED_SOP_INSTANCE_UID], ui("1.2.3"))

    def stored(self, path: str) -> None:
        """An instance is sent and stored at *path*, where the store waits for the answer to arrive."""
        self.peer.store(b"data", "1.2.3")
        self.instances[-1].path = path
        self.instances[-1].end()
        self.assertEqual(self.peer.statuses(), [0])

    def test_answers_that_arrive(self) -> None:
        """Who sends another message has the answer to the last one, and who releases has them all."""
        self.stored("first")
        self.assertEqual(self.told, [])
        self.stored("second")
        self.assertEqual(self.told, [("first", True)])
        self.peer.echo()
        self.assertEqual(self.peer.statuses(), [0])
        self.assertEqual(self.told, [("first", True), ("second", True)])
        self.stored("third")
        self.peer.release()
        self.assertEqual(self.told[2:], [("third", True)])

    def test_answers_that_may_be_lost(self) -> None:
        """An association that breaks may have cost the last answer, and one that comes later is not given at all."""
        self.stored("first")
        self.peer.drop()
        self.assertEqual(self.told, [("first", False)])
        self.peer = self.world.associated()
        self.stored("second")
        self.peer.store(b"data", "1.2.3")
        self.peer.say(AAbort(0, 0).encode())
        self.instances[-1].path = "third"
        self.instances[-1].end()
        self.assertEqual(self.told[1:], [("second", True), ("third", False)])

    def test_failure(self) -> None:
        """A failure is answered with its status and comment, counted, and the association goes on."""
        self.peer.store(b"data", "1.2.3")
        self.instances[0].end(Status.OUT_OF_RESOURCES, "No space left on device")
        response = self.peer.response()
        self.assertEqual((response.status, response.comment), (0xA700, "No space left on device"))
        self.peer.store(b"data", "1.2.3")
        self.instances[1].end()
        self.assertEqual(self.peer.statuses(), [0])
        statistics = self.world.statistics
        self.assertEqual((statistics.instances_failed, statistics.instances_stored), (1, 1))
        self.assertEqual(statistics.bytes_stored, 4)

    def test_in_any_pieces(self) -> None:
        """Data sets may come in any fragments, cut into reads anywhere."""
        data = bytes(range(64))
        for fragment in (1, 3, 40, 0):
            for read_size in (1, 11, 0):
                self.peer.store(data, "1.2.3", fragment=fragment, read_size=read_size)
                self.assertEqual(self.instances[-1].data, data)
                self.instances[-1].end()
                self.assertEqual(self.peer.statuses(), [0])

    def test_move_originator_and_priority(self) -> None:
        """A C-STORE as part of a C-MOVE, and one of any priority, is one like any other."""
        originator = {
            dimse.PRIORITY: us(1),
            dimse.MOVE_ORIGINATOR_APPLICATION_ENTITY_TITLE: b"MOVER ",
            dimse.MOVE_ORIGINATOR_MESSAGE_ID: us(5),
        }
        self.peer.message(c_store("1.2.3") | originator, b"data", context_id=3)
        self.instances[0].end()
        self.assertEqual(self.peer.statuses(), [0])

    def test_without_data_set(self) -> None:
        """A C-STORE that announces no data set fails with C000H, and the next message is understood."""
        self.peer.store(None, "1.2.3")
        self.assertEqual(self.peer.statuses(), [0xC000])
        self.assertEqual(self.instances, [])
        self.peer.echo()
        self.assertEqual(self.peer.statuses(), [0])

    def test_other_class_than_context(self) -> None:
        """On the context of another SOP class a C-STORE fails with 0122H, after its data set was drained."""
        for context_id in (1, 5):
            self.peer.message(c_store("1.2.3"), context_id=context_id)
            self.peer.say(p_data(context_id, False, b"da", is_last=False))
            self.assertEqual(self.peer.heard(), [])
            self.peer.say(p_data(context_id, False, b"ta"))
            self.assertEqual(self.peer.statuses(), [0x0122])
        self.peer.store(None, "1.2.3", context_id=5)
        self.assertEqual(self.peer.statuses(), [0x0122])
        self.assertEqual(self.instances, [])
        self.assertEqual(self.world.statistics.instances_failed, 3)
        self.peer.store(b"data", "1.2.3", sop_class_uid=MR_IMAGE_STORAGE, context_id=5)
        self.instances[0].end()
        self.assertEqual(self.peer.statuses(), [0])

    def test_pipelined(self) -> None:
        """Requests that do not wait for responses are answered as they end, each under its message ID."""
        for message_id in (1, 2, 3):
            self.peer.store(b"data", f"1.2.{message_id}", message_id)
        for number in (1, 0, 2):
            self.instances[number].end()
            self.assertEqual(self.peer.response().message_id, number + 1)


class WindowTests(SCPTestCase):
    """The asynchronous operations window, PS3.7 §D.3.3.3."""

    def negotiated(self, window: int, answer: int, bound: int = 64) -> None:
        """A peer that asks for *window* is given *answer*."""
        self.world = World(async_window=bound)
        self.instances, self.told = self.world.memory.instances, self.world.memory.told
        self.peer = self.world.connect()
        associated = self.peer.associate(window=window)
        assert isinstance(associated, AAssociateAC)
        self.assertEqual(associated.user_information.other, (OperationsWindow(answer, 1).item,))

    def send(self, *numbers: int) -> None:
        """Instances under these message IDs."""
        for number in numbers:
            self.peer.store(b"data", f"1.2.{number}", number)

    def end(self, *numbers: int, status: Status = Status.SUCCESS) -> None:
        """The instances that came as the first, second ... are stored, at paths of these names, or are not."""
        for number in numbers:
            self.instances[number - 1].path = str(number) if status is Status.SUCCESS else ""
            self.instances[number - 1].end(status)

    def message_ids(self) -> list[int]:
        """Of the responses heard since the last time."""
        return [item.message_id for item in self.peer.heard() if isinstance(item, Response)]

    def test_out_of_order(self) -> None:
        """Each instance is answered as it ends, whatever came before it."""
        self.negotiated(4, 4)
        self.send(1, 2, 3, 4)
        self.end(3)
        self.assertEqual(self.message_ids(), [3])
        self.end(4, 1, 2)
        self.assertEqual(self.message_ids(), [4, 1, 2])

    def test_certain_answers(self) -> None:
        """With a window of three a peer that has sent five instances has two answers: those that were sent first."""
        self.negotiated(3, 3)
        self.send(1, 2, 3)
        self.end(2, 1, 3)
        self.assertEqual(self.told, [])
        self.send(4)
        self.assertEqual(self.told, [("2", True)])
        self.send(5)
        self.assertEqual(self.told, [("2", True), ("1", True)])
        self.peer.drop()
        self.end(4, 5)
        self.assertEqual(self.told[2:], [("3", False), ("4", False), ("5", False)])

    def test_answers_to_others(self) -> None:
        """Answers that the store does not wait for are answers like any other: failures, refusals, C-ECHO."""
        self.negotiated(2, 2)
        self.send(1, 2)
        self.end(1, status=Status.OUT_OF_RESOURCES)
        self.peer.echo(3)
        self.end(2)
        self.send(4)
        self.assertEqual(self.told, [])  # two answers are certain: the first ones, which are not that to 2
        self.send(5)
        self.assertEqual(self.told, [("2", True)])

    def test_release(self) -> None:
        """Who asks for release has all answers that it has waited for."""
        self.negotiated(8, 8)
        self.send(1, 2)
        self.end(2, 1)
        self.assertEqual(self.told, [])
        self.peer.release()
        self.assertEqual(self.told, [("2", True), ("1", True)])
        self.assertEqual(self.peer.heard()[-1], AReleaseRP())

    def test_release_too_early(self) -> None:
        """Who asks for release without waiting for its answers gets them before it is released; whether it wanted
        them is not certain.
        """
        self.negotiated(8, 8)
        self.send(1, 2, 3)
        self.end(1)
        self.peer.release()
        self.assertEqual(self.message_ids(), [1])
        self.end(3, 2)
        heard = self.peer.heard()
        self.assertEqual([type(item) for item in heard], [Response, Response, AReleaseRP])
        self.assertEqual(sorted(self.told), [("1", True), ("2", False), ("3", False)])

    def test_message_id_in_use(self) -> None:
        """A message ID of an operation that is outstanding is refused with 0210H, PS3.7 §C.5.6; later it is free."""
        self.negotiated(8, 8)
        self.send(1)
        self.peer.store(b"other", "1.2.9", 1)
        response = self.peer.response()
        self.assertEqual(response[:4], (3, 0x8001, 1, 0x0210))
        self.peer.echo(2)
        self.assertEqual(self.peer.statuses(), [0])
        self.assertEqual(len(self.instances), 1)
        self.end(1)
        self.assertEqual(self.peer.statuses(), [0])
        self.peer.store(b"other", "1.2.9", 1)
        self.instances[1].end()
        self.assertEqual(self.peer.statuses(), [0])

    def test_answered_by_another_thread(self) -> None:
        """There is room, and a message ID is free, before the peer can have the answer."""
        self.negotiated(2, 2)
        self.send(1, 2)
        answer = self.instances[0].answer
        assert answer is not None
        self.assertFalse(answer(Status.SUCCESS, ""))  # in memory it cannot
        self.send(1)
        self.assertEqual(len(self.instances), 3)
        self.assertTrue(self.peer.transport.is_reading)

    def test_one_too_many(self) -> None:
        """A peer with more operations outstanding than agreed is not read until there is room."""
        self.negotiated(2, 2)
        self.send(1, 2)
        self.assertTrue(self.peer.transport.is_reading)
        self.peer.store(b"data", "1.2.3", 3)
        self.assertFalse(self.peer.transport.is_reading)
        self.peer.store(b"data", "1.2.4", 4)
        self.assertEqual(len(self.instances), 3)
        self.end(1)
        self.assertFalse(self.peer.transport.is_reading)
        self.assertEqual(len(self.instances), 3)
        self.end(2)
        self.peer.turn()
        self.assertEqual(len(self.instances), 4)
        self.end(3, 4)
        self.assertTrue(self.peer.transport.is_reading)
        self.assertEqual(self.message_ids(), [1, 2, 3, 4])
        self.peer.release()
        self.assertEqual(self.peer.heard(), [AReleaseRP()])

    def test_too_large(self) -> None:
        """An instance that is refused while it arrives is not outstanding any more."""
        self.peer = World(max_object_size=3).associated(window=2)
        for message_id in (1, 1, 2, 3):
            self.peer.store(b"data", "1.2.3", message_id)
            self.assertEqual(self.peer.statuses(), [0xA700])
        self.assertTrue(self.peer.transport.is_reading)

    def test_same_instance(self) -> None:
        """The same instance may be outstanding twice: what becomes of each is the store's business."""
        self.negotiated(0, 64)
        for message_id in (1, 2):
            self.peer.store(b"data", "1.2.3", message_id)
        self.instances[0].path = "path"
        self.instances[0].end()
        self.instances[1].end(Status.DUPLICATE_SOP_INSTANCE)
        self.assertEqual(self.peer.statuses(), [0, 0x0111])
        self.peer.release()
        self.assertEqual(self.told, [("path", True)])

    def test_not_negotiated(self) -> None:
        """Who has not asked for a window and does not wait is served all the same, whatever its message IDs."""
        for number in range(100):
            self.peer.store(b"data", f"1.2.{number}", 1)
        self.assertTrue(self.peer.transport.is_reading)
        for instance in self.instances:
            instance.end()
        self.assertEqual(self.peer.statuses(), [0] * 100)


class OtherCommandTests(SCPTestCase):
    """Commands of other services, and those that get no answer."""

    def test_unknown(self) -> None:
        """An operation that we do not have is answered with 0211H, by the response that belongs to it."""
        for field in (0x0010, 0x0020, 0x0021, 0x0100, 0x0110, 0x0130, 0x0140, 0x0150, 0x7ABC):
            self.peer.message(command(field, 9), context_id=3)
            self.assertEqual(self.peer.response()[:4], (3, field | 0x8000, 9, 0x0211))

    def test_unknown_with_data_set(self) -> None:
        """It is answered after its data set, which is thrown away."""
        self.peer.message(command(0x0020, has_data_set=True), context_id=3)
        self.assertEqual(self.peer.heard(), [])
        self.peer.say(p_data(3, False, bytes(100), fragment=10))
        self.assertEqual(self.peer.statuses(), [0x0211])
        self.peer.message(c_echo() | {dimse.COMMAND_DATA_SET_TYPE: us(1)}, b"data", context_id=1)
        self.assertEqual(self.peer.statuses(), [0x0211])
        self.assertEqual(self.instances, [])

    def test_cancel(self) -> None:
        """C-CANCEL gets no answer: not by itself, not with a data set, not while an instance is being stored."""
        self.peer.message(command(dimse.C_CANCEL_RQ), context_id=3)
        self.peer.message(command(dimse.C_CANCEL_RQ, has_data_set=True), b"data", context_id=3)
        self.assertEqual(self.peer.heard(), [])
        self.peer.store(b"data", "1.2.3", 7)
        self.peer.message(command(dimse.C_CANCEL_RQ, 7), context_id=3)
        self.assertEqual(self.peer.heard(), [])
        self.instances[0].end()
        self.assertEqual(self.peer.response()[:4], (3, 0x8001, 7, 0))

    def test_responses(self) -> None:
        """Responses to what we never asked get no answer."""
        for field in (0x8001, 0x8030, 0x8020):
            self.peer.message(command(field), context_id=3)
            self.peer.message(command(field, has_data_set=True), b"data", context_id=3)
        self.assertEqual(self.peer.heard(), [])
        self.peer.echo()
        self.assertEqual(self.peer.statuses(), [0])


class ViolationTests(SCPTestCase):
    """What makes no message ends the association, with an A-ABORT by the service user."""

    def assertAborted(self, data: bytes) -> None:
        """The last that comes of *data* is an A-ABORT."""
        peer = self.world.associated()
        peer.say(data)
        self.assertEqual(peer.heard()[-1:], ABORTED)

    def encoded(self, elements: dict[int, bytes], context_id: int = 3) -> bytes:
        return p_data(context_id, True, dimse.encode_command(elements))

    def test_unaccepted_context(self) -> None:
        """A message on a context that was not accepted, or not even proposed."""
        self.assertAborted(self.encoded(c_echo(), 7))
        self.assertAborted(self.encoded(c_store("1.2.3"), 255))
        self.assertEqual(self.instances, [])

    def test_data_set_on_another_context(self) -> None:
        """A data set that does not come on the context of its command."""
        self.assertAborted(self.encoded(c_store("1.2.3")) + p_data(5, False, b"data"))
        self.assertTrue(self.instances[0].cancelled)

    def test_data_set_of_nobody(self) -> None:
        """A data set without a command, and one after a command that announced none."""
        self.assertAborted(p_data(3, False, b"data"))
        self.assertAborted(self.encoded(c_echo(), 1) + p_data(1, False, b"data"))

    def test_command_within_a_data_set(self) -> None:
        """Another command before the data set is complete; it leaves nothing of the instance."""
        self.assertAborted(
            self.encoded(c_store("1.2.3"))
            + p_data(3, False, b"da", is_last=False)
            + self.encoded(c_echo(), 1)
        )
        self.assertTrue(self.instances[0].cancelled)

    def test_unreadable_commands(self) -> None:
        """A command set that is cut short, too long, or lacks what every command has."""
        for tag in (dimse.COMMAND_FIELD, dimse.COMMAND_DATA_SET_TYPE, dimse.MESSAGE_ID):
            for elements in (c_echo(), c_store("1.2.3"), command(0x0020)):
                del elements[tag]
                self.assertAborted(self.encoded(elements))
        self.assertAborted(p_data(3, True, dimse.encode_command(c_echo())[:-1]))
        self.assertAborted(p_data(3, True, b""))
        self.assertAborted(p_data(3, True, bytes(70_000), 10_000))
        self.assertAborted(p_data(3, True, b"\0\0\0\1\xff\xff\xff\xff"))
        self.assertEqual(self.instances, [])

    def test_no_message_id_with_data_set(self) -> None:
        """An unknown command with a data set but without a message ID cannot be answered either."""
        elements = command(0x0020, has_data_set=True)
        del elements[dimse.MESSAGE_ID]
        self.assertAborted(self.encoded(elements) + p_data(3, False, b"data"))


@implementer(IInstanceStore, IIncomingInstance)
class OutcomeStore:
    """Every instance ends as told."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def begin(self, origin: Origin, flow: IFlow) -> IIncomingInstance:
        return self

    def write(self, data: memoryview) -> None:
        pass

    def finish(self, answer: Answer | None = None) -> Deferred[Outcome]:
        return succeed(self.outcome)

    def collect(self) -> None:
        pass

    def hurry(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def acknowledged(self, path: str) -> None:
        pass

    def unacknowledged(self, path: str) -> None:
        pass


class LogTests(SynchronousTestCase):
    """One line for each C-STORE."""

    def line(
        self, raw: dict[int, bytes], status: Status = Status.SUCCESS, *, log_patient_data: bool = False
    ) -> tuple[LogLevel, str]:
        """Level and text of the line, while the release of the association is answered too."""
        outcome = Outcome(status, "" if status is Status.SUCCESS else "because", 9, "path", Head(raw))
        peer = World(OutcomeStore(outcome), log_patient_data=log_patient_data).associated()
        with capturedLogs() as events:
            peer.store(b"data", "1.2.3")
        self.assertEqual(peer.statuses(), [status])
        peer.release()
        self.assertEqual(peer.heard(), [AReleaseRP()])
        event: LogEvent
        (event,) = events
        return event["log_level"], formatEvent(event)

    def test_without_patient_data(self) -> None:
        """Caller, modality, size and time; nothing of the patient unless the operator wants it."""
        raw = {tags.MODALITY: b"CT", tags.PATIENT_ID: b"4711", tags.STUDY_INSTANCE_UID: b"1.2.1"}
        expected = (LogLevel.info, "C-STORE from SCU: CT 9 bytes in 0.0 ms stored")
        self.assertEqual(self.line(raw), expected)

    def test_with_patient_data(self) -> None:
        """Patient, study and instance, if so configured; a failure is a warning with its status and reason."""
        raw = {tags.MODALITY: b"CT", tags.PATIENT_ID: b"4711", tags.STUDY_INSTANCE_UID: b"1.2.1\0"}
        raw[tags.SOP_INSTANCE_UID] = b"1.2.3"
        level, line = self.line(raw, Status.OUT_OF_RESOURCES, log_patient_data=True)
        self.assertEqual(level, LogLevel.warn)
        which = "patient '4711' study '1.2.1' instance '1.2.3'"
        self.assertEqual(line, f"C-STORE from SCU: CT 9 bytes in 0.0 ms {which} failed: A700H because")

    def test_hostile_values(self) -> None:
        """Values that are no UIDs, or would forge lines, neither break the answer nor the log."""
        raw = {
            tags.MODALITY: b"CT\nforged",
            tags.PATIENT_ID: b"1\nforged",
            tags.STUDY_INSTANCE_UID: b"1.\xff\nforged",
            tags.SOP_INSTANCE_UID: b"1.\xff\nforged",
        }
        _, line = self.line(raw, Status.CANNOT_UNDERSTAND, log_patient_data=True)
        self.assertNotIn("\n", line)
        self.assertIn("-", line)
