"""Complete outputs or none, resuming, repetition, and messages of a stage."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreamteacher.clock import clock_of
from dreamteacher.errors import Interrupted, UserError
from dreamteacher.stage import open_stage, read_stage
from helpers import process_inside
from small_stage import OUT, make

pytestmark = pytest.mark.usefixtures("in_tmp")
CHECKPOINTS = Path(".checkpoints/train-teacher")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_appears_whole_with_its_record_and_nothing_beside_it():
    assert make()
    assert set(tree(OUT)) == {"stage.json", "unet/model.safetensors"}
    assert [path.name for path in OUT.parent.iterdir()] == ["own"]
    assert [path.name for path in CHECKPOINTS.iterdir()] == [f"{read_stage(OUT)['digest']}.json"]  # the time it took
    record = read_stage(OUT)
    assert record["stage"] == "train-teacher"
    assert record["params"] == {"lr": 1e-3}
    assert record["metrics"] == {"loss": 0.25}
    assert record["versions"]["torch"]
    assert list(record["files"]) == ["unet/model.safetensors"]


def test_same_stage_elsewhere_and_later_gives_the_same_bytes(tmp_path):
    make()
    time.sleep(1.1)
    make(out=tmp_path / "other/place")
    assert tree(OUT) == tree(tmp_path / "other/place")
    assert str(tmp_path) not in (OUT / "stage.json").read_text()


def test_finished_stage_is_not_run_again_and_gives_its_metrics():
    make()
    before = (OUT / "stage.json").stat().st_mtime_ns
    with open_stage("train-teacher", params={"lr": 1e-3}, inputs={}, out=OUT) as stage:
        assert stage.done
        assert stage.metrics == {"loss": 0.25}
    assert (OUT / "stage.json").stat().st_mtime_ns == before


def test_failure_leaves_the_old_output_and_the_checkpoints():
    make("old")
    with pytest.raises(ZeroDivisionError), open_stage("train-teacher", params={"lr": 1}, inputs={}, out=OUT, overwrite=True) as stage:
        (stage.tmp / "unet").mkdir()
        (stage.checkpoints / "step-10").write_text("half way")
        raise ZeroDivisionError
    assert (OUT / "unet/model.safetensors").read_text() == "old"
    assert [path.name for path in OUT.parent.iterdir()] == ["own"]
    with open_stage("train-teacher", params={"lr": 1}, inputs={}, out=OUT, overwrite=True) as stage:
        assert (stage.checkpoints / "step-10").read_text() == "half way"


def test_log_and_time_of_a_stage_remain_when_its_checkpoints_are_removed():
    with open_stage("train-teacher", params={}, inputs={}, out=Path("teacher")) as stage:
        (stage.checkpoints / "step-10").touch()
        (stage.checkpoints / "log.jsonl").write_text('{"step": 10}\n')
    assert {path.name for path in CHECKPOINTS.iterdir()} == {f"{stage.checkpoints.name}.{kind}" for kind in ("jsonl", "json")}
    assert stage.checkpoints.with_suffix(".jsonl").read_text() == '{"step": 10}\n'


def test_the_time_of_a_stage_is_that_of_all_its_tries(monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("dreamteacher.clock.time", SimpleNamespace(monotonic=lambda: next(now)))
    with pytest.raises(Interrupted), open_stage("train-teacher", params={}, inputs={}, out=OUT):
        raise Interrupted(15, 10)
    with open_stage("train-teacher", params={}, inputs={}, out=OUT):
        pass
    digest = read_stage(OUT)["digest"]
    assert clock_of("train-teacher", digest)["seconds"] == 20
    with open_stage("train-teacher", params={}, inputs={}, out=OUT, overwrite=True):
        pass
    assert clock_of("train-teacher", digest) | {"ended": ""} == {"seconds": 10, "device": "cpu", "processes": 1, "ended": ""}
    assert clock_of("train-teacher", "of another machine") == {}


def test_interrupted_stage_finds_its_checkpoints_only_with_the_same_settings_and_inputs():
    Path("data").mkdir()
    Path("data/a").write_text("1")
    with pytest.raises(Interrupted), open_stage("train-teacher", params={"lr": 1}, inputs={"data": Path("data")}, out=OUT) as stage:
        (stage.checkpoints / "step-10").touch()
        raise Interrupted(15, 10)
    seen = []
    for lr, content in ((2, "1"), (1, "2"), (1, "1")):
        Path("data/a").write_text(content)
        with pytest.raises(Interrupted), open_stage("train-teacher", params={"lr": lr}, inputs={"data": Path("data")}, out=OUT) as stage:
            seen.append((stage.checkpoints / "step-10").exists())
            raise Interrupted(15, 10)
    assert seen == [False, False, True]


@pytest.mark.parametrize("what", ["other settings", "other inputs", "foreign files"])
def test_output_of_something_else_is_replaced_only_with_overwrite(what):
    Path("data").mkdir()
    make("old")
    if what == "foreign files":
        (OUT / "stage.json").unlink()
    other = {"other settings": {"params": {"lr": 2}}, "other inputs": {"inputs": {"data": Path("data")}}, "foreign files": {}}[what]
    with pytest.raises(UserError, match="--overwrite"):
        make("new", **other)
    assert (OUT / "unet/model.safetensors").read_text() == "old"
    assert make("new", overwrite=True, **other)
    assert (OUT / "unet/model.safetensors").read_text() == "new"
    assert [path.name for path in OUT.parent.iterdir()] == ["own"]


@pytest.mark.parametrize("out", ["pictures", ".", "link"])
def test_a_folder_that_is_read_is_never_replaced(out, in_tmp):
    (in_tmp / "pictures").mkdir()
    (in_tmp / "pictures/0.png").write_bytes(b"mine")
    (in_tmp / "link").symlink_to(in_tmp / "pictures")
    opened = open_stage("ingest", params={}, inputs={"source": Path("pictures")}, out=Path(out), overwrite=True)
    with pytest.raises(UserError, match="is or contains the input pictures, which would be overwritten; name another folder"), opened:
        pass
    assert (in_tmp / "pictures/0.png").read_bytes() == b"mine"


def test_overwrite_recomputes_even_a_finished_output():
    make("old")
    assert make("new", overwrite=True)
    assert (OUT / "unet/model.safetensors").read_text() == "new"


def test_empty_output_folder_is_used():
    OUT.mkdir(parents=True)
    assert make()
    assert read_stage(OUT)


def test_kill_9_leaves_no_output_and_the_next_start_cleans_up():
    body = (
        "import os, sys; from pathlib import Path; from dreamteacher.stage import open_stage\n"
        "with open_stage('train-teacher', params={'lr': 1e-3}, inputs={}, out=Path('artifacts/teachers/own')) as stage:\n"
        "    (stage.tmp / 'half').write_text('x' * 1000); (stage.checkpoints / 'step-10').touch(); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == -9
    assert not OUT.exists()
    assert (OUT.parent / ".own.tmp/half").exists()
    with open_stage("train-teacher", params={"lr": 1e-3}, inputs={}, out=OUT) as stage:
        assert (stage.checkpoints / "step-10").exists()
        assert not (stage.tmp / "half").exists()
    assert set(tree(OUT)) == {"stage.json"}


def test_second_process_on_the_same_output_is_refused():
    opening = "from pathlib import Path; from dreamteacher.stage import open_stage\n"
    opening += f"with open_stage('train-teacher', params={{}}, inputs={{}}, out=Path('{OUT}')):"
    with process_inside(opening), pytest.raises(UserError, match="another process is writing"):
        make()
    assert read_stage(OUT)["params"] == {}


def test_steps_that_compute_the_same_for_two_places_take_turns_with_the_checkpoints():
    opening = "from pathlib import Path; from dreamteacher.stage import open_stage\n"
    opening += "with open_stage('train-teacher', params={'lr': 1e-3}, inputs={}, out=Path('first')) as stage:"
    second = threading.Thread(target=make)
    with process_inside(opening, "(stage.checkpoints / 'step-10').touch()"):
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert not OUT.exists()
    second.join(10)
    assert read_stage(Path("first"))["digest"] == read_stage(OUT)["digest"]
    assert [path.name for path in CHECKPOINTS.iterdir()] == [f"{read_stage(OUT)['digest']}.json"]  # the time it took


def test_settings_that_do_not_change_the_result_are_no_part_of_it():
    first = {"teacher": {"lr": 1, "workers": 0, "log_every": 25, "checkpoint_every": 500, "sample_every": 500, "monitor_every": 250}}
    other = {"teacher": {"lr": 1, "workers": 2, "log_every": 1, "checkpoint_every": 7, "sample_every": 9, "monitor_every": 3}}
    with pytest.raises(Interrupted), open_stage("train-teacher", params=first, inputs={}, out=OUT) as stage:
        (stage.checkpoints / "step-10").touch()
        raise Interrupted(15, 10)
    with open_stage("train-teacher", params=other, inputs={}, out=OUT) as stage:
        assert (stage.checkpoints / "step-10").exists()
    assert read_stage(OUT)["params"] == {"teacher": {"lr": 1}}
    with open_stage("train-teacher", params=first, inputs={}, out=OUT) as stage:
        assert stage.done


def test_other_ranks_write_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with open_stage("train-teacher", params={}, inputs={}, out=OUT) as stage:
        assert not stage.done
        stage.tracker.metrics({"loss": 1.0})
    assert not list(Path().iterdir())


def test_permissions_of_outputs_follow_the_umask():
    before = os.umask(0o027)
    try:
        with open_stage("train-teacher", params={}, inputs={}, out=OUT) as stage:
            (stage.tmp / "model.safetensors").touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in OUT.iterdir()} == {"model.safetensors": "0o640", "stage.json": "0o640"}


def test_what_a_link_in_an_output_leads_to_keeps_its_mode(tmp_path):
    (tmp_path / "private").touch(0o600)
    with open_stage("train-teacher", params={}, inputs={}, out=OUT) as stage:
        (stage.tmp / "link").symlink_to(tmp_path / "private")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_record_is_plain_standard_json():
    make()
    assert json.loads((OUT / "stage.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("stage", "named", "title"),
    [
        ("train-teacher", {"name": "own", "seed": 0}, "train-teacher own 0"),
        ("distill-features", {"recipe": "T150", "seed": 0}, "distill-features T150 0"),
        ("distill-labels", {"recipe": "mix", "seed": 2}, "distill-labels mix 2"),
        ("finetune", {"init": "mix", "seed": 2}, "finetune mix 2"),
    ],
)
def test_stages_of_several_teachers_and_recipes_are_distinguished(stage, named, title, caplog, monkeypatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    caplog.set_level(logging.INFO, "dreamteacher")
    with open_stage(stage, params=named, inputs={}, out=OUT) as opened:
        assert opened.title == title
    assert f"dreamteacher {title}: version" in caplog.text
    records = [json.loads(line) for line in next(Path(".dreamteacher/unsent").glob("*/records.jsonl")).read_text().splitlines()]
    assert records[0]["name"] == " ".join([stage, *(f"{key}={value}" for key, value in named.items())])


def test_a_stage_says_first_what_runs_except_in_a_terminal(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO, "dreamteacher")

    def first_line(seed: int) -> str:
        caplog.clear()
        with open_stage("train-teacher", params={"lr": 1e-3, "init": "mix", "seed": seed}, inputs={}, out=Path(f"out/{seed}")):
            pass
        return caplog.messages[0] if caplog.messages else ""

    assert re.fullmatch(
        rf"dreamteacher train-teacher mix 7: version {version('dreamteacher')}, settings [0-9a-f]{{8}}, on .+", first_line(7)
    )
    assert first_line(8) != first_line(9)
    monkeypatch.setenv("RANK", "1")
    assert first_line(10) == ""
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert first_line(11) == ""


@pytest.mark.parametrize("out", [".", ""])
def test_the_current_folder_is_no_output(out: str):
    with pytest.raises(UserError, match=r"--out \. is the current folder, which cannot be replaced; name a folder in it"):
        make(out=Path(out))
