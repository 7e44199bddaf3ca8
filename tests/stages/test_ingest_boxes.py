"""Box labels in all supported formats: equal results, and refusal of invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_sources import facts, manifest, mask_of, picture, reasons, report, run, save
from PIL import Image

from dreamteacher.data import json_elements
from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError

SIZE = (24, 20)
BOX = [4, 5, 14, 9]  # corners of an object, pixels


def stored(out: Path, split: str = "train") -> dict[str, list[list[float]]]:
    """{name: rows of boxes} of the labelled pictures."""
    images = ImageSet(out, split)  # type: ignore[arg-type]
    return {images.names[index]: images.label(index).rows().tolist() for index in images.labelled()}  # type: ignore[union-attr]


def voc(*objects: tuple[Any, ...], size: tuple[int, int] = SIZE) -> str:
    """XML of (name, xmin, ymin, xmax, ymax[, difficult])."""
    parts = []
    for name, x1, y1, x2, y2, *difficult in objects:
        box = f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        parts.append(f"<object><name>{name}</name><difficult>{int(bool(difficult))}</difficult>{box}</object>")
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(parts)}</annotation>"


def coco_file(path: Path, pictures: dict[str, list[Any]], size: tuple[int, int] = SIZE, **more: Any) -> None:
    """A COCO file of {file_name: [(category_id, x, y, w, h[, iscrowd])]}; ids of categories have gaps."""
    images = [{"id": 10 + 7 * i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(pictures)]
    boxes = [(image["id"], box) for image, of_one in zip(images, pictures.values(), strict=True) for box in of_one]
    annotations = [
        {"id": i, "image_id": image, "category_id": box[0], "bbox": list(box[1:5]), "iscrowd": int(len(box) > 5)}
        for i, (image, box) in enumerate(boxes)
    ]
    categories = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories} | more))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def lay_out(source: Path, form: str) -> Path:
    """Picture 0 of train shows a car (BOX) and a crowd, 1 nothing, 2 is unlabelled; 3, of val, shows a zebra."""
    for i, split in enumerate(("train", "train", "train", "val")):
        place = {"coco": f"{split}2017", "voc": "JPEGImages", "yolo": f"images/{split}"}[form]
        save(picture(i), source / place / f"{i}.png")
    if form == "coco":
        coco_file(source / "annotations/instances_train2017.json", {"0.png": [(3, 4, 5, 10, 4), (90, 0, 0, 8, 8, 1)], "1.png": []})
        coco_file(source / "annotations/instances_val2017.json", {"3.png": [(90, 2, 2, 6, 6)]})
        write(source / "annotations/captions_train2017.json", json.dumps({"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}))
        coco_file(source / "annotations/person_keypoints_val2017.json", {"3.png": [(3, 1, 1, 5, 5)]})
    if form == "voc":
        write(source / "Annotations/0.xml", voc(("car", 5, 6, 14, 9), ("zebra", 1, 1, 8, 8, "difficult")))
        write(source / "Annotations/1.xml", voc())
        write(source / "Annotations/3.xml", voc(("zebra", 3, 3, 8, 8)))
        write(source / "ImageSets/Main/train.txt", "0\n1\n2\n")
        write(source / "ImageSets/Main/val.txt", "3\n")
    if form == "yolo":
        write(source / "labels/train/0.txt", f"0 {9 / 24} {7 / 20} {10 / 24} {4 / 20}\n")
        write(source / "labels/train/1.txt", "")
        write(source / "labels/val/3.txt", f"1 {2 / 24} {2 / 20} {8 / 24} {2 / 20} {8 / 24} {8 / 20} {2 / 24} {8 / 20}\n")  # a polygon
        write(source / "data.yaml", "names:\n  0: car\n  1: zebra\n")
    return source


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_the_same_objects_are_found_in_each_form(form: str, tmp_path: Path) -> None:
    metrics = run(lay_out(tmp_path / "in", form), tmp_path / "out")
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (3, 1, 3)
    assert (facts(tmp_path / "out")["task"], facts(tmp_path / "out")["classes"]) == ("detection", ["car", "zebra"])
    (first, empty), (val,) = stored(tmp_path / "out").values(), stored(tmp_path / "out", "val").values()
    crowd = [] if form == "yolo" else [[0, 0, 8, 8, 1, 1]]
    assert np.allclose(first, [[*BOX, 0, 0], *crowd], atol=1e-3)
    assert empty == []
    assert np.allclose(val, [[2, 2, 8, 8, 1, 0]], atol=1e-3)
    assert report(tmp_path / "out")["labels_per_class_and_split"] == {"train": {"car": 1, "zebra": 0}, "val": {"car": 0, "zebra": 1}}


def test_what_was_stored_is_a_source_again(tmp_path: Path) -> None:
    run(lay_out(tmp_path / "in", "coco"), tmp_path / "out")
    write(tmp_path / "out/shards/classes.txt", "car\nzebra\n")
    run(str(tmp_path / "out/shards/{train,val}-000000.tar"), tmp_path / "again")
    assert sorted(stored(tmp_path / "again").values()) == sorted(stored(tmp_path / "out").values())
    assert facts(tmp_path / "again")["classes"] == ["car", "zebra"]


def test_boxes_are_reduced_as_their_picture(tmp_path: Path) -> None:
    save(picture(0, (48, 40)), tmp_path / "in/0.png")
    write(tmp_path / "in/0.xml", voc(("car", 9, 11, 28, 18), size=(48, 40)))
    run(tmp_path / "in", tmp_path / "out", short_side=20)
    assert stored(tmp_path / "out")["0.png"] == [[*BOX, 0, 0]]


@pytest.mark.parametrize(("named_size", "corners"), [((20, 24), BOX), ((24, 20), [20 - 9, 4, 20 - 5, 14])])
def test_boxes_of_a_turned_picture_lie_on_the_pixels_whose_size_they_name(
    named_size: tuple[int, int], corners: list[int], tmp_path: Path
) -> None:
    """Orientation 6: the camera was turned, so that what is stored as 24 x 20 is shown as 20 x 24."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(picture(0, (24, 20)), tmp_path / "in/0.jpg", exif=exif)
    coco_file(tmp_path / "in/boxes.json", {"0.jpg": [(3, 4, 5, 10, 4)]}, size=named_size)
    run(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out")["0.jpg"] == [[*corners, 0, 0]]


def test_what_no_box_can_be_is_dropped_or_cut_and_said(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "in/0.png")
    boxes = [(3, -5, 5, 15, 4), (3, 5, 5, 0, 4), (3, 100, 100, 5, 5), (3, 4, 4, 4, 4), (3, 4, 4, 4, 4), (90, 4, 4, 4, 4), (3, 9, 9, -3, 2)]
    coco_file(tmp_path / "in/boxes.json", {"0.png": boxes})
    run(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out")["0.png"] == [[0, 5, 10, 9, 0, 0], [4, 4, 8, 8, 0, 0], [4, 4, 8, 8, 1, 0], [6, 9, 9, 11, 0, 0]]
    assert report(tmp_path / "out")["warnings"] == {"boxes_empty": 1, "boxes_outside": 1, "boxes_repeated": 1, "boxes_turned": 1}


def test_a_picture_whose_boxes_cannot_be_understood_is_quarantined(tmp_path: Path) -> None:
    source = tmp_path / "in"
    labels = {
        "nan": ("xml", voc(("car", "nan", 1, 5, 5)), "a box holds a number that is not finite"),
        "size": ("xml", voc(("car", 1, 1, 5, 5), size=(99, 20)), "its boxes are for a picture of 99 x 20, it has 24 x 20"),
        "cut": ("xml", voc(("car", 1, 1, 5, 5))[:-9], "its .xml is no Pascal VOC annotation: unclosed token"),
        "bomb": ("xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation></annotation>", "its .xml declares entities"),
        "other": ("xml", voc(("bus", 1, 1, 5, 5)), "a box is of class 'bus', which is not one of the 2 classes"),
        "good": ("xml", voc(("car", 1, 1, 5, 5)), ""),
    }
    for i, (name, (suffix, text, _)) in enumerate(labels.items()):
        save(picture(i), source / f"{name}.png")
        write(source / f"{name}.{suffix}", text)
    write(source / "classes.txt", "car\nvan\n")
    run(source, tmp_path / "out", max_bad_fraction=1.0)
    found = reasons(tmp_path / "out")
    assert {name[:-4] for name in found} == labels.keys() - {"good"}
    for name, (_, _, reason) in labels.items():
        assert reason in found.get(f"{name}.png", ""), name


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 12 7 10 4", "line 1 holds 12; numbers are fractions of the picture, from 0 to 1"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 1 has 6 numbers; a line is `class cx cy w h`, or a class and a polygon"),
        ("car 0.5 0.5 0.1 0.1", "'car 0.5 0.5 0.1 0.1' is not a class number and numbers"),
        ("7 0.5 0.5 0.1 0.1", "a box is of class '7', which is not one of the 2 classes"),
        ("0 0.5 nan 0.1 0.1", "a box holds a number that is not finite"),
    ],
)
def test_a_wrong_line_of_yolo_is_quarantined(line: str, reason: str, tmp_path: Path) -> None:
    for i, text in enumerate(("0 0.5 0.5 0.1 0.1", line)):
        save(picture(i), tmp_path / f"in/{i}.png")
        write(tmp_path / f"in/{i}.txt", text)
    write(tmp_path / "in/data.yaml", "names: [car, van]")
    run(tmp_path / "in", tmp_path / "out", max_bad_fraction=1.0)
    assert reason in reasons(tmp_path / "out")["1.png"]


