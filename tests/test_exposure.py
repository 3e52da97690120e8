"""Files with secrets that others can read."""

from __future__ import annotations

import os
import signal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.trial.unittest import SynchronousTestCase

from storescp.config import configured, gathered
from storescp.exposure import exposed
from tests.pki import Authority
from tests.server import Server, temporary_directory


class ExposureTests(SynchronousTestCase):
    """exposed()."""

    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.file = self.home / "storescp.yaml"

    def warnings(self, text: str) -> list[str]:
        """What is said of settings, with FILE for their file and HOME for its directory."""
        self.file.write_text(text.replace("HOME", str(self.home)))
        settings = gathered(self.file, {}, {})
        said = exposed(configured(settings), settings)
        return [line.replace(str(self.file), "FILE").replace(str(self.home), "HOME") for line in said]

    def test_files(self) -> None:
        """Each key and each file of passcodes is named with its place, unless only we and our group may read it."""
        authority = Authority(self.home)
        authority.issue("server")
        authority.issue("audit")
        names = ("server.key.pem", "audit.key.pem", "passwd", "secret")
        (self.home / "passwd").write_text("alice:x\n")
        (self.home / "secret").write_bytes(os.urandom(32).hex().encode())
        text = (
            "tls-port: 2762\ntls-client-cert: none\ntls-certificate: HOME/server.pem\ntls-key: HOME/server.key.pem\n"
            "audit: tls://localhost\naudit-certificate: HOME/audit.pem\naudit-key: HOME/audit.key.pem\n"
            "auth: file:HOME/passwd\njwt-key: HOME/secret\n"
        )
        expected = "expected a file that others cannot read, got 'HOME"
        for mode, lines in (
            (0o640, []),
            (
                0o644,
                [
                    f"FILE:4: tls-key: {expected}/server.key.pem'",
                    f"FILE:7: audit-key: {expected}/audit.key.pem'",
                    f"FILE:8: auth: {expected}/passwd'",
                    f"FILE:9: jwt-key: {expected}/secret'",
                ],
            ),
        ):
            for name in names:
                (self.home / name).chmod(mode)
            self.assertEqual(self.warnings(text), lines)

    def test_public_key(self) -> None:
        """A public key, for tokens, is for all to read; and what is not there is the business of who needs it."""
        key = Ed25519PrivateKey.generate().public_key()
        (self.home / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self.assertEqual(self.warnings("jwt-key: HOME/key.pem"), [])
        self.assertEqual(self.warnings("jwt-key: HOME/none\nauth: file:HOME/none"), [])

    def test_settings(self) -> None:
        """The file of the settings is one of them, if a passcode stands in it."""
        self.file.touch(0o644)
        self.assertEqual(self.warnings("auth: file:/nowhere"), [])
        self.assertEqual(
            self.warnings("port: 104\nauth: memory:alice:secret"),
            ["FILE:2: auth: expected a file that others cannot read, got 'FILE'"],
        )
        self.file.chmod(0o600)
        self.assertEqual(self.warnings("port: 104\nauth: memory:alice:secret"), [])

    def test_server(self) -> None:
        """The server says so when it starts, and after SIGHUP, until it is mended."""
        self.file.write_text("auth: memory:alice:S3cret")
        self.file.chmod(0o604)
        server = Server(self, "--config", self.file)
        line = f"#warn] {self.file}:1: auth: expected a file that others cannot read, got '{self.file}'\n"
        self.assertEqual(server.output.count(line), 1)
        for count, mode in enumerate((0o604, 0o600), 1):
            self.file.chmod(mode)
            server.send_signal(signal.SIGHUP)
            server.wait_for("SIGHUP: settings read again", count=count)
        server.stop()
        self.assertEqual(server.output.count(line), 2)
        self.assertNotIn("S3cret", server.output)
