"""storescp.tls, credentials and tls_settings: what is negotiated with whom, in memory, and what files may be."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import pickle
import random
import re
import socket
import ssl
import sys

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from storescp.certificates import PeerCertificate
from storescp.config import Config, ConfigError, load
from storescp.credentials import BadCredentials, read
from storescp.dimse import encode_command
from storescp.flow import HIGH_WATER
from storescp.logs import INTERVAL
from storescp.pdu import AAssociateAC, AReleaseRP
from storescp.protocol import AssociationFactory, AssociationProtocol
from storescp.tls import RECORD, SecureConnection, SecureFactory
from storescp.tls_context import TLS
from storescp.tls_settings import ClientCertificate, TLSProfile, TLSSettings, beneath
from storescp.transports import READ_SIZE
from tests.conversation import Conversation, World, c_echo, c_store, p_data
from tests.pki import Authority
from tests.server import temporary_directory

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
BEGUN = b"\x16\x03\x01"


class SecureConversation(Conversation):
    """A conversation of which each byte goes through TLS, once :meth:`handshake` has been called."""

    def __init__(self, world: World, factory: SecureFactory, context: ssl.SSLContext | None = None) -> None:
        self._secure_factory = factory
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.taken = 0
        self._clear = bytearray()
        if context is not None:
            self.tls = context.wrap_bio(self.incoming, self.outgoing)
        super().__init__(world.factory, world.clock)

    def build(
        self, factory: AssociationFactory, address: IPv4Address
    ) -> tuple[AssociationProtocol, Protocol]:
        secured = self._secure_factory.buildProtocol(address)
        assert isinstance(secured, SecureConnection)
        return secured.association, secured

    def exchange(self) -> None:
        """Let all that both have written arrive."""
        while True:
            sent = self.transport.value()[self.taken :]
            self.taken += len(sent)
            self.incoming.write(sent)
            try:
                while data := self.tls.read(65536):
                    self._clear += data
            except ssl.SSLWantReadError:
                pass
            if not sent and not self.outgoing.pending:
                return
            self.send()

    def send(self, *, read_size: int = 0) -> None:
        """Let what we have written arrive, in pieces of *read_size*."""
        data = self.outgoing.read()
        for start in range(0, len(data), read_size or len(data) or 1):
            self.transport.arrive(data[start : start + (read_size or len(data))])
        self.turn()

    def handshake(self) -> None:
        """Raises ssl.SSLError when either side refuses the other."""
        for _ in range(4):
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.send()
                sent = self.transport.value()[self.taken :]
                self.taken += len(sent)
                self.incoming.write(sent)
        self.exchange()

    def say(self, data: bytes, *, read_size: int = 0) -> None:
        self.tls.write(data)
        self.send(read_size=read_size)
        self.exchange()

    def written(self) -> bytes:
        self.exchange()
        return bytes(self._clear)


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.authority = Authority(self.home)
        self.certificate, self.key = self.authority.issue("server")

    def settings(
        self,
        client: ClientCertificate = ClientCertificate.REQUIRE,
        profile: TLSProfile = TLSProfile.BCP195,
        **others: object,
    ) -> TLSSettings:
        files: dict[str, object] = {
            "certificate": self.certificate,
            "key": self.key,
            "ca": self.authority.file,
            "crl": (),
        } | others
        return TLSSettings(client_certificate=client, profile=profile, handshake_timeout=10, **files)  # type: ignore[arg-type]


class ConnectionTests(_TestCase):
    """Connections, and how they end."""

    def setUp(self) -> None:
        super().setUp()
        self.world = World(max_pending=4)
        self.tls = TLS(self.settings())
        self.assertEqual(self.tls.load(), [])
        self.factory = SecureFactory(self.tls, self.world.factory, self.world.clock)

    def connect(self, *shown: pathlib.Path, version: ssl.TLSVersion | None = None) -> SecureConversation:
        context = ssl.create_default_context(cafile=self.authority.file)
        context.check_hostname = False
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if shown:
            context.load_cert_chain(shown[0], shown[1])
        return SecureConversation(self.world, self.factory, context)

    def secured(self) -> SecureConversation:
        peer = self.connect(*self.authority.issue("ct1"))
        peer.handshake()
        return peer

    def test_association(self) -> None:
        """An association, its images and its release go through TLS; the last word before the close arrives."""
        peer = self.secured()
        self.assertIsInstance(peer.associate(), AAssociateAC)
        peer.store(bytes(300000), "1.2.3", fragment=16000)
        self.assertEqual(self.world.memory.instances[0].data, bytes(300000))
        self.world.memory.instances[0].end()
        self.assertEqual(peer.response().status, 0)
        peer.release()
        self.assertEqual(peer.heard(), [AReleaseRP()])

    def test_same_as_in_the_clear(self) -> None:
        """Cut wherever the network cuts it, the same bytes arrive."""
        for read_size, size in ((1, 100), (7, 1000), (16384, 100000)):
            peer = self.secured()
            peer.associate()
            data = random.Random(1).randbytes(size)
            peer.say(p_data(3, True, _command("1.2.4")) + p_data(3, False, data, 16000), read_size=read_size)
            self.assertEqual(self.world.memory.instances[-1].data, data)
            peer.drop()

    def test_joined(self) -> None:
        """What one read brings reaches the association in one piece, not in one for each record."""
        peer = self.secured()
        peer.associate()
        pieces = _pieces(peer)
        sent = p_data(3, True, _command("1.2.4")) + p_data(3, False, bytes(100000), 16000)
        peer.say(sent)
        self.assertEqual(pieces, [len(sent)])

    def test_longer_than_the_buffer(self) -> None:
        """However much a read brings, it arrives whole, in pieces of a bounded size."""
        peer = self.secured()
        peer.associate()
        pieces = _pieces(peer)
        data = random.Random(1).randbytes(5 * READ_SIZE)
        peer.say(p_data(3, True, _command("1.2.4")) + p_data(3, False, data, 16000))
        self.assertEqual(self.world.memory.instances[-1].data, data)
        self.assertLessEqual(max(pieces), READ_SIZE + RECORD)

    def test_aborted_within_a_read(self) -> None:
        """What followed the bytes that ended an association is nobody's: not even the next connection's."""
        peer = self.secured()
        peer.associate()
        peer.say(b"GET / HTTP/1.0" + bytes(2 * READ_SIZE))
        self.assertEqual(self.world.factory.associations, set())
        other = self.secured()
        self.assertIsInstance(other.associate(), AAssociateAC)
        other.store(b"data", "1.2.3")
        self.assertEqual(self.world.memory.instances[-1].data, b"data")

    def test_by_pyopenssl(self) -> None:
        """Where pyOpenSSL does not let us at OpenSSL's own functions, its methods do the same."""
        module = sys.modules["OpenSSL._util"]
        self.addCleanup(sys.modules.__setitem__, "OpenSSL._util", module)
        sys.modules["OpenSSL._util"] = None  # type: ignore[assignment] # what makes an import fail
        secured = self.connect().transport.protocol
        assert isinstance(secured, SecureConnection)
        self.assertIsInstance(secured._decrypt, functools.partial)
        self.test_association()
        self.test_same_as_in_the_clear()
        self.test_longer_than_the_buffer()
        self.test_farewell()
        self.test_tampered()

    def test_farewell(self) -> None:
        """A peer that ends TLS in order is answered in the same way, and the connection closes."""
        peer = self.secured()
        peer.associate()
        with self.assertRaises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.send()
        self.assertFalse(peer.is_open or peer.transport.aborted)
        peer.incoming.write(peer.transport.value()[peer.taken :])
        peer.tls.unwrap()
        self.assertNotIn(peer.protocol, self.world.factory.associations)

    def test_tampered(self) -> None:
        """Of a record that was changed on its way nothing is believed, nor of what follows; the peer is told."""
        peer = self.secured()
        peer.associate()
        before = self.world.factory.statistics.messages
        for message_id in (1, 2, 3):
            peer.tls.write(p_data(1, True, encode_command(c_echo(message_id))))
        first, second, third = _records(peer.outgoing.read())
        peer.transport.arrive(first + second[:-1] + bytes((second[-1] ^ 1,)) + third)
        peer.turn()
        self.assertFalse(peer.is_open or peer.transport.aborted)
        with self.assertRaisesRegex(ssl.SSLError, "BAD_RECORD_MAC"):
            peer.exchange()
        self.assertEqual(self.world.factory.statistics.messages, before + 1)
        self.assertNotIn(peer.protocol, self.world.factory.associations)

    def test_sent_at_once(self) -> None:
        """What the socket takes does not wait for the transport; what it does not take follows by that, in order."""
        peer = self.secured()
        peer.associate()
        secured = peer.transport.protocol
        assert isinstance(secured, SecureConnection)
        ours, wire = socket.socketpair()
        for end in (ours, wire):
            end.setblocking(False)
            self.addCleanup(end.close)
        secured._socket = ours
        sent, before = b"", len(peer.written())
        while secured._socket is not None:
            sent += (more := random.Random(len(sent)).randbytes(3000))
            secured.write(more)
        secured.write(b"the end")
        peer.turn()
        self.assertGreater(len(sent), 6000)
        while True:
            try:
                peer.incoming.write(wire.recv(1 << 20))
            except BlockingIOError:
                break
        self.assertEqual(peer.written()[before:], sent + b"the end")

    def test_peer_certificate(self) -> None:
        """The association knows the subject, the alternative names and the fingerprint of a verified certificate."""
        certificate, key = self.authority.issue("ct1")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            peer = self.connect(certificate, key, version=version)
            with capturedLogs() as events:
                peer.handshake()
            shown = peer.protocol.peer_certificate
            assert isinstance(shown, PeerCertificate)
            self.assertEqual(shown.subject, "CN=ct1,O=Hospital")
            self.assertEqual(shown.names, ("localhost", "127.0.0.1", "urn:ae:ct1", "ct@example.org"))
            der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
            self.assertEqual(shown.sha256, hashlib.sha256(der).hexdigest())
            self.assertEqual([event["certificate"] for event in events], ["certificate 'CN=ct1,O=Hospital'"])
            peer.drop()

    def test_none_shown(self) -> None:
        """Under request a peer may come without a certificate, under none it is not asked: it has none then."""
        for client in (ClientCertificate.REQUEST, ClientCertificate.NONE):
            self.tls.settings = self.settings(client)
            self.tls.load()
            peer = self.connect()
            peer.handshake()
            self.assertIsInstance(peer.associate(), AAssociateAC)
            self.assertIsNone(peer.protocol.peer_certificate)
            peer.drop()
        peer = self.connect(*self.authority.issue("ct1"))
        peer.handshake()
        self.assertIsNone(peer.protocol.peer_certificate)

    def test_in_the_clear(self) -> None:
        """Without TLS there is no certificate."""
        self.assertIsNone(self.world.associated().protocol.peer_certificate)

    def refused(self, peer: SecureConversation) -> str:
        """The one line of the log about a peer that is refused, and gets no association."""
        with capturedLogs() as events, self.assertRaises(ssl.SSLError):
            peer.handshake()
            peer.say(b"\1")
        self.assertFalse(peer.is_open)
        self.assertEqual(self.world.factory.pending, {})
        (event,) = (event for event in events if event["log_level"] > LogLevel.info)
        self.assertEqual(event["address"], "192.0.2.1:50000")
        self.world.clock.advance(INTERVAL)  # what is the same again would be counted only
        return str(event["why"])

    def test_refused(self) -> None:
        """Who shows no certificate, or one that is no good, is refused, and one line says which and why."""
        other = Authority(temporary_directory(self), "Other")
        revoked, key = self.authority.issue("old")
        cases = {
            (): "peer did not return a certificate",
            other.issue(
                "ct1"
            ): "certificate 'CN=ct1,O=Hospital': it comes from an authority that is not trusted",
            self.authority.issue("late", days=-1): "certificate 'CN=late,O=Hospital': it has expired",
            (revoked, key): "certificate 'CN=old,O=Hospital': it is revoked",
        }
        self.tls.settings = self.settings(crl=(self.authority.revoke(revoked),))
        self.tls.load()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for shown, why in cases.items():
                self.assertEqual(self.refused(self.connect(*shown, version=version)), why)
        peer = self.secured()  # who is not in the list
        self.assertIsInstance(peer.associate(), AAssociateAC)
        self.tls.settings = self.settings(ClientCertificate.REQUEST)
        self.tls.load()
        self.assertIn("not trusted", self.refused(self.connect(*other.issue("ct2"))))

    def test_refused_again(self) -> None:
        """One that comes again and again is one line, and another one a minute later with how often."""
        with capturedLogs() as events:
            for _ in range(3):
                peer = self.connect()
                with self.assertRaises(ssl.SSLError):
                    peer.handshake()
                    peer.say(b"\1")
            self.world.clock.advance(INTERVAL)
        warnings = [event for event in events if event["log_level"] > LogLevel.info]
        self.assertEqual([event.get("more") for event in warnings], [None, 2])
        self.assertEqual({event["why"] for event in warnings}, {"peer did not return a certificate"})

    def test_no_list_of_the_issuer(self) -> None:
        """With revocation lists, but none of a certificate's authority, or an old one, the certificate is refused."""
        other = Authority(temporary_directory(self), "Other")
        self.tls.settings = self.settings(crl=(other.revoke(),))
        self.tls.load()
        self.assertIn("no revocation list", self.refused(self.connect(*self.authority.issue("ct1"))))
        self.tls.settings = self.settings(crl=(self.authority.revoke(days=-1),))
        (warning,) = self.tls.load()
        self.assertIn("--tls-crl: expected current", warning)
        self.assertIn("out of date", self.refused(self.connect(*self.authority.issue("ct1"))))

    def test_in_the_clear_where_tls_is_spoken(self) -> None:
        """A peer that begins an association at once finds the connection closed in order; one line says why."""
        peer = SecureConversation(self.world, self.factory)
        with capturedLogs() as events:
            peer.transport.arrive(b"\1\0\0\0\0\xcd" + bytes(205))
            peer.turn()
        self.assertFalse(peer.is_open or peer.transport.aborted)
        self.assertEqual(
            [event["why"] for event in events if event["log_level"] is LogLevel.warn],
            ["it does not speak TLS"],
        )

    def test_hangs_up_during_the_handshake(self) -> None:
        """A probe that connects and goes makes no noise."""
        for said in ((), (BEGUN,)):
            peer = SecureConversation(self.world, self.factory)
            with capturedLogs() as events:
                for data in said:
                    peer.transport.arrive(data)
                peer.transport.arrive(None)
                peer.turn()
            self.assertFalse(peer.is_open)
            self.assertEqual({event["log_level"] for event in events} - {LogLevel.debug}, set())
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_handshake_takes_too_long(self) -> None:
        """A handshake has its own time; the association then has that of ARTIM, from the connection on."""
        late = SecureConversation(self.world, self.factory)
        late.transport.arrive(BEGUN)
        peer = self.secured()
        with capturedLogs() as events:
            self.world.clock.advance(9.9)
            self.assertTrue(late.is_open)
            self.world.clock.advance(0.2)
        self.assertFalse(late.is_open)
        self.assertEqual(
            [event["why"] for event in events if "why" in event][:1], ["no handshake within 10 s"]
        )
        self.world.clock.advance(19.8)
        self.assertTrue(peer.is_open)
        self.world.clock.advance(0.2)
        self.world.clock.advance(10)
        self.assertFalse(peer.is_open)

    def test_pending(self) -> None:
        """Connections in the handshake count as such without an association: the oldest goes for the one too many."""
        peers = [SecureConversation(self.world, self.factory) for _ in range(5)]
        peers[0].turn()
        self.assertEqual([peer.is_open for peer in peers], [False, True, True, True, True])

    def test_pause(self) -> None:
        """A transport paused for the storage takes no more than one read beyond the mark, and goes on later."""
        peer = self.secured()
        peer.associate()
        peer.tls.write(p_data(3, True, _command("1.2.4")))
        data = p_data(3, False, bytes(3 * HIGH_WATER), 16000)
        for start in range(0, len(data), 1 << 20):
            peer.tls.write(data[start : start + (1 << 20)])
        peer.send(read_size=READ_SIZE)
        (instance,) = self.world.memory.instances
        self.assertFalse(peer.transport.is_reading)
        self.assertLess(len(instance.data), HIGH_WATER + 2 * READ_SIZE)
        while len(instance.data) < 3 * HIGH_WATER:
            before = len(instance.data)
            instance.written()
            peer.turn()
            self.assertGreater(len(instance.data), before)
            self.assertLess(len(instance.data), before + HIGH_WATER + 2 * READ_SIZE)

    def test_aborted_while_paused(self) -> None:
        """An association that is aborted while its transport is paused is heard of, and its connection ends."""
        peer = self.secured()
        peer.associate()
        peer.say(
            p_data(3, True, _command("1.2.4")) + p_data(3, False, bytes(HIGH_WATER + 1), 16000, is_last=False)
        )
        self.assertFalse(peer.transport.is_reading)
        peer.protocol.abort("test")
        peer.turn()
        peer.exchange()
        self.assertEqual(self.world.factory.associations, set())
        self.assertTrue(self.world.memory.instances[0].cancelled)
        peer.transport.arrive(None)  # the peer closes: noticed
        peer.turn()
        self.assertFalse(peer.is_open)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_not_past_tls(self) -> None:
        """No thread sends past TLS: it is told that it cannot, and the reactor does."""
        peer = self.secured()
        peer.associate()
        self.assertFalse(peer.protocol.send_from_thread(1, b"secret"))
        self.assertNotIn(b"secret", peer.transport.value())

    def test_new_credentials(self) -> None:
        """New files count for the connections that come, not for those that are; broken ones change nothing."""
        peer = self.secured()
        old = peer.tls.getpeercert(True)
        self.authority.issue("server")
        self.tls.load()
        newer = self.secured()
        new = newer.tls.getpeercert(True)
        self.assertNotEqual(new, old)
        self.certificate.write_bytes(b"")
        with self.assertRaises(BadCredentials):
            self.tls.load()
        self.assertEqual(self.secured().tls.getpeercert(True), new)
        self.assertIsInstance(peer.associate(), AAssociateAC)

    def test_handed_on(self) -> None:
        """Credentials survive the way to another process, and show nothing of the key."""
        credentials = self.tls.credentials
        assert credentials is not None
        TLS(self.settings()).use(pickle.loads(pickle.dumps(credentials)))
        self.assertNotIn("PRIVATE", repr(credentials) + str(credentials))


