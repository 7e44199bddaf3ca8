"""Boxes in the column `objects` of HuggingFace's imagefolder."""

from __future__ import annotations

import ast
import json
import sqlite3
from typing import Any

from dreamteacher.data.box_labels import BoxSource
from dreamteacher.data.class_list import ClassList
from dreamteacher.data.corners import refuse_corners
from dreamteacher.data.imagefolder import insert, lines_of, read_class, refuse_too_many, sorted_classes
from dreamteacher.data.items import AUTO
from dreamteacher.data.names import is_set
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

CATEGORIES = ("categories", "category", "labels", "label")


def find_objects(
    table: sqlite3.Connection, tree: Tree, files: list[str], classes: ClassList | None, *, max_bytes: int, task: str
) -> BoxSource:
    """Read the boxes of the metadata files that have them.

    Raises:
        UserError: as `read_objects`; `task` needs more than boxes; no picture is found; classes.txt lacks a class.
    """
    where = f"{tree}/{files[0]}"
    if task not in (AUTO, "detection"):
        raise UserError(f"ingest.task = {task} learns from more than boxes, which are all that {where} has; set it to detection")
    names = read_objects(table, tree, files, classes, max_bytes)
    if classes and (strange := [name for name in names if name not in classes.names]):
        raise UserError(f"{where} names the category {strange[0]!r}, which classes.txt lacks; add it, or drop classes.txt")
    lost, n_labels, named = table.execute(
        "SELECT count(*) FILTER (WHERE name NOT IN (SELECT nfc(name) FROM files)), count(*), min(name) FROM labels"
    ).fetchone()
    if lost == n_labels:
        (there,) = table.execute("SELECT min(name) FROM files WHERE role = 'picture'").fetchone()
        raise UserError(f"{where} names none of the pictures: it says {named!r}, and a picture is {there!r}; name them from its folder")
    return BoxSource("imagefolder", files, classes.names if classes else names, {"boxes_without_picture": lost}, {})


def read_objects(table: sqlite3.Connection, tree: Tree, files: list[str], classes: ClassList | None, max_bytes: int) -> list[str]:
    """Fill the table `labels` as `coco.read_coco` does; returns the distinct classes, numbers first.

    `objects` is {"bbox": [[x, y, w, h], ...], "categories": [...]} or a list of such with one box each; without it a line has no label.

    Raises:
        UserError: as `imagefolder.read_classes`; a box has no category; boxes seem to be x1, y1, x2, y2.
    """
    seen: set[str] = set()
    for at, picture, line in lines_of(table, tree, files):
        boxes = _boxes(line.get("objects"), classes, at)
        if boxes is None:
            continue
        seen |= {box[4] for box in boxes}
        refuse_too_many(seen, at)
        insert(table, picture, json.dumps({"size": [None, None], "boxes": boxes}), at)
    refuse_corners(table, tree, files[0], max_bytes)
    return sorted_classes(seen)


def _boxes(value: Any, classes: ClassList | None, at: str) -> list[tuple[float, float, float, float, str, bool]] | None:
    """[(x, y, width, height, class, whether it is a crowd)]; None without a label."""
    if isinstance(value, str):  # a cell of metadata.csv
        try:
            value = ast.literal_eval(value) if value.strip().startswith(("{'", "[{'")) else json.loads(value or "null")
        except (ValueError, SyntaxError, RecursionError) as error:
            raise UserError(f"{at}: its objects are no JSON; metadata.jsonl is the usual place for boxes") from error
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [box for each in value for box in _boxes(each, classes, at) or []]
    if not isinstance(value, dict) or not isinstance(boxes := value.get("bbox"), list):
        raise UserError(f'{at}: its objects have no list bbox; write {{"bbox": [[x, y, w, h], ...], "categories": [...]}}')
    key = next((key for key in CATEGORIES if key in value), None)
    if key is None:
        if boxes:
            raise UserError(f"{at}: its objects have boxes and no categories; give the class of each box")
        return []
    one = len(boxes) == 4 and not any(isinstance(side, list) for side in boxes)
    columns = {
        name: [value[name]] if one and not isinstance(value[name], list) else value[name] for name in (key, "iscrowd") if name in value
    }
    boxes = [boxes] if one else boxes
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != len(boxes):
            count = len(column) if isinstance(column, list) else 1
            raise UserError(f"{at}: its objects have {len(boxes)} boxes and {count} {name}; give one for each box")
    found = []
    for box, category, crowd in zip(boxes, columns[key], columns.get("iscrowd", [False] * len(boxes)), strict=True):
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise UserError(f"{at}: the box {str(box)[:60]} is not of four numbers; write [x, y, w, h]")
        if (named := read_class(category, classes, f"{at}: a category")) is None:
            raise UserError(f"{at}: the box {box} has no category; give its class, or leave it out")
        x, y, width, height = map(float, box)
        found.append((x, y, width, height, named, is_set(crowd)))
    return found
