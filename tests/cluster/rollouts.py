"""k8s/overlays/dev on a real cluster: rollout of a version under load, refusal of a damaged one, rollback.
Then the same Triton also serves the model of a second domain.

Not named test_*, so that `make test` leaves it out: `make test-cluster` runs it, given KUBECONFIG and images that the cluster can get:

    DREAMTEACHER_IMAGE   the project's image (docker/Dockerfile)
    TRITON_IMAGE         Triton; where NVIDIA's cannot be had, tests/cluster/triton.Dockerfile makes one
    TRITON_BACKEND       production for NVIDIA's; default: local, of a Triton with the python backend alone, whose Python has onnxruntime
    SERVING_IMAGE        that of docker/serving.Dockerfile; default: the project's
    POSTGRES_IMAGE, OBJECT_STORE_IMAGE   default: those of the manifests; {postgres,object-store}.Dockerfile make others
    SERVICE_ADDRESS      HOST:PORT that leads to Triton's Service, if this machine is no node of the cluster
    KEEP=1               leave the namespace
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from mlflow.tracking import MlflowClient
from PIL import Image

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "serving")]
from cluster_stack import BACKEND, GIVEN, NAMESPACE, NEEDED, address, applied, fetch_seconds, forwarded, kubectl
from serving_samples import PARAMS, make_data, make_evaluation, make_finetuned, make_model

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import promote, rollback
from dreamteacher.serving.client import Classification, Client
from dreamteacher.serving.delivery import keep_repository
from dreamteacher.serving.deployment import deploy, status
from dreamteacher.stages import export_onnx, publish

NAME, OTHER, CLIENTS = "cells", "roads", 4
MODELS = [(NAME, "classification", seed) for seed in (1, 2, 3)] + [(OTHER, "segmentation", seed) for seed in (1, 2)]
pytestmark = [pytest.mark.timeout(1800)]
if missing := [name for name in NEEDED if not GIVEN[name]]:
    pytest.skip(f"no cluster: set {', '.join(missing)}; {Path(__file__).name} says what they are", allow_module_level=True)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """MODELS in the cluster's MLflow: their versions answer differently, and version 1 of each is champion."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        make_data(folder / "data")
        make_evaluation(folder / "evaluation")
        for name, task, seed in MODELS:
            made = make_finetuned(folder / f"{name}{seed}", make_model(task, seed))
            export_onnx.run(PARAMS, data=folder / "data", finetuned=made, out=folder / f"onnx-{name}{seed}")
        with applied(NAME), forwarded("service/dreamteacher-mlflow", 5000) as port:
            patch.setenv("DREAMTEACHER_TRACKING", "on")
            patch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{port}")
            for name, _, seed in MODELS:
                out = folder / f"triton-{name}{seed}"
                params = PARAMS.model_copy(update={"publish": PARAMS.publish.model_copy(update={"name": name})})
                publish.run(params, onnx=folder / f"onnx-{name}{seed}", evaluation=folder / "evaluation", out=out)
                keep_repository(name, str(seed), out)
            for name in (NAME, OTHER):
                promote(name, version="1")
            yield MlflowClient(f"http://localhost:{port}")


def picture() -> bytes:
    """A PNG of 40 x 56 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Load:
    """Requests for `model` of CLIENTS threads of each kind through the Service, until `stop`: prepared tensors by bare requests, which
    nobody tries again, and pictures by the client library."""

    def __init__(self, address: str, model: str = NAME):
        self.answers: dict[str, Counter[str]] = {"tensors": Counter(), "pictures": Counter()}
        self.failed: list[str] = []
        self._ending, self._address, self._model = threading.Event(), address, model
        asks = (("tensors", self._tensor), ("pictures", self._picture))
        self._threads = [threading.Thread(target=self._ask, args=each, daemon=True) for each in asks for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, kind: str, ask) -> None:
        while not self._ending.is_set():
            try:
                self.answers[kind][",".join(f"{value:.3f}" for value in ask())] += 1
            except Exception as error:
                self.failed.append(f"{kind}: {type(error).__name__}: {error}"[:200])
            time.sleep(0.05)

    def _tensor(self) -> np.ndarray:
        image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        inputs = tritonclient.http.InferInput("images", image.shape, "FP32")
        inputs.set_data_from_numpy(image)
        client = tritonclient.http.InferenceServerClient(self._address)  # new connections are balanced over the pods
        (logits,) = client.infer(self._model, [inputs]).as_numpy("logits")
        client.close()
        return logits.reshape(len(logits), -1).mean(1)

    def _picture(self) -> np.ndarray:
        with Client(self._address, f"{self._model}-pictures", timeout=60) as client:
            answer = client.predict(picture())
        return answer.probabilities if isinstance(answer, Classification) else answer.shares

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        counts = {kind: sum(found.values()) for kind, found in self.answers.items()}
        print(f"{self._model}: {counts['tensors']} requests of tensors, {counts['pictures']} of pictures, {len(self.failed)} failed")
        for kind, found in self.answers.items():
            print(f"  {kind}: {dict(found)}")

    def different(self) -> set[int]:
        """Number of answers by kind."""
        return {len(found) for found in self.answers.values()}


@pytest.fixture(scope="module")
def served(versions: MlflowClient) -> str:
    began = time.monotonic()
    assert deploy("dreamteacher-triton", NAMESPACE, wait=True) == f"dreamteacher-triton: version 1 of {NAME} is served"
    print(f"version 1 was ready after {time.monotonic() - began:.0f} s; fetch-model took {fetch_seconds()} s")
    return address()


def test_a_new_version_takes_over_under_load_without_a_failed_request_and_the_old_comes_back(served: str, versions: MlflowClient):
    load = Load(served)
    time.sleep(5)
    assert load.different() == {1}, load.failed[:3]
    promote(NAME, version="2")
    began = time.monotonic()
    assert "version 2 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    print(f"version 2 took over in {time.monotonic() - began:.0f} s")
    time.sleep(5)
    assert load.different() == {2}
    rollback(NAME)
    began = time.monotonic()
    assert "version 1 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    print(f"and version 1 again in {time.monotonic() - began:.0f} s")
    time.sleep(15)  # the last pods of version 2 end
    load.stop()
    assert load.failed == []
    assert load.different() == {2}
    lines = "\n".join(status(NAMESPACE))
    print(lines)
    assert "dreamteacher-triton: version 1 of cells, 2 of 2 replicas ready, since" in lines


def test_a_damaged_version_is_not_served_and_the_old_one_serves_on(served: str, versions: MlflowClient, tmp_path: Path):
    version = versions.get_model_version(NAME, "3")
    (tmp_path / "model.onnx").write_bytes(b"not what was published")
    versions.log_artifact(version.run_id, str(tmp_path / "model.onnx"), f"{version.tags['repository']}/{BACKEND}/{NAME}/1")
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
    assert load.different() == {1}
    assert "version 1 of cells is served" in deploy("dreamteacher-triton", NAMESPACE, wait=True)


def test_a_drained_pod_costs_no_request_and_the_budget_keeps_one(served: str):
    """Evict both pods as in a node drain: the second eviction is refused until the first pod has been replaced."""
    load = Load(served)
    pods = pods_that_stay()
    refused = [evict(pod.partition("/")[2]) for pod in pods]
    assert refused == [False, True]
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
    load.stop()
    assert load.failed == []


def pods_that_stay() -> list[str]:
    """Triton's two pods, once those of the version before have ended; until then they may answer."""
    while len(pods := kubectl("get", "pods", "-l", "app.kubernetes.io/name=triton", "-o", "name").split()) > 2:
        time.sleep(1)
    return pods


