"""storescp.scu: the requestor's half of an association, against peers that do as the test says."""

from __future__ import annotations

import os
import pathlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence

from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse, pdu
from storescp.dimse import Command, MessageReader
from storescp.extended_negotiation import OperationsWindow
from storescp.pdu import (
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    Fragment,
    PresentationContextResult,
    UserInformation,
)
from storescp.pdu_reader import PDUReader
from storescp.scu import PIECE, SCU, Response
from storescp.scu_errors import AssociationError, ContextNotAccepted, Rejected
from storescp.sop_classes import VERIFICATION
from tests.raw_scu import CT, EXPLICIT, IMPLICIT, MR
from tests.server import DEADLINE, free_port

CONTEXTS = ((VERIFICATION, IMPLICIT), (CT, EXPLICIT), (CT, IMPLICIT))


def store(scu: SCU, sop_class: str, uid: str, syntax: str, descriptor: int, offset: int) -> Response:
    """Send an instance and wait for the answer."""
    scu.send(sop_class, uid, syntax, descriptor, offset)
    return scu.response()[1]


class Peer:
    """The other end of one connection; *script* is run on a thread of its own when it is there."""

    def __init__(
        self,
        case: SynchronousTestCase,
        script: Callable[[Peer], None],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self.port: int = self._listener.getsockname()[1]
        self.socket: socket.socket
        self.error: BaseException | None = None
        self._reader: PDUReader
        self._messages: MessageReader
        self._data_set: bytearray
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._case = case
        case.addCleanup(self.finish)

    def _run(self) -> None:
        try:
            with self._listener:
                self.connect()
                self._script(self)
        except BaseException as error:  # noqa: BLE001 - raised in finish()
            self.error = error
        finally:
            self.socket.close()

    def connect(self) -> None:
        """Take the next connection."""
        self.socket, _ = self._listener.accept()
        self.socket.settimeout(DEADLINE)
        if self._tls is not None:
            self.socket = self._tls.wrap_socket(self.socket, server_side=True)
        self._reader = PDUReader(0)
        self._messages = MessageReader()
        self._data_set = bytearray()

    def finish(self) -> None:
        """Wait for the end of the script, and raise what it raised."""
        self._thread.join(DEADLINE)
        self._case.assertFalse(self._thread.is_alive())
        if self.error is not None:
            raise self.error

    def receive(self) -> pdu.PDU | Command | bytes | None:
        """The next PDU, command or whole data set; None when the connection is closed."""
        while True:
            item = self._reader.next()
            if item is None:
                data = self.socket.recv(1 << 20)
                if not data:
                    return None
                self._reader.feed(data)
            elif not isinstance(item, Fragment):
                return item
            elif item.is_command:
                command = self._messages.command(item)
                if command is not None:
                    return command
            else:
                self._messages.data_set(item)
                self._data_set += item.data
                if item.is_last:
                    data_set, self._data_set = bytes(self._data_set), bytearray()
                    return data_set

    def send(self, *data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(b"".join(data))

    def accept(
        self, maximum_length: int = 0, refuse: Sequence[int] = (), window: int | None = None
    ) -> AAssociateRQ:
        """Accept the association, but for the contexts with the IDs in *refuse*, and so many operations at a time."""
        request = self.receive()
        assert isinstance(request, AAssociateRQ)
        results = tuple(
            PresentationContextResult(context.id, 3 * (context.id in refuse), context.transfer_syntaxes[0])
            for context in request.presentation_contexts
        )
        other = () if window is None else (OperationsWindow(window, 1).item,)
        information = UserInformation(maximum_length, other=other)
        self.send(
            AAssociateAC(request.called_ae_title, request.calling_ae_title, results, information).encode()
        )
        return request

    def command(self) -> Command:
        """The next command."""
        command = self.receive()
        assert isinstance(command, Command), command
        return command

    def respond(self, command: Command, status: int, comment: str = "", context_id: int = 1) -> None:
        """Answer a command."""
        self.send(pdu.encode_p_data(context_id, True, dimse.encode_response(command, status, comment)))

    def release(self) -> None:
        """See the association released, and the connection closed."""
        assert self.receive() == AReleaseRQ()
        self.send(AReleaseRP().encode())
        assert self.receive() is None


class SCUTestCase(SynchronousTestCase):
    """Peers, and associations with them."""

    def peer(self, script: Callable[[Peer], None]) -> Peer:
        """A peer that does as *script* says."""
        return Peer(self, script)

    def scu(
        self,
        peer: Peer | int,
        contexts: Sequence[tuple[str, str]] = CONTEXTS,
        *,
        timeout: float = DEADLINE,
        window: int = 1,
    ) -> SCU:
        """An association with it."""
        port = peer if isinstance(peer, int) else peer.port
        return SCU(
            "127.0.0.1",
            port,
            contexts,
            calling_ae_title="SENDER",
            called_ae_title="ARCHIVE",
            timeout=timeout,
            window=window,
        )

    def file(self, content: bytes) -> int:
        """A descriptor of a file of *content*."""
        path = pathlib.Path(self.mktemp())
        path.write_bytes(content)
        descriptor = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor

    def assertFails(self, script: Callable[[Peer], None], reason: str, *, timeout: float = DEADLINE) -> None:
        """A C-ECHO with a peer that does as *script* says fails for that reason, in one line."""
        peer = self.peer(script)
        with (
            self.assertRaisesRegex(AssociationError, reason) as caught,
            self.scu(peer) as scu,
        ):
            scu._timeout = timeout
            scu._socket.settimeout(timeout)
            scu.echo(VERIFICATION, IMPLICIT)
        self.assertNotIn("\n", str(caught.exception))
        peer.finish()


class AssociationTests(SCUTestCase):
    """Associations: asked for, released, aborted."""

    def test_request(self) -> None:
        """The request has the AE titles and a context a pair; what the peer accepted is known."""

        def script(peer: Peer) -> None:
            request = peer.accept(refuse=[3])
            self.assertEqual((request.calling_ae_title, request.called_ae_title), ("SENDER", "ARCHIVE"))
            self.assertEqual(
                [
                    (context.abstract_syntax, context.transfer_syntaxes)
                    for context in request.presentation_contexts
                ],
                [(abstract, (transfer,)) for abstract, transfer in CONTEXTS],
            )
            peer.release()

        peer = self.peer(script)
        with self.scu(peer) as scu:
            self.assertEqual(scu.accepted, {(VERIFICATION, IMPLICIT): 1, (CT, IMPLICIT): 5})
            with self.assertRaisesRegex(
                ContextNotAccepted, "not accepted: CTImageStorage in ExplicitVRLittleEndian$"
            ):
                store(scu, CT, "1.2", EXPLICIT, self.file(b""), 0)
            self.assertRaises(ContextNotAccepted, store, scu, MR, "1.2", EXPLICIT, 0, 0)
        peer.finish()

    def test_small_packets_at_once(self) -> None:
        """The connection does not wait to fill its packets."""

        def script(peer: Peer) -> None:
            peer.accept()
            peer.release()

        with self.scu(self.peer(script)) as scu:
            self.assertTrue(scu._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_rejected(self) -> None:
        """A rejection is told in the standard's words."""
        for numbers, words in (
            ((1, 1, 7), r"\(permanent\) by the service-user: called-AE-title-not-recognized"),
            ((2, 3, 2), r"\(transient\) by the .*\(Presentation related function\): local-limit-exceeded"),
            ((1, 2, 2), r"\(ACSE related function\): protocol-version-not-supported"),
            ((9, 8, 7), r"\(result 9\) by the source 8: reason 7"),
        ):

            def script(peer: Peer, numbers: tuple[int, int, int] = numbers) -> None:
                peer.receive()
                peer.send(AAssociateRJ(*numbers).encode())
                self.assertIsNone(peer.receive())

            peer = self.peer(script)
            with self.assertRaisesRegex(Rejected, words) as caught:
                self.scu(peer)
            self.assertEqual(caught.exception.response, AAssociateRJ(*numbers))

    def test_refused(self) -> None:
        """Where nobody listens, and where there is no such host, that is the reason."""
        with self.assertRaisesRegex(AssociationError, "^cannot connect: Connection refused$"):
            self.scu(free_port())
        for host in ("host.invalid", "a" * 70 + ".b", "."):
            with self.assertRaisesRegex(AssociationError, "^cannot connect: "):
                SCU(host, 1, CONTEXTS, calling_ae_title="A", called_ae_title="B", timeout=DEADLINE)

    def test_silence(self) -> None:
        """A peer that does not answer, to the request or to a message, is given up and told so."""

        def silent_at_once(peer: Peer) -> None:
            peer.receive()
            self.assertIsNone(peer.receive())

        with self.assertRaisesRegex(AssociationError, "^no answer within 0.1 s$"):
            self.scu(self.peer(silent_at_once), timeout=0.1)

        def silent_later(peer: Peer) -> None:
            peer.accept()
            peer.command()
            self.assertEqual(peer.receive(), AAbort(0, 0))

        self.assertFails(silent_later, "no answer within 0.3 s", timeout=0.3)

    def test_peer_does_not_read(self) -> None:
        """A peer that takes no data is given up."""
        done = threading.Event()

        def script(peer: Peer) -> None:
            peer.accept()
            done.wait(DEADLINE)

        peer = self.peer(script)
        with self.assertRaisesRegex(AssociationError, "took no data for"), self.scu(peer) as scu:
            scu._socket.settimeout(0.1)
            store(scu, CT, "1.2", EXPLICIT, self.file(bytes(50_000_000)), 0)
        done.set()

    def test_aborted(self) -> None:
        """An abort is told with its source and reason, whenever it comes."""
        for abort, words in (
            (AAbort(0, 0), "aborted by the service-user$"),
            (AAbort(2, 2), "aborted by the service-provider: unexpected-PDU"),
            (AAbort(2, 3), "aborted by the service-provider: reason 3"),
        ):

            def at_once(peer: Peer, abort: AAbort = abort) -> None:
                peer.receive()
                peer.send(abort.encode())

            self.assertFails(at_once, words)

            def later(peer: Peer, abort: AAbort = abort) -> None:
                peer.accept()
                peer.command()
                peer.send(abort.encode())

            self.assertFails(later, words)

    def test_lost(self) -> None:
        """A connection that ends without a word is told as lost, whether it was closed or reset."""

        def close(peer: Peer) -> None:
            peer.accept()
            peer.command()

        self.assertFails(close, "connection was lost")

        def reset(peer: Peer) -> None:
            peer.accept()
            peer.command()
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        self.assertFails(reset, "connection was lost")

    def test_aborted_in_the_middle(self) -> None:
        """An abort that comes while a data set is being sent is found though nobody takes the rest of it."""

        def script(peer: Peer) -> None:
            peer.accept()
            peer.command()
            peer.send(AAbort(2, 6).encode())
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.socket.recv(1 << 20):
                pass

        peer = self.peer(script)
        with (
            self.assertRaisesRegex(AssociationError, "invalid-PDU-parameter-value"),
            self.scu(peer) as scu,
        ):
            store(scu, CT, "1.2", EXPLICIT, self.file(bytes(5_000_000)), 0)

    def test_nonsense(self) -> None:
        """A peer that breaks the protocol is aborted, with the reason of Table 9-26."""
        for nonsense, abort in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", AAbort(2, 1)),
            (AAssociateRJ(1, 1, 1).encode(), AAbort(2, 2)),
            (b"\x04\0\0\0\xff\xff", AAbort(2, 6)),
        ):

            def script(peer: Peer, nonsense: bytes = nonsense, abort: AAbort = abort) -> None:
                peer.accept()
                peer.command()
                peer.send(nonsense)
                self.assertEqual(peer.receive(), abort)
                self.assertIsNone(peer.receive())

            self.assertFails(script, "the peer broke the protocol")

    def test_wrong_answers(self) -> None:
        """What is no response to the message that was sent ends the association."""

        def other_message(peer: Peer) -> None:
            peer.accept()
            command = peer.command()
            command.elements[dimse.MESSAGE_ID] = b"\x09\0"
            peer.respond(command, 0)
            self.assertEqual(peer.receive(), AAbort(0, 0))

        self.assertFails(other_message, "a response to another message")

        def request(peer: Peer) -> None:
            peer.accept()
            command = peer.command()
            peer.send(pdu.encode_p_data(1, True, dimse.encode_command(command.elements)))
            self.assertEqual(peer.receive(), AAbort(0, 0))

        self.assertFails(request, "0030H instead of a response")

        def data_set(peer: Peer) -> None:
            peer.accept()
            peer.command()
            peer.send(pdu.encode_p_data(1, False, b"data"))
            self.assertEqual(peer.receive(), AAbort(0, 0))

        self.assertFails(data_set, "data set that nobody asked for")

        def release(peer: Peer) -> None:
            peer.accept()
            peer.command()
            peer.send(AReleaseRQ().encode())
            self.assertEqual(peer.receive(), AReleaseRP())

        self.assertFails(release, "the peer released the association")

    def test_release_collision(self) -> None:
        """When both ask for release at once, each is answered, PS3.8 §9.2.3 Table 9-10, Sta9 and Sta11."""

        def script(peer: Peer) -> None:
            peer.accept()
            self.assertEqual(peer.receive(), AReleaseRQ())
            peer.send(AReleaseRQ().encode())
            self.assertEqual(peer.receive(), AReleaseRP())
            peer.send(AReleaseRP().encode())
            self.assertIsNone(peer.receive())

        with self.scu(self.peer(script)):
            pass

    def test_abort(self) -> None:
        """An exception inside the with statement aborts the association; aborting again does nothing."""

        def script(peer: Peer) -> None:
            peer.accept()
            self.assertEqual(peer.receive(), AAbort(0, 0))
            self.assertIsNone(peer.receive())

        with self.assertRaises(KeyError), self.scu(self.peer(script)) as scu:
            raise KeyError
        scu.abort()


class MessageTests(SCUTestCase):
    """C-ECHO and C-STORE."""

    def test_echo(self) -> None:
        """C-ECHO-RQ has what PS3.7 §9.3.5.1 wants, and the status comes back."""

        def script(peer: Peer) -> None:
            peer.accept()
            for message_id, status in ((1, 0), (2, 0x0122)):
                command = peer.command()
                self.assertEqual(command.command_field, dimse.C_ECHO_RQ)
                self.assertEqual(command.uid(dimse.AFFECTED_SOP_CLASS_UID), VERIFICATION)
                self.assertEqual(command.message_id, message_id)
                self.assertFalse(command.has_data_set)
                peer.respond(command, status, "not today")
            peer.release()

        with self.scu(self.peer(script)) as scu:
            self.assertEqual(scu.echo(VERIFICATION, IMPLICIT), Response(0, "not today"))
            self.assertEqual(scu.echo(VERIFICATION, IMPLICIT), Response(0x0122, "not today"))

    def test_store(self) -> None:
        """Data sets of all sizes arrive whole, in P-DATA-TF PDUs that the peer takes, whatever it announced."""
        sizes = (2, 4, 4096, PIECE - 2, PIECE, PIECE + 2, 3 * PIECE + 100)
        for maximum_length in (0, 4096, 4097, 16384, 1 << 30):
            pdu_lengths: list[int] = []

            def script(
                peer: Peer, maximum_length: int = maximum_length, lengths: list[int] = pdu_lengths
            ) -> None:
                peer.accept(maximum_length)
                peer._reader = PDUReader(maximum_length)  # refuses what is longer
                for number, size in enumerate(sizes):
                    command = peer.command()
                    self.assertEqual(command.command_field, dimse.C_STORE_RQ)
                    self.assertEqual(command.uid(dimse.AFFECTED_SOP_CLASS_UID), CT)
                    self.assertEqual(command.uid(dimse.AFFECTED_SOP_INSTANCE_UID), f"1.2.{number}")
                    self.assertEqual(command.integer(dimse.PRIORITY), 0)
                    data_set = peer.receive()
                    self.assertEqual(data_set, bytes(range(256)) * (size // 256) + bytes(size % 256))
                    peer.respond(command, 0x0111 if number == 3 else 0, context_id=3)
                peer.release()

            with self.scu(self.peer(script)) as scu:
                for number, size in enumerate(sizes):
                    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
                    response = store(scu, CT, f"1.2.{number}", EXPLICIT, self.file(b"head" + content), 4)
                    self.assertEqual(response.status, 0x0111 if number == 3 else 0)

    def test_odd(self) -> None:
        """A data set with an odd number of bytes is padded: fragments are even."""

        def script(peer: Peer) -> None:
            peer.accept()
            command = peer.command()
            self.assertEqual(peer.receive(), b"odd\0")
            peer.respond(command, 0, context_id=3)
            peer.release()

        with self.scu(self.peer(script)) as scu:
            store(scu, CT, "1.2", EXPLICIT, self.file(b"odd"), 0)

    def test_one_write(self) -> None:
        """A small object is one write: its command does not travel alone."""

        def script(peer: Peer) -> None:
            peer.accept()
            first = peer.socket.recv(1 << 20, socket.MSG_PEEK)
            self.assertIn(b"content", first)
            command = peer.command()
            peer.receive()
            peer.respond(command, 0, context_id=3)
            peer.release()

        with self.scu(self.peer(script)) as scu:
            store(scu, CT, "1.2", EXPLICIT, self.file(b"content!"), 0)

    def test_file_shrinks(self) -> None:
        """A file that becomes shorter while it is sent is an OSError; the association can only be aborted then."""
        path = pathlib.Path(self.mktemp())
        path.touch()
        os.truncate(path, 64 * PIECE)  # more than buffers take
        descriptor = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)

        def script(peer: Peer) -> None:
            peer.accept()
            peer.command()
            os.truncate(path, PIECE)
            self.assertEqual(peer.receive(), AAbort(0, 0))

        peer = self.peer(script)
        with self.assertRaisesRegex(OSError, "shorter"), self.scu(peer) as scu:
            store(scu, CT, "1.2", EXPLICIT, descriptor, 0)
        peer.finish()

    def test_message_ids(self) -> None:
        """Message IDs stay within 16 bits and are never 0."""

        def script(peer: Peer) -> None:
            peer.accept()
            for message_id in (0xFFFF, 1):
                command = peer.command()
                self.assertEqual(command.message_id, message_id)
                peer.respond(command, 0)
            peer.release()

        with self.scu(self.peer(script)) as scu:
            scu._message_id = 0xFFFE
            scu.echo(VERIFICATION, IMPLICIT)
            scu.echo(VERIFICATION, IMPLICIT)


class WindowTests(SCUTestCase):
    """Several operations outstanding at a time, PS3.7 §D.3.3.3."""

    def test_negotiation(self) -> None:
        """A window of more than one is asked for; the peer's word counts, and its silence means one."""
        for asked, answered, agreed in ((1, None, 1), (8, None, 1), (8, 3, 3), (8, 0, 8), (8, 99, 8)):
            requests: list[AAssociateRQ] = []

            def script(
                peer: Peer, answered: int | None = answered, requests: list[AAssociateRQ] = requests
            ) -> None:
                requests.append(peer.accept(window=answered))
                peer.release()

            peer = self.peer(script)
            with self.scu(peer, window=asked) as scu:
                self.assertEqual(scu.window, agreed)
            peer.finish()
            items = requests[0].user_information.other
            self.assertEqual(items, (OperationsWindow(asked, 1).item,) if asked > 1 else ())

    def test_out_of_order(self) -> None:
        """Answers are known by their message IDs, in whatever order they come."""

        def script(peer: Peer) -> None:
            peer.accept(window=3)
            commands = []
            for _ in range(3):
                commands.append(peer.command())
                peer.receive()
            for number in (2, 0, 1):
                peer.respond(commands[number], 0xA700 + number, context_id=3)
            peer.release()

        with self.scu(self.peer(script), window=3) as scu:
            descriptor = self.file(b"data")
            message_ids = [scu.send(CT, f"1.2.{number}", EXPLICIT, descriptor, 0) for number in range(3)]
            self.assertEqual(message_ids, [1, 2, 3])
            answers = [scu.response() for _ in range(3)]
        self.assertEqual(
            [(answer[0], answer[1].status) for answer in answers], [(3, 0xA702), (1, 0xA700), (2, 0xA701)]
        )

    def test_answered_twice(self) -> None:
        """A second answer to the same message is one to no message."""

        def script(peer: Peer) -> None:
            peer.accept(window=3)
            command = peer.command()
            peer.receive()
            peer.receive()
            peer.receive()
            peer.respond(command, 0, context_id=3)
            peer.respond(command, 0, context_id=3)
            self.assertEqual(peer.receive(), AAbort(0, 0))

        peer = self.peer(script)
        with (
            self.assertRaisesRegex(AssociationError, "a response to another message"),
            self.scu(peer, window=3) as scu,
        ):
            for _ in range(2):
                scu.send(CT, "1.2", EXPLICIT, self.file(b"data"), 0)
            scu.response()
            scu.response()
        peer.finish()

    def test_answers_before_the_end(self) -> None:
        """What was answered before the association broke is known."""

        def script(peer: Peer) -> None:
            peer.accept(window=3)
            command = peer.command()
            peer.receive()
            peer.respond(command, 0, context_id=3)
            peer.send(AAbort(0, 0).encode())
            peer.socket.shutdown(socket.SHUT_RDWR)

        peer = self.peer(script)
        with (
            self.assertRaisesRegex(AssociationError, "aborted by the service-user") as caught,
            self.scu(peer, window=3) as scu,
        ):
            scu.send(CT, "1.2", EXPLICIT, self.file(b"data"), 0)
            scu.send(CT, "1.3", EXPLICIT, self.file(bytes(50_000_000)), 0)
        self.assertTrue(caught.exception.is_transient)
        self.assertEqual(scu.arrived(), [(1, Response(0, ""))])
        self.assertEqual(scu.arrived(), [])
        peer.finish()