class ProfileTests(_TestCase):
    """What is negotiated under which profile, PS3.15 Annex B."""

    ECDHE_RSA = {"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"}
    ECDHE_ECDSA = {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"}
    DHE = {"DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384"}

    def server(self, profile: TLSProfile) -> TLS:
        tls = TLS(self.settings(ClientCertificate.NONE, profile))
        tls.load()
        return tls

    def negotiated(self, tls: TLS, context: ssl.SSLContext) -> str:
        """Version and suite; empty if there is no agreement."""
        world = World()
        peer = SecureConversation(world, SecureFactory(tls, world.factory, world.clock), context)
        try:
            peer.handshake()
        except ssl.SSLError:
            return ""
        cipher = peer.tls.cipher()
        assert cipher is not None
        return f"{peer.tls.version()} {cipher[0]}"

    def suites(self, profile: TLSProfile) -> set[str]:
        """Of all that OpenSSL has for TLS 1.2, those that are accepted."""
        accepted = set()
        tls = self.server(profile)
        for suite in _context("ALL:COMPLEMENTOFALL:@SECLEVEL=0").get_ciphers():
            if suite["protocol"] == "TLSv1.3":
                continue
            context = _context(f"{suite['name']}:@SECLEVEL=0")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            if got := self.negotiated(tls, context):
                accepted.add(got.removeprefix("TLSv1.2 "))
        return accepted

    def test_suites(self) -> None:
        """Of all suites of TLS 1.2, those of the profile that suit the key are taken, and no other."""
        self.assertEqual(self.suites(TLSProfile.BCP195), self.ECDHE_ECDSA)
        self.certificate, self.key = self.authority.issue("rsa", key=RSA_KEY)
        self.assertEqual(self.suites(TLSProfile.BCP195), self.ECDHE_RSA)
        self.assertEqual(self.suites(TLSProfile.NON_DOWNGRADING), self.ECDHE_RSA | self.DHE)
        self.assertEqual(self.suites(TLSProfile.TLS13), set())

    def test_versions(self) -> None:
        """TLS 1.3 is preferred, with the fastest suite first; 1.0 and 1.1 are refused."""
        for profile in TLSProfile:
            tls = self.server(profile)
            self.assertEqual(self.negotiated(tls, _context()), "TLSv1.3 TLS_AES_128_GCM_SHA256")
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                context = _context("ALL:@SECLEVEL=0")
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = version
                self.assertEqual(self.negotiated(tls, context), "")

    def test_curves(self) -> None:
        """Weak curves are refused, common ones taken."""
        self.certificate, self.key = self.authority.issue("rsa", key=RSA_KEY)
        found = {}
        tls = self.server(TLSProfile.BCP195)
        for curve in ("prime256v1", "secp384r1", "X25519", "secp224r1", "secp192k1"):
            context = _context("ECDHE:@SECLEVEL=0")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ecdh_curve(curve)
            found[curve] = bool(self.negotiated(tls, context))
        self.assertEqual(list(found.values()), [True, True, True, False, False])

    def test_no_resumption(self) -> None:
        """A session is not resumed: each connection shows its certificate anew."""
        tls = self.server(TLSProfile.BCP195)
        world = World()
        context = _context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        factory = SecureFactory(tls, world.factory, world.clock)
        peer = SecureConversation(world, factory, context)
        peer.handshake()
        session = peer.tls.session
        again = SecureConversation(world, factory, context)
        if session is not None:
            again.tls.session = session
        again.handshake()
        self.assertFalse(again.tls.session_reused)


class CredentialsTests(_TestCase):
    """What is said of files that will not do: one line, with the option and the file."""

    def fault(self, **files: object) -> str:
        tls = TLS(self.settings(ClientCertificate.REQUIRE, TLSProfile.BCP195, **files))
        with self.assertRaises(BadCredentials) as caught:
            tls.load()
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        self.assertNotIn("PRIVATE KEY", message)
        return message.replace(str(self.home), "HOME")

    def file(self, content: bytes) -> pathlib.Path:
        path = self.home / "file"
        path.write_bytes(content)
        return path

    def test_unreadable(self) -> None:
        """A file that is not there."""
        missing = self.home / "missing"
        options = {"certificate": missing, "key": missing, "ca": missing, "crl": (missing,)}
        for option, value in options.items():
            self.assertEqual(
                self.fault(**{option: value}),
                f"--tls-{option}: expected a readable file, got 'HOME/missing': No such file or directory",
            )

    def test_not_pem(self) -> None:
        """A file of something else, and one with the right beginning."""
        for content in (b"", b"\x30\x82", b"-----BEGIN X-----\nAAAA\n-----END X-----\n"):
            path = self.file(content)
            self.assertEqual(
                self.fault(certificate=path),
                "--tls-certificate: expected certificates in PEM, got 'HOME/file'",
            )
            self.assertEqual(
                self.fault(key=path), "--tls-key: expected a private key in PEM, got 'HOME/file'"
            )
            self.assertEqual(self.fault(ca=path), "--tls-ca: expected certificates in PEM, got 'HOME/file'")
            self.assertEqual(
                self.fault(crl=(path,)), "--tls-crl: expected revocation lists in PEM, got 'HOME/file'"
            )
        cut = self.certificate.read_bytes().replace(b"\n", b"\nAAAA", 1)
        self.assertIn("--tls-certificate: expected certificates", self.fault(certificate=self.file(cut)))

    def test_key(self) -> None:
        """The key of another certificate, one with a passphrase, one that does not sign for TLS."""
        _, other = self.authority.issue("other")
        self.assertEqual(
            self.fault(key=other),
            "--tls-key: expected the key of the certificate in 'HOME/server.pem',"
            " got another one in 'HOME/other.key.pem'",
        )
        key = load_pem_private_key(self.key.read_bytes(), None)
        locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        expected = "--tls-key: expected a private key in PEM without a passphrase, got 'HOME/file'"
        self.assertEqual(self.fault(key=self.file(locked)), expected)
        agrees = x25519.X25519PrivateKey.generate()
        pem = agrees.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.assertEqual(self.fault(key=self.file(pem)), expected)

    def test_weak(self) -> None:
        """A certificate that OpenSSL holds for too weak."""
        self.certificate, self.key = self.authority.issue(
            "weak", key=rsa.generate_private_key(public_exponent=65537, key_size=1024)
        )
        self.assertRegex(
            self.fault(), "^--tls-certificate: expected one that OpenSSL takes, .* key too small$"
        )

    def test_directory(self) -> None:
        """Authorities may be files of a directory; others in it are not looked at, but one there must be."""
        directory = temporary_directory(self)
        (directory / "README").write_text("not a certificate")
        tls = TLS(self.settings(ca=directory))
        with self.assertRaisesRegex(BadCredentials, "expected a directory with .cer, .crt, .pem files"):
            tls.load()
        for number, authority in enumerate((self.authority, Authority(self.home, "Other"))):
            (directory / f"{number}.crt").write_bytes(authority.file.read_bytes())
        credentials, _ = read(tls.settings)
        self.assertEqual(len(credentials.trusted), 2)
        (directory / "bad.pem").write_text("not a certificate")
        with self.assertRaisesRegex(BadCredentials, "expected certificates in PEM, got '.*bad.pem'"):
            tls.load()

    def test_warnings(self) -> None:
        """A certificate that has expired is told of, and used."""
        self.certificate, self.key = self.authority.issue("server", days=-1)
        (warning,) = TLS(self.settings()).load()
        self.assertRegex(warning, r"^--tls-certificate: .*server.pem', which has expired on \d{4}-\d\d-\d\d")

    def test_chain(self) -> None:
        """What follows our certificate in its file is shown too."""
        both = self.certificate.read_bytes() + self.authority.file.read_bytes()
        credentials, _ = read(self.settings(certificate=self.file(both)))
        self.assertEqual(len(credentials.chain), 2)
        self.assertIsInstance(credentials.chain[0], x509.Certificate)


class OptionsTests(SynchronousTestCase):
    """What the options make of it."""

    GIVEN = {"tls-port": "2762", "tls-certificate": "c.pem"}

    def config(self, **given: str | list[str]) -> Config:
        return load(None, self.GIVEN | {name.replace("_", "-"): value for name, value in given.items()})

    def test_defaults(self) -> None:
        """Senders must show a certificate; the key is expected where the certificate is."""
        config = self.config(tls_ca="ca.pem")
        self.assertEqual(config.listen, ("tcp:11112", "tls:2762"))
        self.assertEqual(
            config.tls,
            TLSSettings(
                certificate=pathlib.Path("c.pem"),
                key=pathlib.Path("c.pem"),
                ca=pathlib.Path("ca.pem"),
                crl=(),
                client_certificate=ClientCertificate.REQUIRE,
                profile=TLSProfile.BCP195,
                handshake_timeout=10.0,
            ),
        )
        self.assertIsNone(load(None, {}).tls)

    def test_all(self) -> None:
        """Every option is heard."""
        config = load(
            None,
            {
                "listen": ["tls:1:interface=127.0.0.1", "tcp:2"],
                "tls-certificate": "c",
                "tls-key": "k",
                "tls-client-cert": "none",
                "tls-crl": ["a", "b"],
                "tls-profile": "tls13",
                "tls-timeout": "2.5",
            },
        )
        self.assertEqual(config.listen, ("tls:1:interface=127.0.0.1", "tcp:2"))
        assert config.tls is not None
        self.assertEqual((config.tls.key, config.tls.ca), (pathlib.Path("k"), None))
        self.assertEqual(config.tls.crl, (pathlib.Path("a"), pathlib.Path("b")))
        self.assertEqual((config.tls.profile, config.tls.handshake_timeout), (TLSProfile.TLS13, 2.5))
        self.assertEqual([beneath(text) for text in config.listen], ["tcp:1:interface=127.0.0.1", "tcp:2"])

    def test_incomplete(self) -> None:
        """What is missing is named."""
        for given, message in (
            (
                {"tls-port": "2762", "tls-ca": "a"},
                "--tls-port: expected tls-certificate with it, got none",
            ),
            (self.GIVEN, "--tls-port: expected tls-ca with it, or tls-client-cert none, got neither"),
            (
                {"tls-certificate": "c.pem"},
                "--tls-certificate: expected with tls-port, or to listen on tls:PORT, got neither",
            ),
            (
                self.GIVEN | {"tls-ca": "a", "tls-profile": "ssl3"},
                "--tls-profile: expected one of bcp195, non-downgrading, tls13, got 'ssl3'",
            ),
        ):
            with self.assertRaisesRegex(ConfigError, f"^{re.escape(message)}$"):
                load(None, given)


def _context(suites: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if suites:
        context.set_ciphers(suites)
    return context


def _pieces(peer: SecureConversation) -> list[int]:
    """The sizes of what reaches the association of *peer* from now on, one for each piece."""
    pieces: list[int] = []
    received = peer.protocol.dataReceived

    def count(data: bytes) -> None:
        pieces.append(len(data))
        received(data)

    peer.protocol.dataReceived = count  # type: ignore[method-assign]
    return pieces


def _records(data: bytes) -> list[bytes]:
    """One by one, RFC 8446 §5.1."""
    records = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        records.append(data[:size])
        data = data[size:]
    return records


def _command(sop_instance_uid: str) -> bytes:
    return encode_command(c_store(sop_instance_uid))
