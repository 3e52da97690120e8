"""``--http``: the real server, asked for its metrics, its health and its page while it works."""

from __future__ import annotations

import contextlib
import html.parser
import http.client
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from bench import loadgen
from bench.outcome import Outcome
from storescp.measurements import OTHER, TITLES
from storescp.metrics import METRICS
from storescp.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ, PresentationContext
from storescp.sop_classes import VERIFICATION
from storescp.web import MAX_CONNECTIONS
from tests.faults.disks import tmpfs
from tests.pki import Authority
from tests.raw_scu import IMPLICIT, RawSCU, instance
from tests.raw_scu import store as raw_store
from tests.server import (
    DEADLINE,
    Server,
    environment,
    eventually,
    free_port,
    path_without,
    run,
    run_twistd,
    temporary_directory,
)
from tests.test_end_to_end import DATA
from tests.test_workers import workers_of

HTTP = ("--http", "tcp:0:interface=127.0.0.1")


class Answer(NamedTuple):
    """What a server has to say."""

    code: int
    kind: str
    text: str


class Sample(NamedTuple):
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """What a server had under /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            Sample(sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """All values, by these labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for sample in self.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
        return dict(found)


def fetch(port: int, path: str, data: bytes | None = None) -> Answer:
    """GET, or POST of *data*."""
    try:
        response = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, DEADLINE)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return Answer(response.status, response.headers["content-type"], response.read().decode())


def web_port(server: Server) -> int:
    """Where a server serves HTTP."""
    return int(server.wait_for(r"metrics and page on 127\.0\.0\.1 port (\d+)")[1])


def scrape(server: Server) -> Scrape:
    """Its metrics at this moment."""
    return Scrape(fetch(web_port(server), "/metrics").text)


