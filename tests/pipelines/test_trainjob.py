"""Stages on several nodes: the manifest against Kubeflow Trainer's own schema, the life of a job against a Kubernetes API."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from kfp import dsl
from kubernetes.client import ApiClient, Configuration
from kubernetes_api import OWN_RUNTIME, KubernetesApi, finish, validator

from components.finish import finish as finish_step
from dreamteacher.cluster import trainjob
from dreamteacher.cluster.trainjob import Nodes, manifest, name_of, run
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from helpers import PROJECT, free_port
from pipelines.resources import Profile

NODES = Nodes(
    image="registry.example/dreamteacher@sha256:1", nodes=2, gpus=8, node_selector={"pool": "gpu"}, env={"NCCL_DEBUG": "WARN"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    secrets={"dreamteacher-s3": {"access": "AWS_ACCESS_KEY_ID"}}, image_pull_secrets=["regcred"],
    config_maps={"dreamteacher-env": {"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}},
)  # fmt: skip
JOB = manifest(NODES, "train-teacher-1", "run-1", "ml", ["train-teacher", "--out", "/runs/out"])


@dsl.component(base_image="python:1", install_kfp_package=False)
def finish_nothing():
    pass


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as started:
        yield started


def client(url: str) -> ApiClient:
    settings = Configuration()
    settings.host = url
    settings.retries = False
    return ApiClient(settings)


def test_manifest_is_a_train_job_and_a_typo_would_be_found():
    validator().validate(JOB)
    trainer = JOB["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) == (2, 8, 8)
    assert trainer["command"] + trainer["args"] == [*["torchrun", "--module", "dreamteacher.cli", "train-teacher", "--out", "/runs/out"]]
    variables = {each["name"]: each for each in trainer["env"]}
    assert variables["DREAMTEACHER_CHECKPOINTS"]["value"] == "/runs/run-1/checkpoints"
    assert variables["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == {"name": "dreamteacher-s3", "key": "access", "optional": True}
    (job,) = JOB["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert (pod["nodeSelector"], pod["tolerations"]) == (NODES.node_selector, NODES.tolerations)
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]
    for path in (["trainer", "numProcPerNod"], ["runtimePatches", 0, "trainingRuntimeSpec", "templat"], ["runtimeRefs"]):
        broken: Any = json.loads(json.dumps(JOB))
        inside = broken["spec"]
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = 1
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(broken)


def test_pods_are_as_pod_security_restricted_asks():
    (job,) = JOB["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_cpu_nodes_request_no_gpu():
    job = manifest(Nodes(image="i"), "n", "r", "ml", [])
    validator().validate(job)
    assert "nvidia.com/gpu" not in json.dumps(job)
    assert job["spec"]["trainer"]["numProcPerNode"] == 1


def stage_output(folder: Path, content: str) -> Path:
    with open_stage("ingest", params={"content": content}, inputs={}, out=folder):
        pass
    return folder


def test_name_differs_between_steps_and_not_between_attempts(tmp_path: Path):
    params, other = Params(), Params(seed=1)
    data = {"data": stage_output(tmp_path / "a", "1")}
    copied = {"data": Path(shutil.copytree(tmp_path / "a", tmp_path / "pod-of-the-retry"))}
    others_data = {"data": stage_output(tmp_path / "b", "2")}
    name = name_of("run-1", "distill-labels", params, data, {"seed": 0})
    assert name == name_of("run-1", "distill-labels", params, copied, {"seed": 0})
    others = [
        ("run-2", params, data, {"seed": 0}),
        ("run-1", other, data, {"seed": 0}),
        ("run-1", params, others_data, {"seed": 0}),  # two loops' passes with equal settings
        ("run-1", params, data | {"start": others_data["data"]}, {"seed": 0}),
        ("run-1", params, data, {"seed": 1}),
    ]
    assert len({name, *(name_of(run_id, "distill-labels", *rest) for run_id, *rest in others)}) == 6
    assert len(name) < 40
    with pytest.raises(UserError, match="nowhere does not exist"):
        name_of("run-1", "distill-labels", params, {"data": tmp_path / "nowhere"}, {})


def test_job_is_created_watched_and_deleted(api: KubernetesApi):
    states = iter([lambda job: None, lambda job: None, finish()])

    def step(job: dict[str, Any]) -> None:
        next(states)(job)

    api.on_get = step
    run(client(api.url), JOB, poll=0.01)
    assert [line.split()[0] for line in api.asked if "trainjobs" in line] == ["POST", "GET", "GET", "GET", "DELETE"]
    assert api.jobs == {}
    assert api.pods == []


def test_retried_step_attaches_to_the_job_of_the_step_before(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    api.jobs["train-teacher-1"] = json.loads(json.dumps(JOB))
    api.on_get = finish()
    run(client(api.url), JOB, poll=0.01)
    assert "exists, created by an earlier attempt of this step" in caplog.text
    assert api.asked.count(api.asked[0]) == 1  # one POST, refused
    assert api.jobs == {}


def old_job(api: KubernetesApi, **condition: str) -> None:
    """A job that an earlier attempt of the step left."""
    job = api.jobs["train-teacher-1"] = json.loads(json.dumps(JOB))
    if condition:
        finish(**condition)(job)


def test_retried_step_creates_a_job_again_that_has_failed_meanwhile(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    old_job(api, kind="Failed", reason="DeadlineExceeded", message="too late")
    api.on_get = lambda job: None if "status" in job else finish()(job)
    run(client(api.url), JOB, poll=0.01)
    assert [line.split()[0] for line in api.asked if "trainjobs" in line] == ["POST", "GET", "DELETE", "POST", "GET", "DELETE"]
    assert "of an earlier attempt of this step has failed (DeadlineExceeded too late); it is created again" in caplog.text


def test_time_limit_of_an_earlier_try_costs_the_step_no_try_of_its_own(api: KubernetesApi):
    old_job(api)
    ends = iter([finish("Failed", reason="DeadlineExceeded"), finish()])
    api.on_get = lambda job: None if sum(line.startswith("GET") and "trainjobs" in line for line in api.asked) == 1 else next(ends)(job)
    run(client(api.url), JOB, poll=0.01)
    assert [line.split()[0] for line in api.asked if "trainjobs" in line] == ["POST", "GET", "GET", "DELETE", "POST", "GET", "DELETE"]


def test_time_limit_of_its_own_job_fails_the_step(api: KubernetesApi):
    api.on_get = finish("Failed", reason="DeadlineExceeded")
    with pytest.raises(UserError, match="failed \\(DeadlineExceeded"):
        run(client(api.url), JOB, poll=0.01)
    assert sum(line.startswith("POST") for line in api.asked) == 1


def test_time_limit_of_the_job_counts_from_the_start_of_the_step(api: KubernetesApi):
    limits = []
    api.on_get = lambda job: (limits.append(job["spec"]["activeDeadlineSeconds"]), finish()(job))
    run(client(api.url), JOB, begun=time.monotonic() - 3600, poll=0.01)
    assert limits[0] == pytest.approx(NODES.timeout - 3600, abs=2)
    wanted = Profile("multi-node", "i:1a2b3c4")
    step = wanted.of("train-teacher")
    assert step.timeout_h * 3600 - wanted._nodes(step)["timeout"] == 1800
    hour = step.model_copy(update={"timeout_h": 1.0, "start_min": 5.0})
    assert (wanted._nodes(hour)["timeout"], wanted._nodes(hour)["start_min"]) == (3240, 5)


def test_own_runtime_is_preferred_where_the_namespace_has_it(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    assert not trainjob.has_own_runtime(client(api.url), "ml")
    assert JOB["spec"]["runtimeRef"]["name"] == "torch-distributed"
    api.runtimes[OWN_RUNTIME["metadata"]["name"]] = OWN_RUNTIME
    assert trainjob.has_own_runtime(client(api.url), "ml")
    job = manifest(NODES, "n", "r", "ml", [], own_runtime=True)
    validator().validate(job)
    assert (job["spec"]["runtimeRef"]["kind"], job["spec"]["runtimeRef"]["name"]) == ("TrainingRuntime", OWN_RUNTIME["metadata"]["name"])
    api.forbidden.add("get trainingruntimes")
    assert not trainjob.has_own_runtime(client(api.url), "ml")
    assert "apply k8s/base again" in caplog.text


def test_refusal_by_a_webhook_is_not_reported_as_a_missing_role(api: KubernetesApi):
    with pytest.raises(UserError, match=r"must be created before the TrainJob is created$"):
        run(client(api.url), manifest(NODES, "n", "r", "ml", [], own_runtime=True), poll=0.01)


def test_looking_for_a_cluster_prints_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="no Kubernetes cluster"):
        trainjob.api_client()
    token = tmp_path / "token"
    token.write_text("t")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(token))
    assert trainjob.api_client().configuration.host == "https://10.0.0.1:443"
    assert capsys.readouterr() == ("", "")


def test_job_that_is_being_deleted_is_awaited_and_created_again(api: KubernetesApi):
    api.jobs["train-teacher-1"] = json.loads(json.dumps(JOB)) | {
        "metadata": JOB["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    }
    api.finalizing["train-teacher-1"] = 2
    api.on_get = finish()
    run(client(api.url), JOB, poll=0.01)
    assert [line.split()[0] for line in api.asked if "trainjobs" in line] == ["POST", "GET", "POST", "GET", "POST", "GET", "DELETE"]


def test_killed_step_leaves_the_job_to_its_successor(api: KubernetesApi, tmp_path: Path):
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    body = f"""import json, sys; sys.path.insert(0, {str(PROJECT / "tests/pipelines")!r}); sys.path.insert(0, {str(PROJECT / "tests")!r})
from test_trainjob import client, run
run(client({api.url!r}), json.load(open("job.json")), poll=0.05)"""
    step = subprocess.Popen([sys.executable, "-c", body], cwd=tmp_path)
    while not api.jobs:
        assert step.poll() is None
        time.sleep(0.05)
    step.send_signal(signal.SIGTERM)
    assert step.wait(60) != 0
    assert list(api.jobs) == ["train-teacher-1"]
    assert not any(line.startswith("DELETE") for line in api.asked)


def test_job_deleted_by_somebody_else_is_reported(api: KubernetesApi):
    api.on_get = lambda job: api.jobs.clear()
    with pytest.raises(UserError, match="was deleted while it ran"):
        run(client(api.url), JOB, poll=0.01)


def test_the_job_survives_an_outage_of_the_api(api: KubernetesApi):
    api.fail["GET"] = [500, 503, 429, 529]
    api.on_get = finish()
    run(client(api.url), JOB, poll=0.01)
    assert api.jobs == {}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, r"403 refused \(403\); the step's service account needs the role"),
        (404, "404 .*; is Kubeflow Trainer v2 installed"),
        (422, "422"),
    ],
)
def test_refusals_are_one_line(api: KubernetesApi, status: int, said: str):
    api.fail["POST"] = [status]
    with pytest.raises(UserError, match=f"cannot create TrainJob train-teacher-1 in ml: {said}") as caught:
        run(client(api.url), JOB, poll=0.01)
    assert "\n" not in str(caught.value)


def test_no_api_is_one_line():
    with pytest.raises(UserError, match="the Kubernetes API cannot be reached"):
        run(client(f"http://127.0.0.1:{free_port()}"), JOB)


def test_exit_step_deletes_what_the_run_left_and_nothing_else(api: KubernetesApi):
    for name, run_id in {"a": "run-1", "b": "run-1", "c": "run-2"}.items():
        api.jobs[name] = manifest(NODES, name, run_id, "ml", [])
    assert trainjob.delete_of_run(client(api.url), "run-1", "ml") == ["a", "b"]
    assert list(api.jobs) == ["c"]


def test_settings_come_by_the_environment():
    assert trainjob.settings_of({}) is None
    assert trainjob.settings_of({"DREAMTEACHER_TRAINJOB": NODES.model_dump_json()}) == NODES
    with pytest.raises(UserError, match="DREAMTEACHER_TRAINJOB: nods: Extra inputs"):
        trainjob.settings_of({"DREAMTEACHER_TRAINJOB": '{"image": "i", "nods": 2}'})


@pytest.mark.parametrize("left", ["", "true"])
def test_finish_deletes_trainjobs_where_the_profile_has_them(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str
):
    api.jobs["a"] = manifest(NODES, "a", "run-1", "ml", [])
    for name, value in {"TRAINJOBS": left, "RUN": "run-1", "NAMESPACE": "ml"}.items():
        monkeypatch.setenv(f"DREAMTEACHER_{name}", value)
    monkeypatch.setattr(trainjob, "api_client", lambda: client(api.url))
    status = SimpleNamespace(pipeline_job_resource_name="pretrain", state="FAILED", error_message="boom")
    assert finish_step.python_func(status=status, pipeline="pretrain", page=SimpleNamespace(path=tmp_path / "page")) == "FAILED"
    assert list(api.jobs) == ([] if left else ["a"])
    assert "boom" in (tmp_path / "page").read_text()


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED"])
@pytest.mark.parametrize("run_id", ["run-1", ""])
def test_finish_removes_the_checkpoints_of_its_own_run_once_no_retry_needs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, run_id: str
):
    for name in ("run-1", "run-2"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("DREAMTEACHER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DREAMTEACHER_RUN", run_id)
    status = SimpleNamespace(pipeline_job_resource_name="pretrain", state=state, error_message="")
    finish_step.python_func(status=status, pipeline="pretrain", page=SimpleNamespace(path=tmp_path / "page"))
    gone = state == "SUCCEEDED" and run_id
    assert sorted(each.name for each in (tmp_path / "runs").iterdir()) == (["run-2"] if gone else ["run-1", "run-2"])


@pytest.mark.parametrize(("profile", "expected"), [("multi-node", "true"), ("single-gpu", None)])
def test_finish_deletes_trainjobs_only_for_multi_node_profiles(profile: str, expected: str | None):
    @dsl.pipeline(name="x")
    def only():
        Profile(profile, "i:1a2b3c4").apply("finish", finish_nothing())

    container = only.pipeline_spec.deployment_spec["executors"]["exec-finish-nothing"]["container"]
    assert {each["name"]: each["value"] for each in container["env"]}.get("DREAMTEACHER_TRAINJOBS") == expected
