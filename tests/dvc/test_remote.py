"""Results reach a fresh clone over an S3 API (moto's server)."""

import os
from pathlib import Path

from pipeline import Project


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
    for place in ("artifacts/onnx/model.safetensors", "artifacts/finetuned/mix/0/stage.json", "plots/evaluate/teacher_loss.csv"):
        assert (clone.folder / place).read_bytes() == (project.folder / place).read_bytes()
    assert clone.repro() == []
