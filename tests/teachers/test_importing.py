"""`dreamteacher import-teacher`: complete folders or none, and no code of a source is executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dreamteacher.cli import main
from dreamteacher.errors import UserError
from dreamteacher.stage import digest_of
from dreamteacher.teachers.importing import check_options, import_teacher, read_state_dict
from helpers import install_package

KIND = """
from pathlib import Path
from safetensors.torch import save_file
from dreamteacher.teachers.base import Tap
from dreamteacher.teachers.folder import write_facts
from dreamteacher.teachers.importing import check_options, read_state_dict

def import_weights(source, out, options):
    check_options(options, ["strength"])
    save_file(read_state_dict(Path(source)), out / "weights.safetensors")
    if options.get("strength") == "broken":
        raise RuntimeError("half way")
    write_facts(out, "foreign", [Tap("a", 4, 3)], {})
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = "[dreamteacher.teachers]\nforeign = toy_foreign\ngone = no_such_module\nddpm = toy_foreign\n"
    install_package(monkeypatch, tmp_path / "site-packages", entries, toy_foreign=KIND)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": {"module.a": torch.ones(3)}, "step": 7}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_a_foreign_checkpoint_becomes_a_teachers_folder(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teachers/mine"
    assert main(["import-teacher", "foreign", str(checkpoint), "--out", str(out), "--option", "licence=CC BY-NC 4.0"]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed.partition("\n\n")[2])
    assert settings == {"teacher": {"kind": "foreign", "pretrained": str(out), "digest": digest_of(out)}}
    assert sorted(path.name for path in out.iterdir()) == ["teacher.json", "weights.safetensors"]
    facts = json.loads((out / "teacher.json").read_text())
    assert (facts["kind"], facts["source"], facts["licence"]) == ("foreign", str(checkpoint), "CC BY-NC 4.0")
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # safetensors makes files that only their owner may read


def test_what_holds_something_is_never_written_to(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for out in (tmp_path / "full", checkpoint):
        with pytest.raises(UserError, match=f"{out} exists; name another --out, or remove it"):
            import_teacher("foreign", str(checkpoint), out, [])
    (tmp_path / "empty").mkdir()
    import_teacher("foreign", str(checkpoint), tmp_path / "empty", [])
    assert (tmp_path / "empty/teacher.json").is_file()


def test_an_import_that_fails_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        import_teacher("foreign", str(checkpoint), tmp_path / "out/teacher", ["strength=broken"])
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_are_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    for kind, source, options, line in (
        ("pixels", checkpoint, [], r"teachers of kind 'pixels' are not imported; of ours.* are"),
        ("gone", checkpoint, [], r"kind of teacher 'gone' cannot be loaded \(No module named .*\); install no_such_module again"),
        ("ddpm", checkpoint, [], r"teachers of kind 'ddpm' are not imported"),  # ours, which no entry point replaces
        ("foreign", checkpoint, ["strength"], r"--option strength is no KEY=VALUE, such as licence=MIT"),
        ("foreign", checkpoint, ["strength=1", "strength=2"], r"--option strength is given twice"),
        ("foreign", checkpoint, ["strenght=1"], r"there is no --option strenght; near: strength"),
        ("foreign", tmp_path / "none.pt", [], r"none.pt is no file; name the checkpoint"),
    ):
        with pytest.raises(UserError, match=line):
            import_teacher(kind, str(source), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    check_options({"a": "1"}, ["a", "b"])


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "was run", tmp_path / "hostile.pt"
    content = {"state_dict": {"a": torch.ones(3)}, "config": Hostile(mark)}
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"hostile\.pt (holds more than tensors|is no checkpoint of torch).*") as caught:
        import_teacher("foreign", str(file), tmp_path / "out", [])
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()  # it would have been


def test_damaged_and_foreign_files_are_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    for name, content in {"a.pt": whole[: len(whole) // 2], "b.pt": b"", "c.pt": b"<html>", "d.safetensors": b"<html>"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} (is no checkpoint of torch, or damaged|holds more than tensors)") as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "e.pt")
    with pytest.raises(UserError, match=r"e\.pt holds no state dict; name a checkpoint of weights"):
        read_state_dict(tmp_path / "e.pt")
