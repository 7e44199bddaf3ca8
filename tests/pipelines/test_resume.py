"""A step that was killed or stopped goes on, when it is tried again, from the checkpoints on the run's volume."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import teacher_alone
import yaml
from local_runs import start_local

from dreamteacher.settings.file import load_params
from dreamteacher.stages import ingest, train_teacher
from forked import Forked
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


def start(project: Path, root: Path, volume: Path) -> Forked:
    """The pipeline, with the environment that pipelines/resources.py gives a step: a volume, and the name of the run on it."""
    packages = os.pathsep.join([str(PROJECT), str(PROJECT / "src")])
    environment = os.environ | {"PYTHONPATH": packages, "DREAMTEACHER_RUNS": str(volume), "DREAMTEACHER_RUN": "run-1"}
    return start_local(partial(teacher_alone.main, project, root), project, environment)


def kill_the_step(pipeline: Forked, volume: Path) -> None:
    """SIGKILL to the process of train-teacher as soon as a checkpoint of it is complete."""
    while not list(volume.glob("run-1/checkpoints/train-teacher/*/step-*")):
        assert pipeline.returncode is None, pipeline.output
        time.sleep(0.05)
    for process in psutil.Process(pipeline.pid).children(recursive=True):
        process.kill()


def test_a_step_that_was_killed_and_then_stopped_gives_the_same_bytes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    first = start(project, tmp_path / "first", volume)
    kill_the_step(first, volume)
    assert first.wait() != 0
    assert not list((tmp_path / "first").rglob("train-teacher/out/stage.json"))

    second = start(project, tmp_path / "second", volume)
    while "resumes after step" not in second.output:
        assert second.returncode is None, second.output
        time.sleep(0.05)
    below = psutil.Process(second.pid).children(recursive=True)
    ours = psutil.Process().cmdline()  # steps are forks, not new Pythons that import torch
    assert all(process.cmdline() == ours or "resource_tracker" in process.cmdline()[-1] for process in below)
    second.terminate()
    assert second.wait() == 128 + signal.SIGTERM, second.output
    assert "stopped by signal 2 at step" in second.output  # what Ctrl-C sends to all, to each process
    assert second.output.splitlines()[-1] == "stopped; run the same command again to resume"
    left = psutil.wait_procs(below, timeout=5)[1]
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []  # those only wait for the container's first

    again = start(project, tmp_path / "again", volume)
    assert again.wait() == 0, again.output
    assert "resumes after step" in again.output
    (resumed,) = (tmp_path / "again").rglob("train-teacher/out/stage.json")

    monkeypatch.chdir(project)
    params = load_params()
    ingest.run(params, out=tmp_path / "data")
    train_teacher.run(params, data=tmp_path / "data", name="teacher", out=tmp_path / "teacher")
    assert resumed.read_bytes() == (tmp_path / "teacher/stage.json").read_bytes()
