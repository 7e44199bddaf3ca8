"""Labels that tools write in several ways, such as flags as text, and signs of labels that are meant otherwise than they are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_sources import facts, picture, reasons, report, run, save, save_pictures
from PIL import Image

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError

OUTLINE = [[4.0, 4, 14, 4, 14, 14]]


def coco(source: Path, annotations: list[dict[str, Any]], names: tuple[Any, ...] = ("car", "bus")) -> Path:
    """Two pictures; all annotations are of the first."""
    save_pictures(source, "0.png", "1.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 20} for i in range(2)]
    entries = [{"id": i, "image_id": 0, "category_id": 1, "bbox": [4, 4, 10, 10]} | each for i, each in enumerate(annotations)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    (source / "boxes.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return source


def voc(objects: str, head: str = "") -> str:
    return f"{head}<annotation><size><width>24</width><height>20</height></size>{objects}</annotation>"


def voc_object(name: str, difficult: str, right: int = 9) -> str:
    box = f"<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>{right}</xmax><ymax>9</ymax></bndbox>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}</object>"


def ignored(out: Path) -> list[bool]:
    images = ImageSet(out, "train")
    return [bool(each) for index in images.labelled() for each in images.label(index).ignored]  # type: ignore[union-attr]


def summary(out: Path) -> str:
    return "\n".join(report(out)["summary"])


def test_flags_may_be_text(tmp_path: Path) -> None:
    flags: list[Any] = [0, "0", "False", None, "", 1, "1", "True", True]
    source = coco(tmp_path / "coco", [{"iscrowd": flag, "bbox": [1, 1, 5 + i, 5]} for i, flag in enumerate(flags)])
    run(source, tmp_path / "out")
    assert ignored(tmp_path / "out") == [False] * 5 + [True] * 4
    save_pictures(tmp_path / "voc", "0.png")
    words = ("0", " 0 ", "false", "Unspecified", "", "1", "True")
    (tmp_path / "voc/0.xml").write_text(voc("".join(voc_object("car", word, 9 + i) for i, word in enumerate(words))))
    run(tmp_path / "voc", tmp_path / "of voc")
    assert ignored(tmp_path / "of voc") == [False] * 5 + [True] * 2


def test_a_document_type_is_no_reason_to_drop_the_boxes(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "0.png", "1.png")
    (tmp_path / "s/0.xml").write_text(voc(voc_object("car", "0"), '<?xml version="1.0"?><!DOCTYPE annotation SYSTEM "voc.dtd">'))
    (tmp_path / "s/1.xml").write_text(voc(voc_object("&a;", "0"), '<!DOCTYPE annotation [<!ENTITY a "bus">]>'))
    run(tmp_path / "s", tmp_path / "out", max_bad_fraction=0.5)
    assert facts(tmp_path / "out")["classes"] == ["car"]
    assert reasons(tmp_path / "out") == {"1.png": "its .xml declares entities, which are not read"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "0.xml",
            voc(voc_object("", "0")),
            "0.xml is no label of Pascal VOC: its .xml is no Pascal VOC annotation: an object has no bndbox",
        ),
        ("0.txt", "-1 0.5 0.5 0.2 0.2\n", "0.txt is no label of YOLO: its .txt, line 1 is of class -1"),
        ("0.txt", "car 0.5 0.5 0.2 0.2\n", "0.txt is no label of YOLO: its .txt, line 1: 'car 0.5 0.5 0.2 0.2' is not a class number"),
    ],
)
def test_the_reason_why_files_of_boxes_are_not_read_is_said(name: str, text: str, problem: str, tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "0.png", "1.png")
    (tmp_path / "s" / name).write_text(text)
    run(tmp_path / "s", tmp_path / "out")
    assert problem in summary(tmp_path / "out")
    assert "TensorFlow" not in summary(tmp_path / "out")


def test_a_category_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"boxes.json is no COCO file of boxes \(a category has no name\)"):
        run(coco(tmp_path / "s", [{}], (None, "bus")), tmp_path / "out")


def test_outlines_in_fractions_cost_their_picture(tmp_path: Path) -> None:
    source = coco(tmp_path / "s", [{"segmentation": [[value / 20 for value in OUTLINE[0]]]}])
    with pytest.raises(UserError, match=r"0\.png: its outlines lie within one pixel, as fractions would; write them in pixels"):
        run(source, tmp_path / "out", task="instances")


def test_outlines_that_are_all_unknown_are_not_told_about_masks(tmp_path: Path) -> None:
    source = coco(tmp_path / "s", [{"segmentation": OUTLINE, "iscrowd": 1}])
    with pytest.raises(UserError, match="no labelled picture of train has an object") as refused:
        run(source, tmp_path / "out", task="instances")
    assert "1000 x" not in str(refused.value)


def test_objects_of_a_name_that_means_unknown_are_said(tmp_path: Path) -> None:
    run(coco(tmp_path / "s", [{}], ("DontCare", "bus")), tmp_path / "out")
    assert "class 'DontCare' is learnt like the others; if its objects are to be ignored, mark them instead" in summary(tmp_path / "out")


def test_a_folder_in_a_list_of_pictures_is_one_line(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "0.png", "1.png")
    (tmp_path / "s/list.txt").write_text(".\n0.png\n")
    with pytest.raises(UserError, match="Is a directory"):
        run(tmp_path / "s/list.txt", tmp_path / "out")


def test_class_folders_in_shards_are_said(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for i, name in enumerate(("./cat/0.png", "./cat/1.png", "./dog/0.png")):
            buffer = io.BytesIO()
            picture(i).save(buffer, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    run(tmp_path / "all.tar", tmp_path / "out")
    assert "the pictures lie in folders of the shards (cat and dog), which give no classes; if they are the classes" in summary(
        tmp_path / "out"
    )


def test_columns_of_which_each_picture_has_one_are_said(tmp_path: Path) -> None:
    for i in range(12):
        save(picture(i), tmp_path / f"s/{i}.png")
    rows = [f"{i}.png,{i % 2},{1 - i % 2}" for i in range(12)]
    said = "each picture in labels.csv has exactly one of the classes; if they exclude each other, write its name into a table labels.csv"
    for name, change, is_said in (("one", rows[0], True), ("both", "0.png,1,1", False), ("unknown", "0.png,,1", False)):
        (tmp_path / "s/labels.csv").write_text("\n".join(["path,cat,dog", change, *rows[1:], ""]))
        run(tmp_path / "s", tmp_path / name)
        assert (said in summary(tmp_path / name)) == is_said


def test_one_class_in_each_cell_is_told_the_task(tmp_path: Path) -> None:
    for i in range(12):
        save(picture(i), tmp_path / f"s/{i}.png")
    (tmp_path / "s/labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{('cat', 'dog')[i % 2]}\n" for i in range(12)))
    run(tmp_path / "s", tmp_path / "out", task="multilabel")
    said = "exactly one of the classes; if they exclude each other, set ingest.task to classification"
    assert said in summary(tmp_path / "out")


def test_a_background_that_is_not_0_is_said(tmp_path: Path) -> None:
    def mask(background: int, right: int) -> Image.Image:
        values = np.full((20, 24), background, np.uint8)
        values[2:8, 2:8], values[10:18, 10:right] = 2, 3
        return Image.fromarray(values)

    close_up = Image.fromarray(np.ones((20, 24), np.uint8))
    cases = (
        ("zero", mask(0, 20), False),
        ("one", mask(1, 20), True),
        ("parts", mask(0, 24), False),
        ("close", close_up, False),
    )
    for name, values, is_said in cases:
        for i in range(2):
            save(picture(i), tmp_path / name / f"images/{i}.png")
            save(values, tmp_path / name / f"masks/{i}.png")
        run(tmp_path / name, tmp_path / f"of {name}", task="instances")
        assert report(tmp_path / f"of {name}")["warnings"] == ({"background_is_object": 2} if is_said else {})


def test_depth_without_a_distance_is_not_called_a_mask_of_255(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s/images", "0.png", "1.png")
    for i in range(2):
        save(Image.fromarray(np.full((20, 24), -3, np.float32)), tmp_path / f"s/depth/{i}.tif")
    with pytest.raises(UserError, match=r"none in train \(maps without a distance above 0 are none: 2\)"):
        run(tmp_path / "s", tmp_path / "out", task="depth")


def test_labels_of_pictures_that_exif_turns_are_said_where_no_size_tells(tmp_path: Path) -> None:
    for name, orientation, size in (("half", 3, (24, 20)), ("square", 6, (20, 20)), ("told", 6, (24, 20))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(picture(1, size), tmp_path / f"masks/images/{name}.jpg", exif=exif.tobytes())
        values = np.zeros(size, np.uint8) if name == "told" else np.zeros(size[::-1], np.uint8)
        values[:9] = 1
        save(Image.fromarray(values), tmp_path / f"masks/masks/{name}.png")
        save(picture(1, size), tmp_path / f"yolo/{name}.jpg", exif=exif.tobytes())
        (tmp_path / f"yolo/{name}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    save(picture(2), tmp_path / "yolo/plain.jpg")
    (tmp_path / "yolo/plain.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (tmp_path / "masks/classes.txt").write_text("ground\nthing\n")
    for name, count in (("masks", 2), ("yolo", 3)):
        run(tmp_path / name, tmp_path / f"of {name}")
        assert report(tmp_path / f"of {name}")["warnings"] == {"turned_or_not": count}


@pytest.mark.parametrize(("form", "is_sized"), [("coco", True), ("coco", False), ("voc", True), ("voc", False), ("imagefolder", False)])
def test_boxes_without_a_size_on_pictures_that_exif_turns_are_said(form: str, is_sized: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = tmp_path / "s"
    save(picture(1, (24, 20)), source / "0.jpg", exif=exif.tobytes())
    if form == "voc":
        text = voc(voc_object("car", "0"))
        (source / "0.xml").write_text(text if is_sized else text.replace("<size><width>24</width><height>20</height></size>", ""))
    elif form == "coco":
        image = {"id": 0, "file_name": "0.jpg"} | ({"width": 24, "height": 20} if is_sized else {})
        box = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [4, 4, 10, 10]}
        stored = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
        (source / "boxes.json").write_text(json.dumps(stored))
    else:
        line = {"file_name": "0.jpg", "objects": {"bbox": [[4, 4, 10, 10]], "category": ["car"]}}
        (source / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    run(source, tmp_path / "out")
    assert report(tmp_path / "out")["warnings"] == ({} if is_sized else {"turned_or_not": 1})
