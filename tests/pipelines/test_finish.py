"""The last step of a run: what it says of the effects of the others."""

import html
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.compare_data import compare_data
from components.finish import finish
from dreamteacher.settings.file import load_params
from dreamteacher.steps import effect, effects
from helpers import PROJECT

PRETRAIN, RETRAIN = "pretrain", "retrain"


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DREAMTEACHER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DREAMTEACHER_RUN", "run-1")
    return tmp_path / "runs"


def end(pipeline: str, page: Path, state: str = "SUCCEEDED") -> str:
    """What the page of finish says."""
    status = SimpleNamespace(pipeline_job_resource_name=f"tuesday-{pipeline}", state=state, error_message="")
    finish.python_func(status=status, pipeline=pipeline, page=SimpleNamespace(path=page))
    return html.unescape(page.read_text())


def test_the_page_says_what_each_effect_did(volume: Path, tmp_path: Path):
    with effect("publish") as done:
        done["version"] = "4 of nuclei"
    with effect("record") as done:
        done.update(branch="runs/run-1", commit="abc")
    page = end(PRETRAIN, tmp_path / "page")
    assert "<th>ended</th><td>SUCCEEDED</td>" in page
    assert "<th>publish</th><td>done: version 4 of nuclei</td>" in page
    assert "<th>record</th><td>done: branch runs/run-1, commit abc</td>" in page
    assert "<th>promote</th>" not in page
    assert not list(volume.rglob("*.json"))


def test_an_effect_that_failed_or_never_began_is_not_done(volume: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="refused"), effect("publish"):
        raise ValueError("MLflow refused it\nand more")
    page = end(RETRAIN, tmp_path / "page", "FAILED")
    assert "<th>ended</th><td>FAILED, not done: publish</td>" in page
    assert "<th>publish</th><td>not done: MLflow refused it</td>" in page
    assert "<th>promote</th><td>not started</td>" in page
    with effect("publish") as done:  # Retry of the run
        done["version"] = "1 of nuclei"
    assert effects(RETRAIN) == {"publish": "done: version 1 of nuclei", "promote": "not started"}


def test_a_step_whose_pod_was_lost_is_not_taken_to_be_done_although_kubeflow_says_so(volume: Path, tmp_path: Path):
    lost = effect("promote")
    lost.__enter__()  # and never again a word of it
    page = end(RETRAIN, tmp_path / "page")
    assert "<th>ended</th><td>SUCCEEDED, but not done: promote</td>" in page
    assert "<th>promote</th><td>not done: it began at 20" in page


def test_a_complete_run_is_one_that_succeeded(volume: Path, tmp_path: Path):
    """The server of KFP 2.17 says COMPLETE, its local runner SUCCEEDED."""
    (volume / "run-1/checkpoints").mkdir(parents=True)
    assert "<th>ended</th><td>SUCCEEDED</td>" in end(PRETRAIN, tmp_path / "page", "COMPLETE")
    assert not (volume / "run-1").exists()


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_the_effects_tell_how_a_run_ended_where_the_server_does_not_know_or_errs(volume: Path, tmp_path: Path, state: str):
    """kfp_cache.py says when it does not."""
    (volume / "run-1/checkpoints").mkdir(parents=True)
    with effect("publish") as done:
        done["version"] = "4 of nuclei"
    page = end(PRETRAIN, tmp_path / "page", state)
    ended = {"RUNNING": "unknown (Kubeflow calls the steps RUNNING)", "FAILED": "FAILED"}[state]
    assert f"<th>ended</th><td>{ended}</td>" in page
    assert "<th>record</th><td>not started</td>" in page
    assert (volume / "run-1/checkpoints").exists()  # for Retry

    with effect("record") as done:
        done["branch"] = "runs/run-1"
    page = end(PRETRAIN, tmp_path / "page", state)
    ended = {"RUNNING": "no", "FAILED": "FAILED, but no"}[state]
    assert f"<th>ended</th><td>{ended} external effect is missing (Kubeflow calls the steps {state})</td>" in page
    assert [each.name for each in volume.iterdir()] == [".effects"]


@pytest.mark.parametrize("found", [4, 5])
def test_a_retraining_without_enough_new_pictures_ends_well(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: int):
    """A condition that does not hold leaves its group RUNNING."""
    monkeypatch.setattr("dreamteacher.stages.compare_data.run", lambda *_, **__: {"n_new": found})
    monkeypatch.setattr("dreamteacher.report.step.fill_artifacts", lambda *_: None)
    made = {name: SimpleNamespace(path=str(tmp_path / name)) for name in ("data", "champion", "out", "page")}
    settings = load_params(PROJECT / "params.yaml", ["retrain.min_new_images=5"]).section("retrain")
    enough, words = compare_data.python_func(**made, settings=settings)
    page = end(RETRAIN, tmp_path / "page", "RUNNING")
    ended = "unknown" if enough else "no external effect is missing"
    assert f"<th>ended</th><td>{ended} (Kubeflow calls the steps RUNNING)</td>" in page
    assert f"<th>promote</th><td>{'not started' if enough else f'skipped: {words}'}</td>" in page
    assert enough == (found == 5)


def test_a_run_without_a_volume_lists_none(volume: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DREAMTEACHER_RUN")
    with effect("publish"):
        pass
    assert effects(RETRAIN) == {}


def test_a_volume_that_cannot_be_written_stops_no_effect(tmp_path: Path, volume: Path, caplog: pytest.LogCaptureFixture):
    volume.touch()
    with effect("publish") as done:
        done["version"] = "1"
    assert "publish: finish will not know what became of it" in caplog.text
    assert effects(RETRAIN)["publish"].startswith("not known")
