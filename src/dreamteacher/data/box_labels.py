"""Box labels of a source: their format, their classes, and the checked boxes of one picture."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from dreamteacher.data import voc, yolo
from dreamteacher.data.boxes import SUFFIX, TOLERANCE, Boxes
from dreamteacher.data.coco import Detail, read_coco
from dreamteacher.data.corners import refuse_corners, refuse_corners_of_yolo
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import BoxLabel
from dreamteacher.data.keypoints import Body
from dreamteacher.data.table import take_deeper_pictures
from dreamteacher.data.tool_labels import Shape, is_labelme, is_supervisely, labelme, supervisely
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

FORMS = (("voc", ".xml"), ("yolo", ".txt"), ("labelme", ".json"), ("supervisely", ".json"))  # formats with one file per picture
WORDS = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO", "labelme": "labelme", "supervisely": "Supervisely"} | {
    "imagefolder": "HuggingFace's imagefolder"
}
IN_TABLE = ("coco", "imagefolder")  # formats whose boxes are stored in the table `labels`
LOOKED_INTO = 20  # label files that are read to detect a format
MAX_CLASSES = 10_000
SMALLEST = 8  # pixels of the shorter side from which boxes within one pixel are taken for fractions
Row = tuple[float, float, float, float, str | int, bool]  # x1, y1, x2, y2, name or number of the class, ignored


class BoxSource(NamedTuple):
    """The boxes of a source.

    form: format, a key of WORDS. files: some of the label files. names: class names by id; None if labels hold only numbers. counts: labels
    that are not used, by reason; examples: a name for some of them. body: the keypoints of an object if the task is keypoints; their names
    are then the classes.
    """

    form: str
    files: list[str]
    names: list[str] | None
    counts: dict[str, int]
    examples: dict[str, str]
    body: Body | None = None


def find_boxes(table: sqlite3.Connection, tree: Tree, classes: list[str] | None, max_bytes: int, detail: Detail = "") -> BoxSource | None:
    """Find box labels: COCO files (table `labels`), else one label file per picture (table `pairs`). None if there are none.

    classes: names in classes.txt, which then defines all classes and their order. detail: what the task needs besides boxes: outlines (not
    in Pascal VOC) or keypoints (only in COCO).

    Raises:
        UserError: see `read_coco`; boxes lack the detail; a list of names cannot be parsed; classes.txt lacks a class.
    """
    if found := read_coco(table, tree, detail):
        files, names, counts, examples, body = found
        refuse_corners(table, tree, files[0], max_bytes)
        if body and classes and classes != names:
            raise UserError(
                f"{tree}/classes.txt lists other names than the keypoints of {files[0]}, {', '.join(names[:3])} and so on; drop it"
            )
        if classes and (strange := [name for name in names if name not in classes]):
            raise UserError(f"{tree}/{files[0]} names the category {strange[0]!r}, which classes.txt lacks; add it, or drop classes.txt")
        return BoxSource("coco", files, classes or names, counts, examples, body)
    take_deeper_pictures(table)
    for form, suffix in FORMS:
        pairs = (
            "files AS p JOIN box_files AS b ON b.key = p.key OR (b.key = p.key2 AND p.key2 = without_items(p.key)) "
            "WHERE p.role = 'picture' AND b.suffix = ?"
        )
        first = [name for (name,) in table.execute(f"SELECT DISTINCT b.name FROM {pairs} ORDER BY 1 LIMIT {LOOKED_INTO}", [suffix])]
        contents = [data for data in tree.read(first, max_bytes) if isinstance(data, bytes)]
        if not any(_looks_right(form, data) for data in contents):
            continue
        if detail == "keypoints":
            raise UserError(
                f"ingest.task = keypoints learns from COCO's keypoints, and {tree} has boxes of {WORDS[form]} (as {first[0]}); "
                "add such a file, or set ingest.task to detection"
            )
        if detail and (form == "voc" or (form == "yolo" and not any(yolo.has_polygon(data) for data in contents))):
            raise UserError(
                f"ingest.task = instances learns from masks or outlines, and {tree} has boxes of {WORDS[form]} (as {first[0]}); "
                "add masks, or set ingest.task to detection"
            )
        if form == "yolo":
            yolo.refuse_poses(contents, f"{tree}/{first[0]}")
            refuse_corners_of_yolo(yolo.boxes_in(contents), f"{tree}/{first[0]} and others")
        table.execute("DELETE FROM pairs")
        table.execute(
            f"INSERT OR IGNORE INTO pairs SELECT p.name, min(b.name), count(*) FROM {pairs} "
            "GROUP BY p.name, shared(p.name, b.name) ORDER BY p.name, shared(p.name, b.name) DESC",
            [suffix],
        )
        if form == "yolo":
            classes, lists = yolo.class_names(tree, _lists_of_classes(table), classes)
            table.executemany("DELETE FROM box_files WHERE name = ?", [(name,) for name in lists])
        elif not classes:
            classes = _names_in_files(table, tree, max_bytes, form)
        without, lost = table.execute(
            "SELECT count(*), min(name) FROM box_files WHERE suffix = ? AND name NOT IN (SELECT mask FROM pairs) "
            "AND name NOT LIKE '%/classes.txt'",
            [suffix],
        ).fetchone()
        return BoxSource(form, first, classes, {"boxes_without_picture": without}, {"boxes_without_picture": lost} if lost else {})
    return None


def _lists_of_classes(table: sqlite3.Connection) -> list[str]:
    """The classes.txt files that tools write beside YOLO labels."""
    return [name for (name,) in table.execute("SELECT name FROM box_files WHERE name LIKE '%/classes.txt' ORDER BY name LIMIT 100")]


def _looks_right(form: str, data: bytes) -> bool:
    if form in _IS:
        return _IS[form](data)
    try:
        return voc.read(data)[1] is not None if form == "voc" else bool(list(_yolo(data, 1, 1)))
    except BadPicture:
        return False


def _names_in_files(table: sqlite3.Connection, tree: Tree, max_bytes: int, form: str) -> list[str]:
    """Class names of all objects, sorted."""
    names: set[str] = set()
    query = table.execute("SELECT DISTINCT mask FROM pairs")
    while some := [name for (name,) in query.fetchmany(max(32, tree.batch_size))]:
        for data in tree.read(some, max_bytes):
            if isinstance(data, bytes):
                try:
                    names |= {str(row[4]) for row in _READ[form](data, (1, 1))[1]}
                except BadPicture:  # its picture will be quarantined
                    continue
        if len(names) > MAX_CLASSES:
            raise UserError(
                f"{tree}: the boxes have more than {MAX_CLASSES} class names, such as {min(names)!r}; list the classes in classes.txt"
            )
    return sorted(names)


_IS = {"labelme": is_labelme, "supervisely": is_supervisely}


def names_a_size(label: BoxLabel) -> bool:
    """Whether a label that `read_boxes` or `read_outlines` has read says for which size of its picture it is."""
    size, _ = _READ[label.form](label.data, (1, 1))
    return bool(size and all(size))


def read_boxes(label: BoxLabel, classes: list[str] | None, stored: tuple[int, int], orientation: int) -> tuple[Boxes, tuple[str, ...]]:
    """Parse the boxes of a picture and transform them to its upright orientation.

    Labels whose size is that of the stored pixels, and not that of the upright picture, refer to the stored pixels; all others refer to the
    upright picture, as annotation tools show it. Boxes are clipped at the picture's border; empty and duplicate boxes are dropped.

    Args:
        label: as read from the source.
        classes: names by id; None if labels hold only numbers.
        stored: (width, height) of the stored pixels.
        orientation: EXIF orientation of the picture.

    Returns:
        The boxes on the upright picture; keys of `decode.WARNINGS`.

    Raises:
        BadPicture: the label cannot be parsed, is for another size, has an unknown class or impossible numbers.
    """
    upright = stored[::-1] if orientation > 4 else stored
    size, rows = _READ[label.form](label.data, upright)
    size = tuple(int(side) if side else 0 for side in size) if size else (0, 0)
    turn = orientation > 4 and size == stored != upright
    if size[0] and size[1] and not turn and size != upright:
        raise BadPicture(f"its boxes are for a picture of {size[0]} x {size[1]}, it has {upright[0]} x {upright[1]}")
    width, height = stored if turn else upright
    numbers = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4)
    if not np.isfinite(numbers).all():
        raise BadPicture("a box holds a number that is not finite")
    turned = (numbers[:, :2] > numbers[:, 2:]).any()
    numbers = np.hstack([np.minimum(numbers[:, :2], numbers[:, 2:]), np.maximum(numbers[:, :2], numbers[:, 2:])])
    are_of_a_pixel = label.form not in ("yolo", "stored") and min(upright) > SMALLEST and _are_of_a_pixel(numbers)
    classes_of = np.array([class_id(row[4], classes) for row in rows], np.int64)
    boxes = Boxes(numbers.astype(np.float32), classes_of, np.array([row[5] for row in rows], bool))
    if turn:
        boxes = boxes.exif_transposed(orientation, *stored)
        width, height = upright
    boxes, warnings = _tidy(boxes, width, height)
    from_zero = label.form == "voc" and bool((numbers == -1).any())  # as they count from 1
    doubts = ("boxes_turned",) * bool(turned) + ("boxes_from_zero",) * from_zero + ("box_of_a_pixel",) * are_of_a_pixel
    return boxes, doubts + warnings


def _are_of_a_pixel(corners: np.ndarray) -> bool:
    """Whether all boxes with an extent end in the pixel in the corner, and one covers it.

    Raises:
        BadPicture: they do, and have fractions.
    """
    real = corners[(corners[:, :2] < corners[:, 2:]).all(axis=1)]
    if not len(real) or (real[:, 2:] > 1).any():
        return False
    if (real % 1).any():
        raise BadPicture("its boxes lie within one pixel, as fractions would; write them in pixels")
    return bool((real.clip(0) == (0, 0, 1, 1)).all(axis=1).any())


def _tidy(boxes: Boxes, width: int, height: int) -> tuple[Boxes, tuple[str, ...]]:
    """The boxes clipped at the border, without empty and duplicate ones; keys of `decode.WARNINGS`."""
    warnings = []
    inside = boxes.corners.clip(0, np.array([width, height, width, height], np.float32))
    if (np.abs(inside - boxes.corners) > TOLERANCE).any():
        warnings.append("boxes_outside")
    low, high = inside[:, :2], inside[:, 2:]
    real = (high > low).all(axis=1)
    if not real.all():
        warnings.append("boxes_empty")
    rows = Boxes(inside, boxes.classes, boxes.ignored).rows()[real]
    _, first = np.unique(rows, axis=0, return_index=True)
    if len(first) < len(rows):
        warnings.append("boxes_repeated")
    return Boxes.of_rows(rows[np.sort(first)]), tuple(warnings)


def class_id(named: str | int, classes: list[str] | None) -> int:
    """The id of a class, given its name or number; BadPicture if it is unknown."""
    if isinstance(named, int) and named < (len(classes) if classes else MAX_CLASSES):
        return named
    if isinstance(named, str) and classes and named in classes:
        return classes.index(named)
    known = f"one of the {len(classes)} classes" if classes else f"below {MAX_CLASSES}"
    raise BadPicture(f"a box is of class {str(named)[:80]!r}, which is not {known}")


def _coco(data: bytes, upright: tuple[int, int]) -> tuple[Any, list[Row]]:
    stored = json.loads(data)
    rows: list[Row] = []
    for *numbers, name, crowd in stored["boxes"]:
        x, y, w, h = (math.nan if number is None else number for number in numbers)
        rows.append((x, y, x + w, y + h, name, bool(crowd)))
    return stored["size"], rows


def _read_yolo(data: bytes, upright: tuple[int, int]) -> tuple[Any, list[Row]]:
    return None, list(_yolo(data, *upright))


def _read_shapes(size_and_shapes: tuple[Any, list[Shape]]) -> tuple[Any, list[Row]]:
    """The bounding box of each shape."""
    size, shapes = size_and_shapes
    return size, [(*_bounds(list(chain.from_iterable(shape.polygons))), shape.name, False) for shape in shapes]


def _bounds(points: list[float]) -> tuple[float, float, float, float]:
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def outlines_of(label: BoxLabel, upright: tuple[int, int]) -> tuple[Any, list[tuple[str | int, Any, bool]]]:
    """(picture size as given in the label, [(class, outline in COCO's format, whether it is a crowd) of each object]).

    Raises:
        BadPicture: the label cannot be parsed, or an object has a box only.
    """
    if label.form == "coco":
        entry = json.loads(label.data)
        return entry["size"], [(box[4], outline, bool(box[5])) for box, outline in zip(entry["boxes"], entry["outlines"], strict=True)]
    if label.form == "yolo":
        rows = [(number, values) for number, values in yolo.read_lines(label.data)]
        if any(len(values) == 4 for _, values in rows):
            raise BadPicture(
                "its .txt holds boxes, and objects are learnt from polygons; remove those lines or set ingest.task to detection"
            )
        sides = np.array(upright, np.float64)
        return None, [(number, [(np.array(values).reshape(-1, 2) * sides).ravel().tolist()], False) for number, values in rows]
    size, shapes = _SHAPES[label.form](label.data)
    return size, [(shape.name, shape.polygons, False) for shape in shapes]


def _yolo(data: bytes, width: int, height: int) -> Iterator[Row]:
    """Boxes in pixels; the bounding box of a polygon."""
    for number_of_class, values in yolo.read_lines(data):
        if len(values) == 4:
            x, y, w, h = values
            x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        else:
            x1, y1, x2, y2 = _bounds(values)
        yield x1 * width, y1 * height, x2 * width, y2 * height, number_of_class, False


def _stored(data: bytes, upright: tuple[int, int]) -> tuple[Any, list[Row]]:
    try:
        boxes = Boxes.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        raise BadPicture(f"its .{SUFFIX} is not what ingest writes: {type(error).__name__}") from error
    return None, [
        (*corners, label, bool(crowd))
        for corners, label, crowd in zip(boxes.corners.tolist(), boxes.classes.tolist(), boxes.ignored, strict=True)
    ]


_SHAPES = {"labelme": labelme, "supervisely": supervisely}
_READ: dict[str, Callable[[bytes, tuple[int, int]], tuple[Any, list[Row]]]] = {
    "coco": _coco,
    "imagefolder": _coco,
    "voc": lambda data, _: voc.read(data),
    "yolo": _read_yolo,
    "labelme": lambda data, _: _read_shapes(labelme(data)),
    "supervisely": lambda data, _: _read_shapes(supervisely(data)),
    "stored": _stored,
}
