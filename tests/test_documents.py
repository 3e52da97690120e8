"""The documents: they can be built, and what they say can be done as it stands."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS, load
from tests.server import DEADLINE, ROOT, Server, environment, free_port, run, temporary_directory
from tools import architecture

DOCS = ROOT / "docs"
#: Seconds for a build, or an installation.
LONG = 120.0


def blocks(document: str) -> list[str]:
    """The literal blocks of a document, each without its indentation."""
    text = (DOCS / document).read_text()
    return [textwrap.dedent(found).strip() for found in re.findall(r"::\n\n((?:    .*\n|\n(?=    ))+)", text)]


def options_of(text: str) -> set[str]:
    """What looks like an option with two hyphens, without them."""
    return set(re.findall(r"``--([a-z][a-z-]+)", text))


class BuildTests(SynchronousTestCase):
    """Sphinx."""

    def test_build(self) -> None:
        """Built without a warning: every reference leads somewhere, every page is in a list, and all is at hand."""
        into = temporary_directory(self)
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", "-W", "-n", "-E", "-q", DOCS, into],
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("five minutes", (into / "index.html").read_text())
        # A page that is read fetches nothing from elsewhere.
        for page in into.rglob("*.html"):
            fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
            self.assertEqual(fetched, [], page.name)


class TutorialTests(SynchronousTestCase):
    """docs/tutorial.rst, by its own commands."""

    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.port = free_port()
        self.environment = environment() | {"HOME": str(self.home)}
        # What pip would fetch is there already: these are the packages of the environment that runs the tests.
        self.environment |= {
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        del self.environment["PYTHONPATH"]
        paths = (os.path.dirname(sys.executable), self.environment["PATH"])
        self.environment["PATH"] = os.pathsep.join(paths)

    def shell(self, command: str, cwd: pathlib.Path) -> str:
        """What a command of the document prints: on a port of our own, everything else as it stands."""
        done = subprocess.run(
            command.replace("11112", str(self.port)),
            shell=True,
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONG,
        )
        return done.stdout

    def test_commands(self) -> None:
        """Every command does what the text says, from nothing to a stored image and to a duplicate."""
        install, start, echo, send, log, find, stats, verify = blocks("tutorial.rst")
        make, pip = install.splitlines()
        tree = self.home / "sources"
        tree.symlink_to(ROOT)
        self.assertEqual(self.shell(make, tree), "")
        (packages,) = (self.home / "storescp" / "lib").glob("*/site-packages")
        (packages / "there.pth").write_text(sysconfig.get_path("purelib"))
        for old in packages.glob("*setuptools*"):  # as old as Python itself
            shutil.rmtree(old)
        said = self.shell(pip, ROOT)
        self.assertTrue((self.home / "storescp" / "bin" / "storescp").exists(), said)

        with subprocess.Popen(
            ["bash", "-c", "exec " + start.replace("11112", str(self.port))],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                said = ""
                while f"listening on 0.0.0.0 port {self.port}" not in said:
                    said = server.stdout.readline()
                    self.assertNotEqual(said, "", "the server has ended")
                self.assertRegex(
                    self.shell(echo, self.home), rf"^localhost port {self.port}: 0000H Success in "
                )
                self.assertRegex(self.shell(send, self.home), r"^1 x 0000H Success; ")
                self.assertEqual(len(self.shell(find, self.home).split()), 1)
                self.assertRegex(self.shell(stats, self.home), r"(?m)^instances +1$")
                self.assertIn("no findings", self.shell(verify, self.home))
                self.assertIn("1 x 0111H Duplicate SOP Instance", self.shell(send, self.home))
            finally:
                server.terminate()
            lines = server.stdout.read()
        for line in log.splitlines():
            _, said = line.split("] ", 1)
            pattern = re.sub(r"(?:\d|\\\.(?=\d))+", lambda _: r"[\d.]+", re.escape(said))
            self.assertRegex(lines, rf"\[\w+-\d+\] {pattern}\n")


class GuideTests(SynchronousTestCase):
    """The guides."""

    def test_tls(self) -> None:
        """The certificates of the guide are made by its commands, and serve as it says: for us and for DCMTK."""
        commands, start, echo = blocks("guides/tls.rst")[:3]
        home = temporary_directory(self)
        for command in commands.splitlines():
            done = subprocess.run(
                shlex.split(command), cwd=home, capture_output=True, text=True, timeout=DEADLINE
            )
            self.assertEqual(done.returncode, 0, done.stderr)
        _, _, *options = shlex.split(start)
        options = [str(home / option) if (home / option).is_file() else option for option in options]
        port = free_port()
        server = Server(self, *(str(port) if option == "2762" else option for option in options))
        server.wait_for(rf"listening on \S+ port {port}, TLS")
        files = [str(home / word) if (home / word).is_file() else word for word in shlex.split(echo)]
        done = subprocess.run(
            [sys.executable, "-m", *(str(port) if word == "2762" else word for word in files)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        (dcmtk,) = re.findall(r"``echoscu (.+?) localhost 2762``", (DOCS / "guides" / "tls.rst").read_text())
        arguments = [str(home / word) if (home / word).is_file() else word for word in dcmtk.split()]
        answer = run("echoscu", *arguments, "localhost", port)
        self.assertEqual(answer.returncode, 0, answer.stdout)

    def test_sites(self) -> None:
        """The file of the guide for several sites has no mistake, and a rule for each of them."""
        (found,) = re.findall(
            r"code-block:: yaml\n\n((?:    .*\n|\n)+)", (DOCS / "guides" / "sites.rst").read_text()
        )[:1]
        file = temporary_directory(self) / "storescp.yaml"
        file.write_text(textwrap.dedent(found))
        config = load(file, {})
        self.assertEqual(
            {caller.name for caller in config.access.callers.known},
            {"NORTH_CT", "NORTH_MR", "SOUTH_PACS", "WS_*"},
        )

    def test_our_options(self) -> None:
        """What the guides call an option of ours is one."""
        known = {option.name for option in OPTIONS} | {"config", "digest"}
        text = (DOCS / "guides" / "moving.rst").read_text()
        rows = re.findall(r"^(``.*?)  +(.*)$", text, re.MULTILINE)
        self.assertGreater(len(rows), 40)
        ours = options_of("\n".join(right for _, right in rows))
        self.assertEqual(ours - known - {"single-process", "fork"}, set())

    def test_their_options(self) -> None:
        """What it calls an option of DCMTK's or pynetdicom's is one, by their own help; likewise Orthanc's keys."""
        text = (DOCS / "guides" / "moving.rst").read_text()
        dcmtk, pynetdicom, orthanc = re.split(r"\nFrom .*\n-+\n", text)[1:]
        helps = {
            dcmtk: run("storescp", "--help").stdout,
            pynetdicom: subprocess.run(
                [sys.executable, "-m", "pynetdicom", "storescp", "--help"], capture_output=True, text=True
            ).stdout,
        }
        for section, said in helps.items():
            theirs = _first_column(section)
            self.assertGreater(len(theirs), 8)
            for option in theirs:
                self.assertIn(option.rstrip("…"), said)
        keys = pathlib.Path("/etc/orthanc/orthanc.json").read_text()
        for key in set(re.findall(r"``([A-Z]\w+)", orthanc.partition("\n===")[2].partition("From")[0])):
            if key in "\n".join(_first_column(orthanc)):
                self.assertIn(f'"{key}"', keys)


