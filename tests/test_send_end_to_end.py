"""``storescp send`` as a process, with windows, several associations, TLS, and servers that die."""

from __future__ import annotations

import pathlib
import signal
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from storescp.part10 import FileMeta
from tests.faults.load import FaultServer, check_index
from tests.pki import Authority
from tests.raw_scu import CT, EXPLICIT, instance
from tests.server import DEADLINE, Server, data_set_of, environment, free_port, temporary_directory


class SendTests(SynchronousTestCase):
    """Many small instances."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)
        self.data_sets: list[bytes] = []

    def files(self, count: int) -> None:
        """Instances in files of a directory."""
        for number in range(count):
            uid = f"1.2.3.{number}"
            data_set = instance(uid, pixels=number.to_bytes(4, "little"))
            self.data_sets.append(data_set)
            meta = FileMeta(CT, EXPLICIT, "A", "B").encode(uid)
            (self.directory / f"{number}.dcm").write_bytes(meta + data_set)

    def start(self, port: int, *options: object) -> subprocess.Popen[str]:
        """The sender, which has begun."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "storescp", "send", "127.0.0.1", str(port)),
                *(str(self.directory), *map(str, options)),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def assertStored(self, storage: pathlib.Path) -> None:
        """All that was sent is there, as it was, and the index knows it."""
        files = [path for path in storage.rglob("*.dcm") if ".storescp" not in path.parts]
        self.assertEqual(sorted(map(data_set_of, files)), sorted(self.data_sets))
        check_index(storage, storage / ".storescp" / "index.db")

    def test_window_and_jobs(self) -> None:
        """Three associations of several workers, with sixteen operations outstanding on each, share the work."""
        self.files(300)
        server = Server(self, "--workers", 2, "--async-window", 16)
        out, err = self.start(server.port, "--async", 99, "--jobs", 3).communicate(timeout=DEADLINE)
        self.assertEqual(err, "")
        self.assertRegex(out, r"\A300 x 0000H Success; .*/s\n\Z")
        server.wait_for("association accepted: .*, 16 operations at a time", count=3)
        server.wait_for("association released", count=3)
        self.assertEqual(server.stop()["associations"], 3)
        self.assertStored(server.storage)

    def test_tls(self) -> None:
        """The same over TLS, where the server asks for a certificate."""
        self.files(50)
        authority = Authority(temporary_directory(self))
        certificate, key = authority.issue("server")
        ours, our_key = authority.issue("CT1")
        server = Server(
            self,
            *("--listen", "tls:0:interface=127.0.0.1", "--tls-ca", authority.file),
            *("--tls-certificate", certificate, "--tls-key", key),
            listen=False,
        )
        options = ("--tls", "--tls-ca", authority.file, "--tls-certificate", ours, "--tls-key", our_key)
        out, err = self.start(server.port, *options, "--async", 8, "-j", 2).communicate(timeout=DEADLINE)
        self.assertEqual(err, "")
        self.assertRegex(out, r"\A50 x 0000H Success; ")
        out, _ = self.start(server.port).communicate(timeout=DEADLINE)
        self.assertRegex(out, r"\A50 not sent; ")
        server.stop()
        self.assertStored(server.storage)

    def test_server_that_dies(self) -> None:
        """With --retries it waits for a server to come, survives its death, and all is stored, once."""
        self.files(1000)
        port, storage = free_port(), temporary_directory(self) / "received"
        listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        sender = self.start(
            port, "--async", 16, "--jobs", 2, "--retries", 10**6, "--retry-delay", 0.05, "--timeout", 10
        )
        server = FaultServer(self, storage, *listen)
        server.wait_for("C-STORE .* stored", count=100)
        server.kill()
        server.wait()
        with FaultServer(self, storage, *listen) as server:
            out, err = sender.communicate(timeout=DEADLINE)
            self.assertEqual((sender.returncode, err), (0, ""), out)
            self.assertRegex(out, r"\A1000 x 0000H Success(, \d+ sent again)?; ")
            server.stop()
            self.assertStored(storage)

    def test_interrupted(self) -> None:
        """SIGINT ends it in one line, though it waits for a peer on several associations."""
        self.files(3)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sender = self.start(listener.getsockname()[1], "--jobs", 2)
            listener.settimeout(DEADLINE)
            connections = [listener.accept()[0] for _ in range(2)]
            for connection in connections:
                self.addCleanup(connection.close)
                connection.recv(1)
            sender.send_signal(signal.SIGINT)
            self.assertEqual(sender.communicate(timeout=DEADLINE), ("", "storescp: interrupted\n"))
            self.assertEqual(sender.returncode, -signal.SIGINT)

    def test_interrupted_meanwhile(self) -> None:
        """What was answered by then is told."""
        self.files(3)
        with open(self.directory / "1.dcm", "ab") as file:
            file.write(b"\xfc\xff\xfc\xffOB\0\0" + (50_000).to_bytes(4, "little") + bytes(50_000))
        server = Server(self, "--max-object-size", "20K")
        sender = self.start(server.port, "--retries", 9, "--retry-delay", 3600)
        server.wait_for("association released")
        sender.send_signal(signal.SIGINT)
        out, err = sender.communicate(timeout=DEADLINE)
        self.assertEqual((sender.returncode, err), (-signal.SIGINT, "storescp: interrupted\n"))
        self.assertRegex(out, r"\A2 x 0000H Success, 1 sent again; .*\n\Z")
