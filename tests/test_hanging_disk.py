"""Disks that do not answer: they hold up nobody who does not need them, and no stop for ever."""

from __future__ import annotations

import pathlib
import re
import signal

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC, AAssociateRJ
from tests.faults.disks import among_ourselves
from tests.faults.hanging import FreezableDisk, SilentDirectory
from tests.raw_scu import ECHO_CONTEXT, RawSCU, echo_command, instance, store, store_command
from tests.server import Server, eventually, temporary_directory, wait_for_exit
from tests.test_system_users import request
from tests.test_web import HTTP, Scrape, fetch, web_port

GIVEN_UP = "the disk or the index does not answer: the server stops without it; images not acknowledged: 1\n"


def is_in_the_kernel(pid: int) -> bool:
    """Whether a thread of a process waits for a disk."""
    states = (path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"))
    return any(state.rpartition(")")[2].split()[0] == "D" for state in states)


def associated(server: Server) -> RawSCU:
    """A sender with an association."""
    scu = RawSCU(server.address)
    assert isinstance(scu.associate(), AAssociateAC)
    return scu


def echo(scu: RawSCU) -> None:
    """Have a C-ECHO answered."""
    scu.send_command(echo_command(), ECHO_CONTEXT)
    assert scu.status() == 0


def get_stuck(server: Server) -> RawSCU:
    """Send an image, which has arrived and is not answered."""
    scu = associated(server)
    scu.send_command(store_command("1.2.2"))
    scu.send_data_set(instance("1.2.2"))
    echo(scu)
    return scu


class HangingDiskTests(SynchronousTestCase):
    """One server whose storage directory does not answer any more, and two on a disk that stands still."""

    def setUp(self) -> None:
        self.disk = FreezableDisk(self)
        options = "--stop-timeout", 0, "--min-free", "1M"
        directories = [self.disk.directory / name for name in ("one", "two")]
        self.silent = Server(self, *HTTP, *options)
        self.frozen = Server(self, *options, "--storage-dir", directories[0])
        self.workers = Server(self, *options, "--storage-dir", directories[1], "--workers", 2)
        self.directories = [self.silent.storage, *directories]
        for server in (self.silent, self.frozen, self.workers):
            self.assertEqual(store(server.address, [("1.2.1", instance("1.2.1"))]), [0])
        # The study, by way of the directory that the server has open; then, for who looks from outside, everything.
        self.silence = [
            SilentDirectory(self, directory)
            for directory in (self.silent.storage / "1.2.3", self.silent.storage)
        ]
        self.disk.freeze()

    def tearDown(self) -> None:
        self.disk.thaw()
        self.answer()

    def answer(self) -> None:
        """The silent directory has its files again."""
        for silence in reversed(self.silence):
            silence.end()

    def test_hang(self) -> None:
        """Others are served meanwhile, and whoever asks learns what is wrong. SIGTERM ends each server within some
        seconds, and it says what was not acknowledged; what was is there when the disk is."""
        stuck = [get_stuck(server) for server in (self.silent, self.frozen, self.workers)]
        for server in (self.frozen, self.workers):
            server.send_signal(signal.SIGTERM)

        with associated(self.silent) as other:
            port = web_port(self.silent)
            eventually(lambda: fetch(port, "/readyz").code == 503)
            echo(other)
            self.assertRegex(
                fetch(port, "/readyz").text,
                r"\Athe disk has not answered for \d+ s\n(process 0 has written nothing for \d+ s\n)?\Z",
            )
            self.assertIn("the disk has not answered", fetch(port, "/").text)
            self.assertGreater(Scrape(fetch(port, "/metrics").text).value("storescp_storage_free_bytes"), 0)
            self.assertEqual(fetch(port, "/healthz").code, 200)
            self.silent.send_signal(signal.SIGHUP)
            self.silent.wait_for("SIGHUP: settings read again")
            echo(other)
            other.release()
        self.silent.send_signal(signal.SIGTERM)
        self.silent.wait_for("stopping: 1 association open")
        self.silent.send_signal(signal.SIGTERM)

        for server in (self.silent, self.frozen, self.workers):
            server.wait_for(re.escape(GIVEN_UP))
        self.assertEqual(self.silent.stopped(1)["aborted"], 1)
        killed = self.workers.wait_for(r"worker \d \(process (\d+)\) was killed and does not end")
        self.assertEqual(self.workers.stopped(1)["aborted"], 1)
        pid = int(killed[1])
        self.assertTrue(is_in_the_kernel(pid) and is_in_the_kernel(self.frozen.process.pid))
        self.disk.thaw()
        wait_for_exit(pid)
        self.assertEqual(self.frozen.stopped(1)["aborted"], 1)
        for scu in stuck:
            scu.socket.close()

        self.answer()
        for directory in self.directories:
            again = Server(self, "--storage-dir", directory, "--min-free", 0)
            self.assertIn("1.2.1", [path.stem for path in directory.rglob("*.dcm")])
            self.assertEqual(store(again.address, [("1.2.2", instance("1.2.2"))]), [0])


class HangingPasscodesTests(SynchronousTestCase):
    """A file of passcodes whose file system does not answer."""

    def test_users(self) -> None:
        """Who has to be checked is rejected for now; others are served, and so is the user when it answers again."""
        among_ourselves()
        directory = temporary_directory(self)
        (directory / "passwords").write_text("alice:sesame\n")
        server = Server(self, "--auth", f"file:{directory}/passwords", "--auth-timeout", 0.5)
        silence = SilentDirectory(self, directory)
        with associated(server) as other:
            for _ in range(2):
                self.assertEqual(self.ask(server), AAssociateRJ(2, 2, 1))
                echo(other)
            silence.end()
            eventually(lambda: isinstance(self.ask(server), AAssociateAC))
            other.release()
        server.wait_for("the user could not be checked within 0.5 s")

    def ask(self, server: Server) -> object:
        """What the user is told."""
        with RawSCU(server.address) as scu:
            scu.send(request("alice", "sesame"))
            return scu.receive()
