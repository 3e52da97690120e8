"""``make torture``: kills, power cuts, errors and full disks until the time is over, or the promise is broken.

``python -m tests.torture --seconds 600 --seed 7``. Each step is made of its own seed, one higher than that of the step
before: its name and its options come from that alone, so that ``--seed`` with the number of a step begins with that
one. At the first violation everything is kept that the step had on disk, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import unittest
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import Duplicate
from storescp.naming import Naming
from tests.faults import disks, full, injected, kill, power
from tests.faults.load import Tally

Scenario = Callable[[SynchronousTestCase, int, random.Random], Tally]

NAMING = [naming.value for naming in Naming]
DUPLICATE = [policy.value for policy in Duplicate]


def _kill(case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
    return kill.killed(
        case,
        seed,
        rounds=source.randrange(3, 10),
        naming=source.choice(NAMING),
        duplicate=source.choice(DUPLICATE),
        sync=source.choice(["always", "never"]),
        index=source.random() < 0.7,
        workers=source.choice([1, 2, 3]),
        window=source.choice([1, 4, 64]),
    )


def _power(case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
    return power.power_cuts(
        case,
        seed,
        kind=source.choice(list(disks.MAKE)),
        cuts=60,
        starts=6,
        naming=source.choice(NAMING),
        duplicate=source.choice(DUPLICATE),
        instances=source.randrange(4, 20),
        index=source.random() < 0.5,
        kills=source.choice([0, 0, 1, 3]),
        window=source.choice([1, 4, 64]),
    )


def _injected(case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
    return injected.injected_errors(
        case,
        seed,
        index=source.random() < 0.5,
        replace=source.random() < 0.5,
        size=source.choice([1000, 20_000, 3_000_000]),
        limit=150,
    )


def _full(case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
    kind = source.choice(list(full.KINDS))
    return full.full_disk(case, seed, kind=kind, index=kind == "index" or source.random() < 0.7)


def _kill_at_calls(case: SynchronousTestCase, seed: int, source: random.Random) -> Tally:
    return injected.killed_at_calls(
        case, seed, index=source.random() < 0.7, duplicate=source.choice(DUPLICATE), limit=30
    )


#: In turn; kills and power cuts find most.
SCENARIOS: dict[str, Scenario] = {
    "kill": _kill,
    "power loss": _power,
    "injected errors": _injected,
    "kill at calls": _kill_at_calls,
    "power loss again": _power,
    "full disk": _full,
}


class Step(SynchronousTestCase):
    """One scenario with one seed, which may use what test cases may; what it has on disk is kept if it fails."""

    def __init__(self, seed: int, directory: pathlib.Path) -> None:
        super().__init__("take")  # type: ignore[no-untyped-call]
        self.seed = seed
        self.directory = directory
        self.tally = Tally()
        self.interrupted = False
        self.scenario = list(SCENARIOS)[seed % len(SCENARIOS)]

    def take(self) -> None:
        work = pathlib.Path(tempfile.mkdtemp(prefix="storescp-torture-"))
        self.addCleanup(shutil.rmtree, work)
        self.patch(tempfile, "tempdir", str(work))
        try:
            self.tally = SCENARIOS[self.scenario](self, self.seed, random.Random(self.seed))
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        except Exception:
            # Before the clean-up, which begins with the mounts.
            self.directory.mkdir(parents=True, exist_ok=True)
            disks.command("cp", "--archive", "--sparse=always", work, self.directory / f"seed-{self.seed}")
            raise


def main(arguments: list[str]) -> int:
    """Take steps until the time is over; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Break the promise, if you can."
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="begin no step after this time (default 60)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the first step (default: a random one)")
    parser.add_argument(
        "--keep",
        type=pathlib.Path,
        default=pathlib.Path("torture"),
        help="directory for what a failed step leaves (default ./torture)",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(100_000)
    began = time.monotonic()
    total, interrupted = Tally(), False
    result = unittest.TestResult()
    while time.monotonic() - began < options.seconds:
        step = Step(seed, options.keep)
        before = time.monotonic()
        step.run(result)
        print(f"seed {seed}: {step.scenario}, {time.monotonic() - before:.1f} s: {step.tally}", flush=True)
        if interrupted := step.interrupted:
            break
        for _, traceback in [*result.errors, *result.failures]:
            print(traceback)
            print(f"Broken, after {total}.")
            print(f"To see it again: --seed {seed}. What was on disk: {options.keep}/seed-{seed}")
            return 1
        total += step.tally
        seed += 1
    print("Interrupted." if interrupted else "The time is over.")
    print(f"Nothing acknowledged is lost, nothing unfinished was seen: {total}.")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
