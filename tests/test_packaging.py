"""What pip and the build tools make of the project, in throw-away copies and virtual environments."""

from __future__ import annotations

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import uuid
import zipfile

from twisted.trial.unittest import SynchronousTestCase

import storescp
from storescp.config import OPTIONS

ROOT = pathlib.Path(__file__).parent.parent
PLUGIN = "twisted/plugins/storescp_plugin.py"
DOCUMENTS = ("conformance.rst", "interop.rst", "logs.rst", "metrics.rst", "options.rst", "security.rst")
CONFIGURATION = sorted(path.name for path in (ROOT / "etc").glob("*.*"))
# What is made by building, running and testing: nothing that a clone would hold.
MADE = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "received",
    ".storescp-bench-*",
    "_trial_temp*",
    "*.egg-info",
    "*cache*",
    ".hypothesis",
)


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a command that does not see this tree by way of PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


class PackagingTestCase(SynchronousTestCase):
    """A copy of the tree, and a directory outside it to run things in."""

    def setUp(self) -> None:
        self.outside = pathlib.Path(self.mktemp()).resolve()
        self.outside.mkdir(parents=True)
        self.tree = self.outside / "tree"
        shutil.copytree(ROOT, self.tree, ignore=MADE)
        self.addCleanup(shutil.rmtree, self.outside)

    def run_well(self, *command: str | pathlib.Path) -> str:
        """Run a command outside the tree; return its output when it succeeds and fail otherwise."""
        done = run(*command, cwd=self.outside)
        self.assertEqual(done.returncode, 0, f"{command}:\n{done.stdout}{done.stderr}")
        return done.stdout


