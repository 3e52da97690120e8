"""TLS with the real twistd: DCMTK, Orthanc, pynetdicom and the openssl command as its peers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import signal
import socket
import ssl
import subprocess
import time

from pynetdicom import AE
from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC, AAssociateRJ
from storescp.sop_classes import VERIFICATION
from tests.orthanc import Orthanc
from tests.pki import Authority
from tests.pynetdicom_scu import associate
from tests.raw_scu import RawSCU, instance
from tests.server import DEADLINE, Server, path_without, run, run_twistd, temporary_directory
from tests.test_end_to_end import DATA
from tests.test_workers import halt, workers_of

CT = DATA / "CT_small.dcm"
LISTEN = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", "tls:0:interface=127.0.0.1")


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.authority = Authority(self.home)
        self.certificate, self.key = self.authority.issue("server")

    def options(self, *others: object) -> tuple[object, ...]:
        files = (
            "--tls-certificate",
            self.certificate,
            "--tls-key",
            self.key,
            "--tls-ca",
            self.authority.file,
        )
        return (*LISTEN, *files, *others)

    def start(self, *options: object) -> Server:
        """A server whose port is the one with TLS."""
        server = Server(self, *self.options(*options), listen=False)
        server.port = int(server.wait_for(r"listening on \S+ port (\d+), TLS\n")[1])
        return server

    def storescu(self, server: Server, *tls: object) -> int:
        return run("storescu", "+cf", self.authority.file, *tls, *server.address, CT).returncode

    def shown(self, name: str) -> tuple[str, pathlib.Path, pathlib.Path]:
        """storescu's options to show a certificate."""
        certificate, key = self.authority.issue(name)
        return "+tls", key, certificate


