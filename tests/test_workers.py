"""``--workers``: the real twistd with several processes behind its port, and real senders."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from bench import procfs
from storescp.pdu import (
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    PresentationContext,
)
from storescp.sop_classes import VERIFICATION
from tests.faults.load import FaultServer
from tests.raw_scu import IMPLICIT, RawSCU, instance, store
from tests.server import (
    DEADLINE,
    STOPPED,
    Server,
    descriptors,
    eventually,
    free_port,
    run,
    run_twistd,
    temporary_directory,
    wait_for_exit,
)
from tests.test_end_to_end import DATA
from tests.under_load import in_threads, stopped_under_load

Answers = list[int | AAbort | None]


def workers_of(server: Server) -> list[int]:
    """Their process IDs, by number."""
    found = {}
    for pid in procfs.tree(server.process.pid)[1:]:
        arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found[int(arguments[arguments.index(b"storescp.child") + 1])] = pid
    return [found[number] for number in sorted(found)]


def halt(pid: int) -> None:
    """Have a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE
    while pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, f"process {pid} does not stand still"


def sockets_of(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(path.startswith("socket:") for path in descriptors(pid))


class Orphaning(FaultServer):
    """A server that leaves its workers alone."""

    def leave(self) -> None:
        """Have the parent die, and nobody else."""
        self._stopped = True
        self.process.kill()
        Server.wait(self)


class SendersTests(SynchronousTestCase):
    """What senders see of it: nothing."""

    def test_spread(self) -> None:
        """Eight connections at once are four for each of two workers, and so are those that come after some ended."""
        server = Server(self, "--workers", 2)
        workers = workers_of(server)
        before = [sockets_of(pid) for pid in workers]
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(8)]
            for peer in peers:
                self.assertIsInstance(peer.associate(), AAssociateAC)
            # Each has one of its own for answers, too.
            self.assertEqual([sockets_of(pid) for pid in workers], [count + 2 * 4 for count in before])
            for number, peer in enumerate(peers):
                uid = f"1.2.{number}"
                self.assertEqual(peer.store(uid, instance(uid)), 0)
                peer.release()
        statistics = server.stop()
        self.assertEqual((statistics["associations"], statistics["stored"]), (8, 8))
        self.assertEqual(statistics["bytes_received"], sum(peer.sent for peer in peers))
        self.assertEqual(len(server.files()), 8)
        self.assertEqual(server.rows("SELECT count(*) FROM instances"), [(8,)])
        # Every line is there once, and whole.
        self.assertEqual(server.output.count("association accepted: RAW at 127.0.0.1:"), 8)
        self.assertEqual(
            len(re.findall(r"C-STORE from RAW: CT \d+ bytes in .* ms stored\n", server.output)), 8
        )
        self.assertTrue(all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in server.output.splitlines()))

    def test_dcmtk(self) -> None:
        """storescu sends to it as to any other; a file is found by whatever worker it comes to the second time."""
        server = Server(self, "--workers", 2)
        files = [DATA / name for name in ("CT_small.dcm", "MR_small.dcm")]
        for _ in range(2):
            self.assertEqual(run("echoscu", *server.address).returncode, 0)
            run("storescu", "-nh", *server.address, *files)
        statistics = server.stop()
        self.assertEqual((statistics["stored"], statistics["failed"]), (2, 1 + 1))
        self.assertEqual(len(re.findall("failed: 0111H", server.output)), 2)

    def test_same_instance_on_two_workers(self) -> None:
        """Of two associations on two workers that send the same instance at once, one stores it and one gets 0111H."""
        server = Server(self, "--workers", 2)
        uids = [f"1.2.3.{number}" for number in range(40)]
        answers: list[Answers] = [[], []]
        barrier = threading.Barrier(2)

        def send(mine: Answers) -> None:
            with RawSCU(server.address) as scu:
                scu.associate()
                for uid in uids:
                    barrier.wait(DEADLINE)
                    mine.append(scu.store(uid, instance(uid)))
                scu.release()

        in_threads([partial(send, mine) for mine in answers])
        self.assertEqual(
            [{one, other} for one, other in zip(*answers, strict=True)], [{0, 0x0111}] * len(uids)
        )
        self.assertEqual(len(server.files()), len(uids))
        self.assertEqual(server.rows("SELECT count(*) FROM instances"), [(len(uids),)])
        self.assertEqual(server.litter(), [])
        statistics = server.stop()
        self.assertEqual((statistics["stored"], statistics["failed"]), (len(uids), len(uids)))

    def test_limits(self) -> None:
        """--max-assoc and --max-pending are limits of all workers together, and places become free again."""
        server = Server(self, "--workers", 2, "--max-assoc", 3, "--max-pending", 4)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(5)]
            self.assertIsNone(peers[0].receive())  # one too many without an association: it was the first
            answers = [peer.associate() for peer in peers[1:]]
            self.assertEqual([type(answer) for answer in answers], [AAssociateAC] * 3 + [AAssociateRJ])
            peers[1].release()
            with RawSCU(server.address) as another:
                self.assertIsInstance(another.associate(), AAssociateAC)
        self.assertEqual(server.stop()["rejected"], 1)

    def test_released_ones(self) -> None:
        """A connection that its association has left behind counts too, and the one too many goes at once."""
        server = Server(self, "--workers", 2, "--max-pending", 3, "--artim-timeout", 3600)
        with contextlib.ExitStack() as stack:
            peers = []
            for _ in range(4):
                peers.append(stack.enter_context(RawSCU(server.address)))
                self.assertIsInstance(peers[-1].associate(), AAssociateAC)
            for peer in peers:
                peer.send(AReleaseRQ().encode())
                self.assertEqual(peer.receive(), AReleaseRP())
            self.assertIsNone(peers[0].receive())
            self.assertEqual(select.select([peer.socket for peer in peers[1:]], [], [], 0)[0], [])

    def test_per_address(self) -> None:
        """--max-per-address is a limit of all workers together, and a connection that ends makes room."""
        server = Server(self, "--workers", 2, "--max-per-address", 3)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(4)]
            for peer in peers[:3]:
                self.assertIsInstance(peer.associate(), AAssociateAC)
            self.assertIsNone(peers[3].receive())
            server.wait_for("127.0.0.1 refused: more than 3 connections from there")
            peers[0].release()
            deadline = time.monotonic() + DEADLINE
            answer = None
            while answer is None and time.monotonic() < deadline:  # until its worker has seen it go
                with contextlib.suppress(ConnectionError):
                    answer = stack.enter_context(RawSCU(server.address)).associate()
            self.assertIsInstance(answer, AAssociateAC)
        statistics = server.stop()
        self.assertEqual(statistics["associations"], 4)
        server.wait_for(r"limits: [1-9]\d* connections? refused, 0 dropped")

    def test_too_many_files(self) -> None:
        """When the server may open nothing more, a connection waits until it may, and is served."""
        server = Server(self, "--workers", 2)
        used = {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}
        lowest = min(set(range(len(used) + 1)) - used)
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
        with RawSCU(server.address) as scu:
            server.wait_for("cannot accept a connection: .*Too many open files")
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            self.assertIsInstance(scu.associate(), AAssociateAC)
            scu.release()

    def test_settings_lost(self) -> None:
        """Settings that come when workers may open nothing more are there as soon as they may."""
        config = temporary_directory(self) / "storescp.yaml"
        config.write_text("ae-title: BEFORE\ncheck-called-ae: true\n")
        server = Server(self, "--workers", 2, "--config", config)
        workers = workers_of(server)
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, hard))
        config.write_text("ae-title: AFTER\ncheck-called-ae: true\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for("the new settings were lost: too many open files; they are asked for again", count=2)
        for pid, before in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        with contextlib.ExitStack() as stack:

            def is_taken() -> bool:
                with contextlib.ExitStack() as unless_it_is:
                    scu = unless_it_is.enter_context(RawSCU(server.address))
                    if not isinstance(scu.associate(called="AFTER"), AAssociateAC):
                        return False
                    stack.push(unless_it_is.pop_all())  # so that the next one is the other worker's
                return True

            for _ in workers:
                eventually(is_taken)

    def test_low_space(self) -> None:
        """All of them refuse images for want of space, and the log says it once."""
        server = Server(self, "--workers", 2, "--min-free", "100%")
        with RawSCU(server.address) as one, RawSCU(server.address) as other:
            for number, scu in enumerate((one, other)):
                scu.associate()
                self.assertEqual(scu.store(f"1.{number}", instance(f"1.{number}")), 0xA700)
                scu.release()
        self.assertEqual(server.stop()["failed"], 2)
        self.assertEqual(server.output.count("no images are taken"), 1)


class DeathTests(SynchronousTestCase):
    """Processes that are killed."""

    def test_worker(self) -> None:
        """Of a worker that is killed under load nothing acknowledged is lost; others go on, and another one comes."""
        server = Server(self, "--workers", 2, "--naming", "flat")
        stored: list[str] = []
        broken: list[str] = []
        enough = threading.Event()
        going, lost = threading.Semaphore(0), threading.Semaphore(0)

        def send(sender: int) -> None:
            number = 0
            while not enough.is_set():
                try:
                    with RawSCU(server.address) as scu:
                        if (answer := scu.associate()) is None:
                            continue  # the worker died that had just taken it
                        self.assertIsInstance(answer, AAssociateAC)
                        while not enough.is_set():
                            number += 1
                            uid = f"1.{sender}.{number}"
                            if (status := scu.store(uid, instance(uid, pixels=bytes(20_000)))) is None:
                                break
                            self.assertEqual(status, 0)
                            stored.append(uid)
                            going.release()
                        else:
                            scu.release()
                            return
                except OSError:
                    pass  # the connection went away while we were writing
                broken.append(uid)
                lost.release()

        def kill() -> None:
            victim = workers_of(server)[0]
            for _ in range(100):
                self.assertTrue(going.acquire(timeout=DEADLINE))
            os.kill(victim, signal.SIGKILL)
            for _ in range(2):
                self.assertTrue(lost.acquire(timeout=DEADLINE))
            server.wait_for("worker 0 was ended by SIGKILL, and its associations with it; another one starts")
            server.wait_for("worker 0 is ready again")
            self.assertNotIn(victim, workers_of(server))
            for _ in range(100):
                self.assertTrue(going.acquire(timeout=DEADLINE))

        def end(what: Callable[[], None]) -> None:
            try:
                what()
            finally:
                enough.set()

        in_threads([lambda: end(kill), *(partial(send, sender) for sender in range(4))])
        self.assertEqual(len(broken), 2)
        files = {name.removesuffix(".dcm") for name in server.files()}
        self.assertEqual(set(stored) - files, set())
        self.assertEqual(files - set(stored) - set(broken), set())
        statistics = server.stop()
        # What the dead worker had counted is in the sum; what it was about to count is not: it answers first, so that
        # the last two answers of each of its two associations may be missing.
        self.assertLessEqual(len(stored) - 4, statistics["stored"])
        self.assertLessEqual(statistics["stored"], len(files))
        self.assertEqual(statistics["associations"], 6)
        self.assertEqual(server.rows("SELECT count(*) FROM instances"), [(len(files),)])
        self.assertEqual(server.litter(), [])

    def test_left(self) -> None:
        """Connections that a worker had been given and not taken when it died are served by another one."""
        server = Server(self, "--workers", 2)
        workers = workers_of(server)
        halt(workers[0])
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(6)]
            for peer in peers[1::2]:
                self.assertIsInstance(peer.associate(), AAssociateAC)
            os.kill(workers[0], signal.SIGKILL)
            for peer in peers[::2]:
                self.assertIsInstance(peer.associate(), AAssociateAC)
            for number, peer in enumerate(peers):
                self.assertEqual(peer.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
                peer.release()
        self.assertEqual(server.stop()["stored"], 6)

    def test_left_by_all(self) -> None:
        """When no other one lives, they are served by the next."""
        server = Server(self, "--workers", 2)
        workers = workers_of(server)
        for worker in workers:
            halt(worker)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(RawSCU(server.address)) for _ in range(4)]
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            for peer in peers:
                self.assertIsInstance(peer.associate(), AAssociateAC)
                peer.release()
        self.assertEqual(server.stop()["associations"], 4)

    def test_all_workers(self) -> None:
        """A connection that comes when no worker lives waits for the next one; the places of the dead are free."""
        server = Server(self, "--workers", 2, "--max-assoc", 2)
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                peer = stack.enter_context(RawSCU(server.address))
                self.assertIsInstance(peer.associate(), AAssociateAC)
            for pid in workers_of(server):
                os.kill(pid, signal.SIGKILL)
            server.wait_for("was ended by SIGKILL", count=2)
            self.assertEqual(store(server.address, [("1.2", instance("1.2"))]), [0])
        self.assertEqual(server.stop()["associations"], 3)

    def test_parent(self) -> None:
        """Workers that lost their parent let associations end and then end themselves; till then nobody else starts."""
        storage = temporary_directory(self) / "received"
        server = Orphaning(self, storage, "--workers", 2)
        workers = workers_of(server)
        with RawSCU(server.address) as scu:
            scu.associate()
            for pid in workers:
                os.kill(pid, signal.SIGTERM)  # not for them
            server.leave()
            wait_for_exit(workers[1])
            self.assertEqual(scu.store("1.2", instance("1.2")), 0)
            ended = run_twistd("--listen", "tcp:0:interface=127.0.0.1", "-d", storage, cwd=server.home)
            self.assertEqual(
                ended.stderr, f"storescp: the storage directory '{storage}' is in use by another server\n"
            )
            scu.release()
        wait_for_exit(workers[0])
        again = FaultServer(self, storage, "--workers", 3)
        self.assertEqual(store(again.address, [("1.2", instance("1.2"))]), [0x0111])
        again.stop()


