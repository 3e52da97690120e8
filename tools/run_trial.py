"""Runs trial, shows its output and judges its summary more strictly than its exit status does.

``python tools/run_trial.py trial -j2 tests``: a test that was skipped counts as failed, and a run in which no test
passed is a failure. The last line printed is ``N passed, M failed``. Behind ``--`` there may be another command of that
kind: it runs beside the first, is heard when that has ended, and is in the sum.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import groupby

SUMMARY = re.compile(r"(?:PASSED|FAILED)(?: \((?P<counts>\w+=\d+(?:, \w+=\d+)*)\))?")
FAILURES = ("failures", "errors", "skips", "unexpectedSuccesses")


def environment() -> dict[str, str]:
    """The environment without the virtual environment's programs: pynetdicom's would hide DCMTK's."""
    ours = os.path.join(sys.prefix, "bin")
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry != ours]
    return {**os.environ, "PATH": os.pathsep.join(path)}


def judge(output: Iterable[str], status: Callable[[], int]) -> tuple[int, int, bool]:
    """Show the output of one run; how many passed, how many failed, and whether all is well in the end."""
    counts: dict[str, int] = {}
    for line in output:
        print(line, end="", flush=True)
        if summary := SUMMARY.fullmatch(line.strip()):
            counts = {
                name: int(number)
                for name, _, number in (
                    count.partition("=") for count in (summary["counts"] or "").split(", ") if count
                )
            }
    passed = counts.get("successes", 0)
    failed = sum(counts.get(name, 0) for name in FAILURES)
    if counts.get("skips"):
        print("A test that was skipped has proved nothing: it counts as failed.")
    if not passed:
        print("No test has passed.")
    if (ended := status()) and not failed:
        print(f"trial ended with exit status {ended}.")
    return passed, failed, not failed and bool(passed) and not ended


def main(arguments: list[str]) -> int:
    """Run the commands and return the exit status of the whole: 0 when all ran and all passed."""
    first, *others = (list(words) for one, words in groupby(arguments, "--".__ne__) if one)
    with ExitStack() as stack:
        aside = []
        for command in others:
            said = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            run = subprocess.Popen(command, env=environment(), stdout=said, stderr=subprocess.STDOUT)
            aside.append((stack.enter_context(run), said))
        trial = stack.enter_context(
            subprocess.Popen(first, env=environment(), stdout=subprocess.PIPE, text=True, errors="replace")
        )
        assert trial.stdout is not None
        judged = [judge(trial.stdout, trial.wait)]
        for run, said in aside:
            run.wait()
            said.seek(0)
            judged.append(judge(said, run.wait))
    passed, failed, well = zip(*judged, strict=True)
    print(f"{sum(passed)} passed, {sum(failed)} failed")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
