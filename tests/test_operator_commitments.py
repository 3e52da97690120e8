"""``storescp commitments``: what it says is owed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib

from twisted.trial.unittest import SynchronousTestCase

from storescp.commitment_data import Reference, Request
from storescp.commitment_store import CommitmentStore
from storescp.operator import main
from tests.server import temporary_directory


class CommitmentsTests(SynchronousTestCase):
    """An archive that owes reports, or none."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).resolve()
        self.root.mkdir()
        self.database = self.root / ".storescp" / "commitment.db"

    def run_command(self, command: str = "commitments", *arguments: str) -> tuple[int, str, str]:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main([command, "-d", str(self.root), *arguments])
        return code, out.getvalue(), error.getvalue()

    def test_nothing(self) -> None:
        """Where nobody has ever asked there is nothing, and nothing is made."""
        self.assertEqual(self.run_command(), (0, "0 reports are owed\n", ""))
        self.assertEqual(os.listdir(self.root), [])

    def test_unseen(self) -> None:
        """Who may not look, or looks at nothing, is told so; the commands that need an index say the same."""
        self.root = temporary_directory(self)
        self.root.chmod(0o755)
        self.database = self.root / ".storescp" / "commitment.db"
        self.database.parent.mkdir(0)
        self.addCleanup(self.database.parent.chmod, 0o700)
        if not os.geteuid():  # whom no mode keeps out
            self.addCleanup(os.seteuid, 0)
            os.seteuid(65534)
        self.assertEqual(self.run_command(), (1, "", f"storescp: {self.database}: Permission denied\n"))
        index = self.root / ".storescp" / "index.db"
        self.assertEqual(self.run_command("stats"), (1, "", f"storescp: index {index}: Permission denied\n"))
        self.root /= "nothing"
        for command in ("commitments", "stats"):
            self.assertEqual(
                self.run_command(command),
                (1, "", f"storescp: storage directory {self.root}/: No such file or directory\n"),
            )

    def test_owed(self) -> None:
        """Each has a line, the oldest first: what waits, and what somebody is at."""
        store = CommitmentStore(str(self.database))
        for number, now in ((1, 2000.0), (2, 1000.0)):
            request = Request(f"1.2.{number}", (Reference("1", "2"),) * number)
            _, owed = store.take(request, f"CT{number}", "US", now=now, holder=0, most=9)
            assert owed is not None
            if number == 1:
                store.let_go(owed.id, 3000.0, failed=True)
        store.close()
        code, out, error = self.run_command()
        self.assertEqual((code, error), (0, ""))
        first, second, last = out.splitlines()
        self.assertRegex(
            first, r"\ACT2: 2 instances, requested 1970-\S+ \S+ \S+, 0 attempts, being reported; .* 1\.2\.2\Z"
        )
        self.assertRegex(
            second, r"\ACT1: 1 instance, .*, 1 attempt, next attempt 1970-.*; transaction 1\.2\.1\Z"
        )
        self.assertEqual(last, "2 reports are owed")
        code, out, _ = self.run_command("commitments", "--json")
        _, second_object, summary = map(json.loads, out.splitlines())
        self.assertEqual(
            second_object,
            {
                "calling_ae_title": "CT1",
                "transaction_uid": "1.2.1",
                "instances": 1,
                "requested_at": 2000.0,
                "attempts": 1,
                "due_at": 3000.0,
            },
        )
        self.assertEqual(summary, {"summary": {"owed": 2}})

    def test_unusable(self) -> None:
        """A database that is none is a line and exit status 1."""
        self.database.parent.mkdir()
        self.database.write_bytes(b"no database" * 100)
        code, out, error = self.run_command()
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(len(error.splitlines()), 1)
