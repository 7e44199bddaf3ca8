"""Results reach a fresh clone over an S3 API (moto's server)."""

import os
from pathlib import Path

import pytest
from pipeline import Project

from dreamteacher.stage import open_stage, read_stage


def test_pushed_results_reach_a_fresh_clone_and_nothing_is_run_again(project: Project, s3: str, tmp_path: Path):
    project.environment |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    project.run("dvc", "remote", "add", "-q", "-d", "storage", "s3://models/cache")
    project.run("dvc", "remote", "modify", "-q", "storage", "endpointurl", s3)
    project.run("dvc", "push", "-q")
    project.run("git", "commit", "-qam", "remote")
    clone = Project(tmp_path / "clone", Path(project.environment["PATH"].split(":")[0]))
    clone.environment |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    project.run("git", "clone", "-q", str(project.folder), str(clone.folder))
    assert not (clone.folder / "artifacts").exists()
    clone.run("dvc", "pull", "-q")
    for place in ("artifacts/onnx/model.safetensors", "artifacts/finetuned/mix/0/stage.json", "plots/evaluate/teacher_loss/own.csv"):
        assert (clone.folder / place).read_bytes() == (project.folder / place).read_bytes()
    assert clone.repro() == []


def test_a_stage_is_taken_from_a_store_of_results(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DREAMTEACHER_RESULTS", "s3://models/results")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    computed = []
    for name in ("cluster", "laptop"):
        with open_stage("finetune", params={"seed": 0}, inputs={}, out=tmp_path / name) as stage:
            if not stage.done:
                computed.append(name)
                (stage.tmp / "backbone").mkdir()
                (stage.tmp / "backbone/model.safetensors").write_bytes(b"weights")
    assert computed == ["cluster"]
    assert (tmp_path / "laptop/backbone/model.safetensors").read_bytes() == b"weights"
    assert read_stage(tmp_path / "laptop") == read_stage(tmp_path / "cluster")
