"""Alerts and dashboard: each alert fires for its fault, and what they ask is what a real tritonserver tells a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import PROJECT

MONITORING = PROJECT / "k8s/components/monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
# What Triton 24.10 of the wheel showed with --metrics-config=summary_latencies=true; `kube_` is kube-state-metrics', `up` Prometheus's own.
TRITON = {
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_inference_request_summary_us": {"model", "version", "quantile"},
    "nv_inference_queue_duration_us": {"model", "version"},
    "nv_inference_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
}
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here (Debian: prometheus)")


def expressions() -> list[str]:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [rule["expr"] for group in RULES["groups"] for rule in group["rules"]] + [
        t["expr"] for panel in panels for t in panel["targets"]
    ]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rules as Prometheus without the operator reads them."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    return tmp_path / "rules.yaml"


def promtool(*words: str, cwd: Path) -> str:
    done = subprocess.run(["promtool", *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_each_alert_fires_for_its_fault_and_not_before(rules: Path):
    promtool("check", "rules", "--lint-fatal", rules.name, cwd=rules.parent)
    shutil.copy(PROJECT / "tests/k8s/alerts.yaml", rules.parent)
    promtool("test", "rules", "alerts.yaml", cwd=rules.parent)


def test_each_alert_has_a_test_and_a_section_in_the_docs():
    tested = yaml.safe_load((PROJECT / "tests/k8s/alerts.yaml").read_text())["tests"]
    names = {alert["alert"] for alert in ALERTS}
    fired = {each["alertname"] for test in tested for each in test["alert_rule_test"] if each.get("exp_alerts")}
    quiet = {each["alertname"] for each in tested[0]["alert_rule_test"]}
    assert fired == quiet == names
    assert set(re.findall(r"^## (Dreamteacher\w+)$", (PROJECT / "docs/operations.md").read_text(), re.M)) == names


def test_what_is_asked_is_what_triton_tells():
    for expression in expressions():
        for name, labels in re.findall(r"(nv_\w+)(?:\{([^}]*)\})?", expression):
            assert name in TRITON, expression
            assert {label.split("=")[0].rstrip("!") for label in re.findall(r"\w+!?=", labels)} <= TRITON[name] | {"pod"}, expression


def test_the_dashboard_draws_each_metric_once():
    panels: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({json.dumps(panel["gridPos"]) for panel in panels})
