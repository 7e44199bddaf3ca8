"""Boxes written as corners instead of sizes, and zero-based pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_sources import report, run, save_pictures

from dreamteacher.errors import UserError

CORNERS = [[2, 3, 9, 8], [12, 10, 22, 19], [5, 9, 20, 18], [14, 1, 23, 12]]  # in pictures of 24 x 20


def coco(root: Path, boxes: list[list[float]], *, sized: bool) -> Path:
    save_pictures(root, *(f"{i}.png" for i in range(len(boxes))))
    size = {"width": 24, "height": 20} if sized else {}
    images = [{"id": i, "file_name": f"{i}.png"} | size for i in range(len(boxes))]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    (root / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}))
    return root


@pytest.mark.parametrize("sized", [True, False])
def test_corners_in_coco_are_refused(sized: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all.json: 3 of 4 boxes leave their pictures as x, y, w, h, and 4 would not as x1, y1, x2, y2"):
        run(coco(tmp_path / "s", CORNERS, sized=sized), tmp_path / "out")
    sizes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in CORNERS]
    run(coco(tmp_path / "t", sizes, sized=sized), tmp_path / "t-out")


def test_boxes_that_leave_their_pictures_a_little_are_no_corners(tmp_path: Path) -> None:
    run(coco(tmp_path / "s", [[1, 1, 24, 20], [2, 1, 23, 20], [0, 0, 25, 21], [1, 2, 24, 19]], sized=True), tmp_path / "out")


def test_corners_in_yolo_are_refused(tmp_path: Path) -> None:
    lines = [[x1 / 24, y1 / 20, x2 / 24, y2 / 20] for x1, y1, x2, y2 in CORNERS]
    save_pictures(tmp_path / "s", *(f"images/{i}.png" for i in range(4)))
    (tmp_path / "s/labels").mkdir()
    for i, line in enumerate(lines):
        (tmp_path / f"s/labels/{i}.txt").write_text("0 " + " ".join(f"{value:.4f}" for value in line) + "\n")
    with pytest.raises(UserError, match=r"labels/0.txt and others: 3 of 4 boxes leave their pictures as cx, cy, w, h, and 4 would not"):
        run(tmp_path / "s", tmp_path / "out")


def test_boxes_of_pascal_voc_at_pixel_0_are_said(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "0.png", "1.png")
    for i in range(2):
        box = f"<xmin>{i}</xmin><ymin>4</ymin><xmax>9</xmax><ymax>12</ymax>"
        (tmp_path / f"s/{i}.xml").write_text(f"<annotation><object><name>car</name><bndbox>{box}</bndbox></object></annotation>")
    run(tmp_path / "s", tmp_path / "out")
    assert report(tmp_path / "out")["warnings"] == {"boxes_from_zero": 1}
