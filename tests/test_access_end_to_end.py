"""Who may send, with the real server and real senders: DCMTK, pynetdicom, and our own."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import jwt
import pydicom
import pynetdicom
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pynetdicom import evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC, AAssociateRJ
from storescp.sop_classes import VERIFICATION
from tests.pynetdicom_scu import associate
from tests.raw_scu import RawSCU
from tests.server import DEADLINE, Server, environment, run, run_twistd, temporary_directory

CT, MR = (
    pathlib.Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}_small.dcm"
    for name in ("CT", "MR")
)


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = temporary_directory(self)

    def write(self, name: str, content: str | bytes) -> pathlib.Path:
        path = self.home / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def storescp(self, *arguments: object, **variables: str) -> tuple[int, str]:
        """Run our own command; its exit status and what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "storescp", *map(str, arguments)],
            env=environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return done.returncode, done.stdout


class UserTests(_TestCase):
    """User identities."""

    def identified(self, port: int, kind: int, primary: bytes, secondary: bytes = b"") -> tuple[bool, bool]:
        """Whether pynetdicom is given an association, and whether it is told that the user was checked."""
        item = UserIdentityNegotiation()
        item.user_identity_type = kind
        item.primary_field = primary
        if secondary:
            item.secondary_field = secondary
        item.positive_response_requested = True
        entity = pynetdicom.AE()
        entity.add_requested_context(VERIFICATION)
        answers: list[type] = []
        # Not is_rejected, which is false if the answer, and the end of the connection, are faster than associate().
        received = (evt.EVT_PDU_RECV, lambda event: answers.append(type(event.pdu)))
        association = associate(entity, port, ext_neg=[item], evt_handlers=[received])
        confirmed = association.acceptor.user_identity is not None
        if association.is_established:
            self.assertEqual(association.send_c_echo().Status, 0)
            association.release()
            return True, confirmed
        self.assertEqual(answers, [A_ASSOCIATE_RJ])
        return False, confirmed

    def test_passcodes(self) -> None:
        """Each sender gets in with the right passcode, is told so, and is rejected with another or with none."""
        passwords = self.write("passwd", "alice:open sesame\nguest:\n")
        right, wrong = self.write("right", "open sesame\n"), self.write("wrong", "open sesame 2\n")
        server = Server(self, "--auth", f"file:{passwords}", "--auth-required")
        for arguments, code in (
            (("-usr", "alice", "-pwd", "open sesame", "-rsp"), 0),
            (("-usr", "alice", "-pwd", "open sesame"), 0),
            (("-usr", "guest", "-rsp"), 0),
            (("-usr", "alice", "-pwd", "open sesame 2", "-rsp"), 1),
            (("-usr", "alice", "-epw"), 1),
            (("-kt", str(right)), 1),
            ((), 1),
        ):
            done = run("storescu", "-nh", *server.address, CT, *arguments)
            self.assertEqual(min(done.returncode, 1), code, done.stdout)
            if code:
                self.assertIn(
                    "Result: Rejected Permanent, Source: Service Provider (ACSE Related)", done.stdout
                )
        self.assertEqual(self.identified(server.port, 2, b"alice", b"open sesame"), (True, True))
        self.assertEqual(self.identified(server.port, 2, b"alice", b"open"), (False, False))
        echo = ("echo", *server.address, "--user", "alice")
        self.assertEqual(self.storescp(*echo, "--password-file", right)[0], 0)
        self.assertEqual(self.storescp(*echo, STORESCP_PASSWORD="open sesame")[0], 0)
        code, said = self.storescp(*echo, "--password-file", wrong)
        self.assertEqual(code, 1)
        self.assertIn(
            "association rejected (permanent) by the service-provider (ACSE related function)", said
        )
        send = ("send", *server.address, MR, "--user", "alice", "--password-file")
        self.assertEqual([self.storescp(*send, file)[0] for file in (wrong, right)], [1, 0])
        self.assertEqual(server.stop()["rejected"], 7)
        server.wait_for(r"wrong name or passcode of user 'alice'\n")
        server.wait_for(r"wrong name or passcode of user 'alice' \(4 more like this in 60 s\)\n")
        server.wait_for("rejected for: user 7\n")
        self.assertNotIn("sesame", server.output)

    def test_not_checked(self) -> None:
        """Where nothing checks users our sender says so, and others are let in as before."""
        server = Server(self)
        code, said = self.storescp("echo", *server.address, "--user", "alice", STORESCP_PASSWORD="x")
        self.assertEqual(
            (code, "the peer does not say that it has checked the user" in said), (1, True), said
        )
        self.assertEqual(self.identified(server.port, 2, b"alice", b"x"), (True, False))
        code, said = self.storescp("echo", *server.address, "--password-file", "x")
        self.assertEqual((code, "--password-file: expected --user with it" in said), (2, True), said)
        server.wait_for("any caller may store")

    def test_tokens(self) -> None:
        """Workers take pynetdicom's tokens, when signed with our key, not expired, and of a user that the rule has."""
        private = rsa.generate_private_key(65537, 2048)
        key = self.write(
            "key.pem", private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        config = self.write("c.yaml", "callers: {default: {user: 'dr-*'}}")
        server = Server(self, "--config", config, "--jwt-key", key, "--jwt-audience", "pacs", "--workers", 2)
        now = time.time()
        for signed_by, claims, expected in (
            (private, {"sub": "dr-who", "exp": now + 600, "aud": "pacs"}, (True, True)),
            (private, {"sub": "dr-who", "exp": now - 600, "aud": "pacs"}, (False, False)),
            (private, {"sub": "nurse", "exp": now + 600, "aud": "pacs"}, (False, False)),
            (
                rsa.generate_private_key(65537, 2048),
                {"sub": "dr-who", "exp": now + 600, "aud": "pacs"},
                (False, False),
            ),
        ):
            token = jwt.encode(claims, signed_by, "RS256").encode()
            self.assertEqual(self.identified(server.port, 5, token), expected)
            self.assertNotIn(token[-20:].decode(), server.output)
        self.assertEqual(server.stop()["rejected"], 3)
        for why in (
            "the token has expired",
            "does not allow the user 'nurse'",
            "the token is not signed with our key",
        ):
            server.wait_for(why)

    def test_help(self) -> None:
        """--help-auth lists the kinds of checkers."""
        done = run_twistd("--help-auth", cwd=self.home)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"\n  file\s+\S")

    def test_mistakes(self) -> None:
        """What users cannot be checked with is one line, also with workers, and exit code 1."""
        short = self.write("short", "too short")
        for options, expected in (
            (("--auth", "file:/nowhere"), "--auth: expected a readable file, got '/nowhere'"),
            (("--jwt-key", short, "--workers", "2"), "--jwt-key: expected a public key in PEM"),
        ):
            done = run_twistd("--listen", "tcp:0:interface=127.0.0.1", *options, cwd=self.home)
            self.assertEqual(done.returncode, 1, done)
            self.assertIn(f"storescp: {expected}", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)


