"""Runs trial, shows its output and judges its summary more strictly than its exit status does.

``python tools/run_trial.py trial -j2 tests``: a test that was skipped counts as failed, and a run in which no test
passed is a failure. The last line printed is ``N passed, M failed``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

SUMMARY = re.compile(r"(?:PASSED|FAILED)(?: \((?P<counts>\w+=\d+(?:, \w+=\d+)*)\))?")
FAILURES = ("failures", "errors", "skips", "unexpectedSuccesses")


def environment() -> dict[str, str]:
    """The environment without the virtual environment's programs: pynetdicom's would hide DCMTK's."""
    ours = os.path.join(sys.prefix, "bin")
    path = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry != ours]
    return {**os.environ, "PATH": os.pathsep.join(path)}


def main(command: list[str]) -> int:
    """Run the command and return the exit status of the whole: 0 when all ran and all passed."""
    counts: dict[str, int] = {}
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, errors="replace"
    ) as trial:
        assert trial.stdout is not None
        for line in trial.stdout:
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
    if trial.returncode and not failed:
        print(f"trial ended with exit status {trial.returncode}.")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed or trial.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
