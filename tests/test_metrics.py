"""What refers to the metrics: their reference, the alerts and the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import yaml
from twisted.trial.unittest import SynchronousTestCase

from storescp.metrics import METRICS, Kind
from tests.server import DEADLINE, ROOT, Server, environment, temporary_directory
from tests.test_web import HTTP, scrape

RULES = ROOT / "etc" / "prometheus-rules.yaml"
DASHBOARD = ROOT / "etc" / "grafana-dashboard.json"

_SUFFIXES = ("_bucket", "_sum", "_count")

SERVER = {"job": "storescp", "instance": "archive:8080"}


def series(name: str, **labels: str) -> str:
    """As PromQL has it."""
    pairs = (f'{label}="{value}"' for label, value in {**SERVER, **labels}.items())
    return f"{name}{{{','.join(pairs)}}}"


def day(is_bad: bool) -> dict[str, str]:
    """The metrics of a day, minute by minute: the first value, and what is added each minute."""

    def choose(bad: str, good: str) -> str:
        return bad if is_bad else good

    return {
        series("up"): choose("0+0", "1+0"),
        series("storescp_ready"): choose("0+0", "1+0"),
        series("storescp_storage_size_bytes"): "100000000000+0",
        series("storescp_storage_min_free_bytes"): "1000000000+0",
        series("storescp_storage_free_bytes"): choose("11000000000-12000000", "50000000000-100000"),
        series("storescp_instances_total", status="0000"): choose("100+0", "0+100"),
        series("storescp_instances_total", status="A700"): choose("0+10", "0+1"),
        series("storescp_associations_rejected_total", calling_ae="MR1", reason="titles"): choose(
            "0+1", "5+0"
        ),
        series("storescp_associations_ended_total", calling_ae="CT1", how="aborted"): choose("0+1", "5+0"),
        series("storescp_associations"): choose("10+0", "5+0"),
        series("storescp_associations_max"): "10+0",
        series("storescp_worker_restarts_total"): choose("0+1", "5+0"),
        series("storescp_tls_failures_total"): choose("0+1", "5+0"),
        series("storescp_limit_exceeded_total", limit="address"): choose("0+10", "0+1"),
        series("storescp_answer_seconds_bucket", le="0.5"): choose("0+10", "0+100"),
        series("storescp_answer_seconds_bucket", le="2.5"): "0+100",
        series("storescp_answer_seconds_bucket", le="+Inf"): "0+100",
    }


#: The labels of the alerts on a bad day, beside those of the server.
EXPECTED = {
    "StorescpDown": {"severity": "critical"},
    "StorescpNotReady": {"severity": "critical"},
    "StorescpDiskLow": {"severity": "warning"},
    "StorescpDiskFull": {"severity": "warning"},
    "StorescpFailures": {"severity": "warning", "status": "A700"},
    "StorescpRejected": {"severity": "warning", "calling_ae": "MR1", "reason": "titles"},
    "StorescpAborted": {"severity": "warning", "calling_ae": "CT1"},
    "StorescpAssociationsFull": {"severity": "warning"},
    "StorescpWorkerRestarts": {"severity": "warning"},
    "StorescpSlowAnswers": {"severity": "warning"},
    "StorescpTLSFailures": {"severity": "warning"},
    "StorescpLimits": {"severity": "warning", "limit": "address"},
    "StorescpNoImages": {"severity": "warning"},
}


def named(expression: str) -> set[str]:
    """The metrics that an expression of PromQL names."""
    return set(re.findall(r"\b(?:storescp|process|python)_\w+", expression))


def alerts() -> dict[str, str]:
    """The expressions, by the names of the alerts."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> list[tuple[str, str]]:
    """The titles and expressions of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


class NamesTests(SynchronousTestCase):
    """Prometheus' conventions, https://prometheus.io/docs/practices/naming/."""

    def test_names(self) -> None:
        """Each has the name of the server in front, counters end with _total, and units are bytes and seconds."""
        self.assertEqual(len({metric.name for metric in METRICS}), len(METRICS))
        for metric in METRICS:
            self.assertRegex(metric.name, r"\Astorescp(_[a-z]+)+\Z")
            self.assertEqual(metric.name.endswith("_total"), metric.kind is Kind.COUNTER, metric.name)
            self.assertEqual(metric.name.endswith("_seconds"), metric.kind is Kind.HISTOGRAM, metric.name)
            self.assertNotRegex(metric.name, r"_(ms|milliseconds|kb|mb|kilobytes)(_|\Z)")
            self.assertFalse(metric.help.endswith("."), metric.name)


