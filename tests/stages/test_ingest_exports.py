"""Exports of label tools as they are found: other encodings, namespaces, ids and spellings of outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ingest_sources import facts, report, run, save_pictures

from dreamteacher.data.box_labels import read_boxes
from dreamteacher.data.coco import _outline
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import BoxLabel
from dreamteacher.data.multilabel import to_label
from dreamteacher.data.shard_source import _class_of
from dreamteacher.data.tool_labels import detect_tool
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
        (b"<all><annotation/><annotation/></all>", "it holds 2 <annotation>; write a file for each"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>'.encode("utf-16"), "declares entities"),
    ],
)
def test_other_xml_is_no_picture_without_objects(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        read(data)


@pytest.mark.parametrize("root", ["doc", "annotations"])
def test_an_annotation_of_pascal_voc_may_lie_in_another_element(root: str) -> None:
    size = "<size><width>24</width><height>20</height></size>"
    given, rows = read(f"<{root}><annotation>{size}{OBJECT.format('cat')}</annotation></{root}>".encode())
    assert (given, [row[4] for row in rows]) == ([24, 20], ["cat"])


def test_ids_of_tables_are_those_of_pictures_and_others_are_refused(tmp_path: Path) -> None:
    run(coco(tmp_path / "s", ids=(0.0, 1.0)), tmp_path / "out")
    assert report(tmp_path / "out")["labels_per_class"] == {"cat": 2}
    with pytest.raises(UserError, match="no box names an image_id that `images` has: one is '000', and an id there is '0'"):
        run(coco(tmp_path / "other", ids=("000", "001")), tmp_path / "out2")


def test_pictures_of_boxes_in_another_file_are_asked_for(tmp_path: Path) -> None:
    stored = json.loads((coco(tmp_path / "s") / "all.json").read_text())
    (tmp_path / "s/all.json").write_text(json.dumps({"images": stored.pop("images")}))
    (tmp_path / "s/boxes.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"boxes\.json has boxes and no `images`; put images and annotations into one file"):
        run(tmp_path / "s", tmp_path / "out")


NOT_UTF8 = r"all\.json is not UTF-8 text; save it as UTF-8, or set ingest\.labels to another kind"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be"])
def test_a_coco_file_that_is_not_utf8_is_not_passed_over(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=NOT_UTF8):
        run(coco(tmp_path / "s", encoding, name="Käse"), tmp_path / "out")


def test_of_a_large_coco_file_that_is_not_utf8_all_is_searched(tmp_path: Path) -> None:
    """Its pictures, of which the first bytes name some, are followed by its boxes."""
    stored = json.loads((coco(tmp_path / "s") / "all.json").read_text())
    for place in (0, 10_000, 19_999):
        images = [{"id": i, "file_name": f"{i}{'ä' * (i == place)}.png"} for i in range(20_000)]
        text = json.dumps(stored | {"images": images}, ensure_ascii=False)
        (tmp_path / "s/all.json").write_text(text, encoding="cp1252")
        with pytest.raises(UserError, match=NOT_UTF8):
            run(tmp_path / "s", tmp_path / "out")


def test_a_description_that_is_not_utf8_is_no_coco_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pictures(tmp_path / "s", "cat/0.png", "dog/1.png")
    about = '{"name": "Käfer", "folder": "images", "categories": [{"id": 1, "name": "cat"}]}'
    (tmp_path / "s/dataset.json").write_text(about, encoding="cp1252")
    run(tmp_path / "s", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]
    note = "dataset.json is not UTF-8 text; if it holds labels, save it as UTF-8"
    assert capsys.readouterr().err.count(note) == 1
    with pytest.raises(UserError, match=rf"ingest.labels = boxes, but .*{note}"):
        run(tmp_path / "s", tmp_path / "out2", labels="boxes")


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
@pytest.mark.parametrize("box", ["", "<object><name>狗</name></object>"])
def test_xml_in_its_own_encoding_need_not_be_saved_as_utf8(
    encoding: str, box: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "s", "0.png")
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{OBJECT.format("狗")}{box}</annotation>'
    (tmp_path / "s/other.xml").write_text(text, encoding=encoding)
    run(tmp_path / "s", tmp_path / "out")
    stderr = capsys.readouterr().err
    assert "not UTF-8" not in stderr
    assert ("other.xml is no label of Pascal VOC: its .xml is no Pascal VOC annotation: an object has no bndbox" in stderr) == bool(box)
    (tmp_path / "s/other.xml").write_bytes("<annotation>狗</annotation>".encode("gbk"))
    run(tmp_path / "s", tmp_path / "out2")
    assert "other.xml is not UTF-8 text; if it holds labels, save it as UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "outline", [[2, 3, 11, 3, 11, 11, 2, 11], [[2, 3], [11, 3], [11, 11], [2, 11]], [[[2, 3], [11, 3], [11, 11], [2, 11]]]]
)
def test_outlines_may_be_one_flat_list_or_points(outline: list[Any], tmp_path: Path) -> None:
    run(coco(tmp_path / "s", segmentation=outline), tmp_path / "out", task="instances")
    assert (facts(tmp_path / "out")["task"], report(tmp_path / "out")["labels_per_class"]) == ("instances", {"cat": 2})


RUNS = {"size": [20, 24], "counts": [43, 4, 16, 4, 413]}


@pytest.mark.parametrize("outline", [[RUNS], [RUNS, [2, 3, 11, 3, 11, 11]], [[]], [[5]], [None]])
def test_lists_of_other_than_polygons_are_no_box(outline: list[Any], tmp_path: Path) -> None:
    source = coco(tmp_path / "s", segmentation=outline)
    run(source, tmp_path / "out")
    assert report(tmp_path / "out")["labels_per_class"] == {"cat": 2}
    stored = json.loads((source / "all.json").read_text())
    del stored["annotations"][0]["bbox"]
    (source / "all.json").write_text(json.dumps(stored))
    run(source, tmp_path / "out2")
    assert report(tmp_path / "out2")["annotations_without_box"] == 1


def test_the_error_in_a_coco_file_comes_with_two_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all\.json is no COCO file of boxes \(a bbox has 3 numbers\); fix it, or set ingest\.labels to"):
        run(coco(tmp_path / "s", bbox=[2, 3, 9]), tmp_path / "out")


def test_run_lengths_in_a_list_are_not_taken_for_a_polygon() -> None:
    assert [_outline({"segmentation": found}) for found in ([RUNS], [RUNS, RUNS])] == [[RUNS], [RUNS, RUNS]]


def boxes_of(*boxes: tuple[float, float, float, float]) -> tuple[list[list[float]], tuple[str, ...]]:
    """Corners and warnings of boxes x, y, w, h of different classes."""
    rows = [[*box, f"c{i}", 0] for i, box in enumerate(boxes)]
    label = BoxLabel("coco", json.dumps({"size": [None, None], "boxes": rows}).encode())
    found, warnings = read_boxes(label, [f"c{i}" for i in range(len(rows))], (24, 20), 1)
    return found.corners.tolist(), warnings


def test_boxes_of_a_pixel_are_read_and_said() -> None:
    assert boxes_of((0, 0, 1, 1)) == ([[0, 0, 1, 1]], ("box_of_a_pixel",))
    assert boxes_of((0, 0, 1, 1), (0, 0, 1, 1)) == ([[0, 0, 1, 1]] * 2, ("box_of_a_pixel",))
    assert boxes_of((1, 1, -1, -1), (0, 0, 0, 0)) == ([[0, 0, 1, 1]], ("boxes_turned", "box_of_a_pixel", "boxes_empty"))
    for fractions in ([(0, 0, 1, 0.5)], [(0, 0, 1, 1), (0.1, 0.2, 0.3, 0.4)], [(0.5, 0.5, -0.2, -0.2)]):
        with pytest.raises(BadPicture, match="within one pixel, as fractions would"):
            boxes_of(*fractions)


@pytest.mark.parametrize(
    ("box", "corners", "warnings"),
    [
        ((0, 0, 0, 0), [], ("boxes_empty",)),
        ((5, 5, -4, -4), [[1, 1, 5, 5]], ("boxes_turned",)),
        ((-5, -5, 4, 4), [], ("boxes_outside", "boxes_empty")),
    ],
)
def test_boxes_of_nothing_or_of_more_are_not_of_a_pixel(box: Any, corners: list[Any], warnings: tuple[str, ...]) -> None:
    assert boxes_of(box) == (corners, warnings)
    assert boxes_of(box, box)[1] == warnings


@pytest.mark.parametrize(
    ("value", "tool"),
    [
        ({"original_width": 9, "original_height": 8, "file": "0.png"}, None),
        ({"label": [{"x": 1, "y": 2, "original_width": 9, "original_height": 8}]}, "Label Studio"),
        ({"label": [{"original_width": 9, "original_height": 8, "x": 1}]}, "Label Studio"),
        ({"label": [{"points": [[1, 2]], "polygonlabels": ["cat"]}]}, "Label Studio"),
        ({"label": [{"x": 1, "ellipselabels": ["cat"]}]}, "Label Studio"),
    ],
)
def test_sizes_alone_are_not_of_label_studio(value: Any, tool: str | None) -> None:
    found = detect_tool(json.dumps([value]).encode())
    assert (found and found[0]) == tool


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
