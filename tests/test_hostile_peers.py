"""The real server and peers that send what they should not.

After each of them the server still stores for a good one, has not grown, has logged no traceback, and shows
nothing but finished files.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse
from storescp.dimse import NO_DATA_SET, encode_command
from storescp.pdu import (
    MAXIMUM_ASSOCIATE_LENGTH,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    PresentationContext,
    UserInformation,
)
from storescp.sop_classes import VERIFICATION
from tests.raw_scu import (
    CT,
    ECHO_CONTEXT,
    EXPLICIT,
    EXPLICIT_CONTEXT,
    IMPLICIT,
    IMPLICIT_CONTEXT,
    RawSCU,
    echo_command,
    instance,
    p_data,
    store,
    store_command,
)
from tests.server import DEADLINE, ROOT, Server, environment

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
OUT_OF_RESOURCES = 0xA700

MEGABYTE = 1024 * 1024

#: PS3.8 Table 9-26: by the service user, and by the provider with its reasons.
BY_USER = AAbort(0, 0)
UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = AAbort(2, 1), AAbort(2, 2), AAbort(2, 6)


class HostileTestCase(SynchronousTestCase):
    """Starts a server, and judges at the end what is left of it."""

    options: tuple[object, ...] = ()
    listen = True

    #: How far the server's memory may have grown over what it had in the beginning, at its peak.
    growth = 24 * MEGABYTE

    def setUp(self) -> None:
        self.server = Server(self, *self.options, listen=self.listen)
        self.good = 0
        self.stored: set[str] = set()
        self.check_good()  # what is loaded at the first association is no growth
        self.before = self.server.memory()
        self.addCleanup(self.judge)  # trial's tearDown comes after the server has gone

    def judge(self) -> None:
        """What is left of the server after the test."""
        self.check_good()
        self.assertLess(self.server.memory() - self.before, self.growth)
        statistics = self.server.stop()  # which looks for tracebacks
        self.assertEqual(set(self.server.files()), self.stored)
        self.assertEqual(statistics["stored"], len(self.stored))
        self.assertEqual(self.server.litter(), [])
        rows = self.server.rows("SELECT path FROM instances")
        self.assertEqual({str(path) for (path,) in rows}, self.stored)

    def expect(self, uid: str, study: str = "1.2.3", series: str = "1.2.3.4") -> None:
        """This instance was stored."""
        self.stored.add(f"{study}/{series}/{uid}.dcm")

    def check_good(self) -> None:
        """A good instance is stored."""
        self.good += 1
        uid = f"1.9.{self.good}"
        self.assertEqual(store(self.server.address, [(uid, instance(uid))]), [SUCCESS])
        self.expect(uid)

    def connect(self) -> RawSCU:
        """A connection."""
        scu = RawSCU(self.server.address)
        self.addCleanup(scu.socket.close)
        return scu

    def associated(self) -> RawSCU:
        """An association with the default contexts."""
        scu = self.connect()
        self.assertIsInstance(scu.associate(), AAssociateAC)
        return scu

    def check_abort(self, scu: RawSCU, abort: AAbort) -> None:
        """The server aborts so; then it waits for the peer to close (Sta13), and closes too."""
        self.assertEqual(scu.receive(), abort)
        with contextlib.suppress(OSError):
            scu.socket.shutdown(socket.SHUT_WR)
        self.assertIsNone(scu.receive())
        scu.socket.close()


class FragmentTests(HostileTestCase):
    """Messages in odd pieces, and pieces that make no message."""

    def test_crumbs(self) -> None:
        """Command and data set in PDVs of one byte, and a connection that delivers single bytes: stored."""
        scu = self.associated()
        data = instance("1.2.5", pixels=bytes(20_000))
        command = store_command("1.2.5")
        for is_command, content in ((True, command), (False, data)):
            crumbs = (
                p_data(EXPLICIT_CONTEXT, is_command, end == len(content), content[end - 1 : end])
                for end in range(1, len(content) + 1)
            )
            scu.send(b"".join(crumbs))
        self.assertEqual(scu.status(), SUCCESS)
        self.expect("1.2.5")
        command, data = store_command("1.2.6"), instance("1.2.6")
        stream = p_data(EXPLICIT_CONTEXT, True, True, command) + p_data(EXPLICIT_CONTEXT, False, True, data)
        for position in range(len(stream)):
            scu.send(stream[position : position + 1])
        self.assertEqual(scu.status(), SUCCESS)
        self.expect("1.2.6")
        scu.release()

    def test_crumbs_do_not_pile_up(self) -> None:
        """A data set that arrives in a million empty and tiny fragments costs no more memory than another."""
        scu = self.associated()
        scu.send_command(store_command("1.2.5"))
        data = instance("1.2.5", pixels=bytes(MEGABYTE))
        empty = p_data(EXPLICIT_CONTEXT, False, False, b"") * 1000
        for start in range(0, len(data), 40_000):
            scu.send(empty)
            piece = data[start : start + 40_000]
            scu.send(
                b"".join(
                    p_data(EXPLICIT_CONTEXT, False, False, piece[i : i + 4]) for i in range(0, len(piece), 4)
                )
            )
        scu.send(p_data(EXPLICIT_CONTEXT, False, True, b""))
        self.assertEqual(scu.status(), SUCCESS)
        self.expect("1.2.5")
        scu.release()

    def test_no_message(self) -> None:
        """Fragments that make no message are aborted by the user; on a context that was not accepted, too."""
        command = store_command("1.2.5")

        def one(
            is_command: bool, data: bytes, context_id: int = EXPLICIT_CONTEXT, last: bool = True
        ) -> bytes:
            return p_data(context_id, is_command, last, data)

        for data in (
            one(False, instance("1.2.5")),
            one(True, command, 99),
            one(True, command) + one(True, echo_command(), ECHO_CONTEXT),
            one(True, command) + one(False, b"", IMPLICIT_CONTEXT),
            one(True, command[:50], last=False) + one(True, command[50:], IMPLICIT_CONTEXT),
            one(True, b"\0\0\0\0\4\0\0\0"),
            one(True, b""),
            one(True, b"GET / HTTP/1.0\r\n\r\n"),
            one(True, encode_command({dimse.COMMAND_FIELD: b"\1\0"})),
            one(True, bytes(70_000), last=False),
        ):
            scu = self.associated()
            scu.send(data)
            self.check_abort(scu, BY_USER)

    def test_unknown_commands(self) -> None:
        """Unknown commands get 0211H, with and without a data set; responses and C-CANCEL get nothing."""
        scu = self.associated()

        def command(field: int, data_set: int = NO_DATA_SET) -> bytes:
            return encode_command(
                {
                    dimse.AFFECTED_SOP_CLASS_UID: CT.encode() + b"\0" * (len(CT) % 2),
                    dimse.COMMAND_FIELD: struct.pack("<H", field),
                    dimse.MESSAGE_ID: b"\7\0",
                    dimse.MESSAGE_ID_BEING_RESPONDED_TO: b"\7\0",
                    dimse.COMMAND_DATA_SET_TYPE: struct.pack("<H", data_set),
                    dimse.STATUS: b"\0\0",
                }
            )

        for field in (0x0020, 0x0021, 0x0100, 0x0140, 0x1234, 0x0000):
            scu.send_command(command(field))
            self.assertEqual(scu.status(), UNRECOGNIZED_OPERATION)
            scu.send_command(command(field, 0))
            scu.send_data_set(instance("1.2.5"))
            self.assertEqual(scu.status(), UNRECOGNIZED_OPERATION)
        scu.send_command(command(0x8001))
        scu.send_command(command(0x0FFF))
        scu.send_command(command(0x8001, 0))
        scu.send_data_set(instance("1.2.5"))
        scu.send_command(echo_command(), ECHO_CONTEXT)
        self.assertEqual(scu.status(), SUCCESS)
        scu.release()


class PDUTests(HostileTestCase):
    """PDUs that are none."""

    def test_other_protocols(self) -> None:
        """Who speaks HTTP, SSH, TLS or nothing known gets an A-ABORT, at once, and the connection is closed."""
        chance = random.Random(2)
        for data in (
            b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\xff" * 100,
            *(bytes([8 + chance.randrange(248)]) + chance.randbytes(2000) for _ in range(30)),
        ):
            scu = self.connect()
            scu.send(data)
            self.check_abort(scu, BY_USER)
        scu = self.connect()
        context = ssl.create_default_context()
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(scu.socket, server_hostname="localhost")

    def test_random_bytes(self) -> None:
        """Random bytes that begin like a PDU: whatever they are, the connection ends when the peer's half does."""
        chance = random.Random(3)
        for kind in (*range(9), *range(9)):
            scu = self.connect()
            with contextlib.suppress(ConnectionError):
                scu.send(bytes([kind, 0, 0, 0]) + chance.randbytes(5000))
                scu.socket.shutdown(socket.SHUT_WR)
                while scu.socket.recv(65536):
                    pass
            scu.socket.close()

    def test_claims_of_4_gib(self) -> None:
        """Lengths of 4 GiB in the header of a PDU or PDV end the connection before they cost anything."""
        for kind in range(1, 8):
            scu = self.connect()
            scu.send(bytes([kind, 0]) + b"\xff\xff\xff\xff")
            self.check_abort(scu, BY_USER)
        for kind in range(1, 8):
            scu = self.associated()
            scu.send(bytes([kind, 0]) + b"\xff\xff\xff\xff")
            self.check_abort(scu, INVALID_PARAMETER)
        for length in (0xFFFFFFFF, 1000, 1, 0):
            scu = self.associated()
            scu.send(struct.pack(">BxIIBB", 4, 100, length, EXPLICIT_CONTEXT, 3))
            self.check_abort(scu, INVALID_PARAMETER)
        scu = self.associated()
        scu.send(p_data(EXPLICIT_CONTEXT, True, True, struct.pack("<HHI", 0, 0x0002, 0xFFFFFFFF)))
        self.check_abort(scu, BY_USER)
        scu = self.associated()
        scu.send(struct.pack(">BxI", 4, 262145))
        self.check_abort(scu, INVALID_PARAMETER)

    def test_wrong_state(self) -> None:
        """PDUs that the state does not allow are aborted with the reason of PS3.8 Table 9-26."""
        request = AAssociateRQ("A", "B", ()).encode()
        for data in (p_data(1, True, True, echo_command()), b"\5\0\0\0\0\4\0\0\0\0", b"\6\0\0\0\0\4\0\0\0\0"):
            scu = self.connect()
            scu.send(data)
            self.check_abort(scu, BY_USER)
        for data in (request, b"\3\0\0\0\0\4\0\1\1\1", b"\6\0\0\0\0\4\0\0\0\0"):
            scu = self.associated()
            scu.send(data)
            self.check_abort(scu, UNEXPECTED_PDU)
        scu = self.associated()
        scu.send(b"\x42\0\0\0\0\4\0\0\0\0")
        self.check_abort(scu, UNRECOGNIZED_PDU)

    def test_association_requests(self) -> None:
        """Requests with items that lie about their lengths, even and repeated context IDs, and too much of all."""
        good = AAssociateRQ("A", "B", (PresentationContext(1, CT, (EXPLICIT,)),)).encode()
        even = AAssociateRQ("A", "B", (PresentationContext(2, CT, (EXPLICIT,)),)).encode()
        twice = AAssociateRQ("A", "B", (PresentationContext(1, CT, (EXPLICIT,)),) * 2).encode()
        lying = bytearray(good)
        lying[76:78] = b"\xff\xff"
        for data in (even, twice, bytes(lying), b"\1\0\0\0\0\4\0\1\0\0"):
            scu = self.connect()
            scu.send(data)
            self.check_abort(scu, BY_USER)
        scu = self.connect()
        scu.send(struct.pack(">BxI", 1, MAXIMUM_ASSOCIATE_LENGTH + 1))
        self.check_abort(scu, BY_USER)
        for request, answer in (
            (AAssociateRQ("A", "B", (), application_context_name="1.2.3"), AAssociateRJ(1, 1, 2)),
            (AAssociateRQ("A", "B", (), protocol_version=2), AAssociateRJ(1, 2, 2)),
        ):
            scu = self.connect()
            scu.send(request.encode())
            self.assertEqual(scu.receive(), answer)

    def test_large_request(self) -> None:
        """128 contexts with 60 syntaxes each and unknown user items are all answered, in their order."""
        syntaxes = (*(f"1.2.840.113619.{n}" for n in range(59)), EXPLICIT)
        contexts = tuple(PresentationContext(2 * n + 1, CT, syntaxes) for n in range(128))
        other = tuple((kind, bytes(1000)) for kind in (0x53, 0x54, 0x56, 0x58, 0x77) for _ in range(10))
        request = AAssociateRQ("A", "B", contexts, UserInformation(16384, "1.2.3", "HOSTILE", other))
        scu = self.connect()
        scu.send(request.encode())
        answer = scu.receive()
        assert isinstance(answer, AAssociateAC)
        self.assertEqual(
            [
                (context.id, context.result, context.transfer_syntax)
                for context in answer.presentation_contexts
            ],
            [(2 * n + 1, 0, EXPLICIT) for n in range(128)],
        )
        scu.release()

    def test_tiny_maximum_length(self) -> None:
        """A peer that announces to take one byte at a time gets responses it can put together."""
        scu = self.connect()
        request = AAssociateRQ(
            "A", "B", (PresentationContext(1, VERIFICATION, (IMPLICIT,)),), UserInformation(1)
        )
        scu.send(request.encode())
        self.assertIsInstance(scu.receive(), AAssociateAC)
        scu.send_command(echo_command(), ECHO_CONTEXT)
        self.assertEqual(scu.status(), SUCCESS)
        scu.release()


