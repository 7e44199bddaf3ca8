"""A step that was killed or stopped goes on, when it is tried again, from the checkpoints on the run's volume."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import teacher_alone
import yaml

from dreamteacher.settings.file import load_params
from dreamteacher.stages import ingest, train_teacher
from helpers import PROJECT


@pytest.fixture
def project(small_project: Path, tmp_path: Path) -> Path:
    """As `small_project`, with a teacher that trains long enough to be killed on the way."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(small_project / "pictures", folder / "pictures")
    settings = yaml.safe_load((small_project / "params.yaml").read_text())
    settings["teacher"] |= {"steps": 40, "checkpoint_every": 2}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


def start(project: Path, root: Path, volume: Path) -> subprocess.Popen[str]:
    """The pipeline, with the environment that pipelines/resources.py gives a step: a volume, and the name of the run on it."""
    packages = os.pathsep.join([str(PROJECT), str(PROJECT / "src")])
    environment = os.environ | {"PYTHONPATH": packages, "DREAMTEACHER_RUNS": str(volume), "DREAMTEACHER_RUN": "run-1"}
    command = [sys.executable, teacher_alone.__file__, str(project), str(root)]
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_the_step(pipeline: subprocess.Popen[str], volume: Path) -> None:
    """SIGKILL to the process of train-teacher as soon as a checkpoint of it is complete."""
    while not list(volume.glob("run-1/checkpoints/train-teacher/*/step-*")):
        assert pipeline.poll() is None, pipeline.communicate()[0]
        time.sleep(0.05)
    for process in psutil.Process(pipeline.pid).children(recursive=True):
        process.kill()


def test_a_step_that_was_killed_and_then_stopped_gives_the_same_bytes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    first = start(project, tmp_path / "first", volume)
    kill_the_step(first, volume)
    assert first.communicate()[0]
    assert first.returncode != 0
    assert not list((tmp_path / "first").rglob("train-teacher/out/stage.json"))

    second = start(project, tmp_path / "second", volume)
    for line in second.stdout:
        if "resumes after step" in line:
            break
    below = psutil.Process(second.pid).children(recursive=True)
    assert all("multiprocessing" in " ".join(process.cmdline()) for process in below)  # steps are forks, not new Pythons that import torch
    second.terminate()
    said = second.communicate()[0]
    assert second.returncode == 128 + signal.SIGTERM, said
    assert "stopped by signal 2 at step" in said  # what Ctrl-C sends to all, to each process
    assert said.splitlines()[-1] == "stopped; start the same command again to go on"
    left = psutil.wait_procs(below, timeout=5)[1]
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []  # those only wait for the container's first

    again = start(project, tmp_path / "again", volume)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert "resumes after step" in said
    (resumed,) = (tmp_path / "again").rglob("train-teacher/out/stage.json")

    monkeypatch.chdir(project)
    params = load_params()
    ingest.run(params, out=tmp_path / "data")
    train_teacher.run(params, data=tmp_path / "data", name="teacher", out=tmp_path / "teacher")
    assert resumed.read_bytes() == (tmp_path / "teacher/stage.json").read_bytes()