class StopTests(SynchronousTestCase):
    """The ordered stop."""

    def test_association_may_finish(self) -> None:
        """At SIGTERM associations may end on all workers, and connections without one are closed."""
        server = Server(self, "--workers", 2, "--stop-timeout", 60)
        with RawSCU(server.address) as one, RawSCU(server.address) as other, RawSCU(server.address) as silent:
            one.associate()
            other.associate()
            os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
            server.wait_for("stopping: 2 associations open")
            self.assertIsNone(silent.receive())
            self.assertRaises(ConnectionRefusedError, RawSCU, server.address)
            for number, scu in enumerate((one, other)):
                self.assertEqual(scu.store(f"1.{number}", instance(f"1.{number}")), 0)
                scu.release()
        statistics = server.stopped()
        self.assertEqual((statistics["stored"], statistics["aborted"]), (2, 0))

    def test_second_signal(self) -> None:
        """A second signal does not wait for the associations any longer."""
        server = Server(self, "--workers", 2, "--stop-timeout", 3600)
        with RawSCU(server.address) as one, RawSCU(server.address) as other:
            one.associate()
            other.associate()
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping: 2 associations open")
            server.send_signal(signal.SIGTERM)
            self.assertEqual([one.receive(), other.receive()], [AAbort(0, 0)] * 2)
            self.assertEqual(server.stopped()["aborted"], 2)

    def test_under_load(self) -> None:
        """Stopped while senders send: what was answered with 0000H is there, and nothing else."""
        stopped_under_load(self, "--workers", 2)


