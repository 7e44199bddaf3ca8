"""From pictures to task models: every stage complete, repeatable to the byte, and blind to the validation split."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_chain import Chain

from dreamteacher.stage import read_stage

TRAINED = ("teacher", "features", "interpreter", "labels", "mix")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_stage_leaves_a_complete_record_and_no_pickle(chain: Chain) -> None:
    for name, metrics in chain.metrics.items():
        folder = chain.root / name
        record = read_stage(folder)
        assert record["metrics"] == metrics, name
        assert set(record["files"]) == set(files(folder)) - {"stage.json"}, name
        assert not {path.suffix for path in folder.rglob("*")} & {".pt", ".pth", ".bin", ".pkl", ".ckpt"}, name
        for file, content in files(folder).items():
            assert str(chain.root.parent).encode() not in content, f"{name}/{file} knows where it was made"


def test_every_trained_stage_leaves_its_curves(chain: Chain) -> None:
    for name in (*TRAINED, *(name for name in chain.metrics if name.startswith("finetune"))):
        with (chain.root / name / "curves.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows if row["loss"]] == ["2", "4"], name
        assert all(float(row["grad_norm"]) > 0 for row in rows if row["loss"]), name


def test_no_validation_picture_is_read_by_any_training(chain: Chain) -> None:
    with (chain.root / "data/manifest.csv").open() as file:
        split = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert sorted(split.values()) == ["train"] * 14 + ["val"] * 4
    for name, read in chain.read.items():
        assert {split[path] for path in read} == ({"train"} if name != "data" else set()), name


def test_started_again_nothing_is_computed(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in chain.root.rglob("*")}
    monkeypatch.setattr("dreamteacher.training.loop.train", None)
    monkeypatch.setattr("torch.nn.Module.__call__", None)
    assert {name: call() for name, call in chain.calls().items()} == chain.metrics
    assert {path: path.stat().st_mtime_ns for path in chain.root.rglob("*")} == before


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_second_run_elsewhere_gives_the_same_bytes(task: str, chains: dict[str, Chain]) -> None:
    first = chains[task]
    second = Chain(first.task, first.source, first.root.with_name("two"), first.params).run()
    ours, others = files(first.root), files(second.root)
    assert sorted(ours) == sorted(others)
    assert [name for name in ours if ours[name] != others[name]] == []