def test_a_number_that_is_none_costs_its_picture_only(tmp_path: Path) -> None:
    for i in range(2):
        save(picture(i), tmp_path / f"in/{i}.png")
    coco_file(tmp_path / "in/boxes.json", {"0.png": [(3, float("nan"), 1, 2, 2)], "1.png": [(3, 1, 1, 2, 2)]})
    run(tmp_path / "in", tmp_path / "out", max_bad_fraction=1.0)
    assert reasons(tmp_path / "out") == {"0.png": "a box holds a number that is not finite"}


@pytest.mark.parametrize("written", ["{s}/{i}.png", "images/{s}/{i}.png", "/home/me/set/images/{s}/{i}.png", "{i}.png", "C:\\set\\{i}.png"])
def test_pictures_are_found_however_their_paths_are_written(written: str, tmp_path: Path) -> None:
    """Both splits have pictures of the same names; where the path does not tell them apart, the name of the COCO file does."""
    for split in ("train", "val"):
        for i in range(2):
            save(picture(i + 2 * (split == "val")), tmp_path / f"in/images/{split}/{i}.png")
        boxes = {written.format(s=split, i=i): [(3, 1 + i + 2 * (split == "val"), 1, 4, 4)] for i in range(2)}
        coco_file(tmp_path / f"in/annotations/{split}.json", boxes)
    run(tmp_path / "in", tmp_path / "out")
    found = stored(tmp_path / "out") | stored(tmp_path / "out", "val")
    assert {name[7:]: rows[0][0] for name, rows in found.items()} == {"train/0.png": 1, "train/1.png": 2, "val/0.png": 3, "val/1.png": 4}


