"""The log of the real server: objects for machines, whose are whose, files, and what stays out of it."""

from __future__ import annotations

import datetime
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
from typing import Any

from pydicom.data import get_testdata_file
from twisted.trial.unittest import SynchronousTestCase

from tests.server import (
    DEADLINE,
    ROOT,
    Server,
    environment,
    free_port,
    run,
    run_twistd,
    temporary_directory,
    twistd,
)

CT, MR = (str(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm"))
LOGROTATE = shutil.which("logrotate") or "/usr/sbin/logrotate"


def objects(output: str) -> list[dict[str, Any]]:
    """Each line of *output*, all of which are objects."""
    return [json.loads(line) for line in output.splitlines()]


class JSONTests(SynchronousTestCase):
    """--log-format json."""

    def check(self, *options: object) -> None:
        rules = temporary_directory(self) / "rules.yaml"
        rules.write_text("reject-unknown-callers: true\ncallers: {STORESCU: {}}\n")
        server = Server(self, "--config", rules, "--log-format", "json", "--log-level", "debug", *options)
        for _ in range(2):
            run("storescu", "-nh", *server.address, CT, CT, MR)
        self.assertNotEqual(run("echoscu", "-aet", "MALLORY", *server.address).returncode, 0)
        with socket.create_connection(server.address):
            pass
        server.wait_for("closed without an association")
        server.stop()
        lines = objects(server.output)
        found: dict[str, list[str]] = {}
        for line in lines:
            self.assertIsNotNone(datetime.datetime.fromisoformat(line["time"]).tzinfo)
            self.assertIn(line["level"], ("debug", "info", "warn", "error"))
            if line["area"] in ("association", "dimse"):
                found.setdefault(line["association"], []).append(line["message"].partition(":")[0])
            else:
                self.assertNotIn("association", line)
        sent = ["association accepted", *["C-STORE from STORESCU"] * 3, "association released"]
        others = [["127.0.0.1"], ["association rejected", "127.0.0.1"]]
        self.assertEqual(sorted(found.values()), [others[0], sent, sent, others[1]])
        stored = [line for line in lines if line["area"] == "dimse"]
        self.assertEqual({type(line["size"]) for line in stored}, {int})
        self.assertEqual({type(line["ms"]) for line in stored}, {float})
        self.assertEqual({line.get("status", 0) for line in stored}, {0, 0x111})
        self.assertIn("twisted", {line["area"] for line in lines})
        for patient in ("CompressedSamples", "1CT1", "4MR1", "patient", "study"):
            self.assertNotIn(patient, server.output)

    def test_one_process(self) -> None:
        """Every line is an object with typed fields; what is of one association has its name; no patient is named."""
        self.check()

    def test_workers(self) -> None:
        """So it is with several processes."""
        self.check("--workers", 2)


class FileTests(SynchronousTestCase):
    """--log-file."""

    def test_logrotate(self) -> None:
        """logrotate, by the file in etc/, moves the log, and SIGUSR1 begins a new one: not a line is lost."""
        home = temporary_directory(self)
        log = home / "storescp.log"
        port = free_port()
        process = subprocess.Popen(
            twistd("--listen", f"tcp:{port}:interface=127.0.0.1", "--log-file", log, "--workers", 2),
            cwd=home,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def echo() -> bool:
            return run("echoscu", "-to", 5, "127.0.0.1", port).returncode == 0

        while not echo():
            self.assertIsNone(process.poll())
        text = (ROOT / "etc" / "logrotate.conf").read_text()
        text = re.sub(r"/var/log/storescp/storescp\.log(?= \{)", str(log), text)
        text, count = re.subn(r"systemctl kill --signal=(\w+) .*", rf"kill -\1 {process.pid}", text)
        self.assertEqual(count, 1)
        configuration = home / "logrotate.conf"
        configuration.write_text(text)
        configuration.chmod(0o644)
        done = subprocess.run(
            [LOGROTATE, "--force", "--state", home / "state", configuration],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        while not log.exists():
            self.assertTrue(echo())
        self.assertTrue(echo())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(DEADLINE), 0)
        assert process.stdout is not None
        self.assertEqual(process.stdout.read(), b"")
        moved = pathlib.Path(f"{log}.1").read_text()
        self.assertIn("listening on", moved)
        self.assertRegex(log.read_text(), "association accepted(.|\n)*stopped after")
        both = moved + log.read_text()
        self.assertEqual(both.count("association accepted"), both.count("association released"))

    def test_mistakes(self) -> None:
        """A file that cannot be written, or two places for the log, are told in a line."""
        home = temporary_directory(self)
        done = run_twistd("--log-file", "/nonexistent/log", cwd=home)
        expected = "storescp: --log-file: expected a file that can be written, got '/nonexistent/log': "
        self.assertEqual((done.returncode, done.stderr), (1, expected + "No such file or directory\n"))
        done = run_twistd("--log-file", "a", cwd=home, main=("-n", "--pidfile=", "--logfile=b"))
        self.assertEqual(done.returncode, 1)
        self.assertEqual(
            done.stderr, "storescp: --log-file: expected it without twistd's --logfile, got both\n"
        )