class InstallTests(PackagingTestCase):
    """pip in a virtual environment with the dependencies of the one that runs the tests, but without the project."""

    def setUp(self) -> None:
        super().setUp()
        self.run_well(sys.executable, "-m", "venv", "--without-pip", self.outside / "venv")
        self.python = self.outside / "venv" / "bin" / "python"
        self.packages = pathlib.Path(
            self.run_well(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        for package in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
            if package.name == "twisted":
                # Plugins are installed into Twisted's own directory: here it must be a real one.
                without_plugin = shutil.ignore_patterns("*storescp*", "dropin.cache")
                shutil.copytree(
                    package, self.packages / "twisted", ignore=without_plugin, copy_function=os.symlink
                )
            elif "storescp" not in package.name:
                (self.packages / package.name).symlink_to(package)

    def twistd(self) -> subprocess.CompletedProcess[str]:
        """Run ``twistd storescp --help`` with the interpreter of the new environment."""
        script = pathlib.Path(sysconfig.get_path("scripts")) / "twistd"
        return run(self.python, script, "storescp", "--help", cwd=self.outside)

    def install(self, *options: str | pathlib.Path) -> None:
        """Let pip install what the options say: twistd has its command, which it had not, and operators theirs."""
        before = self.twistd()
        self.assertNotEqual(before.returncode, 0)
        self.assertIn("Unknown command: storescp", before.stdout + before.stderr)
        self.run_well(self.python, "-m", "pip", "install", "--no-index", "--no-build-isolation", *options)
        after = self.twistd()
        self.assertEqual(after.returncode, 0, after.stdout + after.stderr)
        for option in ("--port", "--storage-dir"):
            self.assertIn(option, after.stdout)
        command = self.outside / "venv" / "bin" / "storescp"
        self.assertEqual(self.run_well(command, "--version"), f"storescp {storescp.__version__}\n")
        # pipx puts into the PATH what this package itself brings, and twistd is Twisted's.
        self.assertIn("--storage-dir", self.run_well(command, "run", "--help"))

    def imported(self) -> pathlib.Path:
        """Return the directory from which the new environment imports storescp."""
        return pathlib.Path(
            self.run_well(self.python, "-c", "import storescp; print(*storescp.__path__)").strip()
        )

    def test_install(self) -> None:
        """``pip install .`` gives a working ``twistd storescp`` that no longer needs the tree."""
        self.install(self.tree)
        self.assertEqual(self.imported(), self.packages / "storescp")
        self.assertTrue((self.packages / PLUGIN).is_file())
        shared = self.outside / "venv" / "share"
        self.assertEqual(sorted(os.listdir(shared / "storescp")), CONFIGURATION)
        self.assertEqual(
            sorted(os.listdir(shared / "doc" / "storescp")),
            ["README.rst", *DOCUMENTS],
        )

    def test_editable_install(self) -> None:
        """``pip install -e .`` gives a working ``twistd storescp`` that runs the very files of the tree."""
        self.install("--editable", self.tree)
        self.assertEqual(self.imported(), self.tree / "storescp")
        self.assertFalse((self.packages / PLUGIN).exists())


class DistributionTests(PackagingTestCase):
    """What is uploaded: the source distribution, and the wheel made from it."""

    def test_contents(self) -> None:
        """Both hold the package, the plugin, the configuration files, the licence and the README, and no litter."""
        self.run_well(
            sys.executable, "-m", "build", "--no-isolation", "--outdir", self.outside / "dist", self.tree
        )
        name = f"storescp-{storescp.__version__}"
        modules = {f"storescp/{path.name}" for path in (ROOT / "storescp").glob("*.*")}
        code = {*modules, "storescp/py.typed", PLUGIN}

        with tarfile.open(self.outside / "dist" / f"{name}.tar.gz") as archive:
            source = {
                member.name.removeprefix(f"{name}/") for member in archive.getmembers() if member.isfile()
            }
        wanted = {
            *code,
            ".dockerignore",
            "CHANGELOG.rst",
            "LICENSE",
            "README.rst",
            "Makefile",
            "setup.cfg",
            "pyproject.toml",
            "etc/Containerfile",
            "tools/prepare",
        }
        wanted |= {f"docs/{document}" for document in DOCUMENTS}
        self.assertEqual((wanted | {f"etc/{file}" for file in CONFIGURATION}) - source, set())

        with zipfile.ZipFile(self.outside / "dist" / f"{name}-py3-none-any.whl") as wheel:
            built = set(wheel.namelist())
            metadata = email.message_from_bytes(wheel.read(f"{name}.dist-info/METADATA"))
        wanted = {
            *code,
            f"{name}.dist-info/licenses/LICENSE",
            *(f"{name}.data/data/share/doc/storescp/{document}" for document in ("README.rst", *DOCUMENTS)),
        }
        self.assertEqual(
            (wanted | {f"{name}.data/data/share/storescp/{f}" for f in CONFIGURATION}) - built, set()
        )
        self.assertEqual(metadata["License-Expression"] or metadata["License"], "MIT")
        self.assertEqual(metadata["Requires-Python"], ">=3.11")

        # Nothing that could hide Twisted's own files, no caches.
        twisted = {file for file in source | built if file.startswith("twisted/")}
        self.assertEqual(twisted, {PLUGIN})
        self.assertEqual({file for file in source | built if "cache" in file}, set())

    def wheel(self, tree: pathlib.Path) -> bytes:
        """The wheel that is made of *tree* at a time of its own, as packagers say it: SOURCE_DATE_EPOCH."""
        into = tree.with_suffix(".dist")
        command = ("-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", into, tree)
        self.run_well("env", "SOURCE_DATE_EPOCH=1700000000", sys.executable, *command)
        (wheel,) = into.iterdir()
        return wheel.read_bytes()

    def test_reproducible(self) -> None:
        """The same sources give the same wheel, byte for byte, wherever and whenever they were written."""
        other = self.outside / "other"
        shutil.copytree(self.tree, other, copy_function=shutil.copy)  # not the times of the files
        self.assertEqual(self.wheel(self.tree), self.wheel(other))

    def test_changelog(self) -> None:
        """The newest changes are those of the version that the package has."""
        versions = re.findall(r"^(\d\S*) \(.+\)\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
        self.assertEqual(versions[:1], [storescp.__version__])


class IdentityTests(SynchronousTestCase):
    """What we call ourselves on the network and in files."""

    def test_implementation_class_uid(self) -> None:
        """The UID is a UUID (random, version 4) under 2.25, as PS3.5 B.2 wants it, of at most 64 characters."""
        root, _, number = storescp.IMPLEMENTATION_CLASS_UID.rpartition(".")
        self.assertEqual(root, "2.25")
        self.assertEqual(str(int(number)), number)
        self.assertEqual(uuid.UUID(int=int(number)).version, 4)
        self.assertLessEqual(len(storescp.IMPLEMENTATION_CLASS_UID), 64)

    def test_implementation_version_name(self) -> None:
        """The name has the 1 to 16 characters that PS3.7 D.3.3.2.3 allows, and names the version."""
        self.assertRegex(storescp.IMPLEMENTATION_VERSION_NAME, r"\A[A-Z0-9_.]{1,16}\Z")
        self.assertIn(storescp.__version__, storescp.IMPLEMENTATION_VERSION_NAME)


class ReadmeTests(SynchronousTestCase):
    """What the README promises about the command line."""

    def test_first_image(self) -> None:
        """The image that it has one send is there."""
        (path,) = re.findall(r"\.venv/(\S+\.dcm)", (ROOT / "README.rst").read_text())
        self.assertEqual(len(list(pathlib.Path(sys.prefix).glob(path))), 1)

    def test_options(self) -> None:
        """What its table has of the options has the right short form and default, and the right order."""
        readme = (ROOT / "README.rst").read_text()
        rows = re.findall(r"^``--([a-z-]+)``(?:, ``-(\w)``)? +(\S*)  ", readme, re.MULTILINE)
        wanted = [(option.name, option.short, "" if option.is_flag else option.default) for option in OPTIONS]
        self.assertEqual(rows[0], ("config", "c", ""))
        self.assertGreater(len(rows), 10)
        self.assertEqual(rows[1:], [row for row in wanted if row in rows])