class UnlimitedPDUTests(HostileTestCase):
    """--max-pdu 0: PDUs of any length are announced to be taken."""

    options = ("--max-pdu", 0)

    def test_claims_of_4_gib(self) -> None:
        """A PDU of 4 GiB is streamed like any other: cheap while it lasts, without trace when it breaks off."""
        scu = self.associated()
        scu.send_command(store_command("1.2.5"))
        scu.send(struct.pack(">BxIIBB", 4, 0xFFFFFFFF, 0xFFFFFFFB, EXPLICIT_CONTEXT, 2))
        scu.send(instance("1.2.5", pixels=bytes(50 * MEGABYTE)))
        scu.reset()
        self.server.wait_for("association aborted: RAW at .*: the connection was lost")

    def test_one_pdu(self) -> None:
        """A data set of 50 MB in one PDU is stored."""
        scu = self.associated()
        self.assertEqual(scu.store("1.2.5", instance("1.2.5", pixels=bytes(50 * MEGABYTE))), SUCCESS)
        self.expect("1.2.5")
        scu.release()


class LimitsTests(HostileTestCase):
    """Peers that want more than the options give them."""

    options = ("--max-object-size", "30M", "--max-in-flight", "1M")

    def test_too_large(self) -> None:
        """An object of 100 MB gets A700H and leaves nothing, and the next one on the association is stored."""
        scu = self.associated()
        self.assertEqual(
            scu.store("1.2.5", instance("1.2.5", pixels=bytes(100 * MEGABYTE))), OUT_OF_RESOURCES
        )
        self.assertEqual(scu.store("1.2.6", instance("1.2.6", pixels=bytes(29 * MEGABYTE))), SUCCESS)
        self.expect("1.2.6")
        scu.release()

    def test_little_room(self) -> None:
        """Eight at once send 25 MB each where 1 MB may wait for storage: all of it is stored."""
        statuses: list[int | AAbort | None] = []

        def send(number: int) -> None:
            uid = f"1.2.7.{number}"
            statuses.extend(store(self.server.address, [(uid, instance(uid, pixels=bytes(25 * MEGABYTE)))]))

        senders = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for sender in senders:
            sender.start()
        for number, sender in enumerate(senders):
            sender.join(DEADLINE)
            self.expect(f"1.2.7.{number}")
        self.assertEqual(statuses, [SUCCESS] * 8)


