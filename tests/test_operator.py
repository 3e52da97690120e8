"""storescp.operator in this process: what is printed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import sqlite3
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

import storescp
from storescp import operator_verify
from storescp.dimse import status_text
from storescp.index import Index, IndexUnavailable
from storescp.index_rows import Totals
from storescp.operator import main
from storescp.operator_archive import Archive, Finding, Workers
from storescp.operator_reindex import Reindexing
from storescp.operator_verify import Verification
from storescp.part10 import FileMeta
from storescp.space import size_text
from storescp.stored_file import read_instance
from tests.faults.disks import tmpfs
from tests.raw_scu import CT, EXPLICIT, instance


class ArchiveTestCase(SynchronousTestCase):
    """Five instances a-e in two series, with rows, and with digests but for e."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).resolve() / "received"
        self.database = self.root / ".storescp" / "index.db"
        for name in "abcde":
            self.store(name)
        (self.root / ".storescp" / "incoming").mkdir(parents=True)
        (self.root / ".storescp" / "incoming" / "1-1").write_bytes(b"not the archive's")
        self.index = Index(str(self.database))
        self.addCleanup(self.index.close)
        self.enter(*"abcd")
        self.enter("e", digest=None)
        # What is found is as new as this test.
        self.patch(operator_verify, "SETTLING", 0.0)

    def path(self, name: str) -> str:
        """Where an instance is, below the root."""
        return f"1.2/{'1.2.1' if name < 'd' else '1.2.2'}/{name}.dcm"

    def store(self, name: str, pixels: bytes = b"\0\0") -> pathlib.Path:
        """Write the file of an instance."""
        target = self.root / self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        uid = f"1.2.3.{ord(name) + 100}"
        meta = FileMeta(CT, EXPLICIT, "SENDER", "ARCHIVE").encode(uid)
        target.write_bytes(meta + instance(uid, study="1.2", series=target.parent.name, pixels=pixels))
        return target

    def enter(self, *names: str, digest: str | None = "sha256") -> None:
        """Enter the rows of instances, as their files are."""
        self.index.add([read_instance(str(self.root), self.path(name), digest) for name in names])

    def archive(self) -> Archive:
        """What the functions get."""
        return Archive(str(self.root), str(self.database), self.index)

    def verify(self, *, digest: bool = True, jobs: int = 1) -> list[Finding]:
        """What verify finds, in order of the paths."""
        findings: list[Finding] = []
        with Workers(jobs) as workers:
            verification = Verification(self.archive(), digest=digest, report=findings.append)
            verification.run(workers)
        self.assertEqual(sum(verification.findings.values()), len(findings))
        return sorted(findings, key=lambda finding: finding.path)

    def reindex(
        self, *, all_files: bool = False, digest: str | None = None
    ) -> tuple[list[Finding], Reindexing]:
        """What reindex finds, and its counts."""
        findings: list[Finding] = []
        reindexing = Reindexing(self.archive(), all_files=all_files, digest=digest, report=findings.append)
        reindexing.run(Workers(1))
        return findings, reindexing

    def rows(self) -> dict[str, tuple[object, ...]]:
        """Size, digest and sender of each row."""
        connection = sqlite3.connect(self.database)
        try:
            found = connection.execute("SELECT path, size, digest, calling_ae_title FROM instances")
            return {path: rest for path, *rest in found}
        finally:
            connection.close()


