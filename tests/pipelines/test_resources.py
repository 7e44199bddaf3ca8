"""The compiled package holds, for each step, what resources.yaml says."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl

import components
from dreamteacher.cluster.trainjob import RUN_LABEL, manifest, settings_of
from dreamteacher.errors import UserError
from pipelines import NAMES
from pipelines.__main__ import main
from pipelines.compile import check_image, compile_pipeline
from pipelines.resources import FILE, GPU, STEPS, Profile

IMAGE = "registry.example/dreamteacher-python@sha256:" + "a" * 64


@dsl.component(base_image="python:1", install_kfp_package=False)
def nothing():
    pass


PROFILES = ("cpu", "single-gpu", "multi-gpu", "multi-node")
# What changes the world outside, or is told by it: a branch, the champion, what has arrived.
NEVER_CACHED = {
    "pretrain": {"find-commit", "publish", "record", "finish"},
    "retrain": {"find-commit", "fetch-champion", "ingest-incoming", "publish", "promote", "finish"},
}
WITH_GIT = {"find-commit", "fetch-data", "record"}
Compiled = dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]
each_package = pytest.mark.parametrize(("name", "profile"), list(product(NAMES, PROFILES)))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Both YAML documents of each pipeline for each profile. (Components keep the image they were imported with.)"""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "IMAGE", IMAGE)
        for name, profile in product(NAMES, PROFILES):
            file = tmp_path_factory.mktemp(profile) / f"{name}.yaml"
            compile_pipeline(name, profile, file)
            made[name, profile] = tuple(yaml.load_all(file.read_text(), yaml.CSafeLoader))
    return made


def tasks_of(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """(step, task, executor) of all steps, those in groups included."""
    found = []
    for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]:
        for task in dag["tasks"].values():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                found.append((task["taskInfo"]["name"], task, component["executorLabel"]))
    return found


def step_names(spec: dict[str, Any]) -> set[str]:
    return {name for name, _, _ in tasks_of(spec)}


@each_package
def test_each_step_has_what_the_file_says(compiled: Compiled, name: str, profile: str) -> None:
    spec, platform = compiled[name, profile]
    wanted_of = Profile(profile, IMAGE)
    steps = tasks_of(spec)
    assert {*NEVER_CACHED[name], "fetch-data", "train-teacher", "finetune"} <= step_names(spec) <= STEPS
    assert "latest" not in json.dumps(spec["deploymentSpec"])
    for name, task, executor in steps:
        wanted, container = wanted_of.of(name), spec["deploymentSpec"]["executors"][executor]["container"]
        pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
        launcher = wanted.nodes > 1
        assert container["resources"]["resourceCpuLimit"] == ("1" if launcher else wanted.cpu), name
        assert container["resources"]["resourceMemoryLimit"] == ("2Gi" if launcher else wanted.memory), name
        accelerator = container["resources"].get("accelerator", {})
        held = 0 if launcher else wanted.gpus
        assert (accelerator.get("resourceType"), accelerator.get("resourceCount")) == ((GPU, str(held)) if held else (None, None)), name
        assert [t["key"] for t in pod.get("tolerations", [])] == ([GPU] if held else []), name
        assert pod["nodeSelector"]["labels"] == {"dreamteacher.io/pool": "cpu" if launcher else wanted.pool}, name
        assert pod["activeDeadlineSeconds"] == str(int(wanted.timeout_h * 3600)), name
        assert [v["sizeLimit"] for v in pod["emptyDirMounts"]] == [wanted.shm], name
        assert [(v["constant"], v["mountPath"]) for v in pod["pvcMount"]] == [("dreamteacher-runs", "/runs")], name
        assert task.get("cachingOptions", {}).get("enableCache", False) == wanted.cache, name
        retry = task.get("retryPolicy", {})
        assert retry.get("maxRetryCount", 0) == wanted.retries, name
        if wanted.retries:
            assert float(retry["backoffMaxDuration"].removesuffix("s")) >= wanted.timeout_h * 3600 * wanted.retries, name
        env = {e["name"]: e["value"] for e in container["env"]}
        assert env.get("DREAMTEACHER_PROCESSES", "1") == str(max(held, 1)), name
        assert int(env["OMP_NUM_THREADS"]) * max(wanted.gpus, 1) <= float(wanted.cpu), name
        nodes = settings_of(env)
        assert (nodes.nodes, nodes.gpus, nodes.image) == (wanted.nodes, wanted.gpus, IMAGE) if nodes else not launcher, name
        assert {e["secretName"] for e in pod["secretAsEnv"]} == {"dreamteacher-s3", *(["dreamteacher-git"] if name in WITH_GIT else [])}, (
            name
        )
        assert "GIT_TOKEN" not in env.get("DREAMTEACHER_TRAINJOB", ""), name
        assert pod["securityContext"] == {"runAsNonRoot": True}, name


