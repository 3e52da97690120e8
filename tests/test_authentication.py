"""Users: storescp.authentication and storescp.tokens, and associations that wait for a verdict."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from storescp.access import Access, Caller, Callers
from storescp.authentication import MOST, Authenticator
from storescp.config import load
from storescp.config_access import AccessConfig
from storescp.config_file import ConfigError
from storescp.connections import GRACE
from storescp.interfaces import IAuthenticator, Unauthorized
from storescp.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, UserIdentity
from storescp.tokens import InvalidToken, TokenVerifier
from storescp.worker import Aside
from tests.conversation import Conversation, MemoryReactor, World, a_associate_rq, p_data

SECRET = b"an opaque secret of the test suite"
REJECTED, UNCHECKED, FULL = AAssociateRJ(1, 2, 1), AAssociateRJ(2, 2, 1), AAssociateRJ(2, 3, 2)


def identity(kind: int, primary: str, secondary: str = "", *, respond: bool = False) -> UserIdentity:
    """A user identity item."""
    return UserIdentity(kind, primary.encode(), secondary.encode(), respond)


class IdentityTests(SynchronousTestCase):
    """UserIdentity as a value."""

    def test_secrets(self) -> None:
        """Nothing that says what a request is says what proves its user."""
        request = ask(UserIdentity(2, b"alice", b"sesame"))
        self.assertNotIn("sesame", repr(request))


class AtOnce(Aside):
    """Calls functions at once: nothing here blocks."""

    def __init__(self) -> None:
        super().__init__(MemoryReactor())

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(function, *args, **kwargs)


class AuthenticatorTests(SynchronousTestCase):
    """Authenticator, with Twisted's own checkers and ours in their place."""

    def config(self, **given: str | list[str]) -> AccessConfig:
        return load(None, {name.replace("_", "-"): value for name, value in given.items()}).access

    def verdict(self, authenticator: Authenticator, proof: UserIdentity) -> str:
        """The user, or why it is nobody."""
        checked = authenticator.authenticate(proof)
        found: list[str] = []
        checked.addCallbacks(
            found.append, lambda failure: found.append(f"{failure.type.__name__}: {failure.value}")
        )
        (text,) = found
        self.assertNotIn("sesame", text)
        return text

    def test_passcodes(self) -> None:
        """Any of the checkers may know the user; a name alone is one with an empty passcode."""
        passwords = pathlib.Path(self.mktemp())
        passwords.write_text("bob:sesame\nnobody:\n")
        authenticator = Authenticator(
            self.config(auth=["memory:alice:sesame:Zoë:ü", f"file:{passwords}"]), AtOnce()
        )
        for proof, expected in (
            (identity(2, "alice", "sesame"), "alice"),
            (identity(2, "bob", "sesame"), "bob"),
            (identity(2, "Zoë", "ü"), "Zoë"),
            (identity(1, "nobody"), "nobody"),
            (identity(1, "nobody", "ignored"), "nobody"),
            (identity(2, "alice", "sesame2"), "Unauthorized: wrong name or passcode of user 'alice'"),
            (identity(2, "carol", "sesame"), "Unauthorized: wrong name or passcode of user 'carol'"),
            (identity(1, "alice", "sesame"), "Unauthorized: wrong name or passcode of user 'alice'"),
            (UserIdentity(2, b"\xff", b"sesame"), "Unauthorized: the user's name is not UTF-8"),
            (
                identity(3, "x"),
                "Unauthorized: user identities of type 3 (Kerberos service ticket) are not taken",
            ),
            (identity(4, "x"), "Unauthorized: user identities of type 4 (SAML assertion) are not taken"),
            (identity(5, "x"), "Unauthorized: user identities of type 5 (JSON Web Token) are not taken"),
            (identity(0, "x"), "Unauthorized: user identities of type 0 (unknown) are not taken"),
        ):
            self.assertEqual(self.verdict(authenticator, proof), expected)

    def test_file(self) -> None:
        """A file of passcodes is read again when it has changed, be it to an older one, and only then."""
        passwords = pathlib.Path(self.mktemp())

        def write(text: str, age: float) -> None:
            passwords.write_text(text)
            written = time.time() - age
            os.utime(passwords, (written, written))

        write("bob:sesame\n", 100.0)
        authenticator = Authenticator(self.config(auth=f"file:{passwords}"), AtOnce())
        first, second = identity(2, "bob", "sesame"), identity(2, "bob", "simsim")
        same = passwords.stat()
        self.assertEqual(self.verdict(authenticator, first), "bob")
        write("bob:simsim\n", 100.0)
        os.utime(passwords, ns=(same.st_atime_ns, same.st_mtime_ns))
        self.assertEqual(self.verdict(authenticator, first), "bob")
        for age in (200.0, 0.0):
            write("bob:simsim\nbob:sesame\n", age)
            self.assertEqual(self.verdict(authenticator, second), "bob")
            self.assertEqual(
                self.verdict(authenticator, first), "Unauthorized: wrong name or passcode of user 'bob'"
            )
        write("bob:simsum\nbob:sesame\n", 0.0)
        self.assertEqual(self.verdict(authenticator, identity(2, "bob", "simsum")), "bob")
        passwords.unlink()
        self.assertTrue(self.verdict(authenticator, first).startswith("FileNotFoundError: "))

    def test_trouble(self) -> None:
        """A checker that fails does not hide one that knows the user; else its failure is no verdict."""
        authenticator = Authenticator(self.config(auth="memory:alice:sesame"), AtOnce())
        broken = Checker()
        broken.answers = [OSError("sesame"), OSError("no")]
        authenticator._checkers.insert(0, broken)
        self.assertEqual(self.verdict(authenticator, identity(2, "alice", "sesame")), "alice")
        self.assertEqual(self.verdict(authenticator, identity(2, "alice", "x")), "OSError: no")

    def test_too_many(self) -> None:
        """Of those that block no more than so many may wait; another checker may know the user all the same."""
        passwords = pathlib.Path(self.mktemp())
        passwords.write_text("bob:sesame\n")
        aside = AtOnce()
        authenticator = Authenticator(self.config(auth=[f"file:{passwords}", "memory:alice:sesame"]), aside)
        aside.outstanding = MOST - 1
        self.assertEqual(self.verdict(authenticator, identity(2, "bob", "sesame")), "bob")
        aside.outstanding = MOST
        self.assertEqual(self.verdict(authenticator, identity(2, "bob", "sesame")), "TooManyUsers: ")
        self.assertEqual(self.verdict(authenticator, identity(2, "alice", "sesame")), "alice")

    def test_mistakes(self) -> None:
        """What no checker can be made of is one line, without the arguments, which may be passwords."""
        for text in ("nothing:sesame", "memory:sesame", "file:/nowhere/at/all"):
            error = str(self.assertRaises(ConfigError, Authenticator, self.config(auth=text), AtOnce()))
            self.assertTrue(error.startswith("auth: expected "), error)
            self.assertNotIn("sesame", error)
            self.assertEqual(len(error.splitlines()), 1)

    def test_token(self) -> None:
        """The primary field has the token; without checkers passcodes are not taken."""
        key = pathlib.Path(self.mktemp())
        key.write_bytes(SECRET)
        authenticator = Authenticator(self.config(jwt_key=str(key)), AtOnce())
        token = jwt.encode({"sub": "alice", "exp": time.time() + 60}, SECRET, "HS256")
        self.assertEqual(self.verdict(authenticator, identity(5, token)), "alice")
        self.assertEqual(self.verdict(authenticator, identity(5, "sesame")), "Unauthorized: this is no token")
        self.assertIn("are not taken", self.verdict(authenticator, identity(2, "alice", token)))


