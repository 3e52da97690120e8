"""storescp.config: the options, their YAML file, and what an operator is told about mistakes."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import yaml
from hypothesis import example
from hypothesis import given as given_by
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.access import Callers
from storescp.beneath import Modes
from storescp.config import OPTIONS, Config, ConfigError, Duplicate, Sync, gathered, load
from storescp.config_access import AccessConfig
from storescp.config_callers import KEYS
from storescp.config_commitment import CommitmentSettings
from storescp.config_file import LARGE, MAX_FILE_SIZE, composed
from storescp.log_settings import LogFormat, LogLevel, LogLevels, LogSettings, Rotation
from storescp.naming import Naming
from storescp.presentation import COMPRESSED, UNCOMPRESSED, AcceptedClasses
from storescp.sop_classes import MODALITY_GROUPS, STORAGE_SOP_CLASSES
from storescp.space import SpaceLimit
from tests.strategies import steady

EXAMPLE = pathlib.Path(__file__).parent.parent / "etc" / "storescp.yaml"

DEFAULTS = Config(
    listen=("tcp:11112",),
    tls=None,
    ae_title="STORESCP",
    storage_dir=pathlib.Path("received"),
    index_db="received/.storescp/index.db",
    accept=AcceptedClasses(frozenset(STORAGE_SOP_CLASSES)),
    accept_names=("all",),
    prefer=(),
    prefer_for={},
    naming=Naming.HIERARCHICAL,
    duplicate=Duplicate.REJECT,
    modes=Modes(None, None),
    sync=Sync.ALWAYS,
    digest=None,
    min_free=SpaceLimit(100 * 1024 * 1024, False),
    workers=1,
    max_assoc=10,
    max_pending=100,
    timeout=300.0,
    artim_timeout=30.0,
    stop_timeout=30.0,
    max_pdu=262144,
    async_window=64,
    max_per_address=0,
    max_rate=0.0,
    max_object_size=0,
    max_in_flight=256 * 1024 * 1024,
    min_rate=1024,
    progress_timeout=60.0,
    check_called_ae=False,
    access=AccessConfig(
        callers=Callers(),
        auth=(),
        auth_required=False,
        auth_timeout=10.0,
        jwt_key=None,
        jwt_audience=None,
        jwt_issuer=None,
    ),
    http=None,
    commitment=CommitmentSettings(delay=1.0, retry=60.0, keep=259200.0, max_items=10000, max_owed=1000),
    log_patient_data=False,
    logs=LogSettings(keep=10),
)


class _TestCase(SynchronousTestCase):
    def from_yaml(self, content: str | bytes, **given: str | bool | Sequence[str]) -> Config:
        """load() with a file of this content, and options (with "_") as if from the command line."""
        return load(self.write(content), {name.replace("_", "-"): value for name, value in given.items()})

    def write(self, content: str | bytes) -> str:
        path: str = self.mktemp()
        pathlib.Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def fault(self, given: Mapping[str, str | bool | Sequence[str]], file: str | None = None) -> str:
        """The message of the ConfigError that these options cause: one line, not endless."""
        message = str(self.assertRaises(ConfigError, load, file, given))
        self.assertEqual(len(message.splitlines()), 1, message)
        self.assertLess(len(message), 400)
        return message

    def yaml_fault(self, content: str | bytes) -> str:
        """The message of the ConfigError that a file causes, without the file's name in front."""
        file = self.write(content)
        message = self.fault({}, file)
        self.assertTrue(message.startswith(file + ":"), message)
        return message.removeprefix(file)


