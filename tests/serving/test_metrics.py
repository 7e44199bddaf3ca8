"""A real Prometheus gets from a real tritonserver what the rules and the dashboard of k8s/components/monitoring ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
import yaml

from dreamteacher.serving.triton_server import Triton
from helpers import PROJECT, free_port

MONITORING = PROJECT / "k8s/components/monitoring"
pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here (Debian: prometheus)")


@pytest.fixture
def prometheus(triton: Triton, tmp_path: Path):
    """Its URL; it asks the server every second, as the job and in the namespace that the cluster's would be."""
    labels = {"namespace": "ml", "pod": "dreamteacher-triton-a"}
    scrape = {"job_name": "dreamteacher-triton", "static_configs": [{"targets": [triton.metrics_url], "labels": labels}]}
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml"], "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    words = [
        "prometheus",
        "--config.file=prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(url: str, expression: str) -> list[dict]:
    try:
        answer = urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10)
    except urllib.error.URLError:  # not up yet
        return []
    found: list[dict] = json.load(answer)["data"]["result"]
    return found


def without_limit(expression: str) -> str:
    """What an alert compares with its limit, over seconds."""
    over_seconds = expression.replace("absent(", "").replace("$__rate_interval", "10s").replace("[5m]", "[10s]")
    return re.split(r" [<>=]{1,2} ", over_seconds)[0]


def test_each_expression_finds_what_it_asks_for(prometheus: str, triton: Triton):
    image = tritonclient.http.InferInput("images", (1, 3, 32, 32), "FP32")
    image.set_data_from_numpy(np.zeros((1, 3, 32, 32), np.float32))
    wrong = tritonclient.http.InferInput("images", (1, 2, 32, 32), "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 2, 32, 32), np.float32))
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    rules = [rule for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"] for rule in group["rules"]]
    expressions = [rule["expr"] for rule in rules if "kube_" not in rule["expr"]]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    without_limits = [without_limit(expression) for expression in expressions]
    with tritonclient.http.InferenceServerClient(triton.http_url) as client:
        end = time.monotonic() + 60
        missing = without_limits
        while missing and time.monotonic() < end:
            client.infer("cells", [image])
            with pytest.raises(tritonclient.http.InferenceServerException):
                client.infer("cells", [wrong])
            time.sleep(0.5)
            missing = [each for each in without_limits if not ask(prometheus, each)]
    assert not missing
    (served,) = {each["metric"]["version"] for each in ask(prometheus, 'nv_inference_request_success{model="cells"}')}
    assert served == "1"
    firing = {each["metric"]["alertname"] for each in ask(prometheus, 'ALERTS{alertstate="firing"}')}
    assert "DreamteacherNoReplica" not in firing
