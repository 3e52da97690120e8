"""storescp.access and the section ``callers``: whose rule is whose, and what follows from it."""

from __future__ import annotations

import pathlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.access import Access, Admitted, Callers, Refused, matches
from storescp.certificates import PeerCertificate
from storescp.config import ConfigError, load
from storescp.naming import Duplicate
from storescp.negotiation import Policy
from storescp.pdu import AAssociateRJ
from storescp.sop_classes import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from tests.conversation import CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, MR_IMAGE_STORAGE, a_associate_rq
from tests.strategies import steady

POLICY = Policy(
    called_ae_titles=frozenset(("STORESCP",)),
    abstract_syntaxes=STORAGE_SOP_CLASSES.keys() | {VERIFICATION},
    transfer_syntaxes=TRANSFER_SYNTAXES.keys(),
    maximum_length=16384,
    implementation_class_uid="1.2.3",
    implementation_version_name="TEST",
)
JPEG = "1.2.840.10008.1.2.4.70"


class _TestCase(SynchronousTestCase):
    def load(self, section: str, **given: str | bool) -> Callers:
        """The rules of a file with this content."""
        self.file = self.mktemp()
        pathlib.Path(self.file).write_text(section)
        options = {name.replace("_", "-"): value for name, value in given.items()}
        return load(self.file, {"auth": "memory:alice:secret", **options}).access.callers

    def access(self, section: str, **given: str | bool) -> Access:
        """What judges by them."""
        return Access(self.load(section, **given), POLICY)

    def verdict(
        self,
        access: Access,
        calling: str,
        address: str | None = "10.0.0.1",
        certificate: PeerCertificate | None = None,
        called: str = "STORESCP",
    ) -> str | None:
        """Why a request is refused, behind the numbers of the answer; None when it is not."""
        verdict = access.judge(a_associate_rq(calling=calling, called=called), address, certificate)
        if isinstance(verdict, Admitted):
            return None
        answer = verdict.answer
        return f"{answer.result}{answer.source}{answer.reason} {verdict.counter}: {verdict.why}"


class RuleTests(_TestCase):
    """Whose rule is whose."""

    def test_precedence(self) -> None:
        """A title's own rule beats patterns, the longest of which beats the others; then comes the default."""
        access = self.access(
            "callers: {'C*': {directory: a}, 'CT?': {directory: b}, 'CT*A': {directory: c}, CT1: {directory: d},"
            " default: {directory: e}, 'ct1': {directory: f}, 'C??': {directory: g}}"
        )
        for title, directory in (
            ("CT1", "d"), ("ct1", "f"), ("CT2", "b"), ("CT22A", "c"), ("CTA", "c"), ("CXX", "g"),
            ("CXXX", "a"), ("X", "e"), ("", "e"),
        ):  # fmt: skip
            caller = access.caller(title)
            assert caller is not None
            self.assertEqual(caller.directory, directory, title)

    def test_inheritance(self) -> None:
        """What a rule does not say is as in the default, an empty rule included; what neither says is the server's."""
        callers = self.load(
            "callers:\n default: {max-assoc: 3, duplicate: same, user: '*', addresses: 10.0.0.0/8}\n A:\n"
            " B: {max_assoc: 0, user: none, addresses: any, duplicate: replace}\n"
        )
        a, b = callers.known
        self.assertEqual(a, replace(callers.default, name="A", number=1))
        self.assertEqual((b.max_assoc, b.user, b.addresses, b.duplicate), (0, (), (), Duplicate.REPLACE))
        self.assertEqual(
            (a.called, a.accept, a.transfer_syntaxes, a.certificate, a.directory), (None,) * 4 + ("",)
        )

    @given(st.text(st.sampled_from("ab*?[]"), max_size=12), st.text(st.sampled_from("ab[]\n"), max_size=12))
    @steady
    def test_patterns(self, pattern: str, text: str) -> None:
        """Only ``*`` and ``?`` have a meaning, and a pattern covers the whole text."""

        def covers(pattern: str, text: str) -> bool:
            if not pattern:
                return not text
            if pattern[0] == "*":
                return covers(pattern[1:], text) or (bool(text) and covers(pattern, text[1:]))
            return bool(text) and pattern[0] in ("?", text[0]) and covers(pattern[1:], text[1:])

        self.assertEqual(matches(pattern, text), covers(pattern, text))