def s_client(server: Server, *options: object) -> str:
    """What openssl says of a connection: version and cipher suite, or nothing if there was none."""
    ended = subprocess.run(
        ["openssl", "s_client", "-brief", "-connect", f"127.0.0.1:{server.port}", *map(str, options)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    found = dict(re.findall(r"^(Protocol version|Ciphersuite): (\S+)$", ended.stderr, re.M))
    return " ".join(found.values())


class CallersTests(_TestCase):
    """Rules for calling AE titles that want a certificate."""

    def answer(self, server: Server, calling: str, name: str) -> object:
        """What is answered to who calls itself so, with the certificate of that name, or none."""
        context = ssl.create_default_context(cafile=self.authority.file)
        if name:
            context.load_cert_chain(*map(str, self.authority.issue(name)))
        with RawSCU(server.address) as peer:
            peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
            return peer.associate(calling=calling)

    def check(self, *options: object) -> None:
        config = self.home / "c.yaml"
        config.write_text('callers: {CT1: {certificate: "CN=ct1*"}}')
        server = self.start(
            "--config", config, "--tls-client-cert", "request", "--duplicate", "ignore", *options
        )
        secure = server.port
        for name, code in (("ct1", 0), ("ct12", 0), ("ct2", 1)):
            self.assertEqual(self.storescu(server, *self.shown(name), "-aet", "CT1"), code)
        self.assertIsInstance(self.answer(server, "CT1", "ct1"), AAssociateAC)
        self.assertEqual(self.answer(server, "CT1", "ct2"), AAssociateRJ(1, 1, 3))
        self.assertEqual(self.answer(server, "CT1", ""), AAssociateRJ(1, 1, 3))
        self.assertIsInstance(self.answer(server, "MR1", "ct2"), AAssociateAC)
        server.port = int(server.wait_for(r"listening on \S+ port (\d+)\n")[1])
        self.assertNotEqual(server.port, secure)
        with RawSCU(server.address) as peer:
            self.assertEqual(peer.associate(calling="CT1"), AAssociateRJ(1, 1, 3))
        self.assertEqual(server.stop()["rejected"], 4)
        rejected = r"association rejected: 'CT1' at 127.0.0.1:\d+ to '\S+': callers.CT1"
        more = r"(?: \(1 more like this in 60 s\))?\n"  # if it was the same process
        server.wait_for(rf"{rejected} does not allow the certificate of 'CN=ct2,O=Hospital'{more}", count=2)
        server.wait_for(rf"{rejected} wants a certificate{more}", count=2)
        server.wait_for("rejected for: certificate 4\n")

    def test_certificate(self) -> None:
        """Who has the right certificate is let in; with another, none, or without TLS the AE title is rejected."""
        self.check()

    def test_certificate_workers(self) -> None:
        """So it is with several processes."""
        self.check("--workers", 2)


class SendersTests(_TestCase):
    """Real senders, and who of them is let in."""

    def test_dcmtk(self) -> None:
        """storescu stores with its certificate, which the log names; without one, or with one of others, it cannot."""
        revoked = self.authority.issue("old")
        server = self.start("--tls-crl", self.authority.revoke(revoked[0]))
        self.assertEqual(self.storescu(server, *self.shown("ct1")), 0)
        server.wait_for(r"127.0.0.1:\d+ speaks TLSv1.[23] with \S+, certificate 'CN=ct1,O=Hospital'\n")
        self.assertEqual([path.read_bytes()[128:132] for path in server.files().values()], [b"DICM"])
        certificate, key = Authority(temporary_directory(self), "Other").issue("stranger")
        for tls, why in (
            (("+tla",), "peer did not return a certificate"),
            (("+tls", key, certificate), "certificate 'CN=stranger,O=Hospital': it comes from an authority"),
            (("+tls", revoked[1], revoked[0]), "certificate 'CN=old,O=Hospital': it is revoked"),
        ):
            self.assertNotEqual(self.storescu(server, *tls), 0)
            server.wait_for(rf"TLS refused: 127.0.0.1:\d+: {why}")
        self.assertNotEqual(run("storescu", *server.address, CT).returncode, 0)
        server.wait_for(r"TLS refused: 127.0.0.1:\d+: it does not speak TLS\n")
        statistics = server.stop()
        self.assertEqual((statistics["associations"], statistics["stored"]), (1, 1))

    def test_anonymous(self) -> None:
        """Where certificates are not asked for, storescu stores without one."""
        server = self.start("--tls-client-cert", "none")
        self.assertEqual(self.storescu(server, "+tla"), 0)
        self.assertEqual(server.stop()["stored"], 1)

    def test_pynetdicom(self) -> None:
        """pynetdicom gets its echo, and its association ends in order."""
        server = self.start()
        context = ssl.create_default_context(cafile=self.authority.file)
        context.load_cert_chain(*map(str, self.authority.issue("py")))
        ae = AE()
        ae.add_requested_context(VERIFICATION)
        association = associate(ae, server.port, tls_args=(context, "localhost"))
        self.assertTrue(association.is_established)
        self.assertEqual(association.send_c_echo().Status, 0)
        association.release()
        server.wait_for("association released")
        self.assertEqual(server.stop()["aborted"], 0)

    def test_in_the_clear(self) -> None:
        """A sender without TLS finds the port closed in order; the port beside it takes it."""
        server = self.start()
        with RawSCU(server.address) as peer:
            peer.send(b"\1\0\0\0\0\4abcd")
            while data := peer.socket.recv(4096):  # an alert; a reset would raise
                self.assertEqual(data[:1], b"\x15")
        server.port = int(server.wait_for(r"listening on \S+ port (\d+)\n")[1])
        self.assertEqual(run("echoscu", *server.address).returncode, 0)
        server.stop()

    def test_orthanc(self) -> None:
        """Orthanc as a sender, by DicomTls, stores an image that came in by its REST interface."""
        server = self.start()
        certificate, key = self.authority.issue("orthanc")
        modality = {"AET": "STORESCP", "Host": "127.0.0.1", "Port": server.port, "UseDicomTls": True}
        orthanc = Orthanc(
            self,
            {"archive": modality},
            DicomServerEnabled=False,
            DicomTlsCertificate=str(certificate),
            DicomTlsPrivateKey=str(key),
            DicomTlsTrustedCertificates=str(self.authority.file),
        )
        orthanc.store("archive", CT)
        server.wait_for("certificate 'CN=orthanc,O=Hospital'")
        self.assertEqual(server.stop()["stored"], 1)


class OpenSSLTests(_TestCase):
    """What the openssl command can agree with the server on."""

    WEAK = ("-cipher", "ALL:@SECLEVEL=0")

    def accepted(self, server: Server) -> list[str]:
        return [
            s_client(server, *options)
            for options in (
                ("-tls1", *self.WEAK),
                ("-tls1_1", *self.WEAK),
                ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"),
                ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"),
                ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"),
                ("-tls1_2",),
                ("-tls1_3",),
            )
        ]

    def test_bcp195(self) -> None:
        """TLS 1.2 with the suites of the profile, and 1.3; nothing older, nothing else."""
        server = self.start("--tls-client-cert", "none")
        self.assertEqual(
            self.accepted(server),
            [
                *("", "", "", ""),
                "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384",
                "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256",
                "TLSv1.3 TLS_AES_128_GCM_SHA256",
            ],
        )
        server.stop()

    def test_tls13(self) -> None:
        """TLS 1.3 only."""
        server = self.start("--tls-client-cert", "none", "--tls-profile", "tls13")
        self.assertEqual(self.accepted(server), ["", "", "", "", "", "", "TLSv1.3 TLS_AES_128_GCM_SHA256"])
        server.stop()


class ReloadTests(_TestCase):
    """SIGHUP, and several processes."""

    def served(self, server: Server) -> bytes:
        """The certificate that the server shows."""
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(server.address, timeout=DEADLINE))

    def check(self, server: Server) -> None:
        def is_served(path: pathlib.Path) -> None:
            expected = ssl.PEM_cert_to_DER_cert(path.read_text())
            self.assertEqual([self.served(server) for _ in range(4)], [expected] * 4)

        is_served(self.certificate)
        with RawSCU(server.address) as peer:
            context = ssl.create_default_context(cafile=self.authority.file)
            peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
            self.authority.issue("server")
            server.send_signal(signal.SIGHUP)
            server.wait_for("TLS: files read again")
            is_served(self.certificate)
            peer.associate()  # on a connection that is older
            peer.release()
        good = self.certificate.read_bytes()
        self.certificate.write_bytes(good[:100])
        server.send_signal(signal.SIGHUP)
        server.wait_for(
            "SIGHUP: nothing has changed: --tls-certificate: expected certificates in PEM, got '.*'\n"
        )
        (self.home / "good").write_bytes(good)
        is_served(self.home / "good")

    def test_reload(self) -> None:
        """New connections are shown a new certificate; a broken file changes nothing but for a line in the log."""
        server = self.start("--tls-client-cert", "none")
        self.check(server)
        server.stop()

    def test_workers(self) -> None:
        """So it is with several processes, which serve TLS and store; one that is replaced has what others have."""
        server = self.start("--tls-client-cert", "none", "--workers", 2)
        self.check(server)
        self.assertEqual(self.storescu(server, "+tla"), 0)
        served = self.served(server)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        server.wait_for("is ready again")
        self.assertEqual([self.served(server) for _ in range(4)], [served] * 4)
        self.assertEqual(server.stop()["stored"], 1)

    def test_left(self) -> None:
        """Connections that a worker had been given and not taken when it died speak TLS with another one.

        They count for their address then, and no others of that worker.
        """
        server = self.start("--tls-client-cert", "none", "--workers", 2, "--max-per-address", 6)
        workers = workers_of(server)
        halt(workers[0])
        context = ssl.create_default_context(cafile=self.authority.file)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(6)]

            def associate(peer: RawSCU) -> None:
                peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
                self.assertIsInstance(peer.associate(), AAssociateAC)

            for peer in peers[1::2]:
                associate(peer)
            os.kill(workers[0], signal.SIGKILL)
            for peer in peers[::2]:
                associate(peer)
            with socket.create_connection(server.address, DEADLINE) as one_more:
                self.assertEqual(one_more.recv(1), b"")
            for number, peer in enumerate(peers):
                self.assertEqual(peer.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
                peer.release()
        self.assertEqual(server.stop()["stored"], 6)

    def test_per_address(self) -> None:
        """Connections with TLS and without count together for their address, over all workers, until they end."""
        server = self.start("--tls-client-cert", "none", "--workers", 2, "--max-per-address", 2)
        context = ssl.create_default_context(cafile=self.authority.file)
        plain = int(server.wait_for(r"listening on \S+ port (\d+)\n")[1])
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU((server.address[0], port))) for port in (server.port, plain)]
            peers[0].socket = context.wrap_socket(peers[0].socket, server_hostname="localhost")
            for peer in peers:
                self.assertIsInstance(peer.associate(), AAssociateAC)
            for port in (server.port, plain):
                with socket.create_connection((server.address[0], port), DEADLINE) as one_more:
                    self.assertEqual(one_more.recv(1), b"")
            server.wait_for("127.0.0.1 refused: more than 2 connections from there")
            peers[0].socket.close()
            deadline = time.monotonic() + DEADLINE
            code = 1
            while code and time.monotonic() < deadline:  # until its worker has seen it go
                code = self.storescu(server, "+tla")
            self.assertEqual(code, 0)
        server.stop()

    def test_pending(self) -> None:
        """Handshakes that do not go on count as connections without an association, over all workers."""
        server = self.start("--tls-client-cert", "none", "--workers", 2, "--max-pending", 4)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection(server.address)) for _ in range(7)]
            closed: set[socket.socket] = set()
            while len(closed) < 3:
                ended = select.select(list({*peers} - closed), [], [], DEADLINE)[0]
                self.assertNotEqual(ended, [])
                closed |= set(ended)
            for peer in closed:
                self.assertRaises(ConnectionResetError, peer.recv, 1)
            self.assertEqual(select.select(list({*peers} - closed), [], [], 0)[0], [])
            self.assertEqual(self.storescu(server, "+tla"), 0)
        server.stop()

    def test_slow_handshakes(self) -> None:
        """Handshakes that do not go on keep nobody waiting, and end by themselves."""
        config = self.home / "c.yaml"
        config.write_text("tls-timeout: 3600")
        server = self.start("--tls-client-cert", "none", "--config", config)
        with contextlib.ExitStack() as stack:

            def stuck(count: int) -> list[socket.socket]:
                peers = [stack.enter_context(socket.create_connection(server.address)) for _ in range(count)]
                for peer in peers:
                    peer.settimeout(DEADLINE)
                    with contextlib.suppress(ConnectionError):  # its time is over already
                        peer.sendall(b"\x16\x03\x01\x02\x00")
                return peers

            patient = stuck(50)
            self.assertEqual(self.storescu(server, "+tla"), 0)
            config.write_text("tls-timeout: 0.1")
            server.send_signal(signal.SIGHUP)
            server.wait_for("SIGHUP: tls-timeout: 3600 -> 0.1")
            for peer in stuck(3):
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(peer.recv(1), b"")
            self.assertEqual(select.select(patient, [], [], 0)[0], [])
            server.stop()
        server.wait_for("TLS refused: .*: no handshake within 0.1 s\n")
        server.wait_for(r"TLS refused: .*: no handshake within 0.1 s \(2 more like this in 60 s\)\n")