class SlowTests(HostileTestCase):
    """Peers that go on, but do not get on."""

    options = ("--min-rate", "100K", "--progress-timeout", 2)

    def judge(self) -> None:
        super().judge()
        self.server.wait_for("limits: 0 connections refused, 0 dropped .*, 1 association too slow")

    def test_slow(self) -> None:
        """A sender that goes on and on, too slowly, is aborted; that shows in the log and at the end."""
        scu = self.associated()
        scu.send_command(store_command("1.2.5"))
        scu.send(p_data(EXPLICIT_CONTEXT, False, False, instance("1.2.5")))
        while not select.select([scu.socket], [], [], 0.05)[0]:
            scu.send(p_data(EXPLICIT_CONTEXT, False, False, bytes(2)))
        self.check_abort(scu, BY_USER)
        self.server.wait_for("association aborted: RAW at .*: less than 102400 bytes a second")


class ProbeTests(HostileTestCase):
    """Connections that say nothing, and are within their limit however many are accepted before one is seen to go."""

    options = ("--listen", "tcp:0:interface=127.0.0.1:backlog=500", "--max-pending", 500)
    listen = False

    def test_probes(self) -> None:
        """Bare connects, as load balancers make them, and resets: nothing of that is in the log."""
        self.server.wait_for("association released")
        said = len(self.server.output)
        for number in range(200):
            scu = self.connect()
            if number % 2:
                scu.reset()
            else:
                scu.socket.close()
        self.check_good()
        self.server.wait_for("association released", count=2)
        self.assertEqual(self.server.output[said:].count("\n"), 3, self.server.output[said:])


