"""Exports of label tools as they are found: other encodings, namespaces, ids and spellings of outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ingest_sources import facts, report, run, save_pictures

from dreamteacher.data.box_labels import read_boxes
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import BoxLabel
from dreamteacher.data.multilabel import to_label
from dreamteacher.data.shard_source import _class_of
from dreamteacher.data.voc import read
from dreamteacher.errors import UserError

OBJECT = "<object><name>{}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"


def coco(folder: Path, encoding: str = "utf-8", *, ids: tuple[Any, Any] = (0, 1), name: str = "cat", **change: Any) -> Path:
    save_pictures(folder, "0.png", "1.png")
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(2)]
    boxes = [{"image_id": each, "category_id": 1, "bbox": [2, 3, 9, 8]} | change for each in ids]
    stored = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": name}]}
    (folder / "all.json").write_text(json.dumps(stored, ensure_ascii=False), encoding=encoding)
    return folder


@pytest.mark.parametrize(
    "data",
    [
        f'<annotation xmlns="http://a/b">{OBJECT.format("cat")}</annotation>'.encode(),
        f'<?xml version="1.0" encoding="gbk"?><annotation>{OBJECT.format("猫")}</annotation>'.encode("gbk"),
        f'<?xml version="1.0" encoding="utf-16"?><annotation>{OBJECT.format("cat")}</annotation>'.encode("utf-16"),
    ],
)
def test_objects_of_pascal_voc_are_found_in_any_namespace_and_encoding(data: bytes) -> None:
    (row,) = read(data)[1]
    assert row[:4] == (1.0, 2.0, 9.0, 8.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<annotations><image/></annotations>", "it holds <annotations>, not <annotation>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>'.encode("utf-16"), "declares entities"),
    ],
)
def test_other_xml_is_no_picture_without_objects(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        read(data)


def test_ids_of_tables_are_those_of_pictures_and_others_are_refused(tmp_path: Path) -> None:
    run(coco(tmp_path / "s", ids=(0.0, 1.0)), tmp_path / "out")
    assert report(tmp_path / "out")["labels_per_class"] == {"cat": 2}
    with pytest.raises(UserError, match="no box names an image_id that `images` has: one is '000', and an id there is '0'"):
        run(coco(tmp_path / "other", ids=("000", "001")), tmp_path / "out2")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_coco_file_that_is_not_utf8_is_not_passed_over(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all\.json is not UTF-8 text; save it as UTF-8"):
        run(coco(tmp_path / "s", encoding, name="Käse"), tmp_path / "out")


@pytest.mark.parametrize(
    "outline", [[2, 3, 11, 3, 11, 11, 2, 11], [[2, 3], [11, 3], [11, 11], [2, 11]], [[[2, 3], [11, 3], [11, 11], [2, 11]]]]
)
def test_outlines_may_be_one_flat_list_or_points(outline: list[Any], tmp_path: Path) -> None:
    run(coco(tmp_path / "s", segmentation=outline), tmp_path / "out", task="instances")
    assert (facts(tmp_path / "out")["task"], report(tmp_path / "out")["labels_per_class"]) == ("instances", {"cat": 2})


def test_one_box_of_a_pixel_is_read_and_said() -> None:
    label = BoxLabel("coco", json.dumps({"size": [None, None], "boxes": [[0, 0, 1, 1, "cat", 0]]}).encode())
    boxes, warnings = read_boxes(label, ["cat"], (24, 20), 1)
    assert (boxes.corners.tolist(), warnings) == ([[0, 0, 1, 1]], ("box_of_a_pixel",))


@pytest.mark.parametrize(("label", "expected"), [(1.0, "1"), ([2], "2"), ("cat", "cat")])
def test_classes_in_the_json_of_shards_may_be_whole_floats_or_lists(label: Any, expected: str) -> None:
    assert _class_of({"json": json.dumps({"label": label}).encode()}, "auto") == expected


@pytest.mark.parametrize(("names", "label"), [(["cat", "a,b"], (1, 0, 1)), ([], (0, 0, 0))])
def test_lists_in_the_json_of_shards_are_the_classes_of_multilabel(names: list[str], label: tuple[int, ...]) -> None:
    value = _class_of({"json": json.dumps({"label": names}).encode()}, "multilabel")
    assert value is not None
    assert to_label(value, ["cat", "dog", "a,b"]) == label


def test_several_classes_of_a_picture_are_no_class() -> None:
    with pytest.raises(ValueError, match="too many values"):
        _class_of({"json": b'{"label": ["cat", "dog"]}'}, "auto")
