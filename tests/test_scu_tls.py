"""storescp.scu_tls, and associations over TLS that we ask for, against OpenSSL by way of the standard library."""

from __future__ import annotations

import pathlib
import ssl

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.trial.unittest import SynchronousTestCase

from storescp.scu import SCU, Response
from storescp.scu_errors import AssociationError
from storescp.scu_tls import BadTLSFile, client_context
from storescp.sop_classes import VERIFICATION
from tests.pki import Authority
from tests.raw_scu import IMPLICIT
from tests.server import DEADLINE, temporary_directory
from tests.test_scu import Peer


class TLSTests(SynchronousTestCase):
    """Who is believed, and who is shown what."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)
        self.authority = Authority(self.directory)
        self.certificate, self.key = self.authority.issue("server")

    def server_context(self, *, asks: bool = False) -> ssl.SSLContext:
        """A server's side, that may ask for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.authority.file)
        return context

    def echo(self, client: ssl.SSLContext, *, host: str = "127.0.0.1", asks: bool = False) -> str:
        """The subject that was shown, or a dash, when C-ECHO has succeeded over TLS."""
        shown = []

        def script(peer: Peer) -> None:
            assert isinstance(peer.socket, ssl.SSLSocket)
            certificate = peer.socket.getpeercert()
            shown.append(str(certificate["subject"]) if certificate else "-")
            peer.accept()
            peer.respond(peer.command(), 0)
            peer.release()

        peer = Peer(self, script, tls=self.server_context(asks=asks))
        with self.scu(host, peer.port, client) as scu:
            self.assertEqual(scu.echo(VERIFICATION, IMPLICIT), Response(0, ""))
        peer.finish()
        return shown[0]

    def scu(self, host: str, port: int, client: ssl.SSLContext) -> SCU:
        return SCU(
            host,
            port,
            [(VERIFICATION, IMPLICIT)],
            calling_ae_title="A",
            called_ae_title="B",
            timeout=DEADLINE,
            tls=client,
        )

    def fails(
        self, client: ssl.SSLContext, reason: str, *, host: str = "127.0.0.1", asks: bool = False
    ) -> None:
        """There is no association, for this reason."""

        def script(peer: Peer) -> None:
            raise AssertionError("there is one")

        peer = Peer(self, script, tls=self.server_context(asks=asks))
        with self.assertRaisesRegex(AssociationError, reason) as caught:
            self.scu(host, peer.port, client)
        self.assertFalse(caught.exception.is_transient)
        self.assertRaises(ssl.SSLError, peer.finish)
        peer.error = None

    def test_trusted(self) -> None:
        """The peer's certificate is by an authority of ours, a file or one of a directory, and for that host."""
        only = self.directory / "authorities"
        only.mkdir()
        (only / "one.crt").write_bytes(self.authority.file.read_bytes())
        (only / "README").write_text("not one of them")
        for ca in (self.authority.file, only):
            for host in ("127.0.0.1", "localhost"):
                self.assertEqual(self.echo(client_context(str(ca)), host=host), "-")

    def test_not_trusted(self) -> None:
        """Another authority's certificate, and one of nobody's, keep us from sending, unless any will do."""
        other = Authority(temporary_directory(self), "Other")
        self.fails(
            client_context(str(other.file)),
            "the TLS handshake failed: unable to get local issuer certificate",
        )
        self.fails(client_context(), "the TLS handshake failed: unable to get local issuer")
        self.echo(client_context(any_certificate=True))

    def test_another_name(self) -> None:
        """A certificate that is for another host does neither, unless any name will do."""
        self.certificate, self.key = self.authority.issue("other", host="elsewhere.example")
        ca = str(self.authority.file)
        self.fails(client_context(ca), "IP address mismatch, certificate is not valid for '127.0.0.1'")
        self.fails(client_context(ca), "Hostname mismatch, .* not valid for 'localhost'", host="localhost")
        self.echo(client_context(ca, any_name=True))

    def test_shown(self) -> None:
        """Who asks for a certificate is shown ours; who has none is told so by the peer."""
        certificate, key = self.authority.issue("CT1")
        ca = str(self.authority.file)
        self.assertIn("CT1", self.echo(client_context(ca, str(certificate), str(key)), asks=True))
        together = self.directory / "both.pem"
        together.write_bytes(certificate.read_bytes() + key.read_bytes())
        self.assertIn("CT1", self.echo(client_context(ca, str(together)), asks=True))
        self.fails(
            client_context(ca), "the TLS connection failed: tlsv13 alert certificate required", asks=True
        )

    def test_no_tls(self) -> None:
        """A peer that does not speak TLS is told from one that is not there."""

        def script(peer: Peer) -> None:
            peer.socket.recv(100)
            peer.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        peer = Peer(self, script)
        with self.assertRaisesRegex(
            AssociationError, "the TLS handshake failed: the peer does not speak TLS"
        ):
            self.scu("127.0.0.1", peer.port, client_context(any_certificate=True))
        peer.finish()

    def test_old_version(self) -> None:
        """Nothing older than TLS 1.2 is spoken."""
        self.assertEqual(client_context().minimum_version, ssl.TLSVersion.TLSv1_2)

    def test_files(self) -> None:
        """A file that cannot be used is one line: the option, what was expected, what was got. Nobody is asked."""
        empty = self.directory / "empty"
        empty.mkdir()
        certificate, key = self.authority.issue("CT2")
        secret = self.directory / "secret.pem"
        secret.write_bytes(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"sesame"),
            )
        )

        def fault(ca: pathlib.Path | None, *files: pathlib.Path) -> str:
            with self.assertRaises(BadTLSFile) as caught:
                client_context(None if ca is None else str(ca), *map(str, files))
            return str(caught.exception)

        self.assertEqual(
            fault(self.directory / "nothing"),
            f"--tls-ca: expected certificates in PEM, got '{self.directory}/nothing': No such file or directory",
        )
        self.assertEqual(fault(key), f"--tls-ca: expected certificates in PEM, got '{key}'")
        self.assertEqual(
            fault(empty), f"--tls-ca: expected a directory with .pem, .crt, .cer files, got '{empty}'"
        )
        expected = (
            "--tls-certificate: expected a certificate and its key, in PEM and without a passphrase, got"
        )
        self.assertEqual(fault(None, certificate), f"{expected} '{certificate}'")
        self.assertEqual(fault(None, certificate, self.key), f"{expected} '{certificate} and {self.key}'")
        self.assertEqual(fault(None, certificate, secret), f"{expected} '{certificate} and {secret}'")
        self.assertEqual(fault(None, empty / "x"), f"{expected} '{empty}/x': No such file or directory")
