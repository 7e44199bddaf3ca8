"""`check` against answers of a real Kubernetes API, recorded for each thing that can be wrong (record_check.py)."""

import base64
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from check_scenarios import SCENARIOS, Scenario
from kfp_api import KfpApi

from dreamteacher.errors import UserError
from json_server import JsonServer, Request
from pipelines import check
from pipelines.__main__ import main
from pipelines.check import pod
from pipelines.check.finding import connect
from pipelines.compile import compile_pipeline

RECORDED: dict[str, dict[str, list[list[Any]]]] = json.loads(Path(__file__).with_name("check_answers.json").read_text())
SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}
# What must be found in each scenario; nothing else may be wrong or worth a warning.
FOUND = {
    "healthy": [],
    "healthy gpu": [],
    "stock retry policy": ["warn workflow-controller-configmap: retryPolicy OnError: a failed step"],
    "no retry policy": ["warn workflow-controller-configmap: retryPolicy OnFailure: a step whose pod was deleted"],
    "groups repeated": ["warn workflow-controller-configmap: limit 2: whole groups of steps are rerun, up to 2 times"],
    "broken workflow defaults": ["wrong workflow-controller-configmap: its workflowDefaults is not valid YAML"],
    "old KFP": ["wrong Kubeflow Pipelines: 1.8.5; these pipelines need version 2"],
    "KFP down": ["wrong Kubeflow Pipelines: ml-pipeline is not running"],
    "KFP elsewhere": ["wrong Kubeflow Pipelines: no deployment ml-pipeline in namespace default", "wrong Argo: no deployment"],
    "no namespace": ["wrong namespace nowhere: does not exist"],
    "namespace being deleted": ["wrong namespace leaving: is being deleted"],
    "no account": ["wrong service account pipeline-runner: not in namespace dt"],
    "no config map": ["wrong config map dreamteacher-env: not in namespace dt; no step starts without it"],
    "config map lacks a key": ["wrong config map dreamteacher-env: lacks AWS_ENDPOINT_URL"],
    "no secret": ["warn secret dreamteacher-s3: not in namespace dt; steps start without it"],
    "secret lacks a key": ["warn secret dreamteacher-git: lacks GIT_HOST"],
    "secret with a line end": ["wrong secret dreamteacher-git: GIT_TOKEN begins or ends with white space"],
    "no pull secret": ["wrong image pull secret regcred: not in namespace dt"],
    "pull secret of another type": ["wrong image pull secret regcred: is of type Opaque, which cannot be used to pull images"],
    "no claim": ["wrong claim dreamteacher-runs: not in namespace dt; no step starts without it"],
    "unbound claim": ["wrong claim dreamteacher-runs: not bound: storage class nfs has created no volume"],
    "claim for one node": ["wrong claim dreamteacher-runs: is ReadWriteOnce; steps on several nodes need ReadWriteMany"],
    "claim that waits for a pod": [],
    "claim being deleted": ["wrong claim dreamteacher-runs: is being deleted"],
    "claim without its volume": ["wrong claim dreamteacher-runs: its volume runs is gone"],
    "quota": ["wrong quota small: requests.cpu = 50m is less than"],
    "no label": ["wrong pool cpu: no node has the label dreamteacher.io/pool=cpu (there is gpu)"],
    "no GPU node": ["wrong pool gpu: no node has the label dreamteacher.io/pool=gpu (there is cpu), so train-teacher would wait"],
    "no device plugin": ["wrong pool gpu: train-teacher requests 8 GPUs, cpu 32, memory 256Gi; node gpu1 reports no nvidia.com/gpu"],
    "few GPUs": ["wrong pool gpu: train-teacher requests 8 GPUs, cpu 32, memory 256Gi; node gpu1 has 4 of them"],
    "too small nodes": ["wrong pool cpu: .* request cpu 4, memory 2Ti; node node1 has cpu 2, has memory 23"],
    "room of DaemonSets": ["wrong pool cpu: .* request cpu 1900m, memory 128Mi; node node1 has cpu 1.8"],
    "foreign taint": ["wrong pool cpu: .* node node1 has the taint team:NoSchedule"],
    "cordoned": ["wrong pool cpu: .* node node1 is cordoned"],
    "node not ready": ["wrong pool gpu: .* node gpu1 is not ready"],
    "no taint on GPU nodes": ["warn pool gpu: pods without GPUs may occupy gpu1, gpu2"],
    "fewer nodes than a TrainJob has": ["wrong pool gpu: train-teacher requests .* on 2 nodes, and 1 has that; node gpu2 is cordoned"],
    "autoscaler": ["warn pool gpu: no node has the label .*; an autoscaler may add one"],
    "no JobSet": ["wrong JobSet: not installed"],
    "no Trainer": ["wrong Kubeflow Trainer: the cluster has no trainer.kubeflow.org", "wrong runtime: no TrainingRuntime"],
    "old Trainer": ["wrong Kubeflow Trainer: older than 2.3"],
    "Trainer's runtime": ["warn runtime: no TrainingRuntime dreamteacher-torch, so nodes use torch-distributed"],
    "no runtime": ["wrong runtime: no TrainingRuntime dreamteacher-torch, and no ClusterTrainingRuntime torch-distributed"],
    "no rights": ["wrong rights of pipeline-runner: may not create/get/list/watch/delete trainjobs, "],
    "image unknown to the registry": ["wrong image .*:git-9999999: cannot be pulled: ErrImagePull"],
    "image of root": ["wrong image .*:git-4444444: runs as root or as a user without a number, which runAsNonRoot forbids"],
    "image without Python": ["wrong image localhost/pause:1: runs no Python: .*executable file not found"],
    "volume of another user": ["wrong claim dreamteacher-runs: user 65532, .*: Permission denied .*user 1000.*let group 0 write"],
    "folder of another user": ["warn claim dreamteacher-runs: writable, but not its dvc-cache"],
    "KFP sets another user": ["wrong claim dreamteacher-runs: user 1001, .*: Permission denied .*let group 1002 write"],
    "volume cannot be mounted": ["wrong trial pod: its volume cannot be mounted: .*is not a directory"],
    "pod finds no node": ["wrong pool cpu", "wrong trial pod: finds no node: 0/3 nodes are available"],
    "pod beyond a quota": ["wrong trial pod: refused, as a step's would be: 403 exceeded quota: small"],
    "MLflow does not answer": ["wrong MLflow: http://10.88.0.1:1 does not answer a pod: .*Connection refused"],
    "another server than MLflow": ["wrong MLflow: http://seaweedfs.kubeflow.svc:8333 answers a pod, but not as MLflow: 500"],
    "MLflow of no such name": ["wrong MLflow: http://mlflow.nowhere.svc:5000 does not answer a pod: .*name resolution"],
    "MLflow refuses the name": ["wrong MLflow: .* refuses a pod: 403 Invalid Host header.*--allowed-hosts 'stranger.mlflow.svc:"],
    "MLflow is a file": ["warn MLflow: MLFLOW_TRACKING_URI = file:///tmp/mlruns is not a server"],
    "S3 does not answer": ["wrong S3: http://10.88.0.1:1 does not answer a pod"],
    "another server than S3": ["wrong S3: http://mlflow.mlflow.svc:5000 answers a pod, but not as S3: 500"],
    "S3 refuses the keys": [r"wrong S3: .* rejects the credentials \(SignatureDoesNotMatch\).*correct secret dreamteacher-s3"],
    "no bucket for results": ["wrong S3: .*, bucket missing, does not exist"],
    "user of one namespace": [],
    "user without rights": [],
}  # fmt: skip


