"""Alerts and dashboard: each alert fires for its fault, and their metrics exist in a real tritonserver and Prometheus."""

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
# Compared with a real server in tests/serving/test_metrics.py; `kube_` is kube-state-metrics', `up` Prometheus's own.
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


@needs_promtool
def test_the_autoscaler_sees_the_milliseconds_that_the_busiest_model_waits(tmp_path: Path):
    series = 'namespace="dreamteacher", job="dreamteacher-triton", pod="{}", model="{}"'

    def given(metric: str, pod: str, model: str, each_quarter: int) -> dict[str, str]:
        return {"series": f"{metric}{{{series.format(pod, model)}}}", "values": f"0+{each_quarter}x40"}

    waited, answered = "nv_inference_queue_duration_us", "nv_inference_request_success"
    busy = [
        each
        for pod, microseconds in (("a", 60_000), ("b", 180_000))  # 120 ms in the mean of both
        for each in (given(waited, pod, "cells", 600 * microseconds), given(answered, pod, "cells", 600))
    ] + [given(waited, "a", "idle", 0), given(answered, "a", "idle", 0)]
    cases = [("busy", busy, [{"value": 120}]), ("idle", busy[-2:], [{"value": 0}]), ("no metrics", [], [])]
    tests = [
        {
            "interval": "15s",
            "name": name,
            "input_series": found,
            "promql_expr_test": [{"expr": autoscaling_query(), "eval_time": "9m", "exp_samples": expected}],
        }
        for name, found, expected in cases
    ]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"tests": tests}))
    promtool("test", "rules", "tests.yaml", cwd=tmp_path)


def autoscaling_query() -> str:
    (trigger,) = yaml.safe_load((MONITORING / "../autoscaling/scaledobject.yaml").read_text())["spec"]["triggers"]
    query: str = trigger["metadata"]["query"]
    return query


def test_every_metric_in_a_query_is_one_that_triton_exports():
    for expression in [*expressions(), autoscaling_query()]:
        for name, labels in re.findall(r"(nv_\w+)(?:\{([^}]*)\})?", expression):
            assert name in TRITON, expression
            assert {label.split("=")[0].rstrip("!") for label in re.findall(r"\w+!?=", labels)} <= TRITON[name] | {
                "pod",
                "namespace",
                "job",
            }, expression


def test_the_dashboard_draws_each_metric_once():
    panels: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({json.dumps(panel["gridPos"]) for panel in panels})