class TokenTests(SynchronousTestCase):
    """TokenVerifier."""

    def key_file(self, content: bytes) -> pathlib.Path:
        path = pathlib.Path(self.mktemp())
        path.write_bytes(content)
        return path

    def pem(self, key: PublicKeyTypes) -> bytes:
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def test_claims(self) -> None:
        """Only a token that is signed with our key, for us, from whom we know, and now, names a user."""
        verifier = TokenVerifier(self.key_file(SECRET + b"\n"), "archive", "sso")
        good: dict[str, object] = {"sub": "alice", "exp": time.time() + 60, "aud": "archive", "iss": "sso"}
        self.assertEqual(verifier.user(jwt.encode(good, SECRET, "HS256").encode()), "alice")
        for change, expected in (
            ({"exp": time.time() - 1}, "the token has expired"),
            ({"exp": None}, "the token lacks 'exp'"),
            ({"sub": None}, "the token lacks 'sub'"),
            ({"sub": ""}, "the token names nobody"),
            ({"sub": 5}, "this is no token"),
            ({"nbf": time.time() + 60}, "the token is not valid yet"),
            ({"aud": "other"}, "the token is for another audience"),
            ({"aud": None}, "the token lacks 'aud'"),
            ({"iss": "other"}, "the token is from another issuer"),
            ({"iss": None}, "the token lacks 'iss'"),
        ):
            claims = {name: value for name, value in (good | change).items() if value is not None}
            token = jwt.api_jws.encode(json.dumps(claims).encode(), SECRET, "HS256")
            error = self.assertRaises(InvalidToken, verifier.user, token.encode())
            self.assertEqual(str(error), expected)
        other = jwt.encode(good, SECRET + b"!", "HS256").encode()
        self.assertEqual(
            str(self.assertRaises(InvalidToken, verifier.user, other)), "the token is not signed with our key"
        )
        unsigned = b".".join(
            (base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"="), other.split(b".")[1], b"")
        )
        for text in (b"", b"a.b.c", b"\xff", other[:-9] + b"....", unsigned):
            self.assertRaises(InvalidToken, verifier.user, text)

    def test_algorithms(self) -> None:
        """The key decides: a token signed by its own choice of algorithm, with our public key as secret, is none."""
        rsa_key = rsa.generate_private_key(65537, 2048)
        for key, algorithm in (
            (rsa_key, "PS256"),
            (ec.generate_private_key(ec.SECP256R1()), "ES256"),
            (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        ):
            verifier = TokenVerifier(self.key_file(self.pem(key.public_key())), None, None)
            token = jwt.encode({"sub": "alice", "exp": time.time() + 60}, key, algorithm)
            self.assertEqual(verifier.user(token.encode()), "alice")
            self.assertFalse([name for name in verifier.algorithms if name.startswith("HS")])
        pem = self.pem(rsa_key.public_key())
        verifier = TokenVerifier(self.key_file(pem), None, None)
        forged = jwt.encode({"sub": "alice", "exp": time.time() + 60}, pem.hex().encode(), "HS256")
        self.assertEqual(
            str(self.assertRaises(InvalidToken, verifier.user, forged.encode())),
            "the token is signed by an algorithm that is not for our key",
        )

    def test_keys(self) -> None:
        """A key that is none, or too weak, is one line without the key."""
        weak = self.pem(rsa.generate_private_key(65537, 1024).public_key())
        for content in (b"", b"sesame", b"x" * 31, b"-----BEGIN sesame", weak):
            error = str(self.assertRaises(ConfigError, TokenVerifier, self.key_file(content), None, None))
            self.assertTrue(error.startswith("jwt-key: expected a public key in PEM"), error)
            self.assertNotIn("sesame", error)
        error = str(self.assertRaises(ConfigError, TokenVerifier, pathlib.Path("/nowhere"), None, None))
        self.assertEqual(
            error, "jwt-key: expected a readable file, got '/nowhere': No such file or directory"
        )


@implementer(ICredentialsChecker)
class Checker:
    """Answers what it is told to."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.answers: list[Exception] = []

    def requestAvatarId(self, credentials: IUsernamePassword) -> Deferred[bytes | tuple[()]]:
        raise self.answers.pop(0) if self.answers else UnauthorizedLogin()


@implementer(IAuthenticator)
class Slow:
    """An authenticator whose verdicts come when the test gives them."""

    def __init__(self) -> None:
        self.asked: list[tuple[UserIdentity, Deferred[str]]] = []
        self.cancelled = 0

    def authenticate(self, identity: UserIdentity) -> Deferred[str]:
        def cancel(verdict: Deferred[str]) -> None:
            self.cancelled += 1
            if self.cancelled % 3 == 1:  # some do not take it for what it is
                verdict.errback(ConnectionError())
            elif self.cancelled % 3 == 2:
                verdict.callback("alice")

        verdict: Deferred[str] = Deferred(cancel)
        self.asked.append((identity, verdict))
        return verdict


def ask(user: UserIdentity | None, calling: str = "SCU") -> AAssociateRQ:
    """An association request with that user."""
    request = a_associate_rq(calling=calling)
    return replace(request, user_information=replace(request.user_information, user_identity=user))


class WaitingTests(SynchronousTestCase):
    """What happens between A-ASSOCIATE-RQ and the answer."""

    def setUp(self) -> None:
        self.world = World(max_assoc=2)
        self.slow = Slow()
        self.rules(Caller())

    def rules(self, default: Caller, *known: Caller) -> None:
        factory = self.world.factory
        factory.access = Access(Callers(known, default), factory.policy)
        factory.authenticator = self.slow

    def asking(self, user: UserIdentity | None, calling: str = "SCU") -> Conversation:
        peer = self.world.connect()
        peer.say(ask(user, calling).encode())
        return peer

    def answer(self, peer: Conversation) -> AAssociateAC | AAssociateRJ | AAbort:
        (answer,) = peer.heard()
        assert isinstance(answer, AAssociateAC | AAssociateRJ | AAbort)
        return answer

    def verdict(self, result: str | Exception) -> None:
        """The oldest request gets its verdict."""
        _, verdict = self.slow.asked.pop(0)
        if isinstance(result, str):
            verdict.callback(result)
        else:
            verdict.errback(result)

    def test_accepted(self) -> None:
        """Nothing is said until the user is checked; the response is there if it was asked for, and empty."""
        for respond, expected in ((True, b""), (False, None)):
            peer = self.asking(identity(2, "alice", "sesame", respond=respond))
            self.assertEqual(peer.heard(), [])
            with capturedLogs() as events:
                self.verdict("alice")
            answer = self.answer(peer)
            assert isinstance(answer, AAssociateAC)
            self.assertEqual(answer.user_information.user_identity_response, expected)
            self.assertIn("user 'alice'", eventAsText(events[0]))
            peer.echo()
            self.assertEqual(peer.statuses(), [0])

    def test_others_go_on(self) -> None:
        """While one waits for its verdict others are served, and the idle time and ARTIM do not run."""
        waiting = self.asking(identity(2, "alice", "sesame"))
        self.world.clock.advance(9)
        other = self.world.associated()
        other.echo()
        self.assertEqual(other.statuses(), [0])
        self.verdict("alice")
        self.assertIsInstance(self.answer(waiting), AAssociateAC)

    def test_refused(self) -> None:
        """A wrong user is rejected for good, an unknown verdict for now; the log says why, and no secret."""
        for result, expected, why in (
            (
                Unauthorized("wrong name or passcode of user 'alice'"),
                REJECTED,
                "wrong name or passcode of user 'alice'",
            ),
            (OSError("sesame"), UNCHECKED, "the user could not be checked: OSError"),
        ):
            peer = self.asking(identity(2, "alice", "sesame", respond=True))
            with capturedLogs() as events:
                self.verdict(result)
            self.assertEqual(self.answer(peer), expected)
            (line,) = (str(event["log_format"]).format(**event) for event in events)
            self.assertEqual(
                line, f"association rejected: 'SCU' at {peer.protocol.address} to 'STORESCP': {why}"
            )
            self.world.clock.advance(30)
            self.assertFalse(peer.is_open)
        self.assertEqual((self.world.statistics.rejected, self.world.statistics.rejected_users), (2, 2))
        self.assertEqual(self.world.statistics.reasons(), "user 2")

    def test_too_slow(self) -> None:
        """After the time limit the check is cancelled, and the association rejected for now."""
        peer = self.asking(identity(2, "alice", "sesame"))
        self.world.clock.advance(9.9)
        self.assertEqual(peer.heard(), [])
        self.world.clock.advance(0.2)
        self.assertEqual((self.answer(peer), self.slow.cancelled), (UNCHECKED, 1))

    def test_gone(self) -> None:
        """A peer that aborts, breaks the protocol or is lost meanwhile cancels the check; nothing is left of it."""
        for leave in (
            Conversation.abort,
            Conversation.hang_up,
            Conversation.drop,
            lambda peer: peer.say(p_data(1, True, b"x")),
            lambda peer: peer.say(ask(None).encode()),
        ):
            peer = self.asking(identity(2, "alice", "sesame"))
            leave(peer)
            self.assertFalse([said for said in peer.heard() if isinstance(said, AAssociateAC | AAssociateRJ)])
            self.world.clock.advance(31)
            self.assertFalse(peer.is_open)
        self.assertEqual(self.slow.cancelled, 5)
        self.world.clock.pump([60, 60])  # until how many broke it is told
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(self.world.factory.occupancy.associations, 0)

    def test_stop(self) -> None:
        """A stop of the server waits for no verdict."""
        self.asking(identity(2, "alice", "sesame"))
        drained: list[None] = []
        self.world.factory.drain(10).addCallback(drained.append)
        self.world.clock.advance(GRACE)
        self.world.clock.advance(0)
        self.assertEqual((drained, self.slow.cancelled), ([None], 1))

    def test_who(self) -> None:
        """Without an identity nothing is checked: then the rule decides, as it does on the name that was proved."""
        self.rules(Caller(), Caller(name="STRICT", number=1, user=("alice",)))
        self.assertIsInstance(self.answer(self.asking(None)), AAssociateAC)
        self.assertEqual(self.answer(self.asking(None, "STRICT")), REJECTED)
        self.assertEqual(self.slow.asked, [])
        peer = self.asking(identity(2, "bob", "sesame"), "STRICT")
        self.verdict("bob")
        self.assertEqual(self.answer(peer), REJECTED)

    def test_refused_before(self) -> None:
        """Who may not send whoever the user is gets no check: passcodes cannot be tried from there."""
        self.rules(Caller(), Caller(name="CT1", number=1, called=("ARCHIVE",)))
        peer = self.asking(identity(2, "alice", "sesame"), "CT1")
        self.assertEqual((self.answer(peer), self.slow.asked), (AAssociateRJ(1, 1, 7), []))

    def test_room_is_counted_afterwards(self) -> None:
        """Waiting takes no association's place; who comes too late is told so."""
        peers = [self.asking(identity(2, "alice", "sesame")) for _ in range(3)]
        for _ in peers:
            self.verdict("alice")
        answers = [self.answer(peer) for peer in peers]
        self.assertEqual([isinstance(answer, AAssociateAC) for answer in answers], [True, True, False])
        self.assertEqual(answers[2], FULL)

    def test_ignored(self) -> None:
        """Where nothing checks users they are ignored, and not confirmed."""
        self.world.factory.authenticator = None
        answer = self.answer(self.asking(identity(2, "alice", "sesame", respond=True)))
        assert isinstance(answer, AAssociateAC)
        self.assertIsNone(answer.user_information.user_identity_response)


class CallerLimitTests(SynchronousTestCase):
    """Associations of callers with a maximum of their own."""

    def test_limit(self) -> None:
        """The maximum is of all that the rule is for; a place becomes free with the end of an association, however."""
        world = World(max_assoc=5)
        known = (Caller(name="CT*", number=1, max_assoc=2), Caller(name="MR", number=2, max_assoc=1))
        world.factory.access = Access(Callers(known), world.factory.policy)

        def associate(calling: str) -> Conversation | None:
            peer = world.connect()
            answer = peer.associate(calling=calling)
            if isinstance(answer, AAssociateAC):
                return peer
            self.assertEqual(answer, FULL)
            return None

        ct, *others = (associate(title) for title in ("CT1", "CT2", "MR", "OTHER"))
        self.assertTrue(ct and all(others))
        with capturedLogs() as events:
            self.assertIsNone(associate("CT3"))
        self.assertIn("local limit exceeded: callers.CT* allows 2 associations", eventAsText(events[0]))
        for end in (Conversation.release, Conversation.abort, Conversation.drop):
            assert ct is not None
            end(ct)
            ct = associate("CT9")
            self.assertIsNone(associate("CT8"))
        self.assertEqual((world.statistics.rejected_full, world.factory.occupancy.associations), (4, 4))

    def test_origin(self) -> None:
        """What an association brings goes where its caller's rule says, under its policy."""
        world = World()
        known = (Caller(name="CT1", number=1, directory="ct/1"),)
        world.factory.access = Access(Callers(known), world.factory.policy)
        peer = world.connect()
        peer.associate(calling="CT1")
        peer.store(b"x", "1.2")
        origin = world.memory.instances[0].origin
        self.assertEqual((origin.directory, origin.duplicate), ("ct/1", None))
