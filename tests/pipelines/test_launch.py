"""A stage in several processes of one machine, as a step of profile multi-gpu runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chain import brief_params

from dreamteacher.cluster.launch import PROCESSES, launch, remove_run_folder
from dreamteacher.cluster.node_logs import ending
from dreamteacher.errors import UserError
from dreamteacher.settings.file import restore_params
from dreamteacher.stage import read_stage
from dreamteacher.stages import ingest


@pytest.fixture
def data(small_project: Path, tmp_path: Path) -> Path:
    ingest.run(brief_params(small_project / "pictures"), out=tmp_path / "data")
    return tmp_path / "data"


def test_two_processes_give_the_figures_of_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule is shorter than the default T of the settings that the step is not given; these must not be checked against it."""
    teacher = brief_params(Path("x")).section("teacher")["teacher"] | {"T_train": 40}
    params = restore_params(seed=0, teacher=teacher)
    one = launch("train-teacher", params, {"data": str(data)}, str(tmp_path / "one"))
    monkeypatch.setenv(PROCESSES, "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    two = launch("train-teacher", params, {"data": str(data)}, str(tmp_path / "two"))
    assert two == pytest.approx(one, rel=1e-4)
    assert read_stage(tmp_path / "two")["params"] == read_stage(tmp_path / "one")["params"]


def test_what_fails_in_the_processes_fails_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    with pytest.raises(UserError, match=r"finetune failed in its 2 processes \(exit code 1\)"):
        launch("finetune", brief_params(Path("x")), {"data": str(tmp_path / "nothing")}, str(tmp_path / "out"), init="scratch", seed=0)
    assert not (tmp_path / "out").exists()
    found = ending(capfd.readouterr().err)  # in what torchrun really writes, as it is read in the logs of several nodes
    assert (found.error.startswith(f"{tmp_path / 'nothing'} does not exist"), found.final, found.consequence) == (True, True, False)
    assert not any("torchrun" in line or "elastic" in line for line in found.lines)


def test_the_last_step_removes_the_runs_folder_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remove_run_folder() == ""
    for run in ("run-1", "run-2"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("DREAMTEACHER_RUNS", str(tmp_path))
    monkeypatch.setenv("DREAMTEACHER_RUN", "run-1")
    assert remove_run_folder() == f"{tmp_path}/run-1 is removed"
    assert [path.name for path in tmp_path.iterdir()] == ["run-2"]
    assert remove_run_folder() == f"{tmp_path}/run-1 is removed"  # by finish, after record
