"""``twistd storescp`` as an operator meets it: mistakes, help, a daemon, signals, and the numbers at the end."""

from __future__ import annotations

import io
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import storescp
from storescp.config import OPTIONS
from storescp.pdu import AAbort, AAssociateAC
from storescp.tap import Options
from tests.raw_scu import EXPLICIT_CONTEXT, RawSCU, echo_command, instance, p_data, store, store_command
from tests.server import (
    DEADLINE,
    STOPPED,
    Server,
    environment,
    free_port,
    run,
    run_twistd,
    temporary_directory,
    twistd,
    wait_for_exit,
)
from tests.under_load import stopped_under_load


class MistakeTests(SynchronousTestCase):
    """Each mistake ends the process with exit code 1 and one line on stderr that names it."""

    def setUp(self) -> None:
        self.home = temporary_directory(self)

    def check(self, *options: object, says: str) -> None:
        """The server does not start with *options*; a regular expression tells what it says."""
        given = ("--listen", "tcp:0:interface=127.0.0.1", *options)
        ended = run_twistd(*given, cwd=self.home)
        self.assertEqual(ended.returncode, 1, (options, ended))
        self.assertEqual(ended.stderr.count("\n"), 1, ended.stderr)
        self.assertRegex(ended.stderr, f"^storescp: {says}\n$")
        self.assertNotIn("Traceback", ended.stdout)
        self.assertNotIn("listening", ended.stdout)

    def check_parsed(self, *options: object, says: str) -> None:
        """The same of the command line alone, which twistd has parsed by this class."""
        stderr = io.StringIO()
        self.patch(sys, "__stderr__", stderr)
        with self.assertRaises(SystemExit) as end:
            Options().parseOptions(list(map(str, options)))
        self.assertEqual(end.exception.code, 1)
        self.assertRegex(stderr.getvalue(), f"^storescp: {says}\n$")

    def test_options(self) -> None:
        """An unknown option, a missing value, a value that is none, an argument too many."""
        self.check("--frobnicate", says=".*--frobnicate.*")
        self.check("--max-assoc", "many", says="--max-assoc: expected .*, got 'many'")
        for options, says in (
            (("--max-assoc",), ".*--max-assoc.*"),
            (("something",), "expected options only, got 'something'"),
            (("--ae-title", "a title that is too long"), "--ae-title: expected .*, got 'a title .*'"),
            (("--accept", "CT,XYZ"), "--accept: .*'?XYZ'?.*"),
            (("--naming", "random"), "--naming: expected one of hierarchical, date, flat, got 'random'"),
            (("--max-pdu", "17"), "--max-pdu: expected .*, got '17'"),
            (("--prefer", "JPEG"), "--prefer: .*JPEG.*"),
            (("--port", "104", "--listen", "tcp:1"), ".*(port.*listen|listen.*port).*"),
        ):
            self.check_parsed(*options, says=says)

    def test_yaml(self) -> None:
        """A bad value, an unknown key and a broken file are named with file and line; so is a missing file."""
        file = self.home / "storescp.yaml"
        for content, says in (
            ("# comment\nmax-assoc: many\n", f"{file}:2: max-assoc: expected .*, got 'many'"),
            ("max-asoc: 5\n", f"{file}:1: .*'max-asoc'.*nearest known: max-assoc.*"),
            ("accept: [CT\n", f"{file}:.*YAML.*"),
            ("- CT\n", f"{file}:1: .*"),
        ):
            file.write_text(content)
            self.check_parsed("--config", file, says=says)
        file.unlink()
        self.check("--config", file, says=f".*{file}.*No such file or directory")

    def test_taken_port(self) -> None:
        """A port that somebody else listens on."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            endpoint = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
            self.check("--listen", endpoint, says=f".*{endpoint}.*Address already in use")

    def test_endpoints(self) -> None:
        """Endpoints that are none, or that cannot be had."""
        for endpoint in (
            "bogus:1",
            "tcp",
            "haproxy:tcp=1",
            "systemd:domain=INET:index=0",
            "ssl:1:privateKey=missing",
            "tcp:99999",
            "tcp:http:x=y",
            "tcp:0:interface=300.1.1.1",
        ):
            self.check("--listen", endpoint, says=f".*{re.escape(endpoint)}.*")

    def test_directories(self) -> None:
        """Places where nothing can be written: under a file, in /proc."""
        (self.home / "file").touch()
        for directory in (self.home / "file" / "under", pathlib.Path("/proc/storescp")):
            self.check("--storage-dir", directory, says=f".*{directory}.*")
            self.check("--index-db", directory / "index.db", says=f".*{directory}.*")

    def test_no_database(self) -> None:
        """An index that is no SQLite database stays as it is."""
        (self.home / "index").write_text("this is my diary, " * 100)
        self.check("--index-db", self.home / "index", says=f".*{self.home / 'index'}.*")
        self.assertIn("diary", (self.home / "index").read_text())


class HelpTests(SynchronousTestCase):
    """--help and --version."""

    def test_help(self) -> None:
        """--help shows every option with its default and ends with 0."""
        ended = run_twistd("--help", cwd=temporary_directory(self))
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        text = " ".join(ended.stdout.split())
        for option in OPTIONS:
            self.assertIn(f"--{option.name}", text)
            if not option.is_flag:
                self.assertIn(f"[default: {option.default}]", text)
        self.assertIn("--config", text)

    def test_version(self) -> None:
        """--version shows it and ends with 0."""
        ended = run_twistd("--version", cwd=temporary_directory(self))
        self.assertEqual((ended.returncode, ended.stdout), (0, f"storescp {storescp.__version__}\n"))


class DaemonTests(SynchronousTestCase):
    """Without -n: twistd goes into the background."""

    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.pid_file, self.log_file = self.home / "pid", self.home / "log"
        self.main = (f"--pidfile={self.pid_file}", f"--logfile={self.log_file}")

    def start(self, *options: object, inherited: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        ended = run_twistd(
            *("--storage-dir", self.home / "received", *options),
            cwd=self.home,
            main=self.main,
            inherited=inherited,
        )
        self.addCleanup(self.end)
        return ended

    def end(self) -> None:
        if self.pid_file.exists():
            pid = int(self.pid_file.read_text())
            os.kill(pid, signal.SIGKILL)
            wait_for_exit(pid)

    def test_life(self) -> None:
        """It starts, stores, stops at SIGTERM, and takes its PID file away; its log tells so."""
        port = free_port()
        started = self.start("--listen", f"tcp:{port}:interface=127.0.0.1")
        self.assertEqual((started.returncode, started.stderr), (0, ""))
        # The parent process ends when the child listens, or has failed to.
        self.assertEqual(store(("127.0.0.1", port), [("1.2", instance("1.2"))]), [0])
        self.assertTrue((self.home / "received" / "1.2.3" / "1.2.3.4" / "1.2.dcm").exists())
        pid = int(self.pid_file.read_text())
        os.kill(pid, signal.SIGHUP)  # nothing to read again, and nothing ends
        self.assertEqual(store(("127.0.0.1", port), [("1.3", instance("1.3"))]), [0])
        os.kill(pid, signal.SIGTERM)
        wait_for_exit(pid)
        self.assertFalse(self.pid_file.exists())
        log = self.log_file.read_text()
        self.assertIn(f"listening on 127.0.0.1 port {port}", log)
        self.assertRegex(log, STOPPED)
        self.assertNotIn("Traceback", log)

    def test_taken_port(self) -> None:
        """A taken port: exit code 1, the reason on stderr and in the log, no PID file, nobody left."""
        ends, held = os.pipe()
        self.addCleanup(os.close, ends)
        with socket.create_server(("127.0.0.1", 0)) as other:
            endpoint = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
            started = self.start("--listen", endpoint, inherited=(held,))
        os.close(held)
        # The process that failed ends after its parent, which it has told: until then it holds the pipe.
        self.assertEqual(select.select([ends], [], [], DEADLINE)[0], [ends])
        self.assertEqual(started.returncode, 1)
        self.assertIn(endpoint, started.stderr)
        self.assertNotIn("Traceback", started.stderr)
        log = self.log_file.read_text()
        self.assertRegex(log, f"cannot listen on {endpoint}: .*Address already in use\n")
        self.assertNotIn("Traceback", log)
        self.assertFalse(self.pid_file.exists())

    def test_mistake(self) -> None:
        """A bad option is said on stderr, in one line, before anything goes into the background."""
        started = self.start("--max-assoc", "0")
        self.assertEqual((started.returncode, started.stderr.count("\n")), (1, 1))
        self.assertIn("--max-assoc", started.stderr)
        self.assertFalse(self.pid_file.exists())


class StopTests(SynchronousTestCase):
    """The ordered stop, and the numbers it ends with."""

    def numbers(self, number: signal.Signals) -> None:
        server = Server(self, "--max-assoc", 1)
        first, second = instance("1.2.1", pixels=bytes(300_000)), instance("1.2.2")
        with RawSCU(server.address) as scu:
            self.assertIsInstance(scu.associate(), AAssociateAC)
            with RawSCU(server.address) as rejected:
                rejected.associate()
            scu.send_command(echo_command(), 1)
            self.assertEqual(scu.status(), 0)
            self.assertEqual(scu.store("1.2.1", first), 0)
            self.assertEqual(scu.store("1.2.2", second), 0)
            self.assertEqual(scu.store("1.2.2", second), 0x0111)
            self.assertEqual(scu.store("1.2.3", second), 0xA900)
            scu.release()
        with RawSCU(server.address) as aborting:
            self.assertIsInstance(aborting.associate(), AAssociateAC)
            aborting.send(AAbort(0, 0).encode())
            self.assertIsNone(aborting.receive())
        statistics = server.stop(number)
        self.assertLess(statistics.pop("uptime"), 60)
        self.assertEqual(
            statistics,
            {
                "associations": 2,
                "rejected": 1,
                "aborted": 1,
                "messages": 5,
                "stored": 2,
                "bytes_stored": len(first) + len(second),
                "failed": 2,
                "bytes_received": scu.sent + rejected.sent + aborting.sent,
            },
        )

    def test_sigterm(self) -> None:
        """SIGTERM: exit code 0, and a last line whose numbers are those of what happened."""
        self.numbers(signal.SIGTERM)

    def test_sigint(self) -> None:
        """SIGINT: the same."""
        self.numbers(signal.SIGINT)

    def test_at_once(self) -> None:
        """A stop as soon as it listens is a stop in good order, too."""
        self.assertEqual(Server(self).stop()["associations"], 0)

    def test_association_may_finish(self) -> None:
        """At SIGTERM no new connection is taken, but an association may go on to its end; then the server ends."""
        server = Server(self, "--stop-timeout", 60)
        data = instance("1.2", pixels=bytes(100_000))
        with RawSCU(server.address) as scu, RawSCU(server.address) as silent:
            scu.associate()
            scu.send_command(store_command("1.2"))
            scu.send(p_data(EXPLICIT_CONTEXT, False, False, data[:50_000]))
            server.send_signal(signal.SIGTERM)
            self.assertIsNone(silent.receive())  # a connection without an association is not waited for
            server.wait_for("stopping: 1 association open")
            self.assertRaises(ConnectionRefusedError, RawSCU, server.address)
            scu.send(p_data(EXPLICIT_CONTEXT, False, True, data[50_000:]))
            self.assertEqual(scu.status(), 0)
            self.assertEqual(scu.store("1.3", instance("1.3")), 0)
            self.assertIsNone(server.process.poll())
            scu.release()
        statistics = server.stopped()
        self.assertEqual((statistics["stored"], statistics["aborted"]), (2, 0))
        self.assertEqual(len(server.files()), 2)
        self.assertEqual(server.rows("SELECT count(*) FROM instances"), [(2,)])

    def test_association_is_aborted(self) -> None:
        """After --stop-timeout what is left gets an A-ABORT of the service user; of its instance nothing stays."""
        server = Server(self, "--stop-timeout", 0.5)
        with RawSCU(server.address) as scu:
            scu.associate()
            self.assertEqual(scu.store("1.1", instance("1.1")), 0)
            scu.send_command(store_command("1.2"))
            data = instance("1.2", pixels=bytes(3_000_000))
            for start in range(0, 2_000_000, 100_000):
                scu.send(p_data(EXPLICIT_CONTEXT, False, False, data[start : start + 100_000]))
            server.send_signal(signal.SIGTERM)
            self.assertEqual(scu.receive(), AAbort(0, 0))
            self.assertIsNone(scu.receive())
        statistics = server.stopped()
        self.assertEqual((statistics["stored"], statistics["aborted"]), (1, 1))
        self.assertEqual(list(server.files()), ["1.2.3/1.2.3.4/1.1.dcm"])
        self.assertEqual(server.litter(), [])

    def test_peer_that_does_not_hang_up(self) -> None:
        """A peer that keeps its connection open after the A-ABORT does not keep the server."""
        server = Server(self, "--stop-timeout", 0.2)
        with RawSCU(server.address) as scu:
            scu.associate()
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.stopped()["aborted"], 1)
            self.assertEqual(scu.receive(), AAbort(0, 0))

    def test_second_signal(self) -> None:
        """A second signal does not wait for the associations any longer."""
        server = Server(self, "--stop-timeout", 3600)
        with RawSCU(server.address) as scu:
            scu.associate()
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping: 1 association open")
            server.send_signal(signal.SIGINT)
            self.assertEqual(scu.receive(), AAbort(0, 0))
            self.assertEqual(server.stopped()["aborted"], 1)

    def test_signals_at_once(self) -> None:
        """That is so as well when the second one comes before the first one has been looked at."""
        for options in ((), ("--workers", 2)):
            server = Server(self, "--stop-timeout", 3600, *options)
            with RawSCU(server.address) as scu:
                scu.associate()
                server.send_signal(signal.SIGTERM)
                server.send_signal(signal.SIGINT)
                self.assertEqual(scu.receive(), AAbort(0, 0))
                self.assertEqual(server.stopped()["aborted"], 1)

    def test_under_load(self) -> None:
        """Stopped while senders send: what was answered with 0000H is there, and nothing else."""
        stopped_under_load(self)


class PortTests(SynchronousTestCase):
    """--port."""

    def test_port(self) -> None:
        """--port and its short form listen on every interface."""
        for option in ("--port", "-p"):
            port = free_port()
            server = Server(self, option, port, listen=False)
            self.assertEqual(server.port, port)
            self.assertEqual(run("echoscu", "127.0.0.2", port).returncode, 0)
            server.stop()

    def test_no_port(self) -> None:
        """An endpoint of Twisted's that takes no connections is a mistake, told in one line."""
        for workers in (1, 2):
            ended = run_twistd("--listen", "stdio:", "--workers", workers, cwd=temporary_directory(self))
            self.assertEqual(ended.returncode, 1)
            expected = (
                "storescp: cannot listen on stdio:: expected an endpoint that takes connections from now on\n"
            )
            self.assertEqual(ended.stderr, expected)

    def test_refused(self) -> None:
        """A port that is not for this user is a mistake, in one line that says whom it is for."""
        command = twistd("--listen", "tcp:104", "-d", temporary_directory(self) / "received")
        without = (
            "unshare",
            "--net",
            "setpriv",
            "--inh-caps=-net_bind_service",
            "--bounding-set=-net_bind_service",
        )
        ended = subprocess.run(
            [*without, *command],
            cwd=temporary_directory(self),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual(ended.returncode, 1)
        whose = "ports below 1024 are for root, and for who has CAP_NET_BIND_SERVICE"
        self.assertEqual(ended.stderr, f"storescp: cannot listen on tcp:104: Permission denied ({whose})\n")

    def test_default_directory(self) -> None:
        """Without --storage-dir instances go to ./received, which is made."""
        home = temporary_directory(self)
        command = twistd("--listen", "tcp:0:interface=127.0.0.1")
        with subprocess.Popen(
            command, cwd=home, env=environment(), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if found := re.search(r"listening on \S+ port (\d+)", line):
                        self.assertEqual(store(("127.0.0.1", int(found[1])), [("1.2", instance("1.2"))]), [0])
                        break
            finally:
                process.terminate()
            process.stdout.read()
            self.assertEqual(process.wait(DEADLINE), 0)
        self.assertTrue((home / "received" / "1.2.3" / "1.2.3.4" / "1.2.dcm").exists())
