"""The compiled package holds, for each step, what resources.yaml says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import components
from dreamteacher.errors import UserError
from dreamteacher.trainjob import settings_of
from pipelines.__main__ import main
from pipelines.compile import check_image, compile_pipeline
from pipelines.resources import FILE, GPU, Profile

IMAGE = "registry.example/dreamteacher-python@sha256:" + "a" * 64
PROFILES = ("cpu", "single-gpu", "multi-gpu", "multi-node")
EFFECTS = ("publish", "record", "finish")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Both YAML documents of the pretrain pipeline for each profile. (Components keep the image they were imported with.)"""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "IMAGE", IMAGE)
        for profile in PROFILES:
            file = tmp_path_factory.mktemp(profile) / "pretrain.yaml"
            compile_pipeline("pretrain", profile, file)
            made[profile] = tuple(yaml.safe_load_all(file.read_text()))
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


@pytest.mark.parametrize("profile", PROFILES)
def test_each_step_has_what_the_file_says(compiled: dict[str, Any], profile: str) -> None:
    spec, platform = compiled[profile]
    wanted_of = Profile(profile, IMAGE)
    steps = tasks_of(spec)
    assert {name for name, _, _ in steps} >= {"train-teacher", "finetune", "record", "finish"}
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
        assert {e["secretName"] for e in pod["secretAsEnv"]} == {"dreamteacher-s3", "dreamteacher-git"}, name


@pytest.mark.parametrize("profile", PROFILES)
def test_steps_with_an_effect_outside_are_never_cached(compiled: dict[str, Any], profile: str) -> None:
    assert not any(task.get("cachingOptions", {}).get("enableCache") for name, task, _ in tasks_of(compiled[profile][0]) if name in EFFECTS)


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


def test_a_slip_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(FILE.read_text().replace("memory: 48Gi", "memory: 48GiB"))
    with pytest.raises(UserError, match=r"resources.yaml: memory: .*pattern"):
        Profile("single-gpu", IMAGE, file)


def test_a_misspelt_step_is_named(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(FILE.read_text().replace("      train-teacher: &gpu", "      train-techer: &gpu"))
    with pytest.raises(UserError, match="no step is called 'train-techer'; 'train-teacher' is"):
        Profile("single-gpu", IMAGE, file)


def test_manifests_are_what_kubernetes_native_kfp_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(components, "IMAGE", IMAGE)
    assert main(["compile", "--format", "kubernetes", "--namespace", "ml", "--out", str(tmp_path / "p.yaml")]) == 0
    pipeline, version = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["metadata"]["namespace"] == "ml"
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "dreamteacher-pretrain"
    assert "latest" not in json.dumps(version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"])