def evict(pod: str) -> bool:
    """Whether the disruption budget refuses to let the pod go."""
    wish = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    response = kubectl(
        "create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "-f", "-", stdin=json.dumps(wish), check=False
    )
    return '"Success"' not in response


def test_a_killed_server_costs_bare_requests_under_way_and_none_of_the_client_library(served: str):
    load = Load(served)
    time.sleep(2)
    pod = kubectl("get", "pods", "-l", "app.kubernetes.io/name=triton", "-o", "name").split()[0]
    kubectl("delete", pod, "--grace-period=0", "--force", "--wait=false")  # SIGKILL
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
    time.sleep(5)
    load.stop()
    print(Counter(each.partition(":")[0] for each in load.failed), load.failed[:2])
    assert [each for each in load.failed if each.startswith("pictures")] == []
    assert load.different() == {1}


def test_the_cronjob_follows_the_alias(served: str, versions: MlflowClient):
    promote(NAME, version="2")
    kubectl("create", "job", "--from=cronjob/dreamteacher-follow", "follow-once")
    kubectl("wait", "--for=condition=complete", "job/follow-once", "--timeout=300s")
    assert "version 2 of cells is being rolled out" in kubectl("logs", "job/follow-once")
    kubectl("rollout", "status", "deployment/dreamteacher-triton", "--timeout=600s")
    with Client(served, f"{NAME}-pictures") as client:
        answer = client.predict(picture())
    print(f"{answer.best}: {answer.probabilities.round(3)}")
    assert versions.get_model_version_by_alias(NAME, "champion").version == "2"


def test_one_triton_serves_two_domains_and_a_rollout_of_one_costs_the_other_nothing(served: str, versions: MlflowClient):
    """The second model joins, gets a new version by its alias and the old one by hand, while both are asked."""
    champion = versions.get_model_version_by_alias(NAME, "champion").version
    pods_that_stay()
    loads = [Load(served)]
    joined = {"spec": {"template": {"metadata": {"annotations": {"dreamteacher.io/model": f"{OTHER},{NAME}"}}}}}
    kubectl("patch", "deployment/dreamteacher-triton", "-p", json.dumps(joined))  # as an overlay whose list of models grew
    done = deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    assert done == f"dreamteacher-triton: version 1 of roads is served, version {champion} of cells is served"
    pods_that_stay()  # none serves cells alone
    loads.append(Load(served, OTHER))
    time.sleep(5)
    promote(OTHER, version="2")
    began = time.monotonic()
    assert f"version 2 of roads is served, version {champion} of cells" in deploy("dreamteacher-triton", NAMESPACE, follow=True, wait=True)
    print(f"version 2 of roads took over in {time.monotonic() - began:.0f} s; fetch-model took {fetch_seconds()} s")
    time.sleep(5)
    assert "version 1 of roads is served" in deploy("dreamteacher-triton", NAMESPACE, version="1", model=OTHER, wait=True)
    lines = "\n".join(status(NAMESPACE))
    print(lines)
    pods_that_stay()
    for load in loads:
        load.stop()
    assert [load.failed for load in loads] == [[], []]
    assert [load.different() for load in loads] == [{1}, {2}]
    assert f"version 1 of roads, version {champion} of cells, 2 of 2 replicas ready, since" in lines
    assert "champion of roads is version 2 now; a version was named by hand" in lines