class CommandLineTests(_TestCase):
    """load() without a file."""

    def test_defaults(self) -> None:
        """Nothing given, by hand or in an empty file, is the documented default of everything."""
        self.assertEqual(load(None, {}), DEFAULTS)
        for content in ("", "# only a comment\n", "---\n", "{}"):
            self.assertEqual(self.from_yaml(content), DEFAULTS)

    def test_every_option(self) -> None:
        """Each option given arrives in its field."""
        config = load(
            None,
            {
                "listen": ["tcp:104", "tcp6:104:interface=\\:\\:1"],
                "ae-title": "  ARCHIVE 1 ",
                "storage-dir": "/data/in",
                "index-db": "/data/index.db",
                "accept": "ct, KO,RawDataStorage, 1.2.9.*,Private",
                "prefer": "JPEG2000Lossless,1.2.840.10008.1.2",
                "prefer-for": ["IVOCT,1.2.3.4=uncompressed,compressed", "1.2.3.4=proposed"],
                "naming": "date",
                "duplicate": "replace",
                "file-mode": "0640",
                "directory-mode": "2750",
                "sync": "never",
                "digest": "SHA256",
                "min-free": "2.5%",
                "workers": "3",
                "max-assoc": "200",
                "max-pending": "7",
                "timeout": "0",
                "artim-timeout": "0.5",
                "stop-timeout": "0",
                "max-pdu": "0",
                "async-window": "8",
                "max-per-address": "50",
                "max-rate": "2.5",
                "max-object-size": "4G",
                "max-in-flight": "64 MiB",
                "min-rate": "0",
                "progress-timeout": "7.5",
                "check-called-ae": True,
                "auth": ["file:/etc/passwords", "memory:u:p"],
                "auth-required": True,
                "auth-timeout": "2.5",
                "jwt-key": "/etc/key.pem",
                "jwt-audience": "archive",
                "jwt-issuer": "https://sso.example",
                "http": "8080",
                "commitment-delay": "0",
                "commitment-retry": "2.5",
                "commitment-keep": "60",
                "commitment-max-items": "5",
                "commitment-max-owed": "7",
                "log-patient-data": True,
                "log-level": ["warn,tls=debug", "storescp.store=error"],
                "log-format": "json",
                "log-file": "/var/log/storescp.log",
                "log-rotate": "20M",
                "log-keep": "0",
            },
        )
        self.assertEqual(
            config,
            Config(
                listen=("tcp:104", "tcp6:104:interface=\\:\\:1"),
                tls=None,
                ae_title="ARCHIVE 1",
                storage_dir=pathlib.Path("/data/in"),
                index_db="/data/index.db",
                accept=AcceptedClasses(
                    MODALITY_GROUPS["CT"] | MODALITY_GROUPS["KO"] | {"1.2.840.10008.5.1.4.1.1.66"},
                    frozenset(("1.2.9.*",)),
                    frozenset(("private",)),
                ),
                accept_names=("ct", "KO", "RawDataStorage", "1.2.9.*", "Private"),
                prefer=(frozenset(("1.2.840.10008.1.2.4.90",)), frozenset(("1.2.840.10008.1.2",))),
                prefer_for={
                    **dict.fromkeys(MODALITY_GROUPS["IVOCT"], (UNCOMPRESSED, COMPRESSED)),
                    "1.2.3.4": (),
                },
                naming=Naming.DATE,
                duplicate=Duplicate.REPLACE,
                modes=Modes(0o640, 0o2750),
                sync=Sync.NEVER,
                digest="sha256",
                min_free=SpaceLimit(2.5, True),
                workers=3,
                max_assoc=200,
                max_pending=7,
                timeout=0.0,
                artim_timeout=0.5,
                stop_timeout=0.0,
                max_pdu=0,
                async_window=8,
                max_per_address=50,
                max_rate=2.5,
                max_object_size=4 << 30,
                max_in_flight=64 << 20,
                min_rate=0,
                progress_timeout=7.5,
                check_called_ae=True,
                access=AccessConfig(
                    callers=Callers(),
                    auth=("file:/etc/passwords", "memory:u:p"),
                    auth_required=True,
                    auth_timeout=2.5,
                    jwt_key=pathlib.Path("/etc/key.pem"),
                    jwt_audience="archive",
                    jwt_issuer="https://sso.example",
                ),
                http="tcp:8080:interface=127.0.0.1",
                commitment=CommitmentSettings(delay=0.0, retry=2.5, keep=60.0, max_items=5, max_owed=7),
                log_patient_data=True,
                logs=LogSettings(
                    levels=LogLevels(
                        LogLevel.WARN, (("tls", LogLevel.DEBUG), ("storescp.store", LogLevel.ERROR))
                    ),
                    format=LogFormat.JSON,
                    file=pathlib.Path("/var/log/storescp.log"),
                    rotation=Rotation(size=20 << 20),
                ),
            ),
        )

    def test_commitment(self) -> None:
        """Storage commitment can be switched off, and is not given without an index."""
        for given in ({"no-commitment": True}, {"no-index": True}):
            self.assertIsNone(load(None, given).commitment)

    def test_index(self) -> None:
        """The index is below the storage directory, or where it is put, or nowhere."""
        self.assertEqual(load(None, {"storage-dir": "/srv/x"}).index_db, "/srv/x/.storescp/index.db")
        self.assertEqual(load(None, {"storage-dir": "/srv/x", "index-db": "y.db"}).index_db, "y.db")
        self.assertIsNone(load(None, {"no-index": True}).index_db)

    def test_workers(self) -> None:
        """auto means a worker for each CPU that the server may run on."""
        self.assertEqual(load(None, {"workers": "auto"}).workers, len(os.sched_getaffinity(0)))

    def test_false_flags_are_not_given(self) -> None:
        """A flag that is False is as good as absent: it overrules nothing and contradicts nothing."""
        config = self.from_yaml("check-called-ae: true", check_called_ae=False, no_index=False, index_db="x")
        self.assertEqual((config.check_called_ae, config.index_db), (True, "x"))

    def test_boundaries(self) -> None:
        """The ends of each range are in it, and what is just beyond is not."""
        for name, inside, outside in (
            ("port", ["1", "65535"], ["0", "65536", "-1", "104.0", "0x10", "", "ftp", "1" * 5000]),
            ("workers", ["auto", "0", "1", "256"], ["-1", "257", "Auto", ""]),
            ("max-assoc", ["1", "65535"], ["0", "65536", "many"]),
            ("max-pending", ["1", "65535"], ["0", "65536"]),
            ("timeout", ["0", "0.1", "1e3", "604800"], ["-1", "604801", "nan", "inf", "1 s"]),
            ("artim-timeout", ["0.1", "3600"], ["0", "0.09", "3601", "nan"]),
            ("stop-timeout", ["0", "3600"], ["-0.1", "3601"]),
            ("async-window", ["1", "65535"], ["0", "65536", "-1"]),
            ("max-pdu", ["0", "4096", "16777216"], ["1", "4095", "16777217", "-4096", "1e5"]),
            (
                "ae-title",
                ["A", "A B", "~" * 16, " " * 9 + "A" * 16],
                ["", "   ", "A" * 17, "A\\B", "A\n", "É", "\x7f"],
            ),
            ("storage-dir", ["x", "/"], ["", " ", "a\0b"]),
            ("index-db", ["x"], ["", "postgresql://host/db", "sqlite:///x.db", "a\0b"]),
            ("listen", ["tcp:1", "systemd:domain=INET:index=0"], ["", "11112", ":1", "a b:1", "tcp:\n"]),
            ("tls-port", ["0"], ["65536", "tls", ""]),
            ("tls-timeout", ["0.1", "3600"], ["0", "3601"]),
            (
                "accept",
                ["CT", "CT,", "1.2.3.4", "*", "1.2.*.3*", "unknown", "declared,CT"],
                ["", ",", "CT,nonsense", "none", "CT*", "1.2.?", "unknown*"],
            ),
            (
                "prefer",
                ["proposed", "RLELossless", "compressed,ImplicitVRLittleEndian,Uncompressed"],
                ["", ",", "proposed,RLELossless", "1.2.3", "all"],
            ),
            (
                "prefer-for",
                ["none", "CT=compressed", "CT,1.2.3.4 = RLELossless,uncompressed", "MR=proposed"],
                ["", "CT", "=", "CT=", "=compressed", "CT=x", "x=compressed", "unknown=compressed"],
            ),
            ("naming", ["flat"], ["Flat", "", "hierarchical "]),
            ("duplicate", ["ignore", "same"], ["overwrite", ""]),
            (
                "file-mode",
                ["umask", "0640", "640", "0o640", "0400", "0666"],
                ["0240", "0700", "0641", "4640", "416", "u=rw", "64", "-640", "0x1a0", ""],
            ),
            (
                "directory-mode",
                ["umask", "0750", "700", "2750", "3777", "0o755"],
                ["0650", "0077", "4755", "488", "77777", "rwx", ""],
            ),
            ("digest", ["none", "sha256", "blake2b"], ["crc32", "shake_128", ""]),
            (
                "min-free",
                ["0", "1000", "64K", "1.5 GiB", "2TB", "0%", "100%"],
                ["-1", "101%", "5 apples", "M", ""],
            ),
            ("sync", ["always", "never"], ["sometimes", ""]),
            (
                "log-level",
                ["debug", "error", "info,tls=debug", "tls=warn", "twisted.web=error,debug"],
                [
                    "warning",
                    "INFO",
                    "",
                    ",",
                    "warn,error",
                    "tsl=info",
                    "tls=",
                    "tls=info,tls=warn",
                    "a b.c=info",
                ],
            ),
            ("log-format", ["text", "json"], ["JSON", ""]),
            (
                "audit",
                ["none", "udp://a", "tcp://my_host.ward.:601", "tls://[::1]:6514", "tcp://192.0.2.1"],
                ["", "http://a", "tcp://a..b", f"tcp://{'a' * 64}", "tcp://a:0", "udp://[1:2]"],
            ),
            ("log-file", ["none", "/x"], ["", " ", "a\0b"]),
            ("log-rotate", ["none"], ["weekly", "1K", "-1", ""]),
            ("log-keep", ["0", "1", "10000"], ["-1", "10001", "all"]),
        ):
            for text in inside:
                load(None, {name: text})
            for text in outside:
                self.assertTrue(self.fault({name: text}).startswith(f"--{name}: expected "), (name, text))

    def test_messages(self) -> None:
        """A message says which option, what was expected, and what was got, cut short when long."""
        self.assertEqual(self.fault({"port": "x"}), "--port: expected a port from 1 to 65535, got 'x'")
        self.assertEqual(
            self.fault({"max-pdu": "9" * 9}),
            "--max-pdu: expected 0 or a number of bytes from 4096 to 16777216, got '999999999'",
        )
        self.assertEqual(
            self.fault({"naming": "flet"}), "--naming: expected one of hierarchical, date, flat, got 'flet'"
        )
        self.assertEqual(
            self.fault({"index-db": "a://b"}),
            "--index-db: expected the path of a SQLite database, got 'a://b'",
        )
        self.assertIn("got 'CTT' (nearest known: CT)", self.fault({"accept": ["MR", "CTT"]}))
        self.assertIn(
            "got 'propsed', or 'compressed' or 'uncompressed'; or 'proposed' alone",
            self.fault({"prefer": "propsed"}),
        )
        self.assertIn("'xxxxxxxx", self.fault({"ae-title": "x" * 100_000}))
        self.assertEqual(
            self.fault({"max-asoc": "1"}),
            "--max-asoc: expected the name of an option, got 'max-asoc' (nearest known: max-assoc)",
        )

    def test_lists(self) -> None:
        """Only list options may be given more than once."""
        self.assertEqual(load(None, {"accept": ["CT,MR", "KO"]}).accept_names, ("CT", "MR", "KO"))
        self.assertEqual(self.fault({"port": ["1", "2"]}), "--port: expected one value, got a list of 2")
        self.assertIn("expected a Twisted endpoint", self.fault({"listen": []}))

    def test_either_or(self) -> None:
        """Two options that say one thing contradict each other."""
        self.assertEqual(
            self.fault({"listen": "tcp:1", "port": "1"}), "--listen: expected either port or listen, got both"
        )
        self.assertEqual(
            self.fault({"index-db": "x", "no-index": True}),
            "--index-db: expected either no-index or index-db, got both",
        )


