"""The tools behind the Makefile: what they ask of a machine, and when they call a run of the tests good."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

ROOT = pathlib.Path(__file__).parent.parent
DCMTK = ("echoscu", "storescu", "storescp")


class RunTrialTests(SynchronousTestCase):
    """tools/run_trial.py, with a few words of Python in the place of trial."""

    def run_trial(self, *fakes: str) -> tuple[int, list[str]]:
        """Return the exit status and the lines printed when these are run in the place of trial."""
        command = [sys.executable, str(ROOT / "tools" / "run_trial.py")]
        for fake in fakes:
            command += ["--", sys.executable, "-c", fake]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout.splitlines()

    def judge(self, output: str, status: int = 0) -> tuple[int, str]:
        """Return the exit status and the last line printed when trial prints this output."""
        ended, lines = self.run_trial(f"import sys; print({output!r}); sys.exit({status})")
        return ended, lines[-1]

    def test_all_passed(self) -> None:
        """A run in which every test passed is good, and says how many they were."""
        self.assertEqual(
            self.judge("Ran 12 tests in 3s\n\nPASSED (successes=12)"), (0, "12 passed, 0 failed")
        )

    def test_failed(self) -> None:
        """Failures and errors count as failed."""
        self.assertEqual(
            self.judge("FAILED (failures=2, errors=1, successes=7)", 1), (1, "7 passed, 3 failed")
        )

    def test_skipped(self) -> None:
        """A skipped test fails the run, which trial itself would call passed."""
        self.assertEqual(self.judge("PASSED (skips=1, successes=7)"), (1, "7 passed, 1 failed"))

    def test_unexpected_success(self) -> None:
        """A test that passed although it was marked as one that cannot fails the run."""
        self.assertEqual(
            self.judge("FAILED (unexpectedSuccesses=1, successes=7)", 1), (1, "7 passed, 1 failed")
        )

    def test_nothing_ran(self) -> None:
        """A run of no tests is no success, whatever trial's exit status."""
        self.assertEqual(self.judge("Ran 0 tests in 0.000s\n\nPASSED"), (1, "0 passed, 0 failed"))
        self.assertEqual(self.judge("no summary at all"), (1, "0 passed, 0 failed"))

    def test_side_by_side(self) -> None:
        """Of two that run at the same time the second is heard behind the first; either can fail the whole."""
        good, bad = "print('PASSED (successes=2)')", "print('FAILED (errors=1, successes=3)')"
        self.assertEqual(
            self.run_trial(good, good), (0, ["PASSED (successes=2)"] * 2 + ["4 passed, 0 failed"])
        )
        for fakes in ((good, bad), (bad, good), (good, "print('PASSED')"), (good, good + "; exit(1)")):
            self.assertEqual(self.run_trial(*fakes)[0], 1, fakes)
        self.assertEqual(self.run_trial(bad, good)[1][-1], "5 passed, 1 failed")
        os.mkfifo(pipe := self.mktemp())  # either end waits for the other
        ends = (f"open({pipe!r}, {mode!r}).close(); {good}" for mode in "rw")
        self.assertEqual(self.run_trial(*ends)[0], 0)

    def test_exit_status(self) -> None:
        """A failing exit status fails the run, whatever the summary says."""
        self.assertEqual(self.judge("PASSED (successes=12)", 3), (1, "12 passed, 0 failed"))