class VerdictTests(_TestCase):
    """What a rule refuses."""

    def test_open(self) -> None:
        """Without rules anybody may; a default that asks for nothing leaves it so."""
        self.assertTrue(Callers().is_open)
        self.assertTrue(self.load("callers: {default: {max-assoc: 1}, A: {addresses: 10.0.0.1}}").is_open)
        for section in ("callers: {A: }\nreject-unknown-callers: true", "callers: {default: {user: '*'}}"):
            self.assertFalse(self.load(section).is_open)
        self.assertIsNone(self.verdict(Access(Callers(), POLICY), "ANY", None))

    def test_unknown(self) -> None:
        """Strangers are rejected with 3 if that is wanted, whatever the default says; nobody else is."""
        access = self.access("callers: {CT1: , 'MR*': , default: {}}", reject_unknown_callers=True)
        self.assertEqual(
            self.verdict(access, "CT2"), "113 rejected_titles: no entry in callers for this AE title"
        )
        for title in ("CT1", "MR", "MR2"):
            self.assertIsNone(self.verdict(access, title))

    def test_address(self) -> None:
        """An address must be in one of the networks, also as IPv4 in IPv6; a local socket has none.

        Nor has a sender of which somebody before us (PROXY protocol) has said what is no address.
        """
        access = self.access("callers: {A: {addresses: [10.1.0.0/16, 192.0.2.7, 'fd00::/8, ::1']}}")
        for address in ("10.1.255.3", "192.0.2.7", "fd12::1", "::1", "::ffff:10.1.0.1", "fd00::1%eth0"):
            self.assertIsNone(self.verdict(access, "A", address), address)
        mapped = self.access("callers: {A: {addresses: ['::ffff:10.1.0.0/112', '::ffff:192.0.2.7']}}")
        for address in ("10.1.255.3", "::ffff:10.1.255.3", "192.0.2.7"):
            self.assertIsNone(self.verdict(mapped, "A", address), address)
        for other in ("10.2.0.1", "192.0.2.8", "fe80::1", "::2", "::ffff:10.2.0.1", None, "unknown", ""):
            self.assertEqual(
                self.verdict(access, "A", other),
                "113 rejected_addresses: callers.A does not allow this address",
            )
        self.assertIsNone(self.verdict(access, "B", None))

    def test_certificate(self) -> None:
        """One of the patterns must match subject, a name or the fingerprint as a whole."""
        access = self.access("callers: {A: {certificate: ['CN=CT1,*', '*.example', 'ab?']}}")
        for subject, names, sha256, allowed in (
            ("CN=CT1,O=H", (), "00", True),
            ("CN=X", ("1.2.3.4", "ct1.example"), "00", True),
            ("CN=X", (), "abc", True),
            ("CN=CT1", (), "00", False),
            ("CN=CT12,O=H", ("ct1.example.org",), "abcd", False),
        ):
            verdict = self.verdict(access, "A", certificate=PeerCertificate(subject, names, sha256))
            self.assertEqual(verdict is None, allowed, verdict)
        wrong = self.verdict(access, "A", certificate=PeerCertificate("CN=CT2", (), ""))
        self.assertEqual(
            wrong, "113 rejected_certificates: callers.A does not allow the certificate of 'CN=CT2'"
        )
        self.assertIn("callers.A wants a certificate", self.verdict(access, "A") or "")

    def test_called(self) -> None:
        """Called titles are those of the rule, else the server's; who may not send at all does not learn of them."""
        access = self.access("callers: {A: {called: [X, Y]}, B: {called: any}, C: {addresses: '::1'}}")
        reason = "117 rejected_called: called AE title not recognized: "
        wrong, other = f"{reason}callers.A does not allow it", f"{reason}it is 'STORESCP'"
        for calling, called, expected in (
            ("A", "X", None), ("A", "Y", None), ("A", "STORESCP", wrong), ("B", "Q", None), ("Z", "X", other),
            ("C", "Q", "113 rejected_addresses: callers.C does not allow this address"),
        ):  # fmt: skip
            self.assertEqual(self.verdict(access, calling, called=called), expected, (calling, called))

    def test_contexts(self) -> None:
        """What a caller may not send is refused context by context, with 3 or 4; C-ECHO it always may."""
        access = self.access("callers: {A: {accept: MR, transfer-syntaxes: [JPEGLosslessSV1]}}")
        contexts = (
            (VERIFICATION, (EXPLICIT_VR_LITTLE_ENDIAN,)),
            (CT_IMAGE_STORAGE, (JPEG,)),
            (MR_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,)),
            (MR_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN, JPEG)),
        )
        for calling, expected in (("A", [0, 3, 4, 0]), ("B", [0, 0, 0, 0])):
            verdict = access.judge(a_associate_rq(contexts, calling=calling), "10.0.0.1", None)
            assert isinstance(verdict, Admitted)
            results = [context.result for context in verdict.answer.presentation_contexts]
            self.assertEqual(results, expected)

    def test_other_classes(self) -> None:
        """A caller may have classes, and a preference, of its own, that nobody else has."""
        access = self.access(
            "callers: {A: {accept: [CT, '1.2.3.*', private], prefer: [uncompressed, JPEG2000]}, B: {accept: unknown}}"
        )
        contexts = [
            (uid, (JPEG, EXPLICIT_VR_LITTLE_ENDIAN)) for uid in (CT_IMAGE_STORAGE, "1.2.3.4", "1.2.4.5")
        ]
        for calling, expected in (
            ("A", [(0, EXPLICIT_VR_LITTLE_ENDIAN)] * 3),
            ("B", [(3, JPEG), (0, JPEG), (0, JPEG)]),
            ("C", [(0, JPEG), (3, JPEG), (3, JPEG)]),
        ):
            verdict = access.judge(a_associate_rq(contexts, calling=calling), "10.0.0.1", None)
            assert isinstance(verdict, Admitted)
            answered = verdict.answer.presentation_contexts
            self.assertEqual([(context.result, context.transfer_syntax) for context in answered], expected)

    def test_user(self) -> None:
        """A user must be there where one is asked for, and be one of those allowed."""
        access = self.access("callers: {A: {user: [alice, 'dr-*']}}")
        a, b = access.caller("A"), access.caller("B")
        assert a is not None and b is not None
        strict = Access(Callers(), POLICY, user_required=True)
        for judge, caller, user, allowed in (
            (access, a, "alice", True), (access, a, "dr-bob", True), (access, a, "bob", False),
            (access, a, None, False), (access, a, "", False), (access, b, None, True), (access, b, "bob", True),
            (strict, b, None, False), (strict, b, "bob", True),
        ):  # fmt: skip
            refused = judge.judge_user(caller, user)
            self.assertEqual(refused is None, allowed, user)
            if isinstance(refused, Refused):
                self.assertEqual((refused.answer, refused.counter), (AAssociateRJ(1, 2, 1), "rejected_users"))


