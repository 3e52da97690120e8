"""storescp.settings: who has given what for an option, and who is believed."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS, ConfigError, configured, gathered, load
from storescp.settings import Source, unknown_variables, variable
from tests.server import ROOT, Server, environment, run_twistd, temporary_directory


class EnvironmentTests(SynchronousTestCase):
    """Variables of the environment, between the command line and the file."""

    def write(self, content: str) -> str:
        path: str = self.mktemp()
        pathlib.Path(path).write_text(content)
        return path

    def fault(self, variables: Mapping[str, str], file: str | None = None) -> str:
        message = str(self.assertRaises(ConfigError, load, file, {}, variables))
        self.assertEqual(len(message.splitlines()), 1, message)
        return message

    def test_every_option_has_one(self) -> None:
        """Each option is taken from the variable of its name, as the same text from the command line."""
        self.assertEqual(variable("max-assoc"), "STORESCP_MAX_ASSOC")
        for option in OPTIONS:
            settings = gathered(None, {}, {variable(option.name): "\x7f no value of any option"})
            setting = settings.setting(option)
            self.assertEqual((setting.source, setting.where), (Source.ENVIRONMENT, variable(option.name)))
            self.assertEqual(setting.texts, ("\x7f no value of any option",))

    def test_values(self) -> None:
        """A flag is true or false, a list has commas where the command line has them, or is one of YAML."""
        config = load(
            None,
            {},
            {
                "STORESCP_MAX_ASSOC": "7",
                "STORESCP_CHECK_CALLED_AE": "true",
                "STORESCP_ACCEPT": "CT, MR",
                "STORESCP_LISTEN": "[tcp:104, 'tcp6:104:interface=\\:\\:1']",
                "STORESCP_AE_TITLE": "[A]",
            },
        )
        self.assertEqual((config.max_assoc, config.check_called_ae), (7, True))
        self.assertEqual(config.accept_names, ("CT", "MR"))
        self.assertEqual(config.listen, ("tcp:104", "tcp6:104:interface=\\:\\:1"))
        self.assertEqual(config.ae_title, "[A]")

    def test_order(self) -> None:
        """The command line overrules the environment, and that the file, a flag that is false too."""
        file = self.write("max-assoc: 1\nmax-pending: 1\ntimeout: 1\ncheck-called-ae: true")
        variables = {
            "STORESCP_MAX_ASSOC": "2",
            "STORESCP_MAX_PENDING": "2",
            "STORESCP_CHECK_CALLED_AE": "no",
        }
        config = load(file, {"max-assoc": "3"}, variables)
        self.assertEqual((config.max_assoc, config.max_pending, config.timeout), (3, 2, 1))
        self.assertFalse(config.check_called_ae)

    def test_either_or(self) -> None:
        """With one way of saying something a source overrules the other way in the sources before."""
        file = self.write("listen: tcp:1\nindex-db: x")
        self.assertEqual(load(file, {}, {"STORESCP_PORT": "2"}).listen, ("tcp:2",))
        self.assertEqual(load(file, {"listen": "tcp:3"}, {"STORESCP_PORT": "2"}).listen, ("tcp:3",))
        self.assertIsNone(load(file, {}, {"STORESCP_NO_INDEX": "true"}).index_db)
        self.assertEqual(load(file, {}, {"STORESCP_NO_INDEX": "false"}).index_db, "x")
        self.assertEqual(
            self.fault({"STORESCP_PORT": "1", "STORESCP_LISTEN": "tcp:1"}),
            "STORESCP_LISTEN: expected either port or listen, got both",
        )

    def test_empty(self) -> None:
        """An empty variable is as good as none."""
        self.assertEqual(load(None, {}, {"STORESCP_MAX_ASSOC": ""}), load(None, {}))

    def test_messages(self) -> None:
        """A mistake is told with the name of its variable."""
        for name, text, message in (
            ("MAX_ASSOC", "ten", ": expected a whole number from 1 to 65535, got 'ten'"),
            ("NO_INDEX", "perhaps", ": expected true or false, got 'perhaps'"),
            ("LISTEN", "[tcp:1, {}]", ": expected a value, got a mapping"),
            ("LISTEN", "[tcp:1", ":1: expected YAML, got: \"expected ',' or ']', but got '<stream end>'\""),
        ):
            self.assertEqual(self.fault({f"STORESCP_{name}": text}), f"STORESCP_{name}{message}")

    def test_of_a_service(self) -> None:
        """What Kubernetes tells of a service called storescp, or storescp-web, is neither a value nor unknown."""
        variables = {
            "STORESCP_SERVICE_HOST": "10.0.0.11",
            "STORESCP_SERVICE_PORT": "11112",
            "STORESCP_SERVICE_PORT_DICOM": "11112",
            "STORESCP_PORT": "tcp://10.0.0.11:11112",
            "STORESCP_PORT_11112_TCP": "tcp://10.0.0.11:11112",
            "STORESCP_PORT_11112_TCP_PROTO": "tcp",
            "STORESCP_PORT_11112_TCP_PORT": "11112",
            "STORESCP_PORT_11112_TCP_ADDR": "10.0.0.11",
            "STORESCP_WEB_SERVICE_HOST": "10.0.0.12",
            "STORESCP_WEB_PORT": "tcp://10.0.0.12:80",
        }
        self.assertEqual(load(None, {}, variables), load(None, {}))
        self.assertEqual(unknown_variables(OPTIONS, variables), [])

    def test_unknown(self) -> None:
        """Other variables with our prefix are told, with the nearest name; those that are no options are known."""
        variables = {
            "STORESCP_MAX_ASOC": "1",
            "STORESCP_CONFIG": "",
            "STORESCP_PASSWORD": "",
            "STORESCP_PORT": "1",
            "HOME": "",
        }
        supervisord = re.findall(r"ENV_(STORESCP_\w+)", (ROOT / "etc" / "supervisord.conf").read_text())
        variables |= dict.fromkeys(supervisord, "x")
        self.assertEqual(len(variables), 8)
        self.assertEqual(
            unknown_variables(OPTIONS, variables),
            ["'STORESCP_MAX_ASOC' names no option, and is ignored (nearest known: STORESCP_MAX_ASSOC)"],
        )


class ProgramTests(SynchronousTestCase):
    """The real server and the operator's command in an environment with such variables."""

    def set(self, **variables: str) -> None:
        for name, text in variables.items():
            self.patch(os, "environ", {**os.environ, name: text})

    def test_server(self) -> None:
        """It takes variables, and the file that STORESCP_CONFIG names; it warns of an unknown one and starts."""
        file = temporary_directory(self) / "storescp.yaml"
        file.write_text("max-assoc: 3\nmax-pending: 4\ntimeout: 5\n")
        self.set(STORESCP_CONFIG=str(file), STORESCP_MAX_PENDING="44", STORESCP_MAX_PENDIN="1")
        server = Server(self, "--timeout", "55")
        server.wait_for("at most 3 associations, 44 connections without one; idle timeout 55 s")
        server.wait_for("warn.*'STORESCP_MAX_PENDIN' names no option, and is ignored")

    def test_mistake(self) -> None:
        """A mistake in a variable is one line, and exit code 1."""
        self.set(STORESCP_PORT="tcp")
        result = run_twistd(cwd=temporary_directory(self))
        self.assertEqual(result.returncode, 1)
        self.assertEqual(
            result.stderr, "storescp: STORESCP_PORT: expected a port from 1 to 65535, got 'tcp'\n"
        )

    def test_operator(self) -> None:
        """The operator's command looks where the server in the same environment stores."""
        home = temporary_directory(self)
        result = subprocess.run(
            [sys.executable, "-m", "storescp", "stats"],
            env=environment() | {"STORESCP_STORAGE_DIR": str(home / "nowhere")},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(
            (result.returncode, result.stderr),
            (1, f"storescp: storage directory {home}/nowhere/: No such file or directory\n"),
        )


class SourceTests(SynchronousTestCase):
    """What is known of a setting."""

    def test_origins(self) -> None:
        """Each setting knows who has given it, and where."""
        file: str = self.mktemp()
        pathlib.Path(file).write_text("\nmax-pending: 4\nmax-assoc: 5")
        given: dict[str, str | Sequence[str]] = {"ae-title": "A"}
        settings = gathered(file, given, {"STORESCP_MAX_ASSOC": "6"})
        found = {
            option.name: (settings.setting(option).source.value, settings.setting(option).origin)
            for option in OPTIONS
            if option.name in ("port", "max-pending", "max-assoc", "ae-title")
        }
        self.assertEqual(
            found,
            {
                "port": ("default", "default"),
                "max-pending": ("file", f"{file}:2"),
                "max-assoc": ("environment", "STORESCP_MAX_ASSOC"),
                "ae-title": ("command line", "--ae-title"),
            },
        )
        self.assertEqual(configured(settings), load(file, given, {"STORESCP_MAX_ASSOC": "6"}))