class PrepareTests(SynchronousTestCase):
    """tools/prepare on a machine made of symbolic links and of two-line programs: nothing real is installed."""

    def setUp(self) -> None:
        self.machine = pathlib.Path(self.mktemp()).resolve()
        self.bin = self.machine / "bin"
        self.bin.mkdir(parents=True)
        for program in ("sh", "cat", "cp", "cut", "dirname", "find", "grep", "rm", "sed", "sort", "tr"):
            found = shutil.which(program)
            assert found is not None
            (self.bin / program).symlink_to(found)
        tools = self.machine / "tools"
        tools.mkdir()
        prepare = (ROOT / "tools" / "prepare").read_text()
        self.assertIn(":/usr/sbin:/sbin", prepare)  # what is really installed there must not count
        self.assertIn("/usr/lib/*/rsyslog/", prepare)
        prepare = prepare.replace(":/usr/sbin:/sbin", "").replace("/usr/lib/*/rsyslog", str(self.bin))
        (tools / "prepare").write_text(prepare)
        (tools / "prepare").chmod(0o755)

    def program(self, name: str, script: str) -> None:
        """Put a shell script into the machine's only directory of programs."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def peers(self, *, dcmtk: str = "$dcmtk: v3.6.7 $") -> None:
        """Install every program that the tests need; those of DCMTK print this as their version."""
        for name in DCMTK:
            self.program(name, f"echo '{dcmtk}'")
        filesystems = ("mount", "mkfs.ext4", "e2fsck", "mkfs.xfs", "mkfs.btrfs")
        others = (
            "gdcmscu",
            "Orthanc",
            "openssl",
            "promtool",
            "strace",
            "systemd-analyze",
            "systemd-nspawn",
            "pkill",
            "rsyslogd",
            "logrotate",
            "haproxy",
            "podman",
            "runc",
        )
        for name in (*others, "lmnsd_ossl.so", *filesystems):
            self.program(name, ":")

    def python(self, *, version: str = "3, 11", venv: bool = True) -> None:
        """Install a python3 that answers questions about its version, and on whether it can make venvs."""
        self.program(
            "python3",
            f"""case $2 in
            *'sys.exit(sys.version_info'*) [ '{version}' = '3, 11' ] ;;
            *ensurepip*) {"true" if venv else f'[ -e "{self.machine}/installed" ]'} ;;
            *python%d*) echo python3.11-venv ;;
            venv) echo "python3 $*" >>"{self.machine}/log" ;;
            esac""",
        )

    def apt_get(self, then: str = "") -> None:
        """Install an apt-get that notes its arguments and then does what is given."""
        self.program("apt-get", f'echo "apt-get $*" >>"{self.machine}/log"\n{then}')

    def prepare(self, *arguments: str, user: int) -> tuple[int, str]:
        """Run the tool as this user; return its exit status and all that it printed."""
        self.program("id", f"echo {user}")
        done = subprocess.run(
            [self.machine / "tools" / "prepare", *arguments],
            env={"PATH": str(self.bin)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def log(self) -> list[str]:
        """Return the commands that apt-get and python3 were given."""
        return (self.machine / "log").read_text().splitlines()

    def test_all_there(self) -> None:
        """With every program there, nothing is done or said, root or not."""
        self.peers()
        self.apt_get()
        for user in (0, 1000):
            self.assertEqual(self.prepare("peers", user=user), (0, ""))
        self.assertFalse((self.machine / "log").exists())

    def test_missing_and_not_root(self) -> None:
        """Whoever is not root is told in one line which packages to install."""
        self.peers()
        os.unlink(self.bin / "strace")
        os.unlink(self.bin / "storescu")
        status, output = self.prepare("peers", user=1000)
        self.assertEqual(status, 1)
        self.assertEqual(
            output, "Missing for the tests: dcmtk strace. As root, run: apt-get install dcmtk strace\n"
        )

    def test_missing_and_root(self) -> None:
        """Root gets the missing package installed, once, and no other."""
        self.peers()
        os.unlink(self.bin / "strace")
        self.apt_get(then=f'cp "{self.bin}/gdcmscu" "{self.bin}/strace"')
        status, output = self.prepare("peers", user=0)
        self.assertEqual((status, output), (0, "Installing for the tests: strace\n"))
        self.assertEqual(
            self.log(), ["apt-get -qq update", "apt-get -qq install -y --no-install-recommends strace"]
        )

    def test_benchmark(self) -> None:
        """The benchmark needs them too, and a service that Debian makes of one is stopped."""
        self.peers()
        self.assertEqual(self.prepare("peers", "bench", user=1000), (0, ""))
        os.rename(self.bin / "Orthanc", self.machine / "Orthanc")
        status, output = self.prepare("peers", "bench", user=1000)
        self.assertEqual(status, 1)
        self.assertEqual(
            output, "Missing for the benchmark: orthanc. As root, run: apt-get install orthanc\n"
        )
        self.apt_get(then=f'cp "{self.machine}/Orthanc" "{self.bin}/Orthanc"')
        for program in ("invoke-rc.d", "update-rc.d"):
            self.program(program, f'echo "{program} $*" >>"{self.machine}/log"')
        status, output = self.prepare("peers", "bench", user=0)
        self.assertEqual((status, output), (0, "Installing for the benchmark: orthanc\n"))
        # Debian starts what it installs.
        self.assertEqual(self.log()[-2:], ["invoke-rc.d --quiet orthanc stop", "update-rc.d orthanc disable"])
        self.assertEqual(self.prepare("peers", "bench", user=0), (0, ""))

    def test_package_does_not_help(self) -> None:
        """Another maker's program of the same name does not pass for DCMTK's, even after an installation."""
        self.peers(dcmtk="storescu.py v0.3")
        self.apt_get()
        status, output = self.prepare("peers", user=0)
        self.assertEqual(status, 1)
        self.assertIn("hidden by another program of that name: echoscu storescu storescp", output)

    def test_node(self) -> None:
        """Root gets Node.js and npm where they are missing, and by npm the sender, once."""
        status, output = self.prepare("node", user=1000)
        self.assertEqual(
            (status, output),
            (1, "Missing for the tests: nodejs npm. As root, run: apt-get install nodejs npm\n"),
        )
        npm = f"""echo "npm $*" >>"{self.machine}/log"; /bin/mkdir "{self.machine}/.node" """
        self.apt_get(
            then=f"""[ "$2" = update ] || {{ cat >"{self.bin}/npm" <<'END'
#!/bin/sh
{npm}
END
cp "{self.bin}/npm" "{self.bin}/node"; /bin/chmod +x "{self.bin}"/n*; }}"""
        )
        status, output = self.prepare("node", user=0)
        self.assertEqual(
            (status, output.splitlines()),
            (0, ["Installing for the tests: nodejs npm", "Installing into .node: dcmjs-dimse@0.3.3"]),
        )
        self.assertEqual(
            self.log()[1:],
            [
                "apt-get -qq install -y --no-install-recommends nodejs npm",
                "npm install --silent --no-audit --no-fund --prefix .node dcmjs-dimse@0.3.3",
            ],
        )
        self.assertEqual(self.prepare("node", user=0), (0, ""))

    def test_side_by_side(self) -> None:
        """All that the tests want is made ready at once; what one half lacks fails the whole, and the other is made."""
        self.python()
        python = self.bin / "python3"
        makes = f"/bin/mkdir -p $4/bin; cp '{python}' $4/bin/python ;;"
        self.program("python3", python.read_text().replace("venv) ", f"venv) {makes} nothing) "))
        stamps = {
            self.machine / f".venv{environment}" / f".ready-to-{use}"
            for environment, use in (("", "test"), ("-plot", "plot"), ("-oldest", "oldest"))
        }
        for directory in ("storescp", ".node"):
            (self.machine / directory).mkdir()
        for file in ("setup.cfg", "pyproject.toml", "storescp/__init__.py"):
            (self.machine / file).touch()
        (self.machine / ".node" / "dcmjs-dimse@0.3.3").touch()
        self.peers()
        os.rename(self.bin / "strace", self.machine / "strace")
        status, output = self.prepare("tests", user=1000)
        self.assertEqual(status, 1)
        self.assertIn("Missing for the tests: strace. As root, run: apt-get install strace\n", output)
        self.assertEqual(set(self.machine.glob(".venv*/.ready*")), stamps)
        os.rename(self.machine / "strace", self.bin / "strace")
        self.assertEqual(self.prepare("tests", user=1000), (0, ""))

    def test_no_python(self) -> None:
        """Without a Python that is new enough, one line says so."""
        self.python(version="3, 9")
        status, output = self.prepare("venv", "run", user=0)
        self.assertEqual(status, 1)
        self.assertEqual(
            output,
            "Python 3.11 or newer is needed, and there is none among: python3, python3.13, python3.12, python3.11.\n",
        )

    def test_no_venv_and_not_root(self) -> None:
        """Without python3-venv, whoever is not root is told in one line what to install."""
        self.python(venv=False)
        status, output = self.prepare("venv", "run", user=1000)
        self.assertEqual(status, 1)
        self.assertEqual(
            output,
            "Missing for a virtual environment: python3.11-venv. As root, run: apt-get install python3.11-venv\n",
        )

    def test_no_venv_and_root(self) -> None:
        """Without python3-venv, root gets it installed and goes on to make the environment."""
        self.python(venv=False)
        self.apt_get(then=f'echo >"{self.machine}/installed"')
        self.prepare("venv", "run", user=0)
        self.assertEqual(self.log()[-1], "python3 -m venv --clear .venv")
        self.assertIn("apt-get -qq install -y --no-install-recommends python3.11-venv", self.log())
