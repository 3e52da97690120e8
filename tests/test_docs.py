"""What docs/security.rst says of the tests, of the options and of the code; and docs/options.rst, which is made."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import textwrap

from twisted.trial.unittest import SynchronousTestCase

from storescp.access import Callers
from storescp.config import OPTIONS, load
from storescp.log_settings import AREAS
from storescp.settings import variable
from tools.options_reference import reference

ROOT = pathlib.Path(__file__).parent.parent
SECURITY = (ROOT / "docs" / "security.rst").read_text()


def methods(module: str) -> set[str]:
    """What the classes of a module of tests define, as ``Class.test_name``."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    return {
        f"{node.name}.{member.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@functools.cache
def code() -> list[tuple[str, ast.AST]]:
    """Each node of each module of the package, with the name of the module."""
    paths = sorted((ROOT / "storescp").glob("*.py"))
    return [(path.stem, node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def imported() -> dict[str, set[str]]:
    """The modules that import another one, by the dotted name of that."""
    found: dict[str, set[str]] = {}
    for module, node in code():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found.setdefault(name, set()).add(module)
    return found


class SecurityTests(SynchronousTestCase):
    """What it refers to."""

    def test_tests(self) -> None:
        """Every test that it names exists, and every row of its table names one."""
        named = re.findall(r"\btests\.(\w+)\.(\w+\.test_\w+)", SECURITY)
        self.assertGreater(len(named), 30)
        missing = [f"{module}.{method}" for module, method in named if method not in methods(module)]
        self.assertEqual(missing, [])
        _, _, *rows = SECURITY.partition(".. list-table::")[2].split("   * - ")
        for row in rows:
            self.assertIn("     - ``tests.", row)

    def test_configuration(self) -> None:
        """The server takes its example, which asks all senders for certificates and nobody in without a rule."""
        example = re.search(r"its rule says::\n\n((?:    .*\n)+)", SECURITY)
        assert example is not None
        file = pathlib.Path(self.mktemp())
        file.write_text(textwrap.dedent(example[1]))
        config = load(file, {})
        self.assertEqual(config.listen, ("tls:2762",))
        assert config.tls is not None
        self.assertEqual(config.tls.client_certificate.value, "require")
        self.assertNotEqual(config.access.callers, Callers())
        self.assertTrue(config.access.callers.only_known)

    def test_options(self) -> None:
        """What looks like an option in its text is one of the server, or a key of a caller's rule."""
        known = {option.name for option in OPTIONS} | {"callers", "certificate", "directory", "addresses"}
        named = re.findall(r"``([a-z]+(?:-[a-z]+)+)(?:: \S+)?``", SECURITY)
        self.assertGreater(len(named), 20)
        self.assertEqual(set(named) - known - {"non-downgrading", "systemd-analyze"}, set())


class OptionsTests(SynchronousTestCase):
    """docs/options.rst."""

    def test_it_is_what_is_made(self) -> None:
        """It is what ``make reference`` writes, and has every option and every variable."""
        text = (ROOT / "docs" / "options.rst").read_text()
        self.assertEqual(text, reference())
        for option in OPTIONS:
            self.assertEqual(len(re.findall(rf"^``--{option.name}[ `]|, ``--{option.name} ", text, re.M)), 1)
            self.assertIn(f"``{variable(option.name)}``, default ``{option.default}``", text)


class LogTests(SynchronousTestCase):
    """docs/logs.rst."""

    def test_lines(self) -> None:
        """Every line that it lists is in the code, letter for letter."""
        text = (ROOT / "docs" / "logs.rst").read_text()
        listed = re.findall(r"^   \* - ``(.+)``$", text, re.MULTILINE)
        self.assertGreater(len(listed), 20)
        logged = {
            node.value for _, node in code() if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        self.assertEqual([line for line in listed if line not in logged], [])

    def test_rejections(self) -> None:
        """So is what docs/rejected.rst says of rejected associations."""
        table = (ROOT / "docs" / "rejected.rst").read_text().partition("A presentation context")[0]
        listed = re.findall(r"^``(?:callers\.X )?(.+?)``", table, re.MULTILINE)
        self.assertGreater(len(listed), 10)
        source = "".join(path.read_text() for path in (ROOT / "storescp").glob("*.py"))
        self.assertEqual([line for line in listed if line not in source], [])

    def test_areas(self) -> None:
        """It names the areas of the log, and of each the modules exist."""
        text = (ROOT / "docs" / "logs.rst").read_text()
        every = [module for modules in AREAS.values() for module in modules]
        self.assertEqual(sorted(every), sorted(set(every)))
        for area, modules in AREAS.items():
            self.assertIn(f"``{area}``", text)
            for module in modules:
                self.assertTrue((ROOT / "storescp" / f"{module}.py").is_file(), module)


class CodeTests(SynchronousTestCase):
    """What is not in the code of the server."""

    def test_no_shell(self) -> None:
        """One module starts processes, the workers', and none has a shell or evaluates a text."""
        names = imported()
        self.assertEqual(names["subprocess"], {"worker_process"})
        self.assertEqual({"pty", "commands", "asyncio", "runpy"} & set(names), set())
        for module, node in code():
            if isinstance(node, ast.Call):
                self.assertNotIn("shell", [keyword.arg for keyword in node.keywords], module)
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                self.assertNotRegex(
                    name, r"\A(system|popen|exec[lv]\w*|spawn[lv]\w*|posix_spawn\w*)\Z", module
                )
                if isinstance(called, ast.Name):
                    self.assertNotIn(name, ("eval", "exec", "__import__"), module)

    def test_no_codec(self) -> None:
        """Nothing of pydicom is imported (of its files a table is read, the UIDs): no reader, no codec, no pixels."""
        others = {"pydicom", "numpy", "PIL", "pylibjpeg", "openjpeg", "gdcm"}
        self.assertEqual(others & {name.partition(".")[0] for name in imported()}, set())

    def test_no_parsers(self) -> None:
        """No XML, HTML, HTTP or archive is read; XML and JSON are written; pickles are our own, and so is JSON read."""
        names = imported()
        roots = {name.partition(".")[0] for name in names}
        parsers = {
            "lxml",
            "html",
            "http",
            "gzip",
            "bz2",
            "lzma",
            "zipfile",
            "tarfile",
            "marshal",
            "shelve",
        }
        self.assertEqual(parsers & roots, set())
        written = {"Element", "SubElement", "tostring"}
        xml = {name.rpartition(".")[2] for name in names if name.startswith("xml.")}
        self.assertEqual(xml, {"ElementTree", *written})
        self.assertEqual(names["xml.etree.ElementTree"], {"audit_messages"})
        # The log, whose lines the server reads that its workers have written.
        self.assertEqual(names["json"], {"operator_output", "operator_config", "log_lines"})
        # The settings, from the server to its workers, through memory that only they have.
        self.assertEqual(names["pickle"], {"supervisor", "child"})
        loaders = {
            node.attr
            for _, node in code()
            if isinstance(node, ast.Attribute) and node.attr.endswith("Loader")
        }
        self.assertEqual(loaders, {"SafeLoader", "CSafeLoader"})