class FileTests(_TestCase):
    """load() with a YAML file."""

    def test_scalars_are_text(self) -> None:
        """What YAML would make a boolean or an octal number of is taken as it is written."""
        self.assertEqual(self.from_yaml("ae-title: NO").ae_title, "NO")
        self.assertEqual(self.from_yaml("port: 0104").listen, ("tcp:104",))
        for text, flag in (("yes", True), ("On", True), ("TRUE", True), ("off", False), ("'false'", False)):
            self.assertIs(self.from_yaml(f"check-called-ae: {text}").check_called_ae, flag)

    def test_lists(self) -> None:
        """A list is a YAML list, in either style, or separated by commas, or both."""
        for text in ("CT, MR", "[CT, MR]", "\n  - CT\n  - MR\n", "['CT,MR']"):
            self.assertEqual(self.from_yaml(f"accept: {text}").accept_names, ("CT", "MR"))

    def test_octal(self) -> None:
        """A mode is octal with quotes and without, though YAML 1.1 knows octal numbers and YAML 1.2 has others."""
        for text in ("0640", '"0640"', "'640'", "640", "0o640"):
            self.assertEqual(self.from_yaml(f"file-mode: {text}").modes, Modes(0o640, None))

    def test_underscores(self) -> None:
        """Names may be written with underscores; the same name both ways is a repetition."""
        self.assertEqual(self.from_yaml("max_assoc: 3").max_assoc, 3)
        self.assertEqual(
            self.yaml_fault("max_assoc: 3\nport: 1\nmax-assoc: 3"),
            ":3: max-assoc: expected once, got a second time",
        )

    def test_command_line_wins(self) -> None:
        """An option of the command line replaces the file's, and the file's other way of saying the same."""
        self.assertEqual(self.from_yaml("port: 1\nmax-assoc: 3", port="2").listen, ("tcp:2",))
        self.assertEqual(self.from_yaml("port: 1", listen=["tcp:3"]).listen, ("tcp:3",))
        self.assertEqual(self.from_yaml("listen: tcp:1", port="2").listen, ("tcp:2",))
        self.assertIsNone(self.from_yaml("index-db: x", no_index=True).index_db)
        self.assertEqual(self.from_yaml("no-index: true", index_db="x").index_db, "x")

    def test_either_or(self) -> None:
        """Contradictions in one file are told with their line; "no-index: false" contradicts nothing."""
        self.assertEqual(
            self.yaml_fault("port: 1\nlisten: tcp:1"), ":2: listen: expected either port or listen, got both"
        )
        self.assertEqual(self.from_yaml("no-index: false\nindex-db: x").index_db, "x")

    def test_messages(self) -> None:
        """A message says file, line, option, what was expected and what was got."""
        for content, message in (
            (
                "port: 1\n\nmax-assoc: ten",
                ":3: max-assoc: expected a whole number from 1 to 65535, got 'ten'",
            ),
            ("prot: 1", ":1: expected the name of an option, got 'prot' (nearest known: port)"),
            ("1: 1", ":1: expected the name of an option, got '1'"),
            ("config: x.yaml", ":1: expected the name of an option, got 'config'"),
            ("port: 1\nport: 2", ":2: port: expected once, got a second time"),
            ("port:", ":1: port: expected a value, got nothing"),
            ("port: ~", ":1: port: expected a value, got '~'"),
            ("port: ''", ":1: port: expected a port from 1 to 65535, got ''"),
            ("port: [1, 2]", ":1: port: expected one value, got a list of 2"),
            ("port: {a: b}", ":1: port: expected a value, got a mapping"),
            ("accept: [CT, [MR]]", ":1: accept: expected a value, got a list"),
            ("accept: &a [*a]", ":1: accept: expected a value, got a list"),
            ("no-index: maybe", ":1: no-index: expected true or false, got 'maybe'"),
            ("? [a]\n: b", ":1: expected the name of an option, got a list"),
            ("<<: {port: 1}", ":1: expected the name of an option, got '<<'"),
            ("\n- port", ":2: expected lines of the form 'option: value', got a list"),
            ("11112", ":1: expected lines of the form 'option: value', got '11112'"),
        ):
            self.assertEqual(self.yaml_fault(content), message)

    def test_every_place(self) -> None:
        """Whatever is wrong with an option or with a key of a rule, the file and the line are told, and its name."""
        for option in OPTIONS:
            said = self.yaml_fault(f"\n{option.name}: {{a: b}}")
            self.assertEqual(said, f":2: {option.name}: expected a value, got a mapping")
            said = self.yaml_fault(f'\n\n{option.name}: "\\0"')
            self.assertTrue(said.startswith(f":3: {option.name}: expected "), said)
        for key in KEYS:
            for wrong in ("{a: b}", "", '"\\0"'):
                said = self.yaml_fault(f"callers:\n  A:\n    {key}: {wrong}")
                self.assertTrue(said.startswith(f":3: callers.A.{key}"), said)
        for content, where in (
            ("\nreject-unknown-callers: true", ":2: reject-unknown-callers"),
            ("\nauth-required: true", ":2: auth-required"),
            ("\ntls-port: 1", ":2: tls-port"),
            ("\nlisten: tls:1", ":2: listen"),
            ("\ntls-certificate: x", ":2: tls-certificate"),
        ):
            said = self.yaml_fault(content)
            self.assertTrue(said.startswith(f"{where}: expected "), said)

    def test_broken_yaml(self) -> None:
        """What is no YAML is one line, with the line's number where there is one."""
        for content, start in (
            (
                "port: 1\n\tx: 2",
                ":2: expected YAML, got: \"found character '\\\\t' that cannot start any token\" (indent with spaces",
            ),
            (
                "port:1\nae-title: X",
                ":2: expected YAML, got: 'mapping values are not allowed here' (is there a space after",
            ),
            (
                "port: 1\nae-title X\n",
                ":3: expected YAML, got: \"could not find expected ':'\" (is there a colon",
            ),
            ("port: [1", ":1: expected YAML, got: "),
            ("port: *nobody", ":1: expected YAML, got: "),
            ("port: 1\n---\nport: 2", ":2: expected YAML, got: "),
            ('port: "\\UFFFFFFFF"', ": expected YAML, got: "),
            ("[" * 5000, ": expected YAML, got: RecursionError"),
            (b"port: \xff", ": expected YAML, got at byte 6: "),
            (b"port: \0", ": expected YAML, got at byte 6: "),
            ("#" * (MAX_FILE_SIZE + 1), ": expected a YAML file of at most 1048576 bytes, got more"),
        ):
            message = self.yaml_fault(content)
            self.assertTrue(message.startswith(start), message)

    def test_large_file(self) -> None:
        """A large file means the same as a small one, and its mistakes are told in the same words."""
        rule = "  CT{0}:\n    accept: [CT, SR] # {0}\n    called: \"A\\tB\"\n    user: 'x'\n"
        content = "port: 1\ncallers: &a\n" + "".join(rule.format(number) for number in range(700))
        self.assertGreater(len(content), LARGE)

        def places(node: yaml.Node | None) -> list[tuple[object, ...]]:
            assert node is not None
            inner = (
                [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else []
            )
            inner += node.value if isinstance(node, yaml.SequenceNode) else []
            found = [(node.tag, "" if inner else node.value, node.start_mark.line, type(node))]
            return found + [place for item in inner for place in places(item)]

        self.assertEqual(
            places(composed(self.write(content))), places(yaml.compose(content, Loader=yaml.SafeLoader))
        )
        for wrong in ("\n\tx: 2", "\nport: [1", "\nport: *nobody"):
            said = self.yaml_fault(content + wrong)
            self.assertEqual(said.partition(": ")[2], self.yaml_fault("a: 1" + wrong).partition(": ")[2])
            self.assertTrue(said.startswith(f":{content.count(chr(10)) + 2}: "), said)

    def test_unreadable_file(self) -> None:
        """A file that is missing, a directory or no possible name is one line that names it."""
        self.assertEqual(
            self.fault({}, "/nowhere/x.yaml"),
            "'/nowhere/x.yaml': expected a readable YAML file, got: No such file or directory",
        )
        for file in (".", "a\0b"):
            self.assertTrue(
                self.fault({}, file).startswith(f"{file!r}: expected a readable YAML file, got: ")
            )

    @steady
    @given_by(
        st.text()
        | st.binary()
        | st.text(st.sampled_from("port:accept-\n []{},&*!|>'\"%#?~0CT\t\\U"))
        | st.dictionaries(
            st.sampled_from([option.name for option in OPTIONS]) | st.text(),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=4,
            ),
            max_size=4,
        ).map(yaml.safe_dump)
    )
    @example('"\\uD800": 1')
    @example("%YAML " + "9" * 5000 + ".1\n---\n")
    def test_any_file(self, content: str | bytes) -> None:
        """Whatever a file holds is a Config or a ConfigError of one line; so are all mistakes, if all are asked for."""
        data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        file = self.write(data)
        found: list[str] = []
        try:
            gathered(file, {}, {}, found).judge()
        except ConfigError as error:
            found.append(str(error))
        try:
            load(file, {})
        except ConfigError as error:
            self.check(str(error))
        else:
            self.assertEqual(found, [])
        for mistake in found:
            self.check(mistake)

    def check(self, mistake: str) -> None:
        """A mistake is told in one line, bounded and fit to be printed."""
        self.assertEqual(len(mistake.splitlines()), 1)
        self.assertLess(len(mistake), 400)
        mistake.encode()