class StartTests(SynchronousTestCase):
    """What cannot start, and how it runs in the background."""

    def test_worker_cannot_start(self) -> None:
        """What keeps a worker from starting is one line, and exit code 1; nobody is left."""
        home = temporary_directory(self)
        (home / "received" / ".storescp" / "commit-lock").mkdir(parents=True)
        ended = run_twistd("--listen", "tcp:0:interface=127.0.0.1", "--workers", "2", cwd=home)
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(
            ended.stderr, "storescp: the storage directory 'received' cannot be written: Is a directory\n"
        )
        self.assertNotIn("listening", ended.stdout)

    def test_local_socket(self) -> None:
        """Connections to a local socket are handed over like any others."""
        path = temporary_directory(self) / "socket"
        server = Server(self, "--workers", 2, "--listen", f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(DEADLINE)
            peer.connect(str(path))
            contexts = (PresentationContext(1, VERIFICATION, (IMPLICIT,)),)
            peer.sendall(AAssociateRQ("STORESCP", "LOCAL", contexts).encode())
            self.assertEqual(peer.recv(1), b"\2")
            server.wait_for("association accepted: LOCAL at local socket to STORESCP")
        self.assertIn(f"listening on {path}\n", server.output)
        self.assertEqual(server.stop()["aborted"], 1)

    def test_ipv6(self) -> None:
        """Connections over IPv6 are handed over like any others."""
        server = Server(self, "--workers", 2, "--listen", r"tcp6:0:interface=\:\:1", listen=False)
        self.store_on_both(server, "::1")
        self.assertEqual(server.output.count("association accepted: RAW at [::1]:"), 2)

    def test_activated(self) -> None:
        """A socket that systemd has made is listened on like any other, and outlives the server."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            options = ("--workers", 2, "--listen", "systemd:domain=INET:index=0")
            server = Server(self, *options, listen=False, activated=listener)
            self.assertEqual(server.port, listener.getsockname()[1])
            self.store_on_both(server, "127.0.0.1")
            with RawSCU(server.address) as early:  # when nobody is there
                Server(self, *options, listen=False, activated=listener)
                self.assertIsInstance(early.associate(), AAssociateAC)
                early.release()

    def store_on_both(self, server: Server, host: str) -> None:
        """Two associations, one for each worker; then the server is stopped."""
        before = [sockets_of(pid) for pid in workers_of(server)]
        with RawSCU((host, server.port)) as one, RawSCU((host, server.port)) as other:
            for number, scu in enumerate((one, other)):
                scu.associate()
                self.assertEqual(scu.store(f"1.{number}", instance(f"1.{number}")), 0)
            self.assertEqual([sockets_of(pid) for pid in workers_of(server)], [count + 2 for count in before])
            for scu in (one, other):
                scu.release()
        self.assertEqual(server.stop()["stored"], 2)

    def test_endpoint(self) -> None:
        """An endpoint whose connections cannot be handed over is a mistake, in one line."""
        endpoint = "haproxy:tcp:0:interface=127.0.0.1"
        ended = run_twistd("--listen", endpoint, "--workers", "2", cwd=temporary_directory(self))
        self.assertEqual(ended.returncode, 1)
        self.assertRegex(ended.stderr, r"\Astorescp: --workers: expected 1 .*, got 2\n\Z")

    def test_daemon(self) -> None:
        """In the background the log file has the lines of the workers, and the stop is the same."""
        home = temporary_directory(self)
        port = free_port()
        started = run_twistd(
            *("--listen", f"tcp:{port}:interface=127.0.0.1", "--workers", "2"),
            cwd=home,
            main=("--pidfile=pid", "--logfile=log"),
        )
        self.assertEqual((started.returncode, started.stderr), (0, ""))
        pid = int((home / "pid").read_text())
        try:
            self.assertEqual(store(("127.0.0.1", port), [("1.2", instance("1.2"))]), [0])
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_for_exit(pid)
        log = (home / "log").read_text()
        self.assertIn("association released: RAW", log)
        self.assertRegex(log, STOPPED)
        self.assertNotIn("Traceback", log)
