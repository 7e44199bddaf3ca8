"""k8s/serving on a real cluster: a version is rolled out under load, one that is damaged is not, and the one before it comes back.

Not named test_*, so that `make test` leaves it out: `make test-cluster` runs it, given KUBECONFIG and images that the cluster can get:

    DREAMTEACHER_IMAGE   the project's image
    TRITON_IMAGE         Triton with the python backend, whose Python has onnxruntime; tests/cluster/triton.Dockerfile makes one
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
import yaml
from mlflow.tracking import MlflowClient

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from serving_samples import PARAMS, make_data, make_evaluation, make_finetuned, make_model

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import promote, rollback
from dreamteacher.serving.delivery import keep_repository
from dreamteacher.serving.deployment import deploy, status
from dreamteacher.stages import export_onnx, publish
from helpers import PROJECT, free_port

NAMESPACE, NAME, CLIENTS = f"dreamteacher-test-{os.getpid()}", "cells", 4
GIVEN = {name: os.environ.get(name, "") for name in ("KUBECONFIG", "DREAMTEACHER_IMAGE", "TRITON_IMAGE", "SERVICE_ADDRESS")}
IMAGES = {"ghcr.io/dreamteacher/dreamteacher-python": GIVEN["DREAMTEACHER_IMAGE"], "nvcr.io/nvidia/tritonserver": GIVEN["TRITON_IMAGE"]}
pytestmark = [pytest.mark.timeout(1800)]
if missing := [name for name in ("KUBECONFIG", "DREAMTEACHER_IMAGE", "TRITON_IMAGE") if not GIVEN[name]]:
    pytest.skip(f"no cluster: set {', '.join(missing)}", allow_module_level=True)


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["kubectl", "-n", NAMESPACE, *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A fresh one that enforces Pod Security `restricted`, with the overlay applied and MLflow ready; deleted at the end."""
    kubectl("create", "namespace", NAMESPACE)
    try:
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        rendered = kubectl("kustomize", str(PROJECT / "tests/cluster/overlay"))
        for image, ours in IMAGES.items():
            rendered = re.sub(rf"image: {re.escape(image)}:\S+", f"image: {ours}", rendered)
        found = list(yaml.safe_load_all(rendered))
        for each in found:
            if each["kind"] == "Deployment" and each["metadata"]["name"] == "dreamteacher-triton":
                each["spec"]["template"]["metadata"]["annotations"]["dreamteacher.io/model"] = NAME
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(found))
        kubectl("rollout", "status", "deployment/mlflow", "--timeout=600s")
        yield NAMESPACE
    finally:
        if not os.environ.get("KEEP"):
            kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@contextmanager
def forwarded(target: str, port: int) -> Iterator[int]:
    """The local port that leads to `port` of `target` until the block ends."""
    local = free_port()
    process = subprocess.Popen(["kubectl", "-n", NAMESPACE, "port-forward", target, f"{local}:{port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", local)) == 0:
                    break
            time.sleep(0.1)
        yield local
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def versions(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """Three versions of the model in the cluster's MLflow, which answer differently; version 1 is champion."""
    folder = tmp_path_factory.mktemp("made")
    with forwarded("service/mlflow", 5000) as port, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        make_data(folder / "data")
        make_evaluation(folder / "evaluation")
        for seed in (1, 2, 3):
            made = make_finetuned(folder / f"model{seed}", make_model("classification", seed))
            export_onnx.run(PARAMS, data=folder / "data", finetuned=made, out=folder / f"onnx{seed}")
        patch.setenv("DREAMTEACHER_TRACKING", "on")
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        for seed in (1, 2, 3):
            publish.run(PARAMS, onnx=folder / f"onnx{seed}", evaluation=folder / "evaluation", out=folder / f"triton{seed}")
            keep_repository(NAME, str(seed), folder / f"triton{seed}")
        promote(NAME, version="1")
        yield MlflowClient(f"http://127.0.0.1:{port}")


class Load:
    """Requests of CLIENTS threads through the Service's pods, as a proxy in the cluster sends them, until `stop`."""

    def __init__(self, address: str):
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        self._ending, self._address = threading.Event(), address
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        while not self._ending.is_set():
            given = tritonclient.http.InferInput("images", image.shape, "FP32")
            given.set_data_from_numpy(image)
            try:
                client = tritonclient.http.InferenceServerClient(self._address)  # a new connection each, so that pods change
                logits = client.infer(NAME, [given]).as_numpy("logits")
                client.close()
                self.answers[",".join(f"{value:.3f}" for value in logits[0])] += 1
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}"[:200])
            time.sleep(0.02)

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