class SectionTests(_TestCase):
    """Mistakes in the section."""

    def test_messages(self) -> None:
        """Each is one line: the file, its line, the path of the key, what was expected there and what was."""
        for section, expected in (
            ("callers: 5", ":1: callers: expected lines of the form 'key: value', got '5'"),
            ("callers:\n  A: [x]", ":2: callers.A: expected lines of the form 'key: value', got a list"),
            (
                "callers:\n  A:\n    addresses: ['::1', 10.0.0.1/8]",
                ":3: callers.A.addresses[1]: expected any, an address, or a network such as 10.0.0.0/8 or fd00::/8,"
                " got '10.0.0.1/8'",
            ),
            (
                "callers: {A: {addresses: []}}",
                ":1: callers.A.addresses: expected at least one value, got an empty list",
            ),
            ("callers: {A: {addresses: ''}}", "network such as"),
            ("callers: {A: {user: [[x]]}}", ":1: callers.A.user[0]: expected a value, got a list"),
            ("callers: {A: {user: }}", ":1: callers.A.user: expected a value, got nothing"),
            (
                "callers: {A: {max-assoc: -1}}",
                "callers.A.max-assoc: expected 0 or a whole number from 1 to 65535",
            ),
            *(
                (
                    f"callers: {{A: {{commitment: '{host}:104'}}}}",
                    "callers.A.commitment: expected none, or where",
                )
                for host in ("a..b", "a" * 64, ".", "[1:2]", "tls:a b")
            ),
            ("callers: {A: {max-assoc: [1]}}", "callers.A.max-assoc: expected one value, got a list"),
            ("callers: {A: {maxassoc: 1}}", "got 'maxassoc' (nearest known: max-assoc)"),
            (
                "callers: {A: {duplicate: x}}",
                "callers.A.duplicate: expected one of reject, replace, ignore, same",
            ),
            ("callers: {A: {accept: [CT, XYZ]}}", "callers.A.accept[1]: "),
            ("callers: {A: {transfer-syntaxes: CT}}", "callers.A.transfer-syntaxes: "),
            ("callers: {A: {called: 'x\\y'}}", "callers.A.called: expected 1 to 16 ASCII characters"),
            (
                "callers: {12345678901234567: }",
                "callers.12345678901234567: expected 1 to 16 ASCII characters",
            ),
            ("callers: {A: , ' A ': }".replace("' A '", '" A "'), ": expected once, got a second time"),
            ("callers: {A: , A: }", "callers.A: expected once, got a second time"),
            ("callers: {A: }\ncallers: {}", ":2: callers: expected once, got a second time"),
            (
                "reject-unknown-callers: true",
                "reject-unknown-callers: expected entries in the section callers, got none",
            ),
        ):
            message = str(self.assertRaises(ConfigError, self.load, section))
            self.assertTrue(message.startswith(self.file + ":"), message)
            self.assertIn(expected, message)
            self.assertEqual(len(message.splitlines()), 1)

    def test_directories(self) -> None:
        """A sub-directory stays below the storage directory, is not hidden there, and has nothing that ends a line."""
        for text in (
            "..",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            ".storescp",
            "a/.b",
            "''",
            "~",
            "a b",
            "-a",
            "a" * 65,
            "b/" * 100 + "b",
            "'a,b'",
            *(f'"a{escape}b"' for escape in (r"\t", r"\n", r"\r", r"\0", r"\e", r"\x7f", r"\N", r"\L")),
            *(f'"a{escape}"' for escape in (r"\t", r"\n", r"\r", r"\r\n")),
        ):
            message = str(
                self.assertRaises(ConfigError, self.load, f"callers: {{A: {{directory: {text!s}}}}}")
            )
            self.assertIn("callers.A.directory: expected a ", message)
            self.assertEqual(len(message.splitlines()), 1)
        for text in ("a", "scanners/ct_1/2031.x"):
            self.assertEqual(self.load(f"callers: {{A: {{directory: {text}}}}}").known[0].directory, text)
        self.assertEqual(
            self.load("callers: {A: {directory: .}, default: {directory: x}}").known[0].directory, ""
        )

    def test_nothing_to_check_users_with(self) -> None:
        """Users that are asked for need something that checks them."""
        for content, where in (
            ("callers:\n  A:\n    called: X\n    user: x\nauth: none", "4: callers.A.user"),
            ("callers: {A: {},\n default: {user: x}}", "2: callers.default.user"),
            ("\nauth-required: true", "2: auth-required"),
        ):
            path = self.mktemp()
            pathlib.Path(path).write_text(content)
            message = str(self.assertRaises(ConfigError, load, path, {}))
            self.assertEqual(message, f"{path}:{where}: expected auth or jwt-key with it, got neither")

    def test_secrets(self) -> None:
        """What stands in auth is in no message and no repr(): there may be passwords in it."""
        self.assertNotIn("secret", repr(load(None, {"auth": "memory:alice:secret"})))
        self.assertNotIn("secret", str(self.assertRaises(ConfigError, load, None, {"auth": ["", ":secret"]})))