@each_package
def test_what_the_world_outside_changes_or_is_changed_by_is_never_cached(compiled: Compiled, name: str, profile: str) -> None:
    steps = tasks_of(compiled[name, profile][0])
    assert {step for step, task, _ in steps if not task.get("cachingOptions", {}).get("enableCache")} == NEVER_CACHED[name]


@each_package
def test_every_step_is_retried(compiled: Compiled, name: str, profile: str) -> None:
    assert all(task["retryPolicy"]["maxRetryCount"] >= 2 for _, task, _ in tasks_of(compiled[name, profile][0]))


def test_a_run_keeps_its_commit_when_the_branch_moves(compiled: Compiled) -> None:
    spec = compiled["pretrain", "cpu"][0]
    tasks = {
        task["taskInfo"]["name"]: task for each in spec["components"].values() for task in each.get("dag", {}).get("tasks", {}).values()
    }

    def source(task: str, parameter: str) -> dict[str, Any]:
        found: dict[str, Any] = tasks[task]["inputs"]["parameters"][parameter]
        return found

    assert source("fetch-data", "data_version")["taskOutputParameter"] == {
        "producerTask": "find-commit",
        "outputParameterKey": "data_version",
    }
    assert source("record", "commit")["taskOutputParameter"] == {"producerTask": "prepare", "outputParameterKey": "commit"}
    leaving = spec["components"]["comp-prepare"]["dag"]["outputs"]["parameters"]["commit"]
    assert leaving["valueFromParameter"] == {"producerSubtask": "find-commit", "outputParameterKey": "commit"}


def test_a_private_image_is_pulled_by_the_secret_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(FILE.read_text().replace("image_pull_secrets: []", "image_pull_secrets: [regcred]"))

    @dsl.pipeline(name="x")
    def only():
        Profile("multi-node", IMAGE, file).apply("train-teacher", nothing())

    platform = json_format.MessageToDict(only.platform_spec)["platforms"]["kubernetes"]
    executor = platform["deploymentSpec"]["executors"]["exec-nothing"]
    assert [each["secretName"] for each in executor["imagePullSecret"]] == ["regcred"]
    env = only.pipeline_spec.deployment_spec["executors"]["exec-nothing"]["container"]["env"]
    nodes = settings_of({each["name"]: each["value"] for each in env})
    assert nodes and nodes.image_pull_secrets == ["regcred"]


@pytest.mark.parametrize(("step", "is_launcher"), [("finetune", False), ("train-teacher", True)])
def test_labels_put_pods_and_trainjobs_into_a_queue_and_not_their_launcher(tmp_path: Path, step: str, is_launcher: bool) -> None:
    file, queue = tmp_path / "resources.yaml", {"kueue.x-k8s.io/queue-name": "dreamteacher"}
    file.write_text(FILE.read_text().replace("labels: {}", f"labels: {queue}"))

    @dsl.pipeline(name="x")
    def only():
        Profile("multi-node", IMAGE, file).apply(step, nothing())

    platform = json_format.MessageToDict(only.platform_spec)["platforms"]["kubernetes"]
    executor = platform["deploymentSpec"]["executors"]["exec-nothing"]
    assert executor.get("podMetadata", {}).get("labels", {}) == ({} if is_launcher else queue)
    env = only.pipeline_spec.deployment_spec["executors"]["exec-nothing"]["container"]["env"]
    nodes = settings_of({each["name"]: each["value"] for each in env})
    assert (manifest(nodes, "n", "run-1", "ml", [])["metadata"]["labels"] if nodes else None) == (
        queue | {RUN_LABEL: "run-1"} if is_launcher else None
    )


@pytest.mark.parametrize("image", ["python", "a/b:latest", "a:5000/b", "a/b:1.0", "a/b:20261125", "a/b:nightly-20261125", "a/b@sha256:12"])
def test_images_that_may_change_are_refused(image: str) -> None:
    with pytest.raises(UserError, match="by digest"):
        check_image(image)


@pytest.mark.parametrize("image", [IMAGE, "a:5000/dreamteacher-python:git-1a2b3c4d", "a/b:" + "1a2b3c4d5e" * 4])
def test_images_that_stay_are_taken(image: str) -> None:
    check_image(image)


