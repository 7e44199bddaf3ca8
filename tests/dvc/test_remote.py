"""Results reach a fresh clone over an S3 API (moto's server)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from pipeline import Project

from helpers import free_port, wait_for


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/moto-api/", server, log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
                patch.setenv(name, value)
            boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
            yield url
    finally:
        server.terminate()
        server.wait(30)


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
