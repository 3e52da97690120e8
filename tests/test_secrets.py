"""What must not be seen: passcodes and patients, in the log at its most talkative and in the list of processes."""

from __future__ import annotations

import pathlib

from twisted.trial.unittest import SynchronousTestCase

from tests.raw_scu import element, instance, store
from tests.server import Server, temporary_directory


class SecretsTests(SynchronousTestCase):
    """A real server with two workers, at debug level."""

    def test_nothing_is_told(self) -> None:
        """Of instances, whole and broken, and of a passcode no line of the log and no command line has anything."""
        settings = temporary_directory(self) / "storescp.yaml"
        settings.write_text("auth: memory:alice:S3cretPasscode\nlog-level: debug\n")
        server = Server(self, "--config", settings, "--workers", "2")
        patient = element(0x00100010, "PN", "Zwiebel^Anna") + element(0x00100020, "LO", "PID4711")
        data = instance("1.2.3", patient=patient)
        no_vr = instance("1.2.3", patient=patient.replace(b"PN", b"??"))
        statuses = [store(server.address, [("1.2.3", sent)])[0] for sent in (data, data, data[:80], no_vr)]
        self.assertEqual(statuses, [0, 0x0111, 0xC000, 0xC000])
        server_id = str(server.process.pid)
        workers = pathlib.Path("/proc", server_id, "task", server_id, "children").read_text().split()
        processes = [pathlib.Path("/proc", pid, "cmdline").read_bytes() for pid in (server_id, *workers)]
        self.assertEqual(len(processes), 3)
        server.stop()
        seen = server.output + server.stderr + "".join(map(repr, processes))
        for word in ("S3cret", "Zwiebel", "Anna", "4711"):
            self.assertNotIn(word, seen)