class Replay:
    """A Kubernetes API that answers as the recorded one did, each question in turn, and its last answer again and again."""

    def __init__(self, scenario: str):
        recorded = {**RECORDED["healthy"], **RECORDED["healthy gpu"], **RECORDED[scenario]}
        self.answers = {question: list(answers) for question, answers in recorded.items()}
        self.asked: list[str] = []
        self._server = JsonServer(self._answer)
        self.url = self._server.url

    def _answer(self, asked: Request) -> tuple[int, Any]:
        query = urlencode(sorted((key, value) for key, values in asked.query.items() for value in values))
        question = f"{asked.method} {asked.path}" + (f"?{query}" if query else "")
        self.asked.append(question)
        answers = self.answers[question]
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return status, answer

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Replay]]:
    """Makes the cluster of a scenario that of the current kubeconfig."""
    started = []
    monkeypatch.setattr(pod, "POLL", 0.0)
    monkeypatch.chdir(tmp_path)

    def start(name: str) -> Replay:
        api = Replay(name)
        started.append(api)
        contexts = [{"name": each, "context": {"cluster": "c", "user": "u"}} for each in ("x", "team", "guest")]
        config = {"clusters": [{"name": "c", "cluster": {"server": api.url}}], "users": [{"name": "u", "user": {}}], "contexts": contexts}
        Path("kubeconfig").write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", **config}))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        return api

    yield start
    for api in started:
        api.close()


def examine(scenario: Scenario, wait: int = 60) -> int:
    return check.examine(
        scenario.read_profile(Path()),
        namespace=scenario.namespace,
        kfp_namespace=scenario.kfp_namespace,
        context=scenario.context,
        wait=wait if scenario.pod else None,
    )


