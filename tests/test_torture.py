"""The driver of ``make torture``: it counts what was survived, and keeps what was not."""

from __future__ import annotations

import contextlib
import io
import itertools
import pathlib
import random
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from tests import torture
from tests.faults.load import Tally, Violation
from tests.server import temporary_directory


class TortureTests(SynchronousTestCase):
    """Steps of one second."""

    def torture(self, *scenarios: torture.Scenario) -> tuple[int, str, pathlib.Path]:
        """Take these steps, over and over; exit code, output, and the directory of what was kept."""
        self.patch(torture, "SCENARIOS", {str(number): step for number, step in enumerate(scenarios)})
        seconds = itertools.count()  # a look at the clock takes one
        self.patch(torture, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        kept = temporary_directory(self) / "kept"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = torture.main(["--seconds", "10", "--seed", "0", "--keep", str(kept)])
        return code, output.getvalue(), kept

    def survived(self, case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
        return Tally(kills=1)

    def broken(self, case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
        (temporary_directory(case) / "evidence").write_text("here")
        raise Violation("an image is lost")

    def test_survived(self) -> None:
        """When the time is over the exit code is 0, and all is counted."""
        code, output, kept = self.torture(self.survived)
        self.assertEqual(code, 0)
        self.assertEqual(output.count("seed "), 3)
        self.assertIn("Nothing acknowledged is lost, nothing unfinished was seen: 3 kills.", output)
        self.assertFalse(kept.exists())

    def test_broken(self) -> None:
        """The first violation ends it with exit code 1, its seed, and what the step had on disk."""
        code, output, kept = self.torture(self.survived, self.broken)
        self.assertEqual(code, 1)
        self.assertIn("an image is lost", output)
        self.assertIn(
            f"Broken, after 1 kills.\nTo see it again: --seed 1. What was on disk: {kept}/seed-1", output
        )
        (evidence,) = kept.rglob("evidence")
        self.assertEqual(evidence.read_text(), "here")
