"""``storescp config``: what it finds in settings, and what it prints of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib

import yaml
from hypothesis import given as given_by
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS, load
from storescp.operator import main
from storescp.operator_config import _scalar
from tests.pki import Authority
from tests.server import Server, run_twistd, temporary_directory
from tests.strategies import steady
from tests.test_config import EXAMPLE


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.file = self.home / "storescp.yaml"

    def set(self, **variables: str) -> None:
        self.patch(os, "environ", {**os.environ, **variables})

    def run_with(self, content: str | None, *arguments: object) -> tuple[int, str]:
        """The exit code of ``storescp config``, and what it prints; FILE stands for the file."""
        if content is not None:
            self.file.write_text(content)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(
                [
                    "config",
                    *(str(self.file) if argument == "FILE" else str(argument) for argument in arguments),
                ]
            )
        return code, out.getvalue().replace(str(self.file), "FILE")

    def check(self, content: str, *arguments: object) -> tuple[int, str]:
        return self.run_with(content, "check", "FILE", "--storage-dir", self.home, *arguments)


class CheckTests(_TestCase):
    """config check."""

    def test_example(self) -> None:
        """etc/storescp.yaml has no mistakes."""
        self.assertEqual(self.check(EXAMPLE.read_text()), (0, "no mistakes\n"))

    def test_all_mistakes(self) -> None:
        """Every mistake in the options is told, with its place; not only the first."""
        content = "prot: 1\nmax-assoc: ten\nport:\ntimeout: 5\ntimeout: 6\nno-index: true\nindex-db: x\nno-digest: 1\n"
        code, said = self.check(content, "--max-pdu", "1")
        self.assertEqual(code, 1)
        self.assertEqual(
            said.splitlines(),
            [
                "FILE:1: expected the name of an option, got 'prot' (nearest known: port)",
                "FILE:3: port: expected a value, got nothing",
                "FILE:5: timeout: expected once, got a second time",
                "FILE:8: expected the name of an option, got 'no-digest' (nearest known: digest)",
                "FILE:7: index-db: expected either no-index or index-db, got both",
                "FILE:2: max-assoc: expected a whole number from 1 to 65535, got 'ten'",
                "--max-pdu: expected 0 or a number of bytes from 4096 to 16777216, got '1'",
                "7 mistakes, 0 warnings",
            ],
        )

    def test_all_callers(self) -> None:
        """So is every mistake in the section callers, with those of the options."""
        content = (
            "max-assoc: ten\ncallers:\n  A:\n    adresses: 1\n    duplicate: maybe\n    max-assoc: 2\n"
            "  B: {addresses: [10.0.0.0/8, x], addresses: any}\n  A B C D E F G H I: {user: }\n"
            "  C: 1\n  '  ': {called: []}\n"
        )
        code, said = self.check(content)
        self.assertEqual(code, 1)
        told = [line.partition(", got")[0] for line in said.splitlines()]
        self.assertTrue(told[1].startswith("FILE:4: callers.A.adresses: expected one of addresses, called, "))
        del told[1]
        self.assertEqual(
            told,
            [
                "FILE:1: max-assoc: expected a whole number from 1 to 65535",
                "FILE:5: callers.A.duplicate: expected one of reject, replace, ignore, same",
                "FILE:7: callers.B.addresses[1]: expected any, an address, or a network such as 10.0.0.0/8 or fd00::/8",
                "FILE:7: callers.B.addresses: expected once",
                "FILE:8: callers.A B C D E F G H I: expected 1 to 16 ASCII characters, no backslash, no control"
                " characters, not spaces only",
                "FILE:8: callers.A B C D E F G H I.user: expected a value",
                "FILE:9: callers.C: expected lines of the form 'key: value'",
                "FILE:10: callers.  : expected 1 to 16 ASCII characters, no backslash, no control characters,"
                " not spaces only",
                "FILE:10: callers.  .called: expected at least one value",
                "10 mistakes, 0 warnings",
            ],
        )

    def test_together(self) -> None:
        """So is what makes no sense together, or in the section callers."""
        for content, mistake in (
            ("tls-port: 2762", "FILE:1: tls-port: expected tls-certificate with it, got none"),
            ("callers:\n  A:\n    adresses: 1", "FILE:3: callers.A.adresses: expected one of "),
            (
                "callers:\n  A:\n    commitment: tls:a:1",
                "FILE:3: callers.A.commitment: expected a port with TLS, and tls-ca, with tls:, got none",
            ),
            (
                "callers:\n  A: {user: x}",
                "FILE:2: callers.A.user: expected auth or jwt-key with it, got neither",
            ),
        ):
            code, said = self.check(content)
            self.assertEqual((code, said.count("\n")), (1, 2))
            self.assertTrue(said.startswith(mistake), said)

    def test_what_it_names(self) -> None:
        """The files, endpoints and directories that are named are looked at; the place is where they are named."""
        (self.home / "file").touch()
        for content, mistake in (
            (
                "listen: tcp:nonsense:x=y",
                "FILE:1: listen: expected a Twisted endpoint, got 'tcp:nonsense:x=y': ",
            ),
            (
                "\nhttp: tcp:nonsense:x=y",
                "FILE:2: http: expected a Twisted endpoint, got 'tcp:nonsense:x=y': ",
            ),
            ("\nauth: file:/nowhere", "FILE:2: auth: expected a readable file, got '/nowhere'"),
            ("\njwt-key: /nowhere", "FILE:2: jwt-key: expected a readable file, got "),
            (
                "tls-client-cert: none\ntls-port: 2762\ntls-certificate: /nowhere",
                "FILE:3: tls-certificate: expected a readable file, got '/nowhere': ",
            ),
            (
                f"index-db: {self.home}",
                "FILE:1: index-db: expected the path of a SQLite database, got a directory",
            ),
        ):
            code, said = self.check(content)
            self.assertEqual((code, said.count("\n")), (1, 2), said)
            self.assertTrue(said.startswith(mistake), said)
        code, said = self.run_with(f"storage-dir: {self.home}/file/x", "check", "FILE")
        self.assertEqual(code, 1)
        self.assertTrue(said.startswith("FILE:1: storage-dir: expected a directory, got "), said)

    def test_tls(self) -> None:
        """Good files of TLS are no mistake; what the server would warn of is a warning."""
        authority = Authority(self.home)
        certificate, key = authority.issue("server")
        content = f"tls-port: 2762\ntls-client-cert: none\ntls-certificate: {certificate}\n"
        content += f"tls-key: {key}\n"
        self.assertEqual(self.check(content), (0, "no mistakes\n"))
        key.chmod(0o644)
        code, said = self.check(content)
        self.assertEqual(code, 0)
        self.assertIn("warning: ", said)
        self.assertIn("0 mistakes, 1 warning\n", said)

    def test_environment(self) -> None:
        """The environment counts, and so does an unknown variable in it, which is only a warning."""
        self.set(STORESCP_MAX_ASOC="1", STORESCP_CONFIG=str(self.file))
        code, said = self.run_with(f"storage-dir: {self.home}", "check", "--json")
        self.assertEqual(code, 0)
        warning = "'STORESCP_MAX_ASOC' names no option, and is ignored (nearest known: STORESCP_MAX_ASSOC)"
        self.assertEqual(json.loads(said), {"mistakes": [], "warnings": [warning]})
        self.set(STORESCP_MAX_ASSOC="x")
        code, said = self.run_with(None, "check")
        self.assertEqual(code, 1)
        self.assertIn("STORESCP_MAX_ASSOC: expected a whole number", said)

    def test_unreadable(self) -> None:
        """A file that is not there, or no YAML, is a mistake of one line."""
        self.assertEqual(self.run_with("a: [", "check", "FILE")[0], 1)
        code, said = self.run_with(None, "check", "/nowhere/x.yaml")
        self.assertEqual(code, 1)
        self.assertTrue(said.startswith("'/nowhere/x.yaml': expected a readable YAML file, got: "), said)

    def test_server(self) -> None:
        """The server gives up with one of the lines that are found here."""
        self.file.write_text("max-assoc: ten\ntls-port: x")
        ended = run_twistd("--config", self.file, cwd=self.home)
        self.assertEqual(ended.returncode, 1)
        found = self.run_with(None, "check", "FILE")[1].splitlines()
        self.assertIn(ended.stderr.replace(str(self.file), "FILE"), [f"storescp: {line}\n" for line in found])


class ShowTests(_TestCase):
    """config show."""

    def test_origins(self) -> None:
        """Each option that says something is shown with where it comes from; of alternatives the one in force."""
        self.set(STORESCP_MAX_PENDING="7", STORESCP_LISTEN="[tcp:104, tls:2762]")
        self.set(STORESCP_TLS_CERTIFICATE="c.pem", STORESCP_TLS_CLIENT_CERT="none")
        code, said = self.run_with(
            "port: 1\nmax-assoc: 5\nno-index: true", "show", "-c", "FILE", "--accept", "CT", "--accept", "MR"
        )
        self.assertEqual(code, 0)
        lines = dict(line.rsplit("  # ", 1) for line in said.splitlines())
        shown = {text.rstrip(): origin for text, origin in lines.items()}
        for text, origin in (
            ("max-assoc: 5", "FILE:2"),
            ("max-pending: 7", "STORESCP_MAX_PENDING"),
            ("listen: [tcp:104, tls:2762]", "STORESCP_LISTEN"),
            ("accept: [CT, MR]", "--accept"),
            ("timeout: 300", "default"),
            ("no-index: true", "FILE:3"),
        ):
            self.assertEqual(shown[text], origin)
        self.assertFalse({"port", "index-db"} & {text.split(":")[0] for text in shown})

    def test_it_is_a_file(self) -> None:
        """What is shown gives the same configuration again, section callers and strange values included."""
        content = EXAMPLE.read_text().replace("\nauth: none", "\nauth: file:/etc/passwords")
        before, after = content.split("# callers:\n")
        rules, rest = after.split("\n\n", 1)
        content = before + "callers:\n" + rules.replace("# ", "", 1).replace("\n# ", "\n") + "\n\n" + rest
        arguments = ["--jwt-issuer", "~", "--ae-title", "NO: #1", "--jwt-audience", 'a "b", [c]: {d}']
        code, said = self.run_with(content, "show", "-c", "FILE", *arguments)
        self.assertEqual(code, 0)
        shown = self.home / "shown.yaml"
        shown.write_text(said)
        given = dict(zip((name.removeprefix("--") for name in arguments[::2]), arguments[1::2], strict=True))
        self.assertEqual(load(shown, {}), load(self.file, given))
        self.assertIn("callers:", said)

    def test_defaults(self) -> None:
        """Without anything it shows every option but the alternatives, and what is shown gives the defaults."""
        code, said = self.run_with(None, "show")
        self.assertEqual(code, 0)
        names = [line.split(":")[0] for line in said.splitlines()]
        self.assertEqual(names, [option.name for option in OPTIONS if option.name != "listen"])
        self.file.write_text(said)
        self.assertEqual(load(self.file, {}), load(None, {}))

    def test_secrets(self) -> None:
        """Passwords are masked, and what is masked is no value that would be taken for one."""
        code, said = self.run_with("auth: [memory:alice:secret, file:/etc/passwords]", "show", "-c", "FILE")
        self.assertEqual(code, 0)
        self.assertIn("auth: [memory (masked), file:/etc/passwords]", said)
        code, said = self.check(said)
        self.assertEqual(code, 1)
        self.assertIn("auth: expected none or TYPE:ARGUMENTS such as file:/etc/storescp.passwd", said)

    def test_json(self) -> None:
        """As JSON: each value with its source, flags and lists as such, and the section callers."""
        code, said = self.run_with(
            "callers: {A: {accept: [CT, MR], max-assoc: 2}, B: }",
            "show",
            "-c",
            "FILE",
            "--json",
            "--no-index",
        )
        shown = json.loads(said)
        self.assertEqual(code, 0)
        self.assertEqual(shown["callers"], {"A": {"accept": ["CT", "MR"], "max-assoc": "2"}, "B": None})
        options = shown["options"]
        self.assertEqual(
            options["no-index"], {"value": True, "source": "command line", "origin": "--no-index"}
        )
        self.assertEqual(options["accept"]["value"], ["all"])
        self.assertEqual(options["port"], {"value": "11112", "source": "default", "origin": "default"})

    def test_mistake(self) -> None:
        """A mistake is one line and exit code 1."""
        self.assertEqual(
            self.run_with("port: x", "show", "-c", "FILE"),
            (1, "storescp: FILE:1: port: expected a port from 1 to 65535, got 'x'\n"),
        )

    @steady
    @given_by(st.text(min_size=1) | st.text(st.sampled_from("ab:,[]{}#&*!|>'\"%@`~?- \\0\n"), min_size=1))
    def test_any_text(self, text: str) -> None:
        """Whatever a value is, as far as YAML can hold it, it is written so that it is read as that."""
        if not all(char.isprintable() or char in "\n\t" for char in text):
            return
        node = yaml.compose(
            f"key: {_scalar(text)}  # comment\nlist: [{_scalar(text)}, x]", Loader=yaml.SafeLoader
        )
        assert isinstance(node, yaml.MappingNode)
        (_, value), (_, items) = node.value
        self.assertEqual((value.value, items.value[0].value, len(items.value)), (text, text, 2))


class HelpTests(_TestCase):
    """What a newcomer sees."""

    def test_help(self) -> None:
        """``storescp config`` alone shows its commands."""
        code, said = self.run_with(None)
        self.assertEqual(code, 0)
        self.assertIn("check", said)
        self.assertIn("show", said)


class RealTests(_TestCase):
    """The settings that are shown, in the real server."""

    def test_server(self) -> None:
        """A server starts with what is shown, and does as it says."""
        _, said = self.run_with("max-assoc: 3\nmax-pending: 4\ntimeout: 5", "show", "-c", "FILE")
        shown = pathlib.Path(self.home / "shown.yaml")
        shown.write_text(said)
        server = Server(self, "--config", shown)
        server.wait_for("at most 3 associations, 4 connections without one; idle timeout 5 s")
