"""storescp.operator_send and ``storescp send``, in this process, against peers that do as the test says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from storescp import dimse, operator_files, operator_send
from storescp.operator import main
from storescp.part10 import FileMeta
from storescp.pdu import AAbort, AAssociateRJ
from tests.raw_scu import CT, EXPLICIT, IMPLICIT, MR, instance
from tests.server import DEADLINE, free_port
from tests.test_scu import Peer


def reject(peer: Peer) -> None:
    """As one that does not know who calls."""
    peer.receive()
    peer.send(AAssociateRJ(1, 1, 3).encode())


class SendTests(SynchronousTestCase):
    """What becomes of files."""

    def setUp(self) -> None:
        self.directory = pathlib.Path(self.mktemp())
        self.directory.mkdir(parents=True)

    def file(
        self, name: str, uid: str = "1.2", *, sop_class: str = CT, syntax: str = EXPLICIT, pixels: bytes = b""
    ) -> pathlib.Path:
        """A file with an instance."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True, parents=True)
        data_set = instance(uid, sop_class=sop_class, pixels=pixels)
        path.write_bytes(FileMeta(sop_class, syntax, "A", "B").encode(uid) + data_set)
        return path

    def send(self, peer: Peer | int, *arguments: object) -> tuple[int, str, str]:
        """Exit status, and what came to stdout and stderr."""
        port = peer if isinstance(peer, int) else peer.port
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["send", "127.0.0.1", str(port), *map(str, arguments)])
        if isinstance(peer, Peer):
            peer.finish()
        return code, out.getvalue(), err.getvalue()

    def storing(self, statuses: list[int], refuse: tuple[int, ...] = ()) -> Callable[[Peer], None]:
        """A peer that answers so many messages with those statuses."""

        def script(peer: Peer) -> None:
            self.request = peer.accept(refuse=refuse)
            self.uids: list[str] = []
            for status in statuses:
                command = peer.command()
                peer.receive()
                self.uids.append(command.uid(dimse.AFFECTED_SOP_INSTANCE_UID))
                peer.respond(command, status, "Aetsch\n" if status else "", context_id=1)
            peer.release()

        return script

    def test_success(self) -> None:
        """Files and all below directories, but a server's own, go in order on one association; exit status 0."""
        self.file("c/.storescp/1", "1.9")
        files = [self.file("b", "1.2"), self.file("c/2", "1.4"), self.file("c/1", "1.3", syntax=IMPLICIT)]
        peer = Peer(self, self.storing([0, 0, 0]))
        code, out, err = self.send(peer, files[0], self.directory / "c", "--calling", "ME", "--called", "YOU")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A3 x 0000H Success; \S+ kB in \S+ s(, \S+/s, \S+ kB/s)?\n\Z")
        self.assertEqual(self.uids, ["1.2", "1.3", "1.4"])
        self.assertEqual((self.request.calling_ae_title, self.request.called_ae_title), ("ME", "YOU"))
        self.assertEqual(
            [
                (context.abstract_syntax, *context.transfer_syntaxes)
                for context in self.request.presentation_contexts
            ],
            [(CT, EXPLICIT), (CT, IMPLICIT)],
        )

    def test_statuses(self) -> None:
        """Each file that is not answered with Success is a line with status and comment; the summary counts them."""
        for name in "abc":
            self.file(name)
        code, out, err = self.send(Peer(self, self.storing([0, 0xA700, 0xB000])), self.directory)
        self.assertEqual((code, err), (1, ""))
        lines = out.splitlines()
        self.assertEqual(
            lines[:2],
            [
                f"{self.directory}/b: A700H Refused: Out of Resources (Aetsch?)",
                f"{self.directory}/c: B000H Warning: Coercion of Data Elements (Aetsch?)",
            ],
        )
        self.assertRegex(
            lines[2],
            "^1 x 0000H Success, 1 x A700H Refused: Out of Resources, 1 x B000H Warning: .* in .* s$",
        )
        code, out, err = self.send(Peer(self, self.storing([0, 0x0111, 0])), self.directory, "--json")
        line, summary = map(json.loads, out.splitlines())
        self.assertEqual((line["path"], line["status"]), (f"{self.directory}/b", "0111"))
        self.assertEqual(summary["summary"]["statuses"], {"0000": 2, "0111": 1})

    def test_not_sent(self) -> None:
        """What is no DICOM file, not there or not accepted is a line each; the others are sent all the same."""
        self.file("a", sop_class=MR)
        self.file("b")
        (self.directory / "README").write_text("read me")
        with self.file("odd").open("ab") as file:
            file.write(b"x")
        nothing = self.directory / "nothing"
        code, out, err = self.send(Peer(self, self.storing([0], refuse=(1,))), self.directory, nothing)
        self.assertEqual((code, err), (1, ""))
        *lines, summary = out.splitlines()
        self.assertEqual(
            sorted(lines),
            [
                f"{self.directory}/README: not a DICOM file",
                f"{self.directory}/a: presentation context not accepted: MRImageStorage in ExplicitVRLittleEndian",
                f"{nothing}: No such file or directory",
                f"{self.directory}/odd: its data set has an odd number of bytes",
            ],
        )
        self.assertRegex(summary, "^1 x 0000H Success, 4 not sent; ")

    def test_nothing_to_send(self) -> None:
        """A directory without files is an error, and nobody is asked for an association."""
        self.assertEqual(self.send(free_port(), self.directory), (1, "", "storescp: no files to send\n"))
        (self.directory / "README").touch()
        code, out, err = self.send(free_port(), self.directory)
        self.assertEqual((code, err), (1, ""))
        self.assertEqual(out.splitlines()[0], f"{self.directory}/README: not a DICOM file")

    def test_no_association(self) -> None:
        """A peer that is not there or rejects is one line on stderr, and no file has been sent."""
        self.file("a")
        port = free_port()
        code, out, err = self.send(port, self.directory)
        self.assertEqual(code, 1)
        self.assertRegex(out, r"\A1 not sent; 0 B in \S+ s(, 0/s, 0 B/s)?\n\Z")
        self.assertEqual(err, f"storescp: 127.0.0.1 port {port}: cannot connect: Connection refused\n")

        code, _, err = self.send(Peer(self, reject), self.directory)
        self.assertEqual(code, 1)
        self.assertRegex(err, r"\Astorescp: .*: association rejected .*calling-AE-title-not-recognized\n\Z")

    def test_aborted(self) -> None:
        """An association that ends early: the file it ended with is named, and the rest is counted as not sent."""
        for name in "abcd":
            self.file(name)

        def script(peer: Peer) -> None:
            peer.accept()
            command = peer.command()
            peer.receive()
            peer.respond(command, 0)
            peer.command()
            peer.receive()
            peer.send(AAbort(0, 0).encode())

        code, out, err = self.send(Peer(self, script), self.directory)
        self.assertEqual(code, 1)
        self.assertEqual(out.splitlines()[0], f"{self.directory}/b: association aborted by the service-user")
        self.assertRegex(out.splitlines()[1], "^1 x 0000H Success, 3 not sent; ")
        self.assertRegex(err, r"\Astorescp: .*: association aborted by the service-user\n\Z")

    def test_many_contexts(self) -> None:
        """More combinations of SOP class and transfer syntax than an association takes go on several."""
        files = [
            operator_files.FileToSend(str(number), f"1.2.{number % 200}", "1", EXPLICIT, 0, 0)
            for number in range(300)
        ]
        groups = list(operator_files.groups(files))
        self.assertEqual([file for group in groups for file in group], files)
        self.assertEqual([len(group) for group in groups], [128, 128, 44])
        self.patch(operator_files, "MAX_FILES", 100)
        self.assertEqual([len(group) for group in operator_files.groups(files)], [100, 100, 100])

    def test_window(self) -> None:
        """Files are sent without waiting as far as the window goes; answers may come in any order."""
        for number in range(5):
            self.file(str(number), f"1.2.{number}")

        def script(peer: Peer) -> None:
            peer.accept(window=3)
            commands = []
            for _ in range(3):
                commands.append(peer.command())
                peer.receive()
            peer.respond(commands[1], 0x0111)
            for _ in range(2):  # there is room for another one, and when that is answered for one more
                commands.append(peer.command())
                peer.receive()
                peer.respond(commands[-1], 0)
            peer.respond(commands[2], 0xC000, "no")
            peer.respond(commands[0], 0)
            peer.release()

        code, out, err = self.send(Peer(self, script), self.directory, "--async", "8")
        self.assertEqual((code, err), (1, ""))
        lines = out.splitlines()
        self.assertEqual(
            lines[:2],
            [
                f"{self.directory}/1: 0111H Duplicate SOP Instance",
                f"{self.directory}/2: C000H Error: Cannot understand (no)",
            ],
        )
        self.assertRegex(lines[2], "^3 x 0000H Success, 1 x 0111H Duplicate SOP Instance, 1 x C000H ")

    def test_window_not_granted(self) -> None:
        """Who says nothing of a window is sent one file at a time."""
        for name in "ab":
            self.file(name)

        def script(peer: Peer) -> None:
            peer.accept()
            for _ in range(2):
                command = peer.command()
                peer.receive()
                peer.socket.settimeout(0.2)
                self.assertRaises(TimeoutError, peer.socket.recv, 1)
                peer.socket.settimeout(DEADLINE)
                peer.respond(command, 0)
            peer.release()

        code, _, err = self.send(Peer(self, script), self.directory, "--async", "64")
        self.assertEqual((code, err), (0, ""))

    def test_tried_again(self) -> None:
        """With --retries what may pass is tried again: Out of Resources, a lost connection, a transient rejection."""
        for name in "abc":
            self.file(name, f"1.2.{ord(name)}")
        uids: list[str] = []

        def script(peer: Peer) -> None:
            def answer(*statuses: int) -> None:
                for status in statuses:
                    command = peer.command()
                    uids.append(command.uid(dimse.AFFECTED_SOP_INSTANCE_UID))
                    peer.receive()
                    peer.respond(command, status)

            peer.accept()
            answer(0xA700, 0)
            peer.command()
            peer.socket.close()
            peer.connect()
            peer.receive()
            peer.send(AAssociateRJ(2, 3, 2).encode())
            peer.socket.close()
            peer.connect()
            peer.accept()
            answer(0xA701, 0, 0)
            peer.release()

        code, out, err = self.send(Peer(self, script), self.directory, "--retries", "2", "--retry-delay", "0")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A3 x 0000H Success, 2 sent again; .*\n\Z")
        self.assertEqual(uids[:2], ["1.2.97", "1.2.98"])
        self.assertEqual(sorted(uids[2:]), sorted(["1.2.97", "1.2.99", uids[2]]))

    def test_jobs(self) -> None:
        """What one association is not given room for the others send; that there was none is told all the same."""
        for name in "abc":
            self.file(name)

        def script(peer: Peer) -> None:
            peer.receive()
            peer.send(AAssociateRJ(2, 3, 2).encode())
            peer.socket.close()
            peer.connect()
            self.storing([0, 0, 0])(peer)

        peer = Peer(self, script)
        code, out, err = self.send(peer, self.directory, "--jobs", "2")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"\A3 x 0000H Success; ")
        self.assertRegex(
            err, r"\Astorescp: 127.0.0.1 port \d+: association rejected .*: local-limit-exceeded\n\Z"
        )

    def test_not_tried_again(self) -> None:
        """What will not pass is not tried again, and nothing more often than was said."""
        self.file("a")
        again = ("--retries", "2", "--retry-delay", "0")
        code, out, _ = self.send(Peer(self, self.storing([0xA700, 0xA700, 0xA700])), self.directory, *again)
        self.assertEqual(code, 1)
        self.assertRegex(out.splitlines()[1], "^1 x A700H Refused: Out of Resources, 1 sent again; ")
        for status in (0xA900, 0x0111, 0xC000, 0x0110):
            code, out, _ = self.send(Peer(self, self.storing([status])), self.directory, *again)
            self.assertEqual(code, 1)
            self.assertNotIn("sent again", out)

        code, out, err = self.send(Peer(self, reject), self.directory, *again)
        self.assertEqual(code, 1)
        self.assertIn("calling-AE-title-not-recognized", err)

        def aborting(peer: Peer) -> None:
            for number in range(3):
                if number:
                    peer.connect()
                peer.accept()
                peer.command()
                peer.send(AAbort(0, 0).encode())
                peer.socket.close()

        code, out, err = self.send(Peer(self, aborting), self.directory, *again)
        self.assertEqual(code, 1)
        self.assertEqual(out.splitlines()[0], f"{self.directory}/a: association aborted by the service-user")
        self.assertRegex(out.splitlines()[1], "^1 not sent, 1 sent again; ")

    def test_delays(self) -> None:
        """Each time it is waited twice as long, up to a minute."""
        sending = operator_send.Sending(
            "", 1, calling_ae_title="", called_ae_title="", timeout=1, delay=1.5, report=lambda *_: None
        )
        pauses = [sending._pause(tries) for tries in (1, 2, 3, 6, 7, 10**6)]
        self.assertEqual(pauses, [1.5, 3.0, 6.0, 48.0, 60.0, 60.0])

    def test_wrong_usage(self) -> None:
        """Numbers out of their ranges, and TLS options that make no sense, are wrong usage: exit status 2."""
        for arguments, message in (
            (("--async", "0"), "--async: expected a number from 1 to 1024, got '0'"),
            (("--jobs", "x"), "--jobs: expected a number from 1 to 256, got 'x'"),
            (("--retries", "-1"), "--retries: expected a number from 0"),
            (("--tls-ca", "x"), "--tls-ca: expected --tls with it, got none"),
            (("--tls", "--tls-key", "x"), "--tls-key: expected --tls-certificate with it, got none"),
            (
                ("--tls", "--tls-ca", "/nothing"),
                "--tls-ca: expected certificates in PEM, got '/nothing': No such",
            ),
        ):
            err = io.StringIO()
            with contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as caught:
                main(["send", "127.0.0.1", "1", "x", *arguments])
            self.assertEqual(caught.exception.code, 2)
            self.assertIn(message, err.getvalue())

    def test_file_becomes_shorter(self) -> None:
        """A file that is cut while it is sent fails; its association is aborted and the others go on a new one."""
        cut = self.file("a", "1.1", pixels=bytes(65534))
        os.truncate(cut, 50_000_000)  # more than buffers take
        self.file("b", "1.2")
        uids = []

        def script(peer: Peer) -> None:
            peer.accept()
            peer.command()
            os.truncate(cut, 1000)
            self.assertEqual(peer.receive(), AAbort(0, 0))
            self.assertIsNone(peer.receive())
            peer.socket.close()
            peer.connect()
            peer.accept()
            command = peer.command()
            uids.append(command.uid(dimse.AFFECTED_SOP_INSTANCE_UID))
            peer.receive()
            peer.respond(command, 0)
            peer.release()

        code, out, err = self.send(Peer(self, script), self.directory)
        self.assertEqual((code, err), (1, ""))
        self.assertEqual(out.splitlines()[0], f"{cut}: the file has become shorter while it was read")
        self.assertRegex(out.splitlines()[1], "^1 x 0000H Success, 1 not sent; ")
        self.assertEqual(uids, ["1.2"])
