"""``storescp health``, in this process, against peers that do as the test says and against the real server."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import pathlib
import ssl
import threading
from http import HTTPStatus
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp.operator import main
from storescp.pdu import AAssociateRJ
from tests.pki import Authority
from tests.server import Server, free_port, temporary_directory
from tests.test_scu import Peer


class Probe(http.server.BaseHTTPRequestHandler):
    """Says what the server says that has stalled."""

    def do_GET(self) -> None:
        """Answer."""
        body = b"process 0 has written nothing for 61 s\nand \x1b[2J\n" if self.path == "/healthz" else b""
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class HealthTests(SynchronousTestCase):
    """Where it asks, and what it says of the answer."""

    def health(self, *options: object) -> tuple[int, str]:
        """Exit status, and the only line: on stdout if that is 0, else on stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["health", *map(str, options)])
        text = out.getvalue() or err.getvalue()
        self.assertEqual((text.count("\n"), text[-1], bool(err.getvalue())), (1, "\n", bool(code)))
        return code, text.rstrip("\n")

    def test_accepted(self) -> None:
        """It follows the settings, of the environment too: the port, and the title that is called."""
        called = []

        def script(peer: Peer) -> None:
            called.append(peer.accept().called_ae_title)
            peer.release()

        peer = Peer(self, script)
        settings = {"STORESCP_PORT": str(peer.port), "STORESCP_AE_TITLE": "ARCHIVE"}
        with mock.patch.dict(os.environ, settings):
            self.assertEqual(self.health(), (0, f"localhost port {peer.port}: association accepted"))
        peer.finish()
        self.assertEqual(called, ["ARCHIVE"])

    def test_rejected(self) -> None:
        """A server that rejects us, for its rules or because it is full, is well."""

        def script(peer: Peer) -> None:
            peer.receive()
            peer.send(AAssociateRJ(1, 1, 3).encode())
            self.assertIsNone(peer.receive())

        peer = Peer(self, script)
        code, said = self.health("--listen", f"tcp:{peer.port}:interface=127.0.0.1")
        peer.finish()
        self.assertEqual(code, 0)
        self.assertRegex(
            said, r"\A127.0.0.1 port \d+: association rejected .*calling-AE-title-not-recognized\Z"
        )

    def test_nobody(self) -> None:
        """One that does not listen is not; neither one that hangs up, and where it cannot be asked is told."""
        port = free_port()
        self.assertEqual(
            self.health("--port", port),
            (1, f"storescp: localhost port {port}: cannot connect: Connection refused"),
        )
        peer = Peer(self, lambda peer: None)
        code, said = self.health("--port", peer.port)
        self.assertEqual((code, said), (1, f"storescp: localhost port {peer.port}: the connection was lost"))
        peer = Peer(self, lambda peer: self.assertTrue(peer.socket.recv(100)))
        code, said = self.health("--http", peer.port)
        self.assertEqual(
            (code, said),
            (1, f"storescp: 127.0.0.1 port {peer.port}: no answer by HTTP: the connection was lost"),
        )
        self.assertEqual(
            self.health("--listen", "unix:/run/storescp"),
            (1, "storescp: expected tcp: or tls: to ask, got unix:/run/storescp"),
        )

    def test_tls(self) -> None:
        """Where all ports have TLS, it is asked by that, whatever its certificate."""
        directory = temporary_directory(self)
        certificate, key = Authority(directory).issue("server")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        def script(peer: Peer) -> None:
            peer.accept()
            peer.release()

        peer = Peer(self, script, tls=context)
        ours = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-cert", "none")
        code, said = self.health("--listen", f"tls:{peer.port}", *ours)
        peer.finish()
        self.assertEqual((code, said), (0, f"localhost port {peer.port}: association accepted"))

    def test_http(self) -> None:
        """A server that serves /healthz is asked for that, and for nothing else: the log has no line of it."""
        port = free_port()
        server = Server(self, "--http", port)
        self.assertEqual(self.health("--http", port, "--port", 1), (0, f"127.0.0.1 port {port}: ok"))
        server.stop()
        self.assertNotIn("association accepted", server.output)
        code, said = self.health("--http", port)
        self.assertEqual(
            (code, said), (1, f"storescp: 127.0.0.1 port {port}: no answer by HTTP: Connection refused")
        )

    def test_unwell(self) -> None:
        """What it says of itself when it is not well is passed on, in one line that a terminal survives."""
        with http.server.HTTPServer(("127.0.0.1", 0), Probe) as peer:
            thread = threading.Thread(target=peer.handle_request)
            thread.start()
            code, said = self.health("--http", f"tcp:{peer.server_port}")
            thread.join()
        self.assertEqual(code, 1)
        self.assertEqual(
            said,
            f"storescp: localhost port {peer.server_port}: 503: process 0 has written nothing for 61 s; and \\x1b[2J",
        )

    def test_mistake(self) -> None:
        """A mistake in the settings is told as the server tells it."""
        file = pathlib.Path(self.mktemp())
        file.write_text("port: x\n")
        self.assertEqual(
            self.health("--config", file),
            (1, f"storescp: {file}:1: port: expected a port from 1 to 65535, got 'x'"),
        )