def test_the_coco_files_give_the_splits_where_folders_do_not(tmp_path: Path) -> None:
    for i in range(3):
        save(picture(i), tmp_path / f"in/all/{i}.png")
    coco_file(tmp_path / "in/train.json", {"0.png": [(3, 1, 1, 4, 4)], "2.png": [(3, 1, 1, 4, 4)]})
    coco_file(tmp_path / "in/val.json", {"1.png": [(3, 1, 1, 4, 4)]})
    run(tmp_path / "in", tmp_path / "out")
    assert {row["path"]: row["split"] for row in manifest(tmp_path / "out")} == {
        "all/1.png": "val",
        "all/0.png": "train",
        "all/2.png": "train",
    }


def test_names_that_fit_two_pictures_are_refused(tmp_path: Path) -> None:
    for i, folder in enumerate("ab"):
        save(picture(i), tmp_path / f"in/{folder}/0.png")
    coco_file(tmp_path / "in/boxes.json", {"0.png": [(3, 1, 1, 4, 4)]})
    with pytest.raises(UserError, match=r"boxes.json: '0.png' may be a/0.png or b/0.png; write paths from the folder"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"1.png": [(3, 1, 1, 4, 4)]}, "two.json names none of the pictures: it says '1.png', and a picture is '0.png'"),
        ({"0.png": [(3, 1, 1, 9, 9)]}, r"the boxes of 0.png in two.json are not those that an earlier entry has; keep one of them"),
        ({"0.png": [(5, 1, 1, 4, 4)]}, "two.json: a box has category_id 5, which `categories` does not name; add it"),
    ],
)
def test_coco_files_that_contradict_are_refused(other: dict[str, list[Any]], problem: str, tmp_path: Path) -> None:
    save(picture(0), tmp_path / "in/0.png")
    if "1.png" not in other:
        coco_file(tmp_path / "in/one.json", {"0.png": [(3, 1, 1, 4, 4)]})
    coco_file(tmp_path / "in/two.json", other)
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-40], "the file ends early|Unterminated|delimiter|Expecting"),
        (lambda text: text.replace('"file_name"', '"path"'), "no 'file_name'"),
        (lambda text: text.replace('"bbox": [1, 1, 4, 4]', '"bbox": [1, 1, 4]'), "a bbox has 3 numbers"),
        (lambda text: text.replace('"id": 17', '"id": 10'), "two pictures have the id 10; give each its own"),
    ],
)
def test_a_damaged_coco_file_is_one_line(change: Any, problem: str, tmp_path: Path) -> None:
    for i in range(2):
        save(picture(i), tmp_path / f"in/{i}.png")
    coco_file(tmp_path / "in/boxes.json", {"0.png": [(3, 1, 1, 4, 4)], "1.png": []})
    write(tmp_path / "in/boxes.json", change((tmp_path / "in/boxes.json").read_text()))
    with pytest.raises(UserError, match=problem) as refused:
        run(tmp_path / "in", tmp_path / "out")
    assert "boxes.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json_is_read_piece_by_piece(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_elements, "CHUNK", chunk)
    content = {"info": {"year": 2017}, "images": [{"id": 123, "a": "]}"}, {"id": 4}], "n": 12345, "none": [], "numbers": [1, 23, 456]}
    with write(tmp_path / "a.json", json.dumps(content, indent=1)).open() as file:
        found = list(json_elements.elements(file))
    assert found == [(key, element) for key in ("images", "numbers") for element in content[key]]  # type: ignore[attr-defined]


