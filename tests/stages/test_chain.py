"""The chain: every stage is complete, reproducible to the byte, and does not use the validation split for training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_chain import Chain, brief_params
from torch.nn import functional as F

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.transforms import full_image
from dreamteacher.stage import read_stage
from dreamteacher.stages import evaluate, finetune, ingest
from dreamteacher.tasks.model import load_task_model, normalize

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
        splits = {split[path] for path in read}
        if name.endswith(", trained"):
            assert splits <= ({"val"} if name == "interpreter, trained" else {"train"}), name
        else:
            assert splits == ({"train"} if name != "data" else set()), name
    assert chain.read["interpreter, trained"], "it is measured"


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


def test_the_final_figure_is_that_of_the_masks_as_they_came(chains: dict[str, Chain], tmp_path: Path) -> None:
    """From pictures four times as large as ingest.short_side to mIoU: what counts are the pixels of the mask files."""
    made = chains["segmentation"]
    source = tmp_path / "pictures"
    for path in made.source.rglob("*.png"):
        place = source / path.relative_to(made.source)
        place.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(path)
        picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(place)
    for mask in (source / "val/masks").glob("*.png"):
        pixels = np.array(Image.open(mask))
        pixels[::5] = 1 - pixels[::5] // 255  # lines of one pixel, most of which a reduced mask has not
        Image.fromarray(pixels).save(mask)
    (source / "classes.txt").write_text((made.source / "classes.txt").read_text())
    only_scratch = {"compare": {"inits": ["scratch"], "seeds": [0]}, "export": {"init": "scratch"}}
    params = brief_params(source, ingest={"short_side": 32}, finetune={"steps": 12, "lr": 1e-2}, **only_scratch)
    data, finetuned = tmp_path / "data", tmp_path / "finetuned"
    ingest.run(params, source=source, out=data)
    finetune.run(params, data=data, init="scratch", seed=0, out=finetuned / "scratch/0")
    options = {"teachers": made.root, "backbones": made.root, "finetuned": finetuned}
    evaluate.run(params, data=data, **options, out=tmp_path / "evaluation", metrics=tmp_path / "metrics.json", plots=tmp_path / "plots")

    model, val = load_task_model(finetuned / "scratch/0"), ImageSet(data, "val")
    truths, answers, reduced = [], [], []
    for index, name in enumerate(val.names):
        sample = val.read(index)
        height, width = sample.image.shape[:2]
        truth = np.array(Image.open(source / name.replace("images", "masks")))
        assert min(height, width) == 32 < min(truth.shape)
        with torch.no_grad():
            logits = model(normalize(full_image()(sample)["image"][None], model.mean, model.std))[:, :, :height, :width]
        answer = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        truths.append(truth[truth != 255])
        answers.append(answer[truth != 255])
        reduced.append(np.mean(sample.label == 1) - np.mean(truth == 1))
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    ious = [np.sum((truth == c) & (answer == c)) / np.sum((truth == c) | (answer == c)) for c in (0, 1)]
    figures = json.loads((tmp_path / "metrics.json").read_text())["scratch"]
    assert figures["miou_mean"] == pytest.approx(np.mean(ious))
    assert figures["accuracy_mean"] == pytest.approx(np.mean(truth == answer))
    assert len(truths) == 4
    assert max(map(abs, reduced)) > 0.01  # measured on the reduced masks it would be another
