"""``--auth unix``: passcodes of the system's users, which take long to check, against the real crypt(3).

The users are in files that stand in for /etc/passwd and /etc/shadow of this process and its children alone.
"""

from __future__ import annotations

import pathlib
import select
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import (
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    PresentationContext,
    UserIdentity,
    UserInformation,
)
from storescp.sop_classes import VERIFICATION
from tests.faults.disks import among_ourselves, command
from tests.raw_scu import ECHO_CONTEXT, IMPLICIT, RawSCU, echo_command
from tests.server import Server, temporary_directory

#: SHA-512 with so many rounds is some ten seconds of work.
MANY_ROUNDS = 5_000_000


def hashed(passcode: str, rounds: int) -> str:
    """As crypt(5) has it, made by OpenSSL: with 5000 rounds, whatever is said."""
    made = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", "rounds", passcode], capture_output=True, text=True, check=True
    )
    return made.stdout.strip() if not rounds else f"$6$rounds={rounds}$salt${'.' * 86}"


def request(user: str, passcode: str) -> bytes:
    """An A-ASSOCIATE-RQ in the name of *user*."""
    identity = UserIdentity(2, user.encode(), passcode.encode(), True)
    contexts = (PresentationContext(ECHO_CONTEXT, VERIFICATION, (IMPLICIT,)),)
    return AAssociateRQ("STORESCP", "RAW", contexts, UserInformation(user_identity=identity)).encode()


class SystemUserTests(SynchronousTestCase):
    """Users of the system: alice, bob, whose passcode was hashed as if for ever, and locked, who has none."""

    def setUp(self) -> None:
        among_ourselves()
        home = temporary_directory(self)
        users = {"alice": hashed("sesame", 0), "bob": hashed("", MANY_ROUNDS), "locked": "!"}
        self.stand_in(home, "passwd", "".join(f"{user}:x:9999:9999::/:/bin/false\n" for user in users))
        self.stand_in(home, "shadow", "".join(f"{user}:{word}:1::::::\n" for user, word in users.items()))

    def stand_in(self, home: pathlib.Path, name: str, more: str) -> None:
        """Have /etc/*name* say *more*, for us."""
        true, other = pathlib.Path("/etc", name), home / name
        other.touch(0o600)
        other.write_text(true.read_text() + more)
        command("mount", "--bind", other, true)
        self.addCleanup(command, "umount", true)

    def ask(self, server: Server, user: str, passcode: str) -> RawSCU:
        """Ask for an association."""
        scu = RawSCU(server.address)
        self.addCleanup(scu.socket.close)
        scu.send(request(user, passcode))
        return scu

    def test_verdicts(self) -> None:
        """Who says the passcode gets in; one that only begins like it, no passcode and no such user do not."""
        server = Server(self, "--auth", "unix")
        for user, passcode, expected in (
            ("alice", "sesame", AAssociateAC),
            ("alice", "Sesame", AAssociateRJ),
            ("alice", "sesame\0", AAssociateRJ),
            ("alice", "", AAssociateRJ),
            ("locked", "!", AAssociateRJ),
            ("locked", "", AAssociateRJ),
            ("nobody at all", "", AAssociateRJ),
        ):
            self.assertIsInstance(self.ask(server, user, passcode).receive(), expected, (user, passcode))
        server.wait_for("wrong name or passcode of user 'nobody at all'")
        self.assertNotIn("could not be checked", server.output)

    def test_others_go_on(self) -> None:
        """While a passcode is hashed others are served, and a verdict that does not come in time is a rejection."""
        server = Server(self, "--auth", "unix", "--auth-timeout", 300)
        with RawSCU(server.address) as other:
            other.associate()
            waiting = self.ask(server, "bob", "x")
            for _ in range(20):
                other.send_command(echo_command(), ECHO_CONTEXT)
                self.assertEqual(other.status(), 0)
            self.assertEqual(select.select([waiting.socket], [], [], 0)[0], [])
            other.release()
        server.stop()
        server = Server(self, "--auth", "unix", "--auth-timeout", 0.5)
        self.assertEqual(self.ask(server, "bob", "x").receive(), AAssociateRJ(2, 2, 1))
        server.wait_for("the user could not be checked within 0.5 s")
