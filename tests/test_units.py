"""The units in etc/ under a systemd that runs, by the commands in their heads."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.request
from types import SimpleNamespace
from typing import cast

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC
from tests.machine import SHARE, Machine
from tests.pki import Authority
from tests.raw_scu import RawSCU, instance
from tests.server import DEADLINE, ROOT, Server
from tests.test_commitment_end_to_end import CT_IMAGE_STORAGE, CT_UID, Modality
from tests.test_end_to_end import DATA
from tests.test_upgrade import Sender

ETC = ROOT / "etc"
CONFIGURATION = "/etc/storescp.yaml"
STORAGE = "/var/lib/storescp/received"
CT = "/root/ct.dcm"
PORT = 11112
SENDERS = 4


def head(unit: str) -> list[str]:
    """What is indented in the comment that a unit begins with."""
    comment = re.match(r"(?:#.*\n)+", (ETC / unit).read_text())
    assert comment is not None
    return re.findall(r"^#     (.*)$", comment[0], re.MULTILINE)


def uncommented(unit: str, *keys: str) -> str:
    """The text of a unit in which the lines of *keys* are in force that it has as comments."""
    text = (ETC / unit).read_text()
    for key in keys:
        text, count = re.subn(rf"^#(?={key}=)", "", text, flags=re.MULTILINE)
        assert count == 1, key
    return text


def is_reached(address: tuple[str, int], source: str) -> bool:
    """Whether a connection from *source* is made within a moment."""
    try:
        socket.create_connection(address, 0.5, (source, 0)).close()
    except TimeoutError:
        return False
    return True


class UnitTests(SynchronousTestCase):
    """storescp.service, storescp.socket, storescp-verify.service, storescp-verify.timer."""

    def setUp(self) -> None:
        self.machine = Machine(self)
        self.machine.path(CT).write_bytes((DATA / "CT_small.dcm").read_bytes())

    def configure(self, text: str) -> None:
        self.machine.path(CONFIGURATION).write_text(text)

    def follow(self, commands: list[str]) -> None:
        """Do what the head of a unit says."""
        self.assertGreater(len(commands), 2)
        for command in commands:
            self.machine.run("sh", "-c", command, cwd=SHARE)

    def override(self, unit: str, text: str) -> None:
        """What "systemctl edit" does."""
        directory = self.machine.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(exist_ok=True)
        (directory / "override.conf").write_text(text)
        self.machine.run("systemctl", "daemon-reload")

    def signal_main(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process alone."""
        kill = ("systemctl", "kill", f"--signal={number.name}", "--kill-whom=main", "storescp")
        self.machine.run(*kill)

    def stored(self) -> list[str]:
        """The SOP Instance UIDs of the files."""
        return sorted(path.stem for path in self.machine.path(STORAGE).rglob("*.dcm"))

    def store(self, count: int, number: int) -> list[str]:
        """Have so many instances acknowledged; their UIDs."""
        uids = [f"1.2.{number}.{item}" for item in range(1, count + 1)]
        with self.machine.network(), RawSCU(("127.0.0.1", PORT)) as scu:
            self.assertIsInstance(scu.associate(), AAssociateAC)
            self.assertEqual([scu.store(uid, instance(uid)) for uid in uids], [0] * count)
        return uids

    def judge_journal(self) -> None:
        """No fault of ours, and nothing that an operator would wonder about."""
        said = self.machine.journal("--unit=storescp")
        for words in ("Traceback", "plugin cache"):
            self.assertNotIn(words, said)

    def test_service(self) -> None:
        """It starts, reloads and stops as systemd is told, and comes back after a crash and when it hangs; then the
        check of the archive finds nothing, and finds what somebody has removed."""
        machine = self.machine
        self.configure(f"port: {PORT}\nmax-assoc: 4\n")
        self.follow(head("storescp.service"))
        machine.run("storescu", "localhost", str(PORT), CT)  # started is when it listens

        user = machine.path("/var/lib/storescp").stat().st_uid
        self.assertNotEqual(user, 0)
        modes = {
            (path.stat().st_uid, path.is_dir(), oct(path.stat().st_mode & 0o777))
            for path in machine.path(STORAGE).rglob("*")
            if ".storescp" not in path.parts
        }
        self.assertEqual(modes, {(user, True, "0o750"), (user, False, "0o640")})
        self.assertIn('Status: "running: 0 associations, ', machine.run("systemctl", "status", "storescp"))

        self.configure(f"port: {PORT}\nmax-assoc: 1\n")
        machine.run("systemctl", "reload", "storescp")
        machine.wait_for("SIGHUP: max-assoc: 4 -> 1", "storescp")
        with machine.network(), RawSCU(("127.0.0.1", PORT)) as first, RawSCU(("127.0.0.1", PORT)) as second:
            self.assertIsInstance(first.associate(), AAssociateAC)
            self.assertNotIsInstance(second.associate(), AAssociateAC)
            first.release()
        warnings = machine.journal("--unit=storescp", "--priority=warning")
        self.assertRegex(warnings, r"\A\S+ \[\S+#warn\] \[\S+\] association rejected: .*\n\Z")

        self.override("storescp.service", "[Service]\nWatchdogSec=4\nRestartSec=100ms\n")
        uids = [CT_UID, *self.store(20, 1)]
        self.signal_main(signal.SIGKILL)
        machine.wait_for("listening on", "storescp", count=2)
        self.assertEqual(machine.property_of("storescp", "NRestarts"), "1")
        self.assertEqual(self.stored(), sorted(uids))

        self.configure(f"port: {PORT}\nworkers: 2\nlog-format: json\n")
        machine.run("systemctl", "restart", "storescp")
        machine.wait_for("listening on", "storescp", count=3)
        uids += self.store(20, 2)
        self.signal_main(signal.SIGSTOP)
        machine.wait_for("Watchdog timeout", "storescp")
        machine.wait_for("listening on", "storescp", count=4)
        uids += self.store(1, 3)
        self.assertEqual(self.stored(), sorted(uids))

        self.judge_objects()
        self.check_archive()

        machine.run("systemctl", "stop", "storescp")
        results = [machine.property_of("storescp", name) for name in ("Result", "ExecMainStatus")]
        self.assertEqual(results, ["success", "0"])
        machine.wait_for(r"stopped after \d+ s: ", "storescp")
        self.judge_journal()

        self.configure(f"port: {PORT}\nmax-assoc: many\n")
        self.override("storescp.service", "[Service]\nRestartSec=100ms\n[Unit]\nStartLimitBurst=2\n")
        machine.run("systemctl", "reset-failed", "storescp")
        machine.run("systemctl", "start", "storescp", expected=1)
        machine.wait_for("Start request repeated too quickly", "storescp")
        errors = machine.journal("--unit=storescp", "--priority=err", "--identifier=storescp")
        mistake = (
            "storescp: /etc/storescp.yaml:2: max-assoc: expected a whole number from 1 to 65535, got 'many'\n"
        )
        self.assertEqual(errors, mistake * 2)

    def judge_objects(self) -> None:
        """Lines of JSON have their priorities, and are JSON in the journal."""
        with self.machine.network(), socket.create_connection(("127.0.0.1", PORT)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.recv(100)
        self.machine.wait_for("aborted without an association", "storescp")
        levels = []
        for priority in ("warning", "info"):
            said = self.machine.journal("--unit=storescp", f"--priority={priority}..{priority}").splitlines()
            entries = [json.loads(line) for line in said if line.startswith("{")]
            levels.append({entry["level"] for entry in entries})
        self.assertEqual(levels, [{"warn"}, {"info"}])

    def check_archive(self) -> None:
        """The timer is armed; what it starts runs beside the server."""
        machine = self.machine
        self.follow(head("storescp-verify.timer"))
        self.override("storescp-verify.service", "[Service]\nNice=0\n")  # other tests have the CPUs
        self.assertRegex(machine.run("systemctl", "list-timers"), r"Sun .* storescp-verify\.service")
        soon = "OnCalendar=\nOnActiveSec=100ms\nRandomizedDelaySec=0\nAccuracySec=1ms\n"
        self.override("storescp-verify.timer", f"[Timer]\n{soon}")
        machine.run("systemctl", "restart", "storescp-verify.timer")
        machine.wait_for(r"\A42 files .*: no findings", "storescp-verify")
        machine.wait_for("Finished storescp-verify.service", "storescp-verify")

        next(machine.path(STORAGE).rglob(f"{CT_UID}.dcm")).unlink()
        machine.run("systemctl", "start", "storescp-verify.service", expected=1)
        said = machine.journal("--unit=storescp-verify")
        self.assertRegex(said, rf"(?m)^missing: .*/{CT_UID}\.dcm: ")
        self.assertIn("storescp-verify.service", machine.run("systemctl", "--failed"))

    def test_sandbox(self) -> None:
        """The sandbox breaks nothing: workers, port 104, TLS, HTTP, audit messages, reports on commitment, a storage
        directory and modes of one's own, a file for the log; and what it forbids is told in a line."""
        machine = self.machine
        self.follow([command for command in head("storescp.service") if "enable" not in command])
        ours = (
            "AmbientCapabilities",
            "CapabilityBoundingSet",
            "ReadWritePaths",
            "IPAddressDeny",
            "IPAddressAllow",
        )
        unit = uncommented("storescp.service", *ours)
        unit = unit.replace("\nAmbientCapabilities=\nCapabilityBoundingSet=\n", "\n")
        unit = unit.replace("=localhost ", "=127.0.0.1 ")
        machine.path("/etc/systemd/system/storescp.service").write_text(unit)
        (group,) = re.findall(r"^storescp:x:(\d+):", machine.path("/etc/group").read_text(), re.MULTILINE)

        tls = machine.path("/etc/storescp")
        tls.mkdir()
        authority = Authority(tls)
        for _, key in (authority.issue("server"), authority.issue("scu")):
            os.chown(key, 0, int(group))
            key.chmod(0o640)
        with machine.network():
            modality = Modality(self)
            self.addCleanup(modality.listen())
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.addCleanup(receiver.close)
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(DEADLINE)
        self.configure(
            f"listen: tcp:104\nworkers: 2\nhttp: 8080\ndigest: sha256\n"
            f"tls-port: 2762\ntls-certificate: /etc/storescp/server.pem\ntls-key: /etc/storescp/server.key.pem\n"
            f"tls-ca: /etc/storescp/Authority.pem\ntls-profile: non-downgrading\n"
            f"audit: udp://localhost:{receiver.getsockname()[1]}\n"
            f"callers: {{CT1: {{commitment: 'localhost:{modality.port}'}}}}\n"
            f"storage-dir: /srv/images\ndirectory-mode: 2750\nfile-mode: 0640\n"
            f"log-file: /var/log/storescp/storescp.log\n"
        )
        images = machine.path("/srv/images")
        images.mkdir(parents=True)
        os.chown(images, int(machine.run("id", "-u", "storescp")), int(group))
        images.chmod(0o750)

        for line in (
            "TLS: expected memory that can be written and executed",
            "the storage directory '/srv/images' cannot be written: Operation not permitted: directory-mode 2750 wants",
        ):
            writable = "yes" if line.startswith("TLS") else "no"
            self.override("storescp.service", f"[Service]\nRestart=no\nMemoryDenyWriteExecute={writable}\n")
            machine.run("systemctl", "start", "storescp", expected=1)
            errors = machine.journal("--unit=storescp", "--priority=err", "--identifier=storescp")
            self.assertIn(f"storescp: {line}", errors)
        machine.run("find", "/srv/images", *("-type", "d"), *("-exec", "chmod", "g+s", "{}", "+"))
        machine.run("systemctl", "start", "storescp")

        files = [f"/etc/storescp/{name}.pem" for name in ("scu.key", "scu", "Authority")]
        machine.run("storescu", "+tls", *files[:2], "+cf", files[2], "localhost", "2762", CT)
        (stored,) = (path for path in images.rglob("*.dcm"))
        self.assertEqual(oct(stored.stat().st_mode), "0o100640")
        self.assertEqual({oct(path.stat().st_mode) for path in stored.parents[:2]}, {"0o42750"})

        server = cast(Server, SimpleNamespace(address=("127.0.0.1", 104)))
        with machine.network():
            self.assertEqual(modality.ask_once(server, references=[(CT_IMAGE_STORAGE, CT_UID)]), 0)
            self.assertEqual(modality.reported(), (1, "1.2.3", [CT_UID], []))
            with urllib.request.urlopen("http://127.0.0.1:8080/readyz", timeout=DEADLINE) as answer:
                self.assertEqual(answer.status, 200)
            self.assertTrue(is_reached(("127.0.0.1", 104), "127.0.0.1"))
            self.assertFalse(is_reached(("127.0.0.1", 104), "127.0.0.2"))
        self.assertIn(b"DICOM+RFC3881", receiver.recv(65536))
        machine.run("systemctl", "stop", "storescp")
        self.assertEqual(machine.property_of("storescp", "ExecMainStatus"), "0")
        log = machine.path("/var/log/storescp/storescp.log").read_text()
        self.assertIn("C-STORE from STORESCU: CT ", log)
        self.assertNotIn("Traceback", log)
        self.judge_journal()

    def test_socket(self) -> None:
        """The first connection starts the server; restarts refuse nobody and lose nothing, under load."""
        machine = self.machine
        configuration, *commands = head("storescp.socket")
        self.configure(f"{configuration}\nmax-assoc: 8\n")
        self.follow([command for command in head("storescp.service") if "enable" not in command])
        self.follow(commands)
        text = uncommented("storescp.socket", "IPAddressDeny", "IPAddressAllow")
        machine.path("/etc/systemd/system/storescp.socket").write_text(
            text.replace("=localhost ", "=127.0.0.1 ")
        )
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "storescp.socket")
        self.assertEqual(machine.property_of("storescp", "ActiveState"), "inactive")

        address = ("127.0.0.1", PORT)
        with machine.network():
            self.assertFalse(is_reached(address, "127.0.0.2"))
            senders = [Sender(address, number) for number in range(SENDERS)]
        for _ in range(2):
            for sender in senders:
                sender.one_more.acquire(timeout=DEADLINE)
            machine.run("systemctl", "restart", "storescp")
        for sender in senders:
            sender.one_more.acquire(timeout=DEADLINE)
            sender.stopped.set()
        for sender in senders:
            sender.join(DEADLINE)
        machine.run("systemctl", "stop", "storescp")
        self.assertEqual([sender.trouble for sender in senders], [[]] * SENDERS)
        self.assertEqual(self.stored(), sorted(uid for sender in senders for uid in sender.stored))
        self.judge_journal()
