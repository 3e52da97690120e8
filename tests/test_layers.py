"""Imports point downward only, and what is pure stays pure."""

from __future__ import annotations

import ast
import functools
import graphlib
import os
import pathlib
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "storescp"

# From the bottom to the top: a module imports from its own layer and from those below. The last one loads what is
# above the pure and the blocking ones only where it is asked for: see WithoutTwistedTests.
LAYERS = tuple(
    tuple(layer.split())
    for layer in """
__init__

extended_negotiation pdu pdu_reader sop_classes
element_runs character_sets tags dataset_head
presentation negotiation state_table upper_layer dimse
statistics counting naming certificates access limits commitment_data audit_messages syslog_format

beneath config_modes flushing part10 storage_directory index_schema index_rows index early_end stored_file space
tls_settings credentials audit_settings log_settings priorities interrupts config_file option_values settings
config_callers config_access config_tls config_limits config_logs config_negotiation config_web config_commitment config
exposure reloading tokens passcodes
journal_file journal lost_answers restoration commit recovery archive commitment_store commitment_check
scu_errors scu_tls scu measurements shared channel readiness

systemd transports log_lines logs log_files syslog_queue syslog_udp syslog syslog_tls audit
interfaces worker store
ending connections outlet flow patience user_check protocol scp authentication tls_context tls
commitment_ledger commitment requestor reporter

reader receiver

child worker_process door supervisor

metrics exposition page web

banner service

checking tap

operator_archive operator_verify operator_reindex operator_files operator_send operator_config operator_commitments
operator_arguments operator_output operator_peer operator_health operator_run operator __main__
""".split("\n\n")
)
PURE, BLOCKING, OPERATOR = LAYERS[1], LAYERS[2], LAYERS[-1]

# A clock, a file, a socket, a thread: what a pure module has no use for.
IMPURE = frozenset(
    "asyncio concurrent logging multiprocessing os pathlib random select selectors shutil signal socket sqlite3 "
    "ssl subprocess tempfile threading time twisted zope".split()
)


@functools.cache
def imports(module: str) -> set[str]:
    """Return the full names of the modules that a module of the package imports anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            names.add(source)
            if source == "storescp":
                names.update(f"storescp.{alias.name}" for alias in node.names)
    return names


class LayersTests(SynchronousTestCase):
    """What the texts of the modules import."""

    def setUp(self) -> None:
        modules = {path.stem for path in PACKAGE.glob("*.py")}
        self.imports = {module: imports(module) for module in modules}
        self.ours = {
            module: {name.removeprefix("storescp.") for name in names if name.startswith("storescp.")}
            & modules
            for module, names in self.imports.items()
        }

    def test_every_module_has_its_layer(self) -> None:
        """The table of layers holds the modules of the package, each once, and nothing else."""
        self.assertEqual(sorted(module for layer in LAYERS for module in layer), sorted(self.imports))

    def test_absolute(self) -> None:
        """Imports are absolute, so that the other tests here see them all."""
        relative = {module for module, names in self.imports.items() if any(n.startswith(".") for n in names)}
        self.assertEqual(relative, set())

    def test_downward(self) -> None:
        """No module imports one of a higher layer."""
        height = {module: number for number, layer in enumerate(LAYERS) for module in layer}
        upward = {
            (module, other)
            for module, others in self.ours.items()
            for other in others
            if height.get(other, 0) > height.get(module, len(LAYERS))
        }
        self.assertEqual(upward, set())

    def test_no_cycles(self) -> None:
        """Within a layer, too, modules can be read one after the other."""
        graphlib.TopologicalSorter(self.ours).prepare()  # raises CycleError, which names the cycle

    def test_store_and_protocol_meet_elsewhere(self) -> None:
        """The protocol and the store know only the interfaces between them, directly or by way of others."""
        reachable: dict[str, set[str]] = {}
        for module in graphlib.TopologicalSorter(self.ours).static_order():
            reachable[module] = self.ours[module].union(*(reachable[other] for other in self.ours[module]))
        self.assertNotIn("store", reachable["protocol"])
        self.assertNotIn("protocol", reachable["store"])

    def test_pure(self) -> None:
        """The pure modules have no clock, no file, no socket and no thread."""
        impure = {
            (module, name)
            for module in PURE
            for name in self.imports[module]
            if name.partition(".")[0] in IMPURE
        }
        self.assertEqual(impure, set())


class WithoutTwistedTests(SynchronousTestCase):
    """What importing the modules really loads."""

    def test_twisted_is_absent(self) -> None:
        """Modules below the adapters, imported into an interpreter without those above, leave Twisted unloaded."""
        modules = PURE + BLOCKING + OPERATOR
        code = (
            "import importlib, sys\n"
            "for module in sys.argv[1:]:\n"
            "    importlib.import_module(f'storescp.{module}')\n"
            "    print(module, *(name for name in sys.modules if name.startswith('twisted')))\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, *modules],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.assertEqual(ended.stdout.splitlines(), list(modules))