class CommandTests(ArchiveTestCase):
    """The command line: what is printed, and the exit status."""

    def run_command(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, and what came to stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as end:
                assert isinstance(end.code, int)
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def on_archive(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """The command on this archive, in this process."""
        jobs = ["--jobs", 1] if command != "stats" else []
        return self.run_command(command, "--storage-dir", self.root, *jobs, *arguments)

    def test_verify(self) -> None:
        """A line a finding and a summary; with --json objects; exit status 1 for findings, else 0."""
        code, out, err = self.on_archive("verify")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A5 files \(\S+ kB\), 5 rows in \S+ s: no findings\n\Z")
        (self.root / self.path("a")).unlink()
        (self.root / "two\nlines").touch()
        code, out, err = self.on_archive("verify")
        self.assertEqual((code, err), (1, ""))
        *findings, summary = out.splitlines()
        self.assertEqual(
            sorted(findings),
            [f"missing: {self.path('a')}: the file is not there", "not-dicom: two\\nlines: not a DICOM file"],
        )
        self.assertTrue(summary.endswith("2 findings (1 missing, 1 not-dicom)"), summary)
        code, out, err = self.on_archive("verify", "--json", "--no-digest")
        self.assertEqual((code, err), (1, ""))
        *found, last = map(json.loads, out.splitlines())
        self.assertIn({"kind": "not-dicom", "path": "two\nlines", "what": "not a DICOM file"}, found)
        self.assertEqual(last["summary"]["findings"], {"missing": 1, "not-dicom": 1})
        self.assertEqual((last["summary"]["files"], last["summary"]["rows"]), (5, 5))

    def test_reindex(self) -> None:
        """Its summary has the counts; what it cannot enter makes the exit status 1."""
        self.store("f")
        code, out, err = self.on_archive("reindex", "--digest", "md5")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"\A6 files in \S+ s: 1 entered, 5 unchanged, 0 rows removed; no findings\n\Z")
        digest = hashlib.md5((self.root / self.path("f")).read_bytes()).hexdigest()
        self.assertEqual(self.rows()[self.path("f")][1], f"md5:{digest}")
        (self.root / "x").touch()
        code, out, err = self.on_archive("reindex", "--json", "--all")
        self.assertEqual((code, err), (1, ""))
        self.assertEqual(json.loads(out.splitlines()[-1])["summary"]["entered"], 6)

    def test_reindex_creates(self) -> None:
        """A lost index is made anew; the others say that it is not there, and do not make one."""
        self.index.close()
        self.database.unlink()
        for command in ("verify", "stats"):
            code, out, err = self.on_archive(command)
            self.assertEqual(
                (code, out, err), (1, "", f"storescp: index {self.database}: No such file or directory\n")
            )
        self.assertEqual(self.on_archive("reindex")[0], 0)
        self.assertEqual(self.on_archive("verify")[0], 0)

    def test_stats(self) -> None:
        """Counts, times, room; for people and as JSON."""
        code, out, err = self.on_archive("stats")
        self.assertEqual((code, err), (0, ""))
        totals = self.index.totals()
        self.assertEqual(totals, Totals(1, 1, 2, 5, totals.bytes))
        for line in (
            r"studies +1",
            r"instances +5",
            rf"bytes +{totals.bytes} \(.* kB\)",
            rf"CT +2 +5 +{totals.bytes}",
        ):
            self.assertRegex(out, f"(?m)^{line}$")
        code, out, err = self.on_archive("stats", "--json")
        self.assertEqual((code, err), (0, ""))
        values = json.loads(out)
        self.assertEqual(
            values["modalities"], [{"modality": "CT", "series": 2, "instances": 5, "bytes": totals.bytes}]
        )
        self.assertEqual((values["instances"], values["bytes"]), (5, totals.bytes))
        first, last = (
            edge(os.stat(self.root / self.path(name)).st_mtime for name in "abcde") for edge in (min, max)
        )
        self.assertEqual((values["first_received"], values["last_received"]), (first, last))
        self.assertGreater(values["database_bytes"], 4096)
        self.assertGreater(values["total_bytes"], values["free_bytes"])

    def test_stats_of_nothing(self) -> None:
        """An empty index has no times and no modalities."""
        self.index.remove(list(self.rows()))
        code, out, err = self.on_archive("stats")
        self.assertEqual((code, err), (0, ""))
        self.assertNotIn("received  ", out.replace(str(self.root), ""))
        self.assertIsNone(json.loads(self.on_archive("stats", "--json")[1])["first_received"])

    def test_configuration(self) -> None:
        """The server's YAML file says where things are, the command line overrules it, and mistakes are one line."""
        file = self.root.parent / "storescp.yaml"
        file.write_text(f"storage-dir: {self.root}\nport: 104\n")
        self.assertEqual(self.run_command("verify", "--jobs", 1, "--config", file)[0], 0)
        other = self.root.parent / "other"
        self.assertEqual(
            self.run_command("stats", "--config", file, "-d", other),
            (1, "", f"storescp: storage directory {other}/: No such file or directory\n"),
        )
        moved = self.root.parent / "moved.db"
        self.assertEqual(
            self.run_command("stats", "--config", file, "--index-db", moved),
            (1, "", f"storescp: index {moved}: No such file or directory\n"),
        )
        for text, message in (
            ("no-index: true", "the configuration says no-index: there is no index to work with"),
            ("prot: 1", f"{file}:2: expected the name of an option, got 'prot' (nearest known: port)"),
        ):
            file.write_text(f"storage-dir: {self.root}\n{text}\n")
            self.assertEqual(self.run_command("stats", "--config", file), (1, "", f"storescp: {message}\n"))

    def test_failures(self) -> None:
        """What keeps the work from being done is one line and exit status 1."""
        for error, line in (
            (IndexUnavailable("index x: locked"), "index x: locked"),
            (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
            (OSError(5, "Input/output error"), "Input/output error"),
            (BrokenProcessPool(), "a process that read files was killed"),
        ):
            with mock.patch.object(Verification, "run", side_effect=error):
                self.assertEqual(self.on_archive("verify"), (1, "", f"storescp: {line}\n"))

    def test_full_disk(self) -> None:
        """Where the index wants to write and there is no room, that is said; and so is why it cannot be opened."""
        small = tmpfs(self, "size=64k")
        (small / "a.dcm").write_bytes(bytes(40_000))
        index = small / ".storescp" / "index.db"
        code, out, err = self.run_command("reindex", "-d", small, "--jobs", 1)
        self.assertEqual((code, out), (1, ""))
        # SQLite's own words, where it knows, or ours.
        full = "(database or disk is full|.*; no space is left on its file system)"
        self.assertRegex(err, rf"\Astorescp: index {index}: {full}\n\Z")
        index = small / "a.dcm" / "index.db"
        for command in ("reindex", "stats"):
            self.assertEqual(
                self.run_command(command, "-d", small, "--index-db", index),
                (1, "", f"storescp: index {index}: Not a directory\n"),
            )

    def test_usage(self) -> None:
        """Wrong usage is told on stderr with exit status 2; no command at all shows the help."""
        for arguments, message in (
            (["nothing"], "invalid choice"),
            (["11112"], r"expected a command; storescp run --port 11112 starts the server"),
            (["-p", "104", "-d", "x"], "expected a command; storescp run -p 104 -d x starts the server"),
            (["--port=104"], "expected a command; storescp run --port=104 starts the server"),
            (["health", "--jobs"], r"\Ausage: storescp \[-h\].*\n.*unrecognized arguments: --jobs\n\Z"),
            (["health", "--port"], r"\Ausage: storescp health \[the server's options\] \[-c FILE\]\n.*\n\Z"),
            (["verify", "--jobs", "0"], "expected a number from 1 to 1024, got '0'"),
            (["verify", "--port", "1"], "unrecognized arguments"),
            (["reindex", "--digest", "sha257"], "expected one of .*sha256.*, got 'sha257'"),
            (["reindex", "--digest", "shake_128"], "expected one of"),
            (["echo", "localhost"], "required: PORT"),
            (["echo", "localhost", "0"], "expected a number from 1 to 65535, got '0'"),
            (["echo", "localhost", "1", "--timeout", "nan"], "expected a number from"),
            (["send", "localhost", "1"], "required: PATH"),
            (["send", "localhost", "1", "x", "--calling", "A\\B"], "--calling: expected 1 to 16 ASCII"),
        ):
            code, out, err = self.run_command(*arguments)
            self.assertEqual((code, out), (2, ""), arguments)
            self.assertRegex(err, message)
        code, out, err = self.run_command()
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, "(?s)usage: storescp .*verify.*reindex.*stats.*echo.*send")
        self.assertEqual(self.run_command("--version"), (0, f"storescp {storescp.__version__}\n", ""))

    def test_progress(self) -> None:
        """On a terminal a line shows how far it is, not wider than that, and is gone at the end; elsewhere, and where
        nothing can be drawn anew, there is none."""

        class Terminal(io.StringIO):
            """What says that it is one."""

            def isatty(self) -> bool:
                return True

        now = 0.0

        def monotonic() -> float:
            nonlocal now
            now += 1
            return now

        self.patch(time, "monotonic", monotonic)
        five = ["--storage-dir", str(self.root)]
        anew = [*five, "--all", "--index-db", str(self.root / "another.db")]
        for command, variables, shown in (
            (
                ["verify", *five],
                {"TERM": "xterm", "COLUMNS": "80"},
                r"\r\[#{30}\] 5 of 5 files, \d+/s\x1b\[K\r\x1b\[K",
            ),
            (["verify", *five], {"TERM": "xterm", "COLUMNS": "20"}, r"\r\[#{18}\x1b\[K\r\x1b\[K"),
            (["verify", *five], {"TERM": "dumb"}, ""),
            # Nobody knows how many there will be.
            (["reindex", *anew], {"TERM": "xterm", "COLUMNS": "80"}, r"\r5 files, \d+/s\x1b\[K\r\x1b\[K"),
        ):
            terminal = Terminal()
            with (
                mock.patch.dict(os.environ, variables),
                mock.patch.object(sys, "stderr", terminal),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                main([*command, "--jobs", "1"])
            self.assertRegex(terminal.getvalue(), rf"\A{shown}\Z")

    def test_texts(self) -> None:
        """Sizes have three digits; statuses have the standard's words."""
        for size, text in (
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (999_700, "1 MB"),
            (1.5e18, "1.5e+03 PB"),
        ):
            self.assertEqual(size_text(size), text)
        for status, text in (
            (0, "0000H Success"),
            (0xA701, "A701H Refused: Out of Resources"),
            (0xC123, "C123H Error: Cannot understand"),
            (0x0111, "0111H Duplicate SOP Instance"),
            (0x1234, "1234H unknown status"),
        ):
            self.assertEqual(status_text(status), text)
