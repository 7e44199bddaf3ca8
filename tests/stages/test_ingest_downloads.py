"""Data sets as downloaded: Tiny ImageNet, Roboflow exports, Pascal VOC's image sets per class."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from ingest_sources import facts, manifest, picture, report, run, save, stored

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.multilabel import from_json
from dreamteacher.errors import UserError

VOC = (
    "<annotation><size><width>24</width><height>20</height></size><object><name>rust</name>"
    "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
FISH, FROG = "n01443537", "n01641577"


def save_pictures(folder: Path, *names: str) -> None:
    """A picture for each name, unlike those of all other names."""
    for name in names:
        save(picture(zlib.crc32(name.encode())), folder / name)


def tiny_imagenet(source: Path) -> Path:
    for cls in (FISH, FROG):
        save_pictures(source / "train" / cls / "images", *(f"{cls}_{i}.JPEG" for i in range(2)))
        (source / "train" / cls / f"{cls}_boxes.txt").write_text(f"{cls}_0.JPEG\t0\t10\t63\t58\n")
    save_pictures(source / "val/images", *(f"val_{i}.JPEG" for i in range(5)))
    lines = [f"val_{i}.JPEG\t{cls}\t0\t32\t44\t62\n" for i, cls in enumerate((FROG, FISH, FISH, FROG, "n0000"))]
    (source / "val/val_annotations.txt").write_text("".join(lines))
    return source


def test_tiny_imagenet_is_read_as_it_is_downloaded(tmp_path: Path) -> None:
    run(tiny_imagenet(tmp_path / "in/tiny-imagenet-200"), tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == [FISH, FROG]
    of_val = {row["path"]: row["label"] for row in manifest(tmp_path / "out") if row["split"] == "val"}
    # the class of the last has no folder
    assert of_val == {f"val/images/val_{i}.JPEG": label for i, label in enumerate(["1", "0", "0", "1", ""])}
    assert report(tmp_path / "out")["labels_found_in"] == "class folders and val/val_annotations.txt"


def roboflow(source: Path, of_valid: str = "filename, cat, dog") -> Path:
    for split, n in (("train", 4), ("valid", 2), ("test", 1)):
        names = [f"{split}{i}_jpg.rf.{i:032x}.jpg" for i in range(n)]
        save_pictures(source / split, *names)
        head = of_valid if split == "valid" else "filename, cat, dog"
        rows = [f"{name}, {i % 2}, {int(i < 1)}" for i, name in enumerate(names)]
        (source / split / "_classes.csv").write_text("\n".join([head, *rows]) + "\n")
    return source


def labels(out: Path) -> dict[str, tuple[int, ...]]:
    return {row["path"].partition("_jpg")[0]: from_json(stored(out, row, "label_")) for row in manifest(out)}


def test_several_labels_of_roboflow_are_read_in_each_split(tmp_path: Path) -> None:
    run(roboflow(tmp_path / "in"), tmp_path / "out")
    found = facts(tmp_path / "out")
    assert (found["task"], found["classes"]) == ("multilabel", ["cat", "dog"])
    expected = {f"{split}{i}": (i % 2, int(i < 1)) for split, n in (("train/train", 4), ("valid/valid", 2)) for i in range(n)}
    assert labels(tmp_path / "out") == expected


def test_columns_of_roboflow_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"valid/_classes\.csv has other columns than .*test/_classes\.csv"):
        run(roboflow(tmp_path / "in", "filename, dog, cat"), tmp_path / "out")


def test_class_folders_beside_labels_of_roboflow_are_said_and_can_be_chosen(tmp_path: Path) -> None:
    source = roboflow(tmp_path / "in")
    save_pictures(source, *(f"{split}/{cls}/{i}.jpg" for split in ("train", "valid") for cls in ("bird", "cow") for i in range(2)))
    said = "labels are read from test/_classes.csv, and the folders bird, cow are not; if these are the classes, set ingest.task"
    run(source, tmp_path / "out")
    assert any(said in line for line in report(tmp_path / "out")["summary"])
    (source / "valid" / "_classes.csv").unlink()
    with pytest.raises(UserError, match=f"and none in val.*; {said}"):
        run(source, tmp_path / "other")
    for path in source.glob("*/*.jpg"):
        path.unlink()
    run(source, tmp_path / "chosen", task="classification")
    assert facts(tmp_path / "chosen")["classes"] == ["bird", "cow"]


def class_lists(source: Path, *, with_plain: bool = True) -> Path:
    save_pictures(source / "JPEGImages", *(f"2008_{i}.jpg" for i in range(6)))
    lists = source / "ImageSets/Main"
    lists.mkdir(parents=True)
    for split, stems in (("train", range(4)), ("val", range(4, 6)), ("trainval", range(6))):
        if with_plain:
            (lists / f"{split}.txt").write_text("".join(f"2008_{i}\n" for i in stems))
        for cls, values in (("cat", (1, -1, 0, 1, 1, -1)), ("dog", (-1, 1, 1, -1, 0, 1))):
            (lists / f"{cls}_{split}.txt").write_text("".join(f"2008_{i} {values[i]:2d}\n" for i in stems))
    return source


@pytest.mark.parametrize("with_plain", [True, False])
def test_lists_of_each_class_of_pascal_voc_are_several_labels(with_plain: bool, tmp_path: Path) -> None:
    run(class_lists(tmp_path / "in/VOC2008", with_plain=with_plain), tmp_path / "out", val_fraction=0.5)
    found = facts(tmp_path / "out")
    assert (found["task"], found["classes"]) == ("multilabel", ["cat", "dog"])
    names = [f"JPEGImages/2008_{i}.jpg" for i in range(6)]
    expected = dict(zip(names, [(1, 0), (0, 1), (255, 1), (1, 0), (1, 255), (0, 1)], strict=True))
    assert {name.removeprefix("VOC2008/"): label for name, label in labels(tmp_path / "out").items()} == expected
    assert [row["path"] for row in manifest(tmp_path / "out") if row["split"] == "val"] == names[4:]


@pytest.mark.parametrize(("line", "problem"), [("2008_0 2", "'2008_0 2' is not the name"), ("2008_0 -1", "2008_0 has another value")])
def test_lists_of_each_class_that_cannot_be_are_refused(line: str, problem: str, tmp_path: Path) -> None:
    with (class_lists(tmp_path / "in") / "ImageSets/Main/cat_train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=rf"cat_train\.txt, line 5: {problem}"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_boxes_of_pictures_in_class_folders_may_lie_in_one(form: str, tmp_path: Path) -> None:
    """As NEU-DET has them, of whose classes one, patches, is also a word for pictures."""
    for k, split in enumerate(("train", "validation")):
        names = [f"{cls}_{2 * k + i}" for cls in ("crazing", "patches") for i in range(2)]
        for name in names:
            save_pictures(tmp_path / "in" / split / "images" / name.partition("_")[0], f"{name}.jpg")
            label = tmp_path / "in" / split / "annotations" / f"{name}.{'xml' if form == 'voc' else 'txt'}"
            label.parent.mkdir(exist_ok=True)
            label.write_text(VOC if form == "voc" else "0 0.5 0.5 0.2 0.2\n")
    counts = run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["task"] == "detection"
    assert (counts["n_train"], counts["n_val"], counts["n_labelled"]) == (4, 4, 8)


def test_boxes_that_fit_pictures_in_two_folders_belong_to_none(tmp_path: Path) -> None:
    for cls in ("crazing", "rust"):
        save_pictures(tmp_path / "in/images" / cls, f"{cls}_0.jpg", f"{cls}_1.jpg")
        save(picture(1 + len(cls)), tmp_path / "in/images" / cls / "2.jpg")
    (tmp_path / "in/annotations").mkdir()
    (tmp_path / "in/annotations/2.xml").write_text(VOC)
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["task"] == "classification"


def test_of_exports_of_several_tasks_each_names_its_own_pictures(tmp_path: Path) -> None:
    """As CVAT exports them, all with the pictures frame_0.png and frame_1.png."""
    for task, cls in (("task_1", "car"), ("task_2", "bus")):
        images = [{"id": i, "file_name": f"frame_{i}.png", "width": 24, "height": 20} for i in range(2)]
        for i in range(2):
            save(picture(zlib.crc32(f"{task}{i}".encode())), tmp_path / "in" / task / "images" / f"frame_{i}.png")
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 5, 5]} for i in range(2)]
        stored = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": cls}]}
        (tmp_path / "in" / task / "annotations").mkdir()
        (tmp_path / "in" / task / "annotations/instances_default.json").write_text(json.dumps(stored))
    run(tmp_path / "in", tmp_path / "out")
    names = facts(tmp_path / "out")["classes"]
    images = ImageSet(tmp_path / "out", "train")
    shown = {images.names[i]: names[images.label(i).classes[0]] for i in range(len(images))}
    assert shown == {f"{task}/images/frame_{i}.png": cls for task, cls in (("task_1", "car"), ("task_2", "bus")) for i in range(2)}