class MistakesTests(_TestCase):
    """What an operator is told: one line, and exit code 1."""

    def fault(self, *options: object) -> str:
        ended = run_twistd(*options, cwd=self.home)
        self.assertEqual(ended.returncode, 1, ended.stdout + ended.stderr)
        (line,) = ended.stderr.splitlines()
        self.assertNotIn("Traceback", ended.stdout)
        return line.replace(str(self.home), "HOME")

    def test_files(self) -> None:
        """A key of another certificate, and a file that is not there."""
        _, other = self.authority.issue("other")
        self.assertEqual(
            self.fault(*self.options("--tls-key", other)),
            "storescp: --tls-key: expected the key of the certificate in 'HOME/server.pem', got another one in"
            " 'HOME/other.key.pem'",
        )
        self.assertIn("No such file", self.fault(*self.options("--tls-ca", self.home / "missing")))

    def test_without_the_extra(self) -> None:
        """Where pyOpenSSL is missing, TLS says what to install, and the rest works."""
        path = path_without("OpenSSL", self.home)
        ended = run_twistd(*self.options(), cwd=self.home, PYTHONPATH=path)
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(
            ended.stderr,
            "storescp: TLS: expected the packages that pip install 'storescp[tls]' brings,"
            " got: No module named OpenSSL\n",
        )