class ConnectionTests(HostileTestCase):
    """Peers that come and do not go, or go without a word."""

    # Twisted's default backlog is 50: in a burst of more the kernel lets connections wait for seconds.
    options = (
        *("--listen", "tcp:0:interface=127.0.0.1:backlog=500"),
        *("--artim-timeout", 2, "--timeout", 3, "--max-pending", 20),
    )
    listen = False

    def test_silence(self) -> None:
        """Who does not ask for an association is closed by ARTIM; who has one and is idle is aborted."""
        silent, idle = self.connect(), self.associated()
        half = self.connect()
        half.send(AAssociateRQ("A", "B", ()).encode()[:30])
        self.assertIsNone(silent.receive())
        self.assertIsNone(half.receive())
        self.check_abort(idle, BY_USER)
        self.server.wait_for("idle for 3 s")

    def test_half_an_instance(self) -> None:
        """Who stops in the middle of an instance is aborted as idle, and nothing of it stays."""
        scu = self.associated()
        scu.send_command(store_command("1.2.5"))
        scu.send(p_data(EXPLICIT_CONTEXT, False, False, instance("1.2.5")))
        self.check_abort(scu, BY_USER)

    def test_many_connections(self) -> None:
        """A crowd of connections that say nothing keeps nobody out: those that waited longest have to go."""
        crowd = [self.connect() for _ in range(100)]
        self.check_good()
        for scu in crowd[:79]:
            self.assertIsNone(scu.receive())

    def test_resets(self) -> None:
        """Connections that break in every phase of an association leave no trace."""
        data = instance("1.2.5", pixels=bytes(2 * MEGABYTE))
        pieces = [data[start : start + 100_000] for start in range(0, len(data), 100_000)]
        for cut in (0, 1, 5, 15, len(pieces) - 1):
            for reset in (True, False):
                scu = self.associated()
                scu.send_command(store_command("1.2.5"))
                for piece in pieces[:cut]:
                    scu.send(p_data(EXPLICIT_CONTEXT, False, False, piece))
                if reset:
                    scu.reset()
                else:
                    scu.socket.close()
        self.server.wait_for("association aborted: RAW", count=10)

    def test_peer_that_shuts_down_its_half(self) -> None:
        """A peer that ends its half of the connection in the middle of an instance has ended the association."""
        scu = self.associated()
        scu.send_command(store_command("1.2.5"))
        scu.send(p_data(EXPLICIT_CONTEXT, False, False, instance("1.2.5")))
        scu.socket.shutdown(socket.SHUT_WR)
        self.assertIsNone(scu.receive())
        self.server.wait_for("association aborted: RAW at .*: the connection was lost")

    def test_killed_sender(self) -> None:
        """A sender process that is killed in the middle of an instance leaves no trace."""
        with subprocess.Popen(
            [sys.executable, "-m", "tests.raw_scu", str(self.server.port)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
        ) as sender:
            assert sender.stdout is not None
            self.assertEqual(sender.stdout.readline(), b"half of it is sent\n")
            sender.kill()
            sender.wait(DEADLINE)
        self.server.wait_for("association aborted: VICTIM")

    def test_peer_that_does_not_read(self) -> None:
        """A peer that asks and never reads the answers is paused, and cut off in the end."""
        scu = self.associated()
        scu.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        echoes = p_data(ECHO_CONTEXT, True, True, echo_command()) * 1000
        began = time.monotonic()
        with self.assertRaises(ConnectionError):
            while time.monotonic() - began < DEADLINE:
                scu.send(echoes)
        self.server.wait_for("association aborted: RAW")
