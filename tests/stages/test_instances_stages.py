"""Instance segmentation through the stages: from numbered masks and COCO's outlines; and unsupported combinations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_sources import facts, manifest, reasons, report, run
from PIL import Image
from tiny_chain import brief_params, scratch_metrics

import dreamteacher
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.instances import unpack
from dreamteacher.errors import UserError
from dreamteacher.stages import train_interpreter

ONLY: dict[str, Any] = {"compare": {"inits": ["scratch"]}, "export": {"init": "scratch"}}


def draw(folder: Path, masks: str = "instances") -> Path:
    """12 train pictures and 3 for validation, with one to three bright squares each, and a mask that numbers them."""
    generator = np.random.default_rng(5)
    for number in range(15):
        split = "train" if number < 12 else "val"
        pixels, mask = generator.integers(0, 30, (48, 64, 3)), np.zeros((48, 64), np.uint16)
        for kind in range(1 + number % 3):
            y, x = generator.integers(2, 30), generator.integers(2, 8) + 20 * kind
            pixels[y : y + 12, x : x + 12] += 200
            mask[y : y + 12, x : x + 12] = 300 + kind
        for place, array in (("images", pixels.astype(np.uint8)), (masks, mask)):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / place / split / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("objects"))


def test_objects_go_through_the_chain(source: Path, tmp_path: Path) -> None:
    params = brief_params(source, ingest={"task": "instances", "short_side": 32}, finetune={"accumulate": 2}, **ONLY)
    figures = scratch_metrics(params, source, tmp_path)
    assert [name for name in figures if name.endswith("_mean")] == [
        f"{name}_mean" for name in ("ap", "ap50", "ap75", "precision", "ap_object")
    ]
    assert len(list((tmp_path / "out/overlays").iterdir())) == 1
    assert dreamteacher.load(tmp_path / "finetuned/scratch/0").classes == ["object"]
    with pytest.raises(UserError, match=r"instances predicts no classes that an interpreter could read; drop label_recipes"):
        train_interpreter.run(params, data=tmp_path / "data", teacher=tmp_path, seed=0, out=tmp_path / "interpreter")


def test_validation_objects_keep_their_own_size(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", task="instances", short_side=24)
    assert facts(tmp_path / "out")["task"] == "instances"
    assert {row["label"] for row in manifest(tmp_path / "out")} == {"instances"}
    val = ImageSet(tmp_path / "out", "val")
    numbers, classes, _ = unpack(val.full_size_label(0))
    assert val.size(0) == (24, 32)
    assert val.label(0).shape == (24, 32)
    assert numbers.shape == (48, 64)
    assert [int((numbers == 1 + i).sum()) for i in range(len(classes))] == [144] * len(classes)
    assert report(tmp_path / "out")["labels_per_class"] == {"object": 30}
    assert "class object: 24 objects in 12 pictures of train, 6 objects in 3 pictures of val" in report(tmp_path / "out")["summary"]


def test_masks_beside_pictures_are_numbered_where_no_other_are(tmp_path: Path) -> None:
    source = draw(tmp_path / "source", masks="masks")
    run(source, tmp_path / "out", task="instances")
    assert facts(tmp_path / "out")["task"] == "instances"
    (source / "classes.txt").write_text("background\nnucleus\n")
    run(source, tmp_path / "named", task="instances")
    assert facts(tmp_path / "named")["classes"] == ["nucleus"]
    with pytest.raises(UserError, match=r"holds the value 30\d; .* or set ingest.task to instances if these are numbers of objects"):
        run(source, tmp_path / "auto")


def coco(folder: Path, **change: Any) -> Path:
    images, annotations = [], []
    for number in range(4):
        split = "train" if number < 3 else "val"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{split}/{number}.png", "width": 50, "height": 40})
        for x, category in ((5, 7), (15, 9)):
            outline = [[x, 5, x + 12, 5, x + 12, 20, x, 20]]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "segmentation": outline} | change)
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    (folder / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def test_outlines_of_coco_are_objects(tmp_path: Path) -> None:
    source = coco(tmp_path / "source")
    run(source, tmp_path / "out", task="instances")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]
    numbers, classes, _ = unpack(ImageSet(tmp_path / "out", "train").full_size_label(0))
    assert classes.tolist() == [0, 1]
    assert [int((numbers == number).sum()) for number in (1, 2)] == [150, 180]  # they overlap in two columns; the later lies above
    run(source, tmp_path / "auto")
    assert facts(tmp_path / "auto")["task"] == "detection"


def test_shards_that_ingest_wrote_are_read_again(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", task="instances")
    run(tmp_path / "one/shards", tmp_path / "two", task="instances")
    one, two = (sorted((row["sha256"], row["split"]) for row in manifest(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    assert np.array_equal(ImageSet(tmp_path / "one", "val").label(0), ImageSet(tmp_path / "two", "val").label(0))


def test_what_does_not_fit_the_task_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    boxed = coco(tmp_path / "boxed", segmentation=[], bbox=[3, 3, 9, 9])
    half = coco(tmp_path / "half", segmentation={"size": [9, 9], "counts": "1"})
    cases = {
        (source, "detection", "auto"): r"ingest.task = detection, but .* has no boxes, .*; add it or set ingest.task to auto",
        (source, "classification", "auto"): r"ingest.task = classification, but .* has no labels.csv and no class folders; add labels",
        (source, "classification", "boxes"): r"learns from labels of the kind csv or folders, and ingest.labels is boxes; set one to auto",
        (boxed, "segmentation", "auto"): r"ingest.task = segmentation, but .* has no mask",
        (boxed, "instances", "auto"): r"all.json has boxes and no `segmentation` of an object; add outlines, or set ingest.task to det",
        (half, "instances", "auto"): r"the outline of a 'cat' is neither a polygon nor run lengths of 50 x 40 pixels",
        (source, "instnces", "auto"): r"no task is called 'instnces'; name instances",
    }
    for (folder, task, labels), words in cases.items():
        with pytest.raises(UserError, match=words):
            run(folder, tmp_path / "out", task=task, labels=labels)


def test_a_damaged_mask_costs_its_picture_alone(tmp_path: Path) -> None:
    source = draw(tmp_path / "source")
    (source / "instances/train/3.png").write_bytes(b"")
    Image.fromarray(np.ones((4, 4), np.uint8)).save(source / "instances/train/4.png")
    run(source, tmp_path / "out", task="instances", max_bad_fraction=0.5)
    assert reasons(tmp_path / "out") == {
        "images/train/3.png": "mask is empty (0 bytes)",
        "images/train/4.png": "mask is 4 x 4, its picture 64 x 48",
    }