def _first_column(section: str) -> list[str]:
    """The words in double backquotes that begin the rows of a table."""
    words: list[str] = []
    section = section.partition("\n===")[2].rpartition("\n===")[0]
    for row in re.findall(r"^(``.+?)(?:  +\S.*)?$", section, re.MULTILINE):
        words += re.findall(r"``([-+]{0,2}[\w…=-]+)", row)
    return [word for word in words if not word.endswith("…") or len(word) > 2]


class OperationsTests(SynchronousTestCase):
    """docs/operations.rst."""

    def test_alerts(self) -> None:
        """It has a row for each alert in etc/, and for no other."""
        rules = (ROOT / "etc" / "prometheus-rules.yaml").read_text()
        rows = re.findall(r"^(Storescp\w+) ", (DOCS / "operations.rst").read_text(), re.MULTILINE)
        self.assertEqual(rows, re.findall(r"alert: (\w+)", rules))


class ArchitectureTests(SynchronousTestCase):
    """docs/architecture.rst."""

    def test_layers(self) -> None:
        """Its picture is that of the table of layers, as ``make reference`` draws it."""
        self.assertEqual(architecture.FILE.read_text(), architecture.text())

    def test_names(self) -> None:
        """The modules and classes that it names are there."""
        text = architecture.FILE.read_text()
        sources = {path.name: path.read_text() for path in (ROOT / "storescp").glob("*.py")}
        for module in re.findall(r"``(\w+\.py)``", text):
            self.assertIn(module, sources)
        names: Sequence[str] = re.findall(r"``(I?[A-Z][A-Za-z0-9]+)``", text)
        self.assertGreater(len(names), 4)
        for name in names:
            self.assertTrue(any(f"class {name}" in source for source in sources.values()), name)