def test_compile_says_in_a_line_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["compile", "--out", str(tmp_path / "p.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: DREAMTEACHER_IMAGE = ")
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    assert main(["compile", "--profile", "huge", "--out", str(tmp_path / "p.yaml")]) == 2
    assert "no profile 'huge'; it has cpu, single-gpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["folder.yaml", "/proc/x/y.yaml", "/proc/y.yaml"])
def test_a_place_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    (tmp_path / "folder.yaml").mkdir()
    assert main(["compile", "--out", str(tmp_path / where)]) == 2
    assert re.fullmatch(r"error: \S+: (Is a directory|No such file or directory); .*name .*\n", capsys.readouterr().err)


def test_a_slip_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(FILE.read_text().replace("memory: 48Gi", "memory: 48GiB"))
    with pytest.raises(
        UserError, match=r"resources.yaml: profiles.single-gpu.steps.train-teacher.memory: write a number, .* '16Gi'; a step has pool, cpu,"
    ):
        Profile("single-gpu", IMAGE, file)
    for text, said in (
        ("a: [", "is not valid YAML: "),
        ("[]", "the whole: Input should be"),
        ("profiles: {}", "environment: Field required"),
        (FILE.read_text().replace("pool: cpu, ", "", 1), "profiles.cpu.default.pool: Field required; a step has pool"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"^resources.yaml:? {re.escape(said)}"):
            Profile("cpu", IMAGE, file)


def test_a_project_has_resources_of_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    assert main(["compile", "--profile", "cpu", "--out", "before.yaml"]) == 0
    assert f"pretrain, cpu of {FILE}: before.yaml" in capsys.readouterr().out
    assert main(["resources"]) == 0
    assert Path("resources.yaml").read_text() == FILE.read_text()
    assert main(["compile", "--profile", "cpu", "--out", "same.yaml"]) == 0
    assert Path("same.yaml").read_text() == Path("before.yaml").read_text()
    Path("resources.yaml").write_text(FILE.read_text().replace('{pool: cpu, cpu: "4"', '{pool: mine, cpu: "3"', 1))
    assert main(["compile", "--profile", "cpu", "--out", "own.yaml"]) == 0
    assert "pretrain, cpu of resources.yaml: own.yaml" in capsys.readouterr().out
    spec, platform = yaml.safe_load_all(Path("own.yaml").read_text())
    executor = next(executor for step, _, executor in tasks_of(spec) if step == "train-teacher")
    assert spec["deploymentSpec"]["executors"][executor]["container"]["resources"]["resourceCpuLimit"] == "3"
    labels = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]["nodeSelector"]["labels"]
    assert labels == {"dreamteacher.io/pool": "mine"}
    assert main(["resources"]) == 2
    assert "resources.yaml exists" in capsys.readouterr().err


def test_a_misspelt_step_is_named(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(FILE.read_text().replace("      train-teacher: &gpu", "      train-techer: &gpu"))
    with pytest.raises(UserError, match="no step is called 'train-techer'; 'train-teacher' is"):
        Profile("single-gpu", IMAGE, file)


def test_manifests_are_what_kubernetes_native_kfp_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    words = ["--format", "kubernetes", "--version", "git-1a2b", "--namespace", "ml"]
    assert main(["compile", *words, "--out", str(tmp_path / "p.yaml")]) == 0
    pipeline, version = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    assert version["metadata"]["name"].startswith("dreamteacher-pretrain-git-1a2b-")
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["metadata"]["namespace"] == "ml"
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "dreamteacher-pretrain"
    assert "latest" not in json.dumps(version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"])


def test_another_profile_or_image_is_another_version_and_the_same_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def name(profile: str, image: str) -> str:
        monkeypatch.setattr(components, "IMAGE", image)
        compile_pipeline("pretrain", profile, tmp_path / "p.yaml", version="v1")
        return str(list(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))[1]["metadata"]["name"])

    first = name("cpu", IMAGE)
    assert name("cpu", IMAGE) == first
    assert len({first, name("single-gpu", IMAGE), name("multi-node", IMAGE), name("multi-node", IMAGE.replace("a" * 64, "b" * 64))}) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version", "v1", "--namespace", "Bad_NS!"], "--namespace: Bad_NS! is not a valid Kubernetes name"),
        (["--version", "V_1"], "--version: dreamteacher-pretrain-V_1-"),
        (["--version", "v" * 40], "at most 63 characters"),
        ([], "this folder is in no git repository; name the version with --version"),
    ],
)
def test_names_that_kubernetes_refuses_are_refused_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str
) -> None:
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "--format", "kubernetes", *words, "--out", "p.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://git.example/you/project.git", "https://git.example/you/project.git"),
        ("https://me:secret@git.example/you/project.git", "https://git.example/you/project.git"),
        ("git@git.example:you/project.git", "https://git.example/you/project.git"),
        ("ssh://git@git.example:2222/you/project.git", "https://git.example/you/project.git"),
        ("/srv/git/project.git", ""),
        (None, ""),
    ],
)
def test_the_form_suggests_the_project_and_its_default_branch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: str | None, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    subprocess.run(["git", "init", "-q"], check=True)
    if origin:
        subprocess.run(["git", "remote", "add", "origin", origin], check=True)
        subprocess.run(["git", "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk"], check=True)
    compile_pipeline("retrain", "cpu", tmp_path / "p.yaml")
    form = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))["root"]["inputDefinitions"]["parameters"]
    assert list(form) == ["data_rev", "git_url", "settings"]
    assert form["git_url"]["defaultValue"] == address
    assert form["data_rev"]["defaultValue"] == ("trunk" if address else "main")
    assert all(each["description"] for each in form.values())


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.__main__._write_resources", stopped)
    assert main(["resources"]) == 130
    assert capsys.readouterr().err == "stopped\n"