class ExampleFileTests(_TestCase):
    """etc/storescp.yaml."""

    def test_every_option_with_its_default(self) -> None:
        """It shows each option once, with its default; the two that are commented out have an alternative."""
        text = EXAMPLE.read_text()
        shown = re.findall(r"^(# )?([a-z-]+): (\S+)$", text, re.M)
        self.assertEqual(sorted(name for _, name, _ in shown), sorted(option.name for option in OPTIONS))
        self.assertEqual({name for comment, name, _ in shown if comment}, {"listen", "index-db"})
        defaults = {option.name: option.default for option in OPTIONS}
        defaults["listen"] = defaults["listen"].replace("PORT", defaults["port"])
        defaults["index-db"] = defaults["index-db"].replace("STORAGE-DIR", defaults["storage-dir"])
        self.assertEqual({name: value for _, name, value in shown}, defaults)

    def test_it_is_valid(self) -> None:
        """As it stands it gives the defaults, and so it does when its alternatives are taken."""
        self.assertEqual(load(EXAMPLE, {}), DEFAULTS)
        text = EXAMPLE.read_text()
        self.assertEqual(self.from_yaml(re.sub(r"^# index-db:", "index-db:", text, flags=re.M)), DEFAULTS)
        with_listen = re.sub(
            r"^# listen:", "listen:", re.sub(r"^port:", "# port:", text, flags=re.M), flags=re.M
        )
        self.assertIn("\nlisten: ", with_listen)
        self.assertEqual(self.from_yaml(with_listen), DEFAULTS)

    def test_callers(self) -> None:
        """Its example of rules, without the comment signs and with what checks users, is valid and has every key."""
        text = EXAMPLE.read_text().replace("\nauth: none", "\nauth: memory:alice:secret")
        before, after = text.split("# callers:\n")
        example, rest = after.split("\n\n", 1)
        rules = "callers:\n" + re.sub(r"^# ", "", example, flags=re.M)
        self.assertEqual(set(re.findall(r"^    ([a-z-]+):", rules, re.M)), set(KEYS))
        callers = self.from_yaml(f"{before}{rules}\n\n{rest}").access.callers
        self.assertEqual([caller.name for caller in callers.known], ["CT1", "WS_*"])
        self.assertEqual([caller.max_assoc for caller in callers.known], [2, 4])

    def test_it_names_every_group(self) -> None:
        """Its comment on `accept` lists all modality groups."""
        comment = re.findall(r"[A-Z0-9]+", EXAMPLE.read_text().split("# Groups:")[-1].split("accept:")[0])
        self.assertLessEqual(MODALITY_GROUPS.keys(), set(comment))


class OptionTests(SynchronousTestCase):
    """OPTIONS."""

    def test_table(self) -> None:
        """Names and letters are unique, each row has a help text and a default that its parser takes."""
        names = [option.name for option in OPTIONS]
        letters = [option.short for option in OPTIONS if option.short]
        self.assertEqual((len(set(names)), len(set(letters))), (len(names), len(letters)))
        self.assertEqual(
            {option.name: option.short for option in OPTIONS if option.short},
            {"port": "p", "ae-title": "a", "storage-dir": "d"},
        )
        for option in OPTIONS:
            self.assertTrue(option.help and option.name.islower())
            option.parse((option.default,))
        self.assertEqual(
            [option.name for option in OPTIONS if option.is_flag],
            [
                *("no-index", "check-called-ae", "reject-unknown-callers", "auth-required", "no-commitment"),
                "log-patient-data",
            ],
        )