def lines(text: str, *states: str) -> list[str]:
    return [re.sub(" +", " ", line, count=1) for line in text.splitlines() if line.split(" ")[0] in states]


def test_every_scenario_has_its_finding():
    assert {*FOUND} == {*SCENARIO} == {*RECORDED}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_wrong_is_found_and_nothing_else(
    name: str, replay: Callable[[str], Replay], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    api, scenario = replay(name), SCENARIO[name]
    if name in ("pod finds no node", "volume cannot be mounted"):
        monkeypatch.setattr(pod, "PATIENCE", -1.0)
    code = examine(scenario)
    text = capsys.readouterr().out
    found = lines(text, "wrong", "warn")
    for line, expected in zip(found, FOUND[name], strict=True):
        assert re.match(expected if ".*" in expected or "\\" in expected else re.escape(expected), line), line
        assert "; to fix it: " in line or "a step's would be" in line
    assert code == int(any(line.startswith("wrong") for line in found))
    assert sum(question.startswith("POST /api/v1/namespaces/dt/pods") for question in api.asked) >= sum(
        question.startswith("DELETE") for question in api.asked
    )


def test_a_healthy_cluster_has_a_line_for_each_thing(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay("healthy")
    examine(SCENARIO["healthy"])
    text = capsys.readouterr().out
    subjects = [line.partition(": ")[0].removeprefix("ok ") for line in lines(text, "ok")]
    assert subjects == [
        "Kubernetes", "Kubeflow Pipelines", "Argo", "workflow-controller-configmap", "namespace dt", "service account pipeline-runner",
        "config map dreamteacher-env", "secret dreamteacher-s3", "secret dreamteacher-git", "claim dreamteacher-runs", "pool cpu",
        "pool gpu", "Kubeflow Trainer", "runtime", "rights of pipeline-runner",
        "image registry.example/dreamteacher-python:git-1a2b3c4", "claim dreamteacher-runs", "MLflow", "S3",
    ]  # fmt: skip
    assert text.endswith("a run can work here\n")


def test_the_command_for_retries_keeps_the_rest_of_the_config_map(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay("stock retry policy")
    examine(SCENARIO["stock retry policy"])
    (line,) = lines(capsys.readouterr().out, "warn")
    words = shlex.split(line.partition("to fix it: ")[2])
    assert words[:5] == ["kubectl", "patch", "configmap", "workflow-controller-configmap", "-n"]
    new = yaml.safe_load(json.loads(words[words.index("-p") + 1])["data"]["workflowDefaults"])
    assert new["spec"]["ttlStrategy"] == {"secondsAfterCompletion": 3600}
    assert new["spec"]["templateDefaults"]["retryStrategy"] == {"retryPolicy": "Always", "limit": "0"}


@pytest.mark.parametrize("name", ["user of one namespace", "user without rights"])
def test_unreadable_objects_are_reported_as_unread(name: str, replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay(name)
    assert examine(SCENARIO[name]) == 0
    text = capsys.readouterr().out
    assert any(line.startswith("unread nodes: cannot be read: 403 User") for line in lines(text, "unread"))
    assert "nothing wrong was found" in text


def test_the_api_of_kfp_is_asked_where_it_is_named(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay("healthy gpu")
    profile = SCENARIO["healthy gpu"].read_profile(Path())
    with KfpApi() as server:
        assert check.examine(profile, namespace="dt", host=server.url) == 0
    assert f"ok KFP API: {server.url} answers" in lines(capsys.readouterr().out, "ok")
    assert check.examine(profile, namespace="dt", host=server.url) == 1
    (line,) = lines(capsys.readouterr().out, "wrong")
    assert line.startswith(f"wrong KFP API: cannot list the schedules: {server.url} cannot be reached")


def test_nothing_secret_is_printed(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    api = replay("secret with a line end")
    token = base64.b64encode(b"hunter2\n").decode()
    api.answers["GET /api/v1/namespaces/dt/secrets/dreamteacher-git"][0][1]["data"]["GIT_TOKEN"] = token
    examine(SCENARIO["secret with a line end"])
    text = capsys.readouterr().out
    assert "GIT_TOKEN begins or ends" in text
    assert "hunter2" not in text and token not in text


def test_the_probe_pod_is_deleted_after_an_error(replay: Callable[[str], Replay]):
    api = replay("healthy")
    api.answers["GET /api/v1/namespaces/dt/pods/dreamteacher-check-1/log"] = [[500, {"message": "the node is away"}]]
    examine(SCENARIO["healthy"])
    assert any(question.startswith("DELETE /api/v1/namespaces/dt/pods/dreamteacher-check-1") for question in api.asked)


def test_a_pod_that_does_not_start_in_time_is_deleted(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    api = replay("healthy")
    question = "GET /api/v1/namespaces/dt/pods/dreamteacher-check-1"
    api.answers[question] = api.answers[question][:1]
    assert examine(SCENARIO["healthy"], wait=0) == 1
    assert "trial pod: has not started in 0 s; a large image takes longer: --wait SECONDS" in capsys.readouterr().out


def test_a_pod_deleted_by_somebody_else_is_reported(replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    api = replay("healthy")
    api.answers["GET /api/v1/namespaces/dt/pods/dreamteacher-check-1"] = [[404, {"message": "not found"}]]
    assert examine(SCENARIO["healthy"]) == 1
    assert "trial pod: was deleted by somebody else" in capsys.readouterr().out


def test_no_cluster_an_unknown_context_and_an_unknown_user_are_one_line(
    replay: Callable[[str], Replay], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    api = replay("healthy")
    assert main(["check", "--no-pod", "--context", "z"]) == 2
    assert re.match("error: --context z: .*`kubectl config get-contexts` lists them\n$", capsys.readouterr().err)
    api.answers["GET /version/"] = [[401, {"message": "Unauthorized"}]]
    api.answers["GET /api/v1/namespaces/kubeflow/serviceaccounts/pipeline-runner"] = [[401, {"message": "Unauthorized"}]]
    assert main(["check", "--no-pod"]) == 2
    assert capsys.readouterr().err == "error: the Kubernetes API rejects your credentials (401 Unauthorized); log in to the cluster again\n"
    api.close()
    assert main(["check", "--no-pod"]) == 2
    assert re.match(f"error: {api.url} cannot be reached .*\n$", capsys.readouterr().err)
    monkeypatch.setenv("KUBECONFIG", "none")
    assert main(["check", "--no-pod"]) == 2
    assert capsys.readouterr().err == "error: no cluster to check: there is no kubeconfig; set KUBECONFIG, or run in a pod of the cluster\n"
    monkeypatch.delenv("DREAMTEACHER_IMAGE", raising=False)
    assert main(["check"]) == 2
    assert "set DREAMTEACHER_IMAGE to the image" in capsys.readouterr().err


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    SCENARIO["healthy"].read_profile(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.IMAGE", SCENARIO["healthy"].image)
        compile_pipeline("pretrain", "cpu", folder / "pretrain.yaml", resources=folder / "resources.yaml")
    return folder / "pretrain.yaml"


def test_submit_warns_and_runs_nevertheless(package: Path, replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay("unbound claim")
    with KfpApi() as server:
        words = ["submit", str(package), "--host", server.url, "--namespace", "dt", "--version", "git-1", "--arg", "git_url=https://a/b"]
        assert main(words) == 0
        assert len(server.kept["runs"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("warning: claim dreamteacher-runs: not bound: storage class nfs has created no volume")
    assert errors[1:] == ["warning: found in context x, namespace dt; `python -m pipelines check` prints how to fix it"]


def test_submit_says_when_it_cannot_look(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("KUBECONFIG", "none")
    check.warn(package, namespace="dt", account=None)
    assert capsys.readouterr().err.startswith("the cluster was not checked: no cluster to check: there is no kubeconfig")


def test_submit_says_nothing_of_a_healthy_cluster(package: Path, replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    replay("healthy")
    check.warn(package, namespace="dt", account=None)
    assert capsys.readouterr().err == ""


def test_another_cluster_than_that_of_kfp_is_one_warning(
    package: Path, replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]
):
    api = replay("healthy")
    missing = RECORDED["KFP elsewhere"]["GET /apis/apps/v1/namespaces/default/deployments/ml-pipeline"]
    api.answers["GET /apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline"] = missing
    check.warn(package, namespace="dt", account=None)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: Kubeflow Pipelines: no deployment ml-pipeline")
    assert "context x" in last


@pytest.mark.parametrize("text", ["", "a: [b", "- x", "hello", "contexts: []\ncurrent-context: none", b"\xff\xfe"])
def test_an_invalid_kubeconfig_is_one_line(text: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "kubeconfig"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UserError, match=f"^kubeconfig {file} cannot be used: .*; `kubectl config view` should show a cluster$"):
        connect(None)


def test_packages_of_other_projects_cause_no_warning(tmp_path: Path, replay: Callable[[str], Replay], capsys: pytest.CaptureFixture[str]):
    package = tmp_path / "other.yaml"
    executors = {"exec-load": {"importer": {}}, "exec-train": {"container": {"image": "registry.example/python:1"}}}
    package.write_text(yaml.safe_dump({"pipelineInfo": {"name": "other"}, "deploymentSpec": {"executors": executors}}))
    replay("healthy")
    check.warn(package, namespace="dt", account=None)
    assert capsys.readouterr().err == ""
