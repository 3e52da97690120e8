"""etc/haproxy.cfg: the real HAProxy before real servers."""

from __future__ import annotations

import os
import re
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC
from tests.raw_scu import RawSCU, instance
from tests.server import DEADLINE, ROOT, Server, free_port, run, temporary_directory
from tests.test_systemd import Listener


class HAProxyTests(SynchronousTestCase):
    """Senders behind a load balancer."""

    def setUp(self) -> None:
        rules = temporary_directory(self) / "storescp.yaml"
        rules.write_text("callers: {FAR: {addresses: [127.0.0.7]}}\n")
        self.web = free_port(), free_port()
        self.servers = [
            Server(
                self,
                *("--config", rules, "--http", f"tcp:{web}:interface=127.0.0.1"),
                *("--listen", "haproxy:tcp:0:interface=127.0.0.1"),
                listen=False,
            )
            for web in self.web
        ]
        self.port = free_port()
        text = (ROOT / "etc" / "haproxy.cfg").read_text().replace("bind :104", f"bind 127.0.0.1:{self.port}")
        for number, (server, web) in enumerate(zip(self.servers, self.web, strict=True)):
            address = f"10.0.0.{5 + number}:11112 port 8080"
            self.assertEqual(text.count(address), 1)
            text = text.replace(address, f"127.0.0.1:{server.port} port {web}")
        file = temporary_directory(self) / "haproxy.cfg"
        file.write_text(text)
        ready = Listener(self, str(temporary_directory(self) / "notify"))
        self.balancer = subprocess.Popen(
            ["haproxy", "-Ws", "-f", file],
            env={**os.environ, "NOTIFY_SOCKET": ready.socket.getsockname()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(self.end)
        while "READY=1" not in ready.heard():
            pass

    def end(self) -> None:
        """Stop HAProxy."""
        self.balancer.terminate()
        self.balancer.communicate(timeout=DEADLINE)

    def test_senders(self) -> None:
        """Images go to both servers, whose logs and rules have the senders' own addresses."""
        with RawSCU(("127.0.0.1", self.port)) as one, RawSCU(("127.0.0.1", self.port)) as other:
            for number, scu in enumerate((one, other)):
                scu.associate()
                self.assertEqual(scu.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
                scu.release()
        for server in self.servers:
            found = server.wait_for(r"association accepted: RAW at (127\.0\.0\.1):(\d+)")
            self.assertNotEqual(int(found[2]), self.port)
        refused = run("echoscu", "-aet", "FAR", "127.0.0.1", self.port)
        self.assertNotEqual(refused.returncode, 0)
        with RawSCU(("127.0.0.1", self.port), source="127.0.0.7") as scu:
            self.assertIsInstance(scu.associate(calling="FAR"), AAssociateAC)
            scu.release()
        for server in self.servers:
            server.stop()
        self.assertTrue(
            any(
                re.search("association accepted: FAR at 127.0.0.7:", server.output) for server in self.servers
            )
        )

    def test_drain(self) -> None:
        """A server that stops gets no new associations; the other one takes them all."""
        self.servers[0].stop()
        for number in range(4):
            with RawSCU(("127.0.0.1", self.port)) as scu:
                scu.associate()
                self.assertEqual(scu.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
                scu.release()
        self.assertEqual(self.servers[1].stop()["stored"], 4)
