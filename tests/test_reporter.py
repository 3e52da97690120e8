"""storescp.reporter and storescp.requestor: what a requester that listens sees, with the real twistd."""

from __future__ import annotations

import pathlib
import re
import signal
import socket
import struct
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.commitment_data import Reference, Report, Request, encode_report
from storescp.commitment_store import CommitmentStore
from storescp.dimse import MessageReader, encode_command
from storescp.extended_negotiation import RoleSelection, decoded
from storescp.pdu import (
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    Fragment,
    PresentationContextResult,
    UserInformation,
)
from storescp.sop_classes import STORAGE_COMMITMENT
from storescp.upper_layer import AbortIndication, AssociateIndication, ReleaseIndication, UpperLayer
from tests.server import DEADLINE, Server, eventually, run, temporary_directory
from tests.test_commitment_end_to_end import BOTH, CT, MR

IMPLICIT = "1.2.840.10008.1.2"
GRANTED = RoleSelection(STORAGE_COMMITMENT, scu=False, scp=True).item
DENIED = RoleSelection(STORAGE_COMMITMENT, scu=True, scp=False).item


class Served(NamedTuple):
    """What came on one association, and how it ended."""

    request: AAssociateRQ
    commands: list[dimse.Command]
    data_sets: list[bytes]
    end: str


