"""The trial pod of `check`, its probe and what it is made of."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from check_scenarios import SCENARIOS

from pipelines.check import answers, needs, pod, probe, trainer
from pipelines.check.finding import Cluster
from pipelines.compile import compile_pipeline
from pipelines.resources import FILE, Profile

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}


def test_the_pod_is_as_those_of_the_steps(tmp_path: Path):
    wanted = needs.of_profile(SCENARIO["no pull secret"].read_profile(tmp_path))
    spec = pod.manifest(wanted, "pipeline-runner", 60)["spec"]
    (container,) = spec["containers"]
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {**security, "runAsNonRoot": True}
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("pipeline-runner", [{"name": "regcred"}])
    assert spec["nodeSelector"] == {"dreamteacher.io/pool": "cpu"}
    names = {each["name"] for each in container["env"]}
    assert names >= {"MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY", "DREAMTEACHER_RUNS"}
    assert "GIT_TOKEN" not in names


def test_a_package_needs_what_its_profile_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image, profile = SCENARIO["healthy"].image, "multi-node"
    monkeypatch.setattr("components.IMAGE", image)
    of_profile, pods = needs.of_profile(Profile(profile, image, FILE)), set()
    for name in ("pretrain", "retrain"):
        compile_pipeline(name, profile, tmp_path / f"{name}.yaml")
        of_package = needs.of_package(tmp_path / f"{name}.yaml")
        pods |= {*of_package.pods}
        assert dataclasses.replace(of_package, pods={}, image="") == dataclasses.replace(of_profile, pods={}, image="")
    assert pods == {*of_profile.pods}


def test_each_right_of_the_role_is_looked_at():
    role, _ = yaml.safe_load_all((FILE.parents[1] / "k8s/base/trainjobs.yaml").read_text())
    looked_at = {(group, f"{resource}/{part}".rstrip("/"), verb) for group, resource, part, verbs in trainer.RIGHTS for verb in verbs}
    granted = {(rule["apiGroups"][0], rule["resources"][0], verb) for rule in role["rules"] for verb in rule["verbs"]}
    assert granted <= looked_at


def run_probe(**environment: str) -> dict[str, dict[str, Any]]:
    """What the probe tells, run as the pod runs it: Python alone, without this project."""
    words = [sys.executable, "-I", "-c", Path(probe.__file__).read_text()]
    done = subprocess.run(words, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=True)
    return {(told := json.loads(line))["about"]: told for line in done.stdout.splitlines()}


def test_the_probe_finds_a_volume_a_server_with_a_password_and_a_store_without_keys(tmp_path: Path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(200 if self.headers.get("Authorization") else 401)
            self.end_headers()
            self.wfile.write(b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    address = f"http://ada:secret@127.0.0.1:{server.server_port}"
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
    told = run_probe(
        DREAMTEACHER_RUNS=str(tmp_path), MLFLOW_TRACKING_URI=address, AWS_ENDPOINT_URL=address, AWS_DEFAULT_REGION="r", **nowhere
    )
    without = run_probe(DREAMTEACHER_RUNS="/proc", MLFLOW_TRACKING_URI=address.replace("ada:secret@", ""))
    server.shutdown()
    server.server_close()
    assert (told["volume"]["error"], told["mlflow"]["error"], told["s3"]["error"]) == ("", "", "no keys")
    assert list(tmp_path.iterdir()) == []
    assert told["mlflow"]["address"] == address.replace("ada:secret@", "")
    assert asked[0] == ("/api/2.0/mlflow/experiments/search?max_results=1", f"Basic {base64.b64encode(b'ada:secret').decode()}")
    assert (without["mlflow"]["status"], without["mlflow"]["error"]) == (401, "401 {}")
    assert without["volume"]["error"]


def test_a_nearly_full_volume_and_a_missing_login_are_reported(tmp_path: Path):
    wanted = needs.of_profile(SCENARIO["healthy"].read_profile(tmp_path))
    cluster = Cluster(None, "dt", "kubeflow")  # type: ignore[arg-type]
    full = {"about": "volume", "error": "", "locked": [], "free": 2**30, "uid": 1, "groups": [0]}
    assert answers.finding(full, cluster, wanted)[:3] == ("warn", "claim dreamteacher-runs", "writable, but only 1 GiB free")
    refused = {"about": "mlflow", "error": "401 login", "status": 401, "address": "http://m"}
    assert answers.finding(refused, cluster, wanted)[:3] == ("wrong", "MLflow", "http://m requires a login: 401 login")
    empty = {"about": "image", "error": "missing", "packages": ["dreamteacher"]}
    assert answers.finding(empty, cluster, wanted).words == "has no dreamteacher"
