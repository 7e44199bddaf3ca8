"""Checkpoints: complete or absent; the newest valid one is used."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from dreamteacher.errors import UserError
from dreamteacher.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, save_checkpoint

ANY = {"weights": torch.arange(5.0), "plain": [{"a": 1, "b": (0.1, "c", None)}]}


def steps(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(folder)]


def newest(folder: Path) -> tuple[int | None, list[str]]:
    logged: list[str] = []
    found = newest_checkpoint(folder, lambda state: True, logged.append)
    return (found[1]["step"] if found else None), logged


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    state = read_checkpoint(save_checkpoint(tmp_path / "new" / "folder", 3, ANY))
    assert torch.equal(state["weights"], ANY["weights"])
    assert state["plain"] == ANY["plain"]


def test_newest_three_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, step, {"step": step})
    assert steps(tmp_path) == [20, 15, 10]
    assert newest(tmp_path) == (20, [])
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:80] + bytes([data[80] ^ 1]) + data[81:]])
def test_damage_is_passed_over_and_named(tmp_path: Path, damage) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    path = save_checkpoint(tmp_path, 2, {"step": 2})
    path.write_bytes(damage(path.read_bytes()))
    step, logged = newest(tmp_path)
    assert step == 1
    assert logged == [f"checkpoint {path} is passed over: its checksum is wrong"]


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """Even if the checksum is right, since checkpoints are read with weights_only."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    data = tmp_path / "data"
    torch.save({"step": 9, "evil": Evil()}, data, pickle_module=pickle)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()[:32]
    data.rename(tmp_path / f"step-00000009-{digest}.pt")
    step, (logged,) = newest(tmp_path)
    assert step is None and "cannot be loaded" in logged and "\n" not in logged
    assert not (tmp_path / "harm").exists()


def test_leftovers_of_a_kill_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.tmp").write_bytes(b"half")
    (tmp_path / "log.jsonl").touch()
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "absent") == (None, [])


def test_what_was_passed_over_does_not_displace_good_ones(tmp_path: Path) -> None:
    """A damaged checkpoint of step 35, made by a signal: after the resume it is not counted among the newest three."""
    for step in (10, 20, 35):
        path = save_checkpoint(tmp_path, step, {"step": step})
    path.write_bytes(b"")
    save_checkpoint(tmp_path, 30, {"step": 30})
    assert steps(tmp_path) == [30, 20, 10]


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, {"step": 10, "other": 1})
    save_checkpoint(tmp_path, 10, {"step": 10})
    assert steps(tmp_path) == [10]


def test_failure_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write to .*: No space left on device; make room"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    assert newest(tmp_path) == (1, [])
    assert len(list(tmp_path.iterdir())) == 1