class Listener:
    """A requester's end, byte by byte: accepts with *items* of the user information."""

    def __init__(self, case: SynchronousTestCase, backlog: int | None = None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self._socket.settimeout(DEADLINE)
        case.addCleanup(self._socket.close)
        self.port: int = self._socket.getsockname()[1]

    def serve(
        self,
        *items: tuple[int, bytes],
        result: int = 0,
        rejection: AAssociateRJ | None = None,
        message_id: int | None = None,
        release_early: bool = False,
        hang_up: bool = False,
    ) -> Served:
        """Serve the next association to its end."""
        connection, _ = self._socket.accept()
        connection.settimeout(DEADLINE)
        upper_layer, messages = UpperLayer(0), MessageReader()
        upper_layer.connection_made()
        request: AAssociateRQ | None = None
        commands: list[dimse.Command] = []
        data_sets: list[bytes] = [b""]
        end = ""
        with connection:
            while not end:
                while (event := upper_layer.next_event()) is not None:
                    if isinstance(event, AssociateIndication):
                        request = event.request
                        if rejection is not None:
                            upper_layer.reject(rejection)
                            continue
                        user_information = UserInformation(0, "1.2.3", "PEER", items)
                        answer = PresentationContextResult(1, result, IMPLICIT)
                        upper_layer.accept(
                            AAssociateAC(
                                request.called_ae_title, request.calling_ae_title, (answer,), user_information
                            )
                        )
                    elif isinstance(event, Fragment) and event.is_command:
                        command = messages.command(event)
                        if command is not None:
                            commands.append(command)
                    elif isinstance(event, Fragment):
                        messages.data_set(event)
                        data_sets[-1] += bytes(event.data)
                        if event.is_last:
                            data_sets.append(b"")
                            if hang_up:
                                return Served(request, commands, data_sets[:-1], "hung up")  # type: ignore[arg-type]
                            if release_early:
                                upper_layer.release()
                            else:
                                number = commands[-1].message_id if message_id is None else message_id
                                upper_layer.send_data(1, True, _response(number))
                    elif isinstance(event, ReleaseIndication):
                        upper_layer.release_response()
                        end = "released"
                    elif isinstance(event, AbortIndication):
                        end = "aborted"
                if data := upper_layer.data_to_send():
                    connection.sendall(data)
                if not end:
                    data = connection.recv(65536)
                    if not data:
                        end = "closed"
                    upper_layer.receive_data(data)
        assert request is not None
        return Served(request, commands, data_sets[:-1], end)


def _response(message_id: int) -> bytes:
    us = struct.Struct("<H").pack
    return encode_command(
        {
            dimse.COMMAND_FIELD: us(0x8100),
            dimse.MESSAGE_ID_BEING_RESPONDED_TO: us(message_id),
            dimse.COMMAND_DATA_SET_TYPE: us(0x0101),
            dimse.STATUS: us(0),
        }
    )


REQUEST = Request("1.2.3", tuple(Reference(*both) for both in BOTH))


class ListenerTests(SynchronousTestCase):
    """A server that owes reports from the last time that it ran."""

    def setUp(self) -> None:
        self.listener = Listener(self)
        self.home = temporary_directory(self)

    def start(self, *requests: Request) -> Server:
        """A server that owes a report on each of *requests* to CT1, which has called it ARCHIVE."""
        first = Server(self)
        self.assertEqual(run("storescu", *first.address, CT, MR).returncode, 0)
        first.stop()
        self.database = first.storage / ".storescp" / "commitment.db"
        store = CommitmentStore(str(self.database))
        for request in requests:
            store.take(request, "CT1", "ARCHIVE", now=1e12, holder=0, most=100)
        store.close()
        config = self.home / "storescp.yaml"
        config.write_text(f"callers: {{CT1: {{commitment: '127.0.0.1:{self.listener.port}'}}}}")
        return Server(self, "--config", config, "--storage-dir", first.storage, "--commitment-retry", "0.1")

    def test_association(self) -> None:
        """The caller is called by its title, by the one that it knows us by; we propose to be the SCP, and no SCU."""
        server = self.start(REQUEST, REQUEST._replace(transaction_uid="1.2.4"))
        served = self.listener.serve(GRANTED)
        request = served.request
        self.assertEqual((request.called_ae_title, request.calling_ae_title), ("CT1", "ARCHIVE"))
        (context,) = request.presentation_contexts
        self.assertEqual(context.abstract_syntax, STORAGE_COMMITMENT)
        self.assertIn(IMPLICIT, context.transfer_syntaxes)
        role = decoded(RoleSelection, request.user_information.other)[STORAGE_COMMITMENT]
        self.assertEqual((role.scu, role.scp), (False, True))
        self.assertEqual(served.end, "released")
        self.assertEqual([command.command_field for command in served.commands], [0x0100, 0x0100])
        self.assertEqual(
            served.data_sets,
            [encode_report(Report(uid, REQUEST.references, ()), IMPLICIT) for uid in ("1.2.3", "1.2.4")],
        )
        server.wait_for("2 of 2 instances committed", count=2)
        server.stop()

    def test_roles(self) -> None:
        """Who says that we are not the SCP gets nothing; who says nothing has accepted the context for it."""
        server = self.start(REQUEST)
        served = self.listener.serve(DENIED)
        self.assertEqual((served.commands, served.end), ([], "aborted"))
        server.wait_for("it does not let us be the SCP of Storage Commitment")
        served = self.listener.serve()
        self.assertEqual((len(served.commands), served.end), (1, "released"))
        server.wait_for("2 of 2 instances committed")
        server.stop()

    def test_failures(self) -> None:
        """Whatever goes wrong is told in a line, and tried again."""
        server = self.start(REQUEST)
        failures: tuple[tuple[str, dict[str, Any]], ...] = (
            ("association rejected (transient)", {"rejection": AAssociateRJ(2, 3, 1)}),
            ("it does not accept Storage Commitment", {"result": 3}),
            ("the peer broke the protocol: a response to another message", {"message_id": 99}),
            ("the peer released the association instead of an answer", {"release_early": True}),
            ("the connection was lost", {"hang_up": True}),
        )
        for why, options in failures:
            self.listener.serve(GRANTED, **options)
            line = server.wait_for(rf"cannot report to CT1 at \S+: {re.escape(why)}.*")
            self.assertIn("1 report is owed to it, next attempt in ", line[0])
        served = self.listener.serve(GRANTED)
        self.assertEqual(served.end, "released")
        server.wait_for("2 of 2 instances committed")
        server.stop()

    def test_stop(self) -> None:
        """A stop does not wait for a peer that does not answer for longer than --stop-timeout, and loses nothing."""
        server = self.start(REQUEST)
        connection, _ = self.listener._socket.accept()
        with connection:
            self.assertTrue(connection.recv(65536))
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping: ")
            server.send_signal(signal.SIGTERM)  # who is in a hurry
            server.stopped()
        self.assertStillOwed()

    def test_stop_while_connecting(self) -> None:
        """Nor for one that does not even take the connection."""
        self.listener = Listener(self, backlog=0)
        waiting = socket.socket()  # it fills the queue: the kernel does not answer the next one
        self.addCleanup(waiting.close)
        waiting.connect(("127.0.0.1", self.listener.port))
        server = self.start(REQUEST)
        eventually(lambda: is_being_called(self.listener.port))
        server.send_signal(signal.SIGTERM)
        server.wait_for("stopping: ")
        server.send_signal(signal.SIGTERM)
        server.stopped()
        self.assertStillOwed()

    def assertStillOwed(self) -> None:
        store = CommitmentStore(str(self.database))
        self.assertEqual(store.begin(0.0), 1)
        store.close()


def is_being_called(port: int) -> bool:
    """Whether somebody waits for an answer from *port* of this machine, as proc_net_tcp(5) has it: SYN_SENT is 02."""
    sockets = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(one.split()[2].endswith(f":{port:04X}") and one.split()[3] == "02" for one in sockets)