def test_masks_come_before_boxes_unless_those_are_wanted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for i in range(3):
        save(picture(i), source / f"JPEGImages/{i}.png")
        save(mask_of(1), source / f"SegmentationClass/{i}.png")
        write(source / f"Annotations/{i}.xml", voc(("car", 2, 2, 6, 6)))
    write(source / "classes.txt", "ground\ncar\n")
    write(source / "ImageSets/Main/val.txt", "0\n1\n")
    write(source / "ImageSets/Segmentation/val.txt", "0\n")
    run(source, tmp_path / "masks")
    run(source, tmp_path / "boxes", labels="boxes")
    assert [facts(tmp_path / name)["task"] for name in ("masks", "boxes")] == ["segmentation", "detection"]
    assert [len(stored(tmp_path / "boxes", split)) for split in ("train", "val")] == [1, 2], "each task has its own lists"


def test_other_text_beside_pictures_is_no_label(tmp_path: Path) -> None:
    for i, cls in enumerate(("cat", "dog") * 2):
        save(picture(i), tmp_path / f"in/{cls}/{i}.png")
        write(tmp_path / f"in/{cls}/{i}.txt", "a photo of an animal")
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["task"] == "classification"
    assert report(tmp_path / "out")["passed_over"][".txt"]["count"] == 4
    with pytest.raises(UserError, match=r"ingest.labels = boxes, but .*in has no boxes, neither in a COCO file .* nor in an .xml"):
        run(tmp_path / "in", tmp_path / "no", labels="boxes")


def test_a_list_finds_the_boxes_of_its_pictures(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "in", "yolo")
    write(source / "train.txt", "images/train/0.png\nimages/train/1.png\nimages/train/2.png\n")
    run(source / "train.txt", tmp_path / "out")
    assert {name: len(rows) for name, rows in stored(tmp_path / "out").items()} == {"images/train/0.png": 1, "images/train/1.png": 0}


def test_classes_without_names_are_numbers_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        save(picture(i), tmp_path / f"in/{i}.png")
        write(tmp_path / f"in/{i}.txt", f"{i} 0.5 0.5 0.1 0.1")
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["0", "1"]
    assert "2 files of boxes (such as 0.txt) give classes by number; name them in data.yaml or classes.txt" in capsys.readouterr().err


def test_one_class_is_enough_and_no_box_is_not(tmp_path: Path) -> None:
    for i in range(2):
        save(picture(i), tmp_path / f"in/{i}.png")
        write(tmp_path / f"in/{i}.txt", "0 0.5 0.5 0.1 0.1")
    write(tmp_path / "in/classes.txt", "car\n")
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["car"]
    for i in range(2):
        write(tmp_path / f"in/{i}.xml", voc())
        (tmp_path / f"in/{i}.txt").unlink()
    with pytest.raises(UserError, match="no labelled picture of train has a box, so nothing could be learnt"):
        run(tmp_path / "in", tmp_path / "none")
