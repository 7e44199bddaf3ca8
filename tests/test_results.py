"""The store of results: results are shared between machines."""

import json
import logging
from pathlib import Path

import pytest

from dreamteacher import results
from dreamteacher.cluster import launch
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage, read_stage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DREAMTEACHER_RESULTS", str(tmp_path / "store"))
    return tmp_path / "store"


def compute(out: Path, *, stage: str = "train-teacher", lr: float = 1e-3, overwrite: bool = False) -> bool:
    """Run a small stage; whether it was computed."""
    with open_stage(stage, params={"lr": lr, "seed": 0}, inputs={}, out=out, overwrite=overwrite) as opened:
        if not opened.done:
            (opened.tmp / "unet").mkdir()
            (opened.tmp / "unet/model.safetensors").write_text(str(lr))
            opened.metrics["loss"] = 0.25
        computed = not opened.done
    assert opened.metrics == {"loss": 0.25}
    return computed


def test_a_result_is_taken_with_the_same_bytes_and_says_who_made_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("DREAMTEACHER_RUN", "run-1")
    caplog.set_level(logging.INFO, "dreamteacher")
    assert compute(tmp_path / "cluster")
    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path / "other"))
    assert not compute(tmp_path / "laptop")
    files = [path.relative_to(tmp_path / "cluster") for path in (tmp_path / "cluster").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all((tmp_path / "laptop" / file).read_bytes() == (tmp_path / "cluster" / file).read_bytes() for file in files)
    assert "train-teacher 0: taken from the store of results (run run-1, 20" in caplog.text
    assert not list((tmp_path / "other/train-teacher").iterdir())
    assert not list(tmp_path.glob(".*"))


def test_other_settings_code_or_versions_are_computed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert compute(tmp_path / "a")
    assert compute(tmp_path / "b", lr=2e-3)
    monkeypatch.setattr(results, "code_digest", lambda: "edited")
    assert compute(tmp_path / "c")
    monkeypatch.setattr(results, "version", lambda package: "2.16.0+cpu")
    assert compute(tmp_path / "d")
    monkeypatch.setattr(results, "version", lambda package: "2.16.0")  # built for another machine
    assert not compute(tmp_path / "e")


@pytest.mark.parametrize("ask", ["REUSE=false", "overwrite", "publish", "one of two processes"])
def test_what_is_not_to_be_reused_is_computed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str):
    stage = "publish" if ask == "publish" else "train-teacher"
    assert compute(tmp_path / "a", stage=stage)
    if ask == "REUSE=false":
        monkeypatch.setenv("DREAMTEACHER_REUSE", "false")
    if ask == "one of two processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert compute(tmp_path / "b", stage=stage, overwrite=ask == "overwrite")


def test_an_incomplete_result_is_not_used(store: Path, tmp_path: Path):
    assert compute(tmp_path / "a")
    (made,) = store.rglob(results.MADE)
    made.unlink()
    assert compute(tmp_path / "b")
    assert not compute(tmp_path / "c")


@pytest.mark.parametrize("damage", ["flipped", "lost"])
def test_a_damaged_result_is_computed_again_and_replaced(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str):
    assert compute(tmp_path / "a")
    (weights,) = store.rglob("model.safetensors")
    weights.write_text("0.002") if damage == "flipped" else weights.unlink()
    assert compute(tmp_path / "b")
    assert "train-teacher" in caplog.text
    assert read_stage(tmp_path / "b")["metrics"] == {"loss": 0.25}
    assert not compute(tmp_path / "c")


@pytest.mark.parametrize("name", ["../../outside", "unet/../../../outside", "{tmp}/outside", ".", "", 7, None])
def test_a_result_that_names_files_outside_its_folder_is_damaged(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: object
):
    assert compute(tmp_path / "a")
    (made,) = store.rglob(results.MADE)
    (store / "outside").write_text("of somebody else")
    entry = name.format(tmp=tmp_path) if isinstance(name, str) else name
    made.write_text(json.dumps(json.loads(made.read_text()) | {"files": [entry, *json.loads(made.read_text())["files"]]}))
    for source in (store, made.parent / "result", made.parent):  # wherever the name would lead
        (source / "outside").write_text("of somebody else")
    assert compute(tmp_path / "b/c")
    assert "the result in the store is damaged and is computed again" in caplog.text
    assert not [path for path in tmp_path.rglob("outside") if not path.is_relative_to(store)]
    assert not compute(tmp_path / "d")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": ["stage.json"]}', "7"])
def test_a_result_whose_description_is_damaged_is_replaced(store: Path, tmp_path: Path, content: str):
    assert compute(tmp_path / "a")
    (made,) = store.rglob(results.MADE)
    made.write_text(content)
    assert compute(tmp_path / "b")
    assert not compute(tmp_path / "c")


def test_a_store_that_cannot_be_used_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DREAMTEACHER_RESULTS", str(tmp_path / "file/store"))
    assert compute(tmp_path / "a")
    assert "train-teacher: the result is not kept in" in caplog.text
    assert caplog.text.count("\n") == len(caplog.records)


def test_several_processes_are_not_started_for_what_the_store_has(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(params: Params, *, out: Path, seed: int) -> None:
        with open_stage("finetune", params={"seed": seed}, inputs={}, out=out) as opened:
            if not opened.done:
                (opened.tmp / "weights").touch()

    started = []
    monkeypatch.setattr(launch, "_run", lambda stage, params, folders, out, options: run(params, out=out, **options))
    monkeypatch.setattr(launch.subprocess, "run", lambda *words, **_: started.append(words) or run(Params(), out=tmp_path / "b", seed=0))
    monkeypatch.setenv(launch.PROCESSES, "2")
    run(Params(), out=tmp_path / "a", seed=0)
    launch.launch("finetune", Params(), {}, str(tmp_path / "b"), seed=0)
    assert started == []
    assert read_stage(tmp_path / "b")["params"] == {"seed": 0}


def test_a_damaged_result_is_not_computed_by_the_process_that_only_asks(store: Path, tmp_path: Path):
    assert compute(tmp_path / "a")
    (weights,) = store.rglob("model.safetensors")
    weights.write_text("0.002")
    with pytest.raises(results.NothingToTake), results.only_take():
        compute(tmp_path / "b")
    assert not (tmp_path / "b").exists()
