"""``python -m fuzz --seconds N``: each target in turn for its share of the time; ``--target NAME``: only that one.

Coverage-guided by atheris. What was found interesting is kept in ``.fuzz/`` and is the start of the next run; what
makes a target fail is left in ``fuzz/findings/``, from where ``make test`` replays it. Exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

from fuzz import HERE, NAMES

#: What one input may take: seconds, and MiB of memory for the whole process.
TIMEOUT, MEMORY = 20, 1024

_STATUS = re.compile(
    r"#(\d+)\s+(?:DONE|INITED|pulse|NEW|REDUCE|RELOAD)\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)"
)
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def fuzz(target: str) -> None:
    """Fuzz *target* in this process, which libFuzzer then ends. Its options come after the name."""
    import atheris

    with atheris.instrument_imports(include=["storescp"]):
        from fuzz import targets
    atheris.Setup(sys.argv[:1] + sys.argv[3:], targets.TARGETS[target])
    atheris.Fuzz()


def run(target: str, seconds: int) -> bool:
    """Fuzz *target* in a child and print the figures; false if it was made to fail."""
    corpus = HERE.parent / ".fuzz" / target
    findings = HERE / "findings" / target
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fuzz", "--child", target),
            *(f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}"),
            *("-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={findings}/"),
            *(str(corpus), str(HERE / "seeds" / target)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        cwd=HERE.parent,
    )
    status = list(_STATUS.finditer(done.stdout))
    executed = _EXECUTED.search(done.stdout)
    _, coverage, features, inputs, size = status[-1].groups() if status else ("0",) * 5
    print(
        f"{target:17} {executed[1] if executed else '?':>9} executions, {coverage:>5} edges, {features:>5} features,"
        f" {inputs} inputs of {size}: {'nothing found' if not done.returncode else 'FOUND'}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-4000:])
    if not any(findings.iterdir()):
        findings.rmdir()
    return not done.returncode


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, help="for all targets together [300]")
    parser.add_argument("--target", choices=NAMES, action="append", help="only this one; may be repeated")
    options = parser.parse_args()
    chosen = options.target or list(NAMES)
    share = max(1, options.seconds // len(chosen))
    found = [target for target in chosen if not run(target, share)]
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2])
    else:
        os.nice(19)
        sys.exit(main())