def address() -> str:
    """Of the Service, which this machine reaches if it is a node; else name a way to it in SERVICE_ADDRESS."""
    return GIVEN["SERVICE_ADDRESS"] or kubectl("get", "service", "dreamteacher-triton", "-o", "jsonpath={.spec.clusterIP}") + ":8000"


@pytest.fixture(scope="module")
def served(versions: MlflowClient) -> str:
    began = time.monotonic()
    assert deploy("dreamteacher-triton", NAMESPACE, wait=True) == f"dreamteacher-triton: version 1 of {NAME} is served"
    print(f"version 1 was ready after {time.monotonic() - began:.0f} s")
    return address()


def test_a_new_version_takes_over_under_load_without_a_failed_request_and_the_old_comes_back(served: str, versions: MlflowClient):
    load = Load(served)
    time.sleep(3)
    assert len(load.answers) == 1, load.failed[:3]
    promote(NAME, version="2")
    began = time.monotonic()
    assert "version 2 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    print(f"version 2 took over in {time.monotonic() - began:.0f} s")
    time.sleep(3)
    assert len(load.answers) == 2
    rollback(NAME)
    began = time.monotonic()
    assert "version 1 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    print(f"and version 1 again in {time.monotonic() - began:.0f} s")
    time.sleep(15)  # the last pods of version 2 end
    load.stop()
    print(f"{sum(load.answers.values())} requests, {len(load.failed)} failed, {dict(load.answers)}")
    assert load.failed == []
    assert len(load.answers) == 2
    lines = "\n".join(status(NAMESPACE))
    assert "dreamteacher-triton: version 1 of cells, 2 of 2 replicas ready, since" in lines


def test_a_damaged_version_is_not_served_and_the_old_one_serves_on(served: str, versions: MlflowClient):
    version = versions.get_model_version(NAME, "3")
    harm = f"find /data/artifacts -path '*{version.tags['repository']}/local/cells/1/model.onnx' -exec sh -c 'echo x >> $0' {{}} \\; -print"
    assert "model.onnx" in kubectl("exec", "deployment/mlflow", "--", "sh", "-c", harm)
    load = Load(served)
    with pytest.raises(
        UserError, match=r"cannot serve the new version, and serves the one before it: pod \S+: error: what MLflow stores with"
    ):
        deploy("dreamteacher-triton", NAMESPACE, version="3", wait=True)
    print("\n".join(status(NAMESPACE)))
    kubectl("rollout", "undo", "deployment/dreamteacher-triton")
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
    load.stop()
    assert load.failed == []
    assert len(load.answers) == 1
    assert "version 1 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, wait=True)


def test_a_killed_server_costs_only_requests_under_way(served: str):
    load = Load(served)
    kubectl("delete", "pod", "-l", "app.kubernetes.io/name=triton", "--field-selector=status.phase=Running", "--wait=false")
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
    load.stop()
    assert sum(load.answers.values()) > 0


def test_the_cronjob_follows_the_alias(served: str, versions: MlflowClient):
    promote(NAME, version="2")
    kubectl("create", "job", "--from=cronjob/dreamteacher-follow", "follow-once")
    kubectl("wait", "--for=condition=complete", "job/follow-once", "--timeout=300s")
    assert "version 2 of cells is being rolled out" in kubectl("logs", "job/follow-once")
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
