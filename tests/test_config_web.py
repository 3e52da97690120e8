"""storescp.config_web: where HTTP is served."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import ConfigError, load


class HTTPTests(SynchronousTestCase):
    """--http."""

    def test_off(self) -> None:
        """It is off unless asked for."""
        self.assertIsNone(load(None, {}).http)
        self.assertIsNone(load(None, {"http": "none"}).http)

    def test_port(self) -> None:
        """A port is one of the loopback interface, and of no other."""
        self.assertEqual(load(None, {"http": "8080"}).http, "tcp:8080:interface=127.0.0.1")

    def test_endpoint(self) -> None:
        """An endpoint is what it says."""
        for text in (
            "tcp:8080",
            "tcp:8080:interface=10.0.0.5",
            "unix:/run/storescp/http",
            "systemd:domain=INET:index=1",
        ):
            self.assertEqual(load(None, {"http": text}).http, text)

    def test_mistakes(self) -> None:
        """Anything else is told in a line: among it our own tls:, which would not be spoken."""
        for text, expected in (
            ("0", "a port from 1 to 65535"),
            ("65536", "a port from 1 to 65535"),
            ("localhost", "a Twisted endpoint such as"),
            ("", "a Twisted endpoint such as"),
            ("tls:8080", "an endpoint of Twisted's own"),
        ):
            error = self.assertRaises(ConfigError, load, None, {"http": text})
            self.assertTrue(str(error).startswith(f"--http: expected {expected}"), str(error))