class UsesTests(SynchronousTestCase):
    """Alerts and dashboard."""

    def test_exist(self) -> None:
        """Every metric that an alert or a panel names is in a real scrape; and every metric is on the dashboard."""
        names = set()
        for sample in scrape(Server(self, *HTTP)).samples:
            names.add(sample.name)
        # Series by sender are there when there are senders.
        names |= {metric.name for metric in METRICS if "calling_ae" in metric.labels}
        for title, expression in [*alerts().items(), *panels()]:
            self.assertEqual(named(expression) - names, set(), title)
        shown = {
            re.sub(f"({'|'.join(_SUFFIXES)})$", "", name) for _, text in panels() for name in named(text)
        }
        self.assertEqual({metric.name for metric in METRICS} - shown, set())

    def test_labels(self) -> None:
        """Every label that an expression selects or groups by is one of the metrics', or Prometheus' own."""
        known = {label for metric in METRICS for label in metric.labels} | {"job", "instance", "le"}
        for title, expression in [*alerts().items(), *panels()]:
            used = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", expression))
            for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
                used |= {label.strip() for label in group.split(",")}
            self.assertEqual(used - known, set(), title)

    def test_promtool(self) -> None:
        """promtool takes the rules."""
        checked = subprocess.run(
            ["promtool", "check", "rules", "--lint-fatal", RULES],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        self.assertIn(f"SUCCESS: {len(alerts())} rules found", checked.stdout)

    def test_alerts(self) -> None:
        """On a bad day each of the alerts fires, by promtool's own arithmetic; on a good one none does."""
        home = temporary_directory(self)
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                del rule["annotations"]  # texts, which promtool would compare, too
        (home / "rules.yaml").write_text(yaml.safe_dump(rules))
        self.assertEqual(set(EXPECTED), set(alerts()))
        tests = [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": f"{values}x800"} for name, values in numbers.items()
                ],
                "alert_rule_test": [
                    {
                        "alertname": name,
                        "eval_time": "13h",
                        "exp_alerts": [{"exp_labels": {**SERVER, **labels}}] if fires else [],
                    }
                    for name, labels in EXPECTED.items()
                ],
            }
            for numbers, fires in ((day(True), True), (day(False), False))
        ]
        (home / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
        checked = subprocess.run(
            ["promtool", "test", "rules", home / "test.yaml"],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_panels(self) -> None:
        """Panels have titles and numbers of their own, and do not overlap."""
        dashboard = json.loads(DASHBOARD.read_text())
        places = [
            (x, y)
            for panel in dashboard["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        self.assertEqual(len(places), len(set(places)))
        self.assertTrue(all(x < 24 for x, _ in places))
        for key in ("title", "id"):
            values = [panel[key] for panel in dashboard["panels"]]
            self.assertEqual(len(values), len(set(values)))


class ReferenceTests(SynchronousTestCase):
    """docs/metrics.rst."""

    def test_reference(self) -> None:
        """It is what "make reference" makes of the code."""
        made = subprocess.run(
            [sys.executable, ROOT / "tools" / "metrics_reference.py"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        self.assertEqual((ROOT / "docs" / "metrics.rst").read_text(), made.stdout)
