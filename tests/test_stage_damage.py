"""Missing, truncated or modified inputs and outputs, and full disks."""

import errno
import io
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreamteacher import integrity
from dreamteacher.errors import UserError
from dreamteacher.files import append_line, replace_file
from dreamteacher.stage import digest_of, open_stage, read_stage
from small_stage import OUT, make

pytestmark = pytest.mark.usefixtures("in_tmp")


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
        "artifacts/teachers/own/unet/model.safetensors is damaged (its sha256 is not the recorded one); "
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
    with open_stage("b", params={}, inputs={"file": OUT / "stage.json"}, out=Path("b")):
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
    [("artifacts/data", "ingest"), ("artifacts/teachers/own", "train-teacher"), ("artifacts/backbones/edm", "distill-features"),
     ("artifacts/backbones/data", "distill-features"), ("artifacts/backbones/mix/0", "distill-labels"),
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


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff\x00", b"{}", b'{"digest": "d", "params": {}}'])
def test_damaged_record_is_one_line(content):
    make()
    (OUT / "stage.json").write_bytes(content)
    with pytest.raises(UserError, match=r"stage.json is damaged .* run `dreamteacher train-teacher` first") as caught:
        read_stage(OUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "maker"),
    [
        ("artifacts/backbones/features", "distill-features"),
        ("artifacts/backbones/features/features.json", "distill-features"),
        ("artifacts/backbones/mix/0", "distill-labels"),
        ("artifacts/backbones/mix/0/stage.json", "distill-labels"),
        ("artifacts/finetuned/scratch/12", "finetune"),
        ("artifacts/teachers/own/teacher.json", "train-teacher"),
        ("artifacts/data", "ingest"),
    ],
)
def test_what_is_missing_is_named_with_the_stage_that_makes_it(place, maker):
    with pytest.raises(UserError, match=rf"{place} does not exist; run `dreamteacher {maker}` first"):
        digest_of(Path(place))


def test_a_file_that_may_not_be_read_is_not_called_damaged(monkeypatch):
    make()
    monkeypatch.setattr(integrity, "_here", set())
    monkeypatch.setattr(integrity, "_read_state", set)
    monkeypatch.setattr(integrity, "sha256_of", lambda _: b"")  # what it gives of such a file; root may read all
    with pytest.raises(UserError, match=rf"{OUT}/unet/model.safetensors: Permission denied; grant the permission"):
        read_as_input()


def test_an_output_folder_that_cannot_be_created_is_one_line():
    with pytest.raises(UserError, match=r"no folder can be created in /proc/1; name another --out"):
        make(out=Path("/proc/1/nowhere"))


def test_full_disk_seen_by_a_library_is_one_line():
    seen = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors, which keeps no errno
    with pytest.raises(UserError, match="No space left on device; free"), open_stage("x", params={}, inputs={}, out=Path("artifacts/x")):
        raise RuntimeError(seen)


def test_other_errors_are_not_hidden():
    with pytest.raises(OSError, match="not ours"), open_stage("x", params={}, inputs={}, out=Path("x")):
        raise OSError("not ours")


def test_a_run_continues_although_a_full_disk_truncated_its_notes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    with pytest.raises(RuntimeError), open_stage("train-teacher", params={"lr": 1e-3}, inputs={}, out=OUT):
        raise RuntimeError
    (notes,) = Path(".checkpoints/train-teacher").glob("*/run.json")
    for left in ("", '{"jour', "[]"):
        notes.write_text(left)
        with pytest.raises(RuntimeError), open_stage("train-teacher", params={"lr": 1e-3}, inputs={}, out=OUT):
            raise RuntimeError
    assert make()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files take no more than `size` bytes: what is written beyond is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_does_not_fit_on_the_disk_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "notes.json"
    replace_file(path, "old")
    with full_disk(4), pytest.raises(OSError, match="File too large"):
        replace_file(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    path = tmp_path / "records.jsonl"
    append_line(path, "first")
    with full_disk(10), pytest.raises(OSError, match=r"File too large: '.*records.jsonl'"):  # the system's reason, not a guess
        append_line(path, "a second one")
    append_line(path, "a second one")
    assert path.read_text() == "first\na second one\n"


def test_a_line_that_the_system_takes_in_parts_is_whole(tmp_path, monkeypatch):
    class InParts(io.FileIO):
        def write(self, data):
            return super().write(data[:3])

    monkeypatch.setattr(Path, "open", lambda path, mode="r", **_: InParts(path, mode))
    append_line(tmp_path / "records.jsonl", "one line")
    assert (tmp_path / "records.jsonl").read_bytes() == b"one line\n"
