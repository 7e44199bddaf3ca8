import errno
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
from dreamteacher.stage import digest_of, open_stage, read_stage

pytestmark = pytest.mark.usefixtures("in_tmp")
OUT = Path("artifacts/teacher")
CHECKPOINTS = Path(".checkpoints/train-teacher")


def make(
    text: str = "weights", *, out: Path = OUT, params: dict | None = None, inputs: dict | None = None, overwrite: bool = False
) -> bool:
    """Run a small stage; whether it had something to do."""
    with open_stage("train-teacher", params=params or {"lr": 1e-3}, inputs=inputs or {}, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            (stage.tmp / "unet").mkdir()
            (stage.tmp / "unet/model.safetensors").write_text(text)
            stage.metrics["loss"] = 0.25
        return not stage.done


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_appears_whole_with_its_record_and_nothing_beside_it():
    assert make()
    assert set(tree(OUT)) == {"stage.json", "unet/model.safetensors"}
    assert [path.name for path in OUT.parent.iterdir()] == ["teacher"]
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
    assert [path.name for path in OUT.parent.iterdir()] == ["teacher"]
    with open_stage("train-teacher", params={"lr": 1}, inputs={}, out=OUT, overwrite=True) as stage:
        assert (stage.checkpoints / "step-10").read_text() == "half way"


def test_of_the_checkpoints_the_log_and_the_time_stay():
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
def test_output_of_something_else_is_not_replaced_unless_told_to(what):
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
    assert [path.name for path in OUT.parent.iterdir()] == ["teacher"]


@pytest.mark.parametrize("out", ["pictures", ".", "link"])
def test_a_folder_that_is_read_is_never_replaced(out, in_tmp):
    (in_tmp / "pictures").mkdir()
    (in_tmp / "pictures/0.png").write_bytes(b"mine")
    (in_tmp / "link").symlink_to(in_tmp / "pictures")
    opened = open_stage("ingest", params={}, inputs={"source": Path("pictures")}, out=Path(out), overwrite=True)
    with pytest.raises(UserError, match="is or holds pictures, which is read, and would be replaced; name another folder"), opened:
        pass
    assert (in_tmp / "pictures/0.png").read_bytes() == b"mine"


def test_overwrite_makes_even_a_finished_output_anew():
    make("old")
    assert make("new", overwrite=True)
    assert (OUT / "unet/model.safetensors").read_text() == "new"


def test_empty_output_folder_is_used():
    OUT.mkdir(parents=True)
    assert make()
    assert read_stage(OUT)


def read_as_input() -> None:
    with open_stage("distill-features", params={}, inputs={"teacher": OUT}, out=Path("a")):
        pass


DAMAGE = {
    "a flipped bit": lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
    "the second half is cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros as of a full disk": lambda data: b"\0" * len(data),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("seen_before", [True, False])
def test_damaged_input_is_one_line(damage, seen_before):
    make()
    if seen_before:
        read_as_input()
    path = OUT / "unet/model.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError) as caught:
        read_as_input()
    assert str(caught.value) == (
        "artifacts/teacher/unet/model.safetensors is damaged (its sha256 is not the recorded one); "
        "fetch it again (`dvc checkout --force`) or run `dreamteacher train-teacher` again with --overwrite"
    )


def test_damaged_output_is_not_taken_for_finished():
    make()
    (OUT / "unet/model.safetensors").write_text("weighty")
    with pytest.raises(UserError, match=r"unet/model\.safetensors is damaged .* --overwrite"):
        make()
    assert make(overwrite=True)
    assert not make()


def test_a_single_file_of_an_output_is_checked_when_it_is_the_input():
    make()
    with open_stage("b", params={}, inputs={"file": OUT.parent / "teacher/stage.json"}, out=Path("b")):
        pass
    with open_stage("flat", params={}, inputs={}, out=Path("data")) as stage:
        (stage.tmp / "manifest.csv").write_text("path,sha256\n")
        (stage.tmp / "shard.tar").write_text("pictures")
    (Path("data") / "shard.tar").unlink()  # may be missing: it is not read
    before = digest_of(Path("data/manifest.csv"))
    (Path("data") / "manifest.csv").write_text("path,sha257\n")
    with pytest.raises(UserError, match=r"data/manifest\.csv is damaged"):
        digest_of(Path("data/manifest.csv"))
    assert len(before) == 64


def test_what_lies_beside_the_recorded_files_is_no_damage():
    make()
    (OUT / "__pycache__").mkdir()
    (OUT / "notes.txt").write_text("mine")
    read_as_input()


@pytest.mark.parametrize(
    ("folder", "stage"),
    [("artifacts/data", "ingest"), ("artifacts/backbones/features", "distill-features"), ("artifacts/backbones/mix/0", "distill-labels"),
     ("artifacts/finetuned/mix/0", "finetune"), ("somewhere/else", "the stage that makes it")],
)  # fmt: skip
def test_missing_input_names_the_stage_that_makes_it(folder, stage):
    with pytest.raises(UserError, match=stage):
        read_stage(Path(folder))
    with (
        pytest.raises(UserError, match=f"{folder} does not exist.*{stage}"),
        open_stage("x", params={}, inputs={"data": Path(folder)}, out=Path("out")),
    ):
        pass
    assert not Path("out").exists()


def test_incomplete_and_damaged_inputs_are_refused():
    make()
    (OUT / "unet/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks unet/model.safetensors"):
        read_stage(OUT)
    (OUT / "stage.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_stage(OUT)
    (OUT / "stage.json").unlink()
    with pytest.raises(UserError, match="not a complete stage output"):
        read_stage(OUT)


def test_kill_9_leaves_no_output_and_the_next_start_cleans_up():
    body = (
        "import os, sys; from pathlib import Path; from dreamteacher.stage import open_stage\n"
        "with open_stage('train-teacher', params={'lr': 1e-3}, inputs={}, out=Path('artifacts/teacher')) as stage:\n"
        "    (stage.tmp / 'half').write_text('x' * 1000); (stage.checkpoints / 'step-10').touch(); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == -9
    assert not OUT.exists()
    assert (OUT.parent / ".teacher.tmp/half").exists()
    with open_stage("train-teacher", params={"lr": 1e-3}, inputs={}, out=OUT) as stage:
        assert (stage.checkpoints / "step-10").exists()
        assert not (stage.tmp / "half").exists()
    assert set(tree(OUT)) == {"stage.json"}


def test_second_process_on_the_same_output_is_refused():
    body = (
        "import sys; from pathlib import Path; from dreamteacher.stage import open_stage\n"
        "with open_stage('train-teacher', params={}, inputs={}, out=Path('artifacts/teacher')):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match="another process is writing"):
            make()
        first.stdin.close()
        assert first.wait() == 0
    assert read_stage(OUT)["params"] == {}


def test_steps_that_compute_the_same_for_two_places_take_turns_with_the_checkpoints():
    body = (
        "import sys; from pathlib import Path; from dreamteacher.stage import open_stage\n"
        "with open_stage('train-teacher', params={'lr': 1e-3}, inputs={}, out=Path('first')) as stage:\n"
        "    print('in', flush=True); sys.stdin.read(); (stage.checkpoints / 'step-10').touch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        second = threading.Thread(target=make)
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert not OUT.exists()
        first.stdin.close()
        assert first.wait() == 0
        second.join(10)
    assert read_stage(Path("first"))["digest"] == read_stage(OUT)["digest"]
    assert [path.name for path in CHECKPOINTS.iterdir()] == [f"{read_stage(OUT)['digest']}.json"]  # the time it took


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_disk_trouble_is_one_line_and_leaves_nothing(code):
    with pytest.raises(UserError) as caught, open_stage("x", params={}, inputs={}, out=Path("artifacts/x")) as stage:
        (stage.tmp / "half").write_text("half")
        raise OSError(code, os.strerror(code), "some/file")
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(Path("artifacts").iterdir())


def test_place_below_a_file_is_one_line():
    Path("file").touch()
    with pytest.raises(UserError, match="Not a directory; name another folder"), open_stage("x", params={}, inputs={}, out=Path("file/x")):
        pass


@pytest.mark.parametrize("bit", [1, 32])
def test_every_flipped_bit_of_the_record_is_noticed(bit):
    make()
    whole = (OUT / "stage.json").read_bytes()
    for place in range(len(whole)):
        (OUT / "stage.json").write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged") as caught:
            read_stage(OUT)
        assert "\n" not in str(caught.value)
    (OUT / "stage.json").write_bytes(whole)
    assert read_stage(OUT)


def test_records_of_earlier_revisions_are_read():
    make()
    record = read_stage(OUT)
    del record["sha256"]
    (OUT / "stage.json").write_text(json.dumps(record))
    assert read_stage(OUT) == record


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


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff\x00", b"{}", b'{"digest": "d", "params": {}}'])
def test_damaged_record_is_one_line(content):
    make()
    (OUT / "stage.json").write_bytes(content)
    with pytest.raises(UserError, match=r"stage.json is damaged .* run `dreamteacher train-teacher` first") as caught:
        read_stage(OUT)
    assert "\n" not in str(caught.value)


def test_a_place_where_no_folder_can_be_made_is_one_line():
    with pytest.raises(UserError, match=r"no folder can be made in /proc/1; name another --out"):
        make(out=Path("/proc/1/nowhere"))


def test_full_disk_seen_by_a_library_is_one_line():
    seen = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors, which keeps no errno
    with pytest.raises(UserError, match="No space left on device; free"), open_stage("x", params={}, inputs={}, out=Path("artifacts/x")):
        raise RuntimeError(seen)


def test_other_errors_are_not_hidden():
    with pytest.raises(OSError, match="not ours"), open_stage("x", params={}, inputs={}, out=Path("x")):
        raise OSError("not ours")


def test_other_ranks_write_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with open_stage("train-teacher", params={}, inputs={}, out=OUT) as stage:
        assert not stage.done
        stage.tracker.metrics({"loss": 1.0})
    assert not list(Path().iterdir())


def test_record_is_plain_standard_json():
    make()
    assert json.loads((OUT / "stage.json").read_text(), parse_constant=pytest.fail)


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