class CallerTests(_TestCase):
    """Rules for calling AE titles."""

    def test_rules(self) -> None:
        """Each of DCMTK's callers is refused, or stored where and as its rule says; the archive is in order then."""
        config = self.write(
            "c.yaml",
            """
reject-unknown-callers: true
digest: sha256
callers:
  CT1: {accept: CT, directory: scanners/ct1, duplicate: replace, addresses: [127.0.0.0/8]}
  "WS*": {duplicate: ignore}
  FAR: {addresses: [192.0.2.0/24]}
  CERT: {certificate: "*"}
  OTHER: {called: [ARCHIVE]}
""",
        )
        server = Server(self, "--config", config)

        def store(calling: str, *files: pathlib.Path, called: str = "ANY") -> str:
            return run("storescu", "-aet", calling, "-aec", called, *server.address, *files).stdout

        for calling, reason in (
            ("STRANGER", "Calling AE Title Not Recognized"),
            ("FAR", "Calling AE Title Not Recognized"),
            ("CERT", "Calling AE Title Not Recognized"),
            ("OTHER", "Called AE Title Not Recognized"),
        ):
            self.assertIn(f"Reason: {reason}", store(calling, CT))
        self.assertEqual(store("CT1", CT), "")
        self.assertEqual(store("CT1", CT), "")
        self.assertIn("No presentation context for", store("CT1", MR))
        self.assertEqual(store("WS1", CT), "")
        self.assertEqual(store("WS1", CT), "")
        self.assertEqual(store("OTHER", MR, called="ARCHIVE"), "")
        store("OTHER", CT, called="ARCHIVE")
        server.wait_for("C-STORE from OTHER: CT .* failed: 0111H")
        below = [path.split("/")[:2] == ["scanners", "ct1"] for path in server.files()]
        self.assertEqual(sorted(below), [False, False, True])
        self.assertEqual(
            sorted(server.rows("SELECT path FROM instances")), sorted((path,) for path in server.files())
        )
        self.assertEqual(server.litter(), [])
        statistics = server.stop()
        self.assertEqual((statistics["stored"], statistics["failed"]), (5, 1))
        server.wait_for("rejected for: calling AE title 1, address 1, certificate 1, called AE title 1\n")
        server.wait_for(
            r"rejected: 'FAR' at 127.0.0.1:\d+ to 'ANY': callers.FAR does not allow this address\n"
        )
        for command in ("verify", "reindex"):
            code, said = self.storescp(command, "-d", server.storage)
            self.assertEqual((code, "no findings" in said), (0, True), said)

    def test_both_families(self) -> None:
        """At a socket for IPv6 and IPv4 a sender has its IPv4 address: for rules, for limits and in the log."""
        config = self.write("c.yaml", "callers: {RAW: {addresses: 127.0.0.1/32}, FAR: {addresses: '::/0'}}")
        for workers in (1, 2):
            with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
                server = Server(
                    self,
                    *("--config", config, "--workers", workers, "--max-per-address", 2),
                    *("--listen", "systemd:domain=INET6:index=0"),
                    listen=False,
                    activated=listener,
                )
                with RawSCU(server.address) as one, RawSCU(server.address) as two:
                    self.assertIsInstance(one.associate(), AAssociateAC)
                    self.assertEqual(two.associate(calling="FAR"), AAssociateRJ(1, 1, 3))
                    # It may have been reset before we have seen that it was made.
                    with contextlib.suppress(ConnectionResetError), RawSCU(server.address) as three:
                        self.assertIsNone(three.receive())
                    one.release()
                server.stop()
            self.assertRegex(server.output, r"association accepted: RAW at 127\.0\.0\.1:\d+ ")
            self.assertRegex(server.output, r"rejected: 'FAR' at 127\.0\.0\.1:\d+ ")
            self.assertRegex(
                server.output, r"\] 127\.0\.0\.1(:\d+)? refused: more than 2 connections from there\n"
            )
            self.assertNotIn("ffff", server.output)

    def test_limit_over_workers(self) -> None:
        """The maximum of a caller is that of all workers together, and its place becomes free again."""
        config = self.write("c.yaml", "callers: {RAW: {max-assoc: 3}}")
        server = Server(self, "--config", config, "--workers", 2, "--max-assoc", 20)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(6)]
            answers = [peer.associate() for peer in peers]
            self.assertEqual([type(answer) for answer in answers], [AAssociateAC] * 3 + [AAssociateRJ] * 3)
            self.assertEqual(answers[-1], AAssociateRJ(2, 3, 2))
            peers[0].release()
            with RawSCU(server.address) as another:
                self.assertIsInstance(another.associate(), AAssociateAC)
        self.assertEqual(server.stop()["rejected"], 3)