class Texts(html.parser.HTMLParser):
    """The pieces of text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        self.pieces.append(data.strip())


def answered(server: Server, count: int) -> Scrape:
    """A scrape that has *count* instances: what a peer has been answered already is counted a moment later."""
    eventually(lambda: scrape(server).value("storescp_instances_total") == count)
    return scrape(server)


class WebTests(SynchronousTestCase):
    """One process."""

    def test_metrics(self) -> None:
        """What DCMTK and others have sent is counted by sender, modality, status and outcome, and timed."""
        config = temporary_directory(self) / "storescp.yaml"
        config.write_text("callers: {CT1: {called: [STORESCP]}}\nmax-object-size: 300K\n")
        server = Server(self, *HTTP, "--config", config)
        before = scrape(server)
        self.assertEqual(before.value("storescp_ready"), 1)
        self.assertEqual(before.value("storescp_workers"), 1)
        files = [DATA / name for name in ("CT_small.dcm", "MR_small.dcm")]
        sent = sum(file.stat().st_size for file in files)
        for _ in range(2):
            run("storescu", "-nh", "-aet", "CT1", "-aec", "STORESCP", *server.address, *files)
        run("echoscu", "-aet", "PROBE", *server.address)
        with RawSCU(server.address) as scu:
            self.assertIsInstance(scu.associate(calling="CT1", called="OTHER"), AAssociateRJ)
        with RawSCU(server.address) as scu:
            self.assertIsInstance(scu.associate(calling="MR1"), AAssociateAC)
            self.assertEqual(scu.store("1.2.9", instance("1.2.9", pixels=bytes(400_000))), 0xA700)
            self.assertEqual(scu.store("1.2.10", instance("1.2.10", sop_instance="1.2.11")), 0xA900)
            open_now = scrape(server)
            scu.reset()
        server.wait_for("association aborted: MR1")
        found = answered(server, 6)
        self.assertEqual(
            found.by("storescp_instances_total", "calling_ae", "modality", "status"),
            {
                ("CT1", "CT", "0000"): 1,
                ("CT1", "MR", "0000"): 1,
                ("CT1", "CT", "0111"): 1,
                ("CT1", "MR", "0111"): 1,
                ("MR1", "unknown", "A700"): 1,
                ("MR1", "CT", "A900"): 1,
            },
        )
        stored = found.value("storescp_instance_bytes_total", status="0000")
        self.assertTrue(0.9 * sent < stored < sent, f"{stored} of {sent}")
        self.assertEqual(
            found.by("storescp_associations_accepted_total", "calling_ae"),
            {("CT1",): 2, ("PROBE",): 1, ("MR1",): 1},
        )
        self.assertEqual(
            found.by("storescp_associations_rejected_total", "calling_ae", "reason"), {("CT1", "called"): 1}
        )
        self.assertEqual(
            found.by("storescp_associations_ended_total", "calling_ae", "how"),
            {("CT1", "released"): 2, ("PROBE", "released"): 1, ("MR1", "aborted"): 1},
        )
        self.assertEqual(open_now.value("storescp_associations"), 1)
        self.assertEqual(found.value("storescp_associations"), 0)
        self.assertEqual(found.value("storescp_limit_exceeded_total", limit="size"), 1)
        self.assertEqual(found.value("storescp_messages_total"), 2 * 2 + 1 + 2)
        for name, count in (("receive", 5), ("answer", 6), ("sync", 2), ("index", 2)):
            self.assertEqual(found.value(f"storescp_{name}_seconds_count"), count, name)
            self.assertEqual(found.value(f"storescp_{name}_seconds_bucket", le="+Inf"), count, name)
        self.assertGreater(found.value("storescp_sync_seconds_sum"), 0)
        self.assertGreater(found.value("storescp_storage_free_bytes"), 0)
        self.assertGreater(found.value("process_resident_memory_bytes"), 1 << 20)
        statistics = server.stop()
        self.assertEqual(found.value("storescp_received_bytes_total"), statistics["bytes_received"])

    def test_every_metric(self) -> None:
        """A scrape has a HELP and a TYPE for each metric of the table, and no other; promtool finds no fault."""
        server = Server(self, *HTTP)
        raw_store(server.address, [("1.2.3", instance("1.2.3"))])
        text = fetch(web_port(server), "/metrics").text
        kinds = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE storescp_"))
        self.assertEqual(kinds, {metric.name: metric.kind.value for metric in METRICS})
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=DEADLINE
        )
        self.assertEqual((checked.returncode, checked.stdout, checked.stderr), (0, "", ""))

    def test_probes(self) -> None:
        """It is alive and ready; other paths and methods have nothing, whatever a client sends along.

        It is alive, too, when it may open no more files.
        """
        server = Server(self, *HTTP)
        port = web_port(server)
        for path in ("/healthz", "/readyz"):
            self.assertEqual(fetch(port, path), (200, "text/plain; charset=utf-8", "ok\n"))
            self.assertEqual(fetch(port, path, bytes(1_000_000)).code, 405)
        for path in ("/x", "/etc/passwd", "/.."):
            self.assertEqual(fetch(port, path).code, 404, path)
        self.assertNotIn("HTTP/1.1", server.output)  # nobody wants a line for each probe
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        self.addCleanup(connection.close)
        most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        for limits in (most, (0, most[1]), most):
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            connection.request("GET", "/healthz")
            with connection.getresponse() as response:
                self.assertEqual((response.status, response.read()), (200, b"ok\n"))

    def test_page(self) -> None:
        """The page says what it is, that all is well, and who has sent what: as text, whatever they call themselves."""
        server = Server(self, *HTTP, "--ae-title", "<ARCHIVE>")
        with RawSCU(server.address) as scu:
            scu.associate(calling="<b>CT&1</b>")
            scu.store("1.2.3", instance("1.2.3"))
            scu.store("1.2.3", instance("1.2.3"))
            scu.release()
        code, kind, page = fetch(web_port(server), "/")
        self.assertEqual((code, kind), (200, "text/html; charset=utf-8"))
        self.assertNotIn("<b>CT", page)
        self.assertNotIn("<script", page)
        texts = Texts(page).pieces
        for text in ("<ARCHIVE>", "Ready: images are taken.", "Images stored", "metrics"):
            self.assertIn(text, texts)
        row = texts.index("<b>CT&1</b>")
        self.assertEqual(texts[row + 1 : row + 3], ["CT", "1"])
        self.assertEqual(texts[row + 4], "1 x 0111H")

    def test_drain(self) -> None:
        """While it stops it says so to whoever asks, until the last association has ended; it stays alive."""
        server = Server(self, *HTTP)
        port = web_port(server)
        with RawSCU(server.address) as scu:
            scu.associate()
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping: 1 association open")
            self.assertEqual(
                fetch(port, "/readyz"), (503, "text/plain; charset=utf-8", "the server is stopping\n")
            )
            self.assertEqual(fetch(port, "/healthz").code, 200)
            self.assertEqual(Scrape(fetch(port, "/metrics").text).value("storescp_ready"), 0)
            self.assertIn("the server is stopping", fetch(port, "/").text)
            scu.release()
        server.stopped()

    def test_low_space(self) -> None:
        """A disk below its limit makes it unready soon, before anybody sends, and ready again when there is room."""
        disk = tmpfs(self, "size=8m")
        server = Server(self, *HTTP, "--storage-dir", disk / "images", "--min-free", "4M")
        port = web_port(server)
        self.assertEqual(fetch(port, "/readyz").code, 200)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(5 << 20))
        eventually(lambda: fetch(port, "/readyz").code == 503)
        text = fetch(port, "/readyz").text
        self.assertRegex(text, r"\Aless than 4.19 MB free \(\S+ [kM]?B\): no images are taken\n\Z")
        found = scrape(server)
        self.assertEqual(found.value("storescp_ready"), 0)
        self.assertEqual(found.value("storescp_storage_min_free_bytes"), 4 << 20)
        self.assertEqual(found.value("storescp_storage_size_bytes"), 8 << 20)
        self.assertEqual(fetch(port, "/healthz").code, 200)
        ballast.unlink()
        eventually(lambda: fetch(port, "/readyz").code == 200)

    def test_many_titles(self) -> None:
        """Of 300 calling AE titles the scrape tells a bounded number apart, and counts all."""
        server = Server(self, *HTTP, "--max-pending", 300, "--max-assoc", 300)
        context = PresentationContext(1, VERIFICATION, (IMPLICIT,))
        template = AAssociateRQ("STORESCP", "A" * 16, (context,)).encode()
        empty = len(fetch(web_port(server), "/metrics").text)
        for first in range(0, 300, 100):
            peers = []
            for number in range(first, first + 100):
                peer = socket.create_connection(server.address, DEADLINE)
                peer.sendall(template.replace(b"A" * 16, b"%016d" % number))
                peers.append(peer)
            for peer in peers:
                self.assertTrue(peer.recv(1))
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
        found = scrape(server)
        accepted = found.by("storescp_associations_accepted_total", "calling_ae")
        self.assertEqual(sum(accepted.values()), 300)
        self.assertEqual((len(accepted), accepted[OTHER,]), (TITLES + 1, 300 - TITLES))
        self.assertLess(len(found.text), empty + 40_000)

    def test_under_load(self) -> None:
        """Scrapes while eight associations send see numbers that only grow, and in the end all that was sent."""
        server = Server(self, *HTTP, "--max-object-size", "1M")
        load = loadgen.Load(host="127.0.0.1", port=server.port, associations=8, objects=100, size=8192)
        outcomes: list[Outcome] = []
        sender = threading.Thread(target=lambda: outcomes.append(loadgen.run(load)))
        sender.start()
        counts = []
        while sender.is_alive():
            counts.append(scrape(server).value("storescp_instances_total"))
        sender.join()
        self.assertTrue(outcomes[0].ok, outcomes)
        eventually(lambda: scrape(server).value("storescp_associations") == 0)
        found = scrape(server)
        self.assertEqual(counts, sorted(counts))
        self.assertGreater(len(set(counts)), 1)
        self.assertEqual(
            found.by("storescp_instances_total", "calling_ae", "modality", "status"),
            {("LOADGEN", "CT", "0000"): 800},
        )
        self.assertEqual(found.value("storescp_answer_seconds_count"), 800)
        self.assertEqual(found.value("storescp_in_flight_bytes"), 0)
        self.assertEqual(found.value("storescp_writer_jobs"), 0)

    def test_many_connections(self) -> None:
        """Of connections that say nothing it takes so many, and when they go the next one is served."""
        server = Server(self, *HTTP)
        port = web_port(server)
        with contextlib.ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with socket.create_connection(("127.0.0.1", port), DEADLINE) as beyond:
                self.assertEqual(beyond.recv(1), b"")
            self.assertEqual(raw_store(server.address, [("1.2.3", instance("1.2.3"))]), [0])

        def is_served() -> bool:
            with contextlib.suppress(OSError):
                return fetch(port, "/healthz").code == 200
            return False

        eventually(is_served)


class WorkersTests(SynchronousTestCase):
    """Two processes beside the server's own."""

    def test_whole(self) -> None:
        """The numbers are those of all workers, also of one that has been killed: what it has counted stays."""
        server = Server(self, *HTTP, "--workers", 2)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(4)]
            for number, peer in enumerate(peers):
                self.assertIsInstance(peer.associate(calling=f"CT{number % 2}"), AAssociateAC)
                self.assertEqual(peer.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
            found = answered(server, 4)
            self.assertEqual(found.value("storescp_associations"), 4)
            self.assertEqual(found.value("storescp_workers"), 2)
            for name in ("storescp_process_cpu_seconds_total", "storescp_process_resident_bytes"):
                by_process = found.by(name, "process")
                self.assertEqual(set(by_process), {("0",), ("1",)})
                self.assertGreater(min(by_process.values()), 0)
            self.assertEqual(found.by("storescp_instances_total", "calling_ae"), {("CT0",): 2, ("CT1",): 2})
            self.assertEqual(found.value("storescp_answer_seconds_count"), 4)
            self.assertEqual(found.value("storescp_sync_seconds_count"), 4)
            os.kill(workers_of(server)[0], signal.SIGKILL)
            server.wait_for("worker 0 is ready again")
        raw_store(server.address, [(f"1.3.{number}", instance(f"1.3.{number}")) for number in range(3)])
        found = answered(server, 4 + 3)
        self.assertEqual(found.value("storescp_worker_restarts_total"), 1)
        self.assertEqual(found.value("storescp_workers"), 2)
        self.assertEqual(
            found.by("storescp_instances_total", "calling_ae", "status"),
            {("CT0", "0000"): 2, ("CT1", "0000"): 2, ("RAW", "0000"): 3},
        )
        self.assertEqual(found.value("storescp_associations_accepted_total"), 5)
        port = web_port(server)
        self.assertEqual(fetch(port, "/readyz").text, "ok\n")
        self.assertEqual(fetch(port, "/healthz").text, "ok\n")
        self.assertIn("2 of 2", Texts(fetch(port, "/").text).pieces)

    def test_limits(self) -> None:
        """What the parent refuses is counted, and so is what fails with a worker: a handshake that is none."""
        authority = Authority(temporary_directory(self))
        certificate, key = authority.issue("server")
        tls = ("--listen", "tls:0:interface=127.0.0.1", "--tls-certificate", certificate, "--tls-key", key)
        others = ("--tls-client-cert", "none", "--max-per-address", 1, "--workers", 2)
        server = Server(self, *HTTP, *tls, *others, listen=False)
        with socket.create_connection(server.address) as peer:
            with socket.create_connection(server.address, DEADLINE) as another:
                self.assertEqual(another.recv(1), b"")
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            server.wait_for("TLS refused")
        found = scrape(server)
        self.assertEqual(found.value("storescp_limit_exceeded_total", limit="address"), 1)
        self.assertEqual(found.value("storescp_tls_failures_total"), 1)
        self.assertEqual(found.value("storescp_connections_total"), 2)


class StartTests(SynchronousTestCase):
    """What an operator can get wrong."""

    def test_without_the_extra(self) -> None:
        """Without prometheus_client one line says what is missing."""
        home = temporary_directory(self)
        path = path_without("prometheus_client", home)
        options = ("--storage-dir", home / "received", "--port", free_port(), "--http", free_port())
        ended = run_twistd(*options, cwd=home, PYTHONPATH=path)
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(
            ended.stderr,
            "storescp: --http: expected the packages that pip install 'storescp[web]' brings,"
            " got: No module named prometheus_client\n",
        )

    def test_off(self) -> None:
        """Without --http nothing of it is loaded."""
        code = (
            "import sys; from storescp.tap import Options, makeService; options = Options()\n"
            "options.parseOptions([]); makeService(options)\n"
            "print(*(name for name in ('prometheus_client', 'twisted.web', 'storescp.web') if name in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=DEADLINE
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "\n", ""))

    def test_mistakes(self) -> None:
        """A port that is taken, an endpoint that is none: a line for each, and exit code 1."""
        home = temporary_directory(self)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            for given, said in (
                (
                    number,
                    f"cannot listen on tcp:{number}:interface=127.0.0.1: Address already in use",
                ),
                ("nonsense:1", "--http: expected a Twisted endpoint, got 'nonsense:1'"),
            ):
                ended = run_twistd("--port", free_port(), "--http", given, cwd=home)
                self.assertEqual(ended.returncode, 1, given)
                self.assertTrue(ended.stderr.startswith(f"storescp: {said}"), ended.stderr)
                self.assertEqual(ended.stderr.count("\n"), 1)
