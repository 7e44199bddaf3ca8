"""Detects boxes written as x1, y1, x2, y2 where width and height are expected: read so, nearly all lie inside their pictures."""

from __future__ import annotations

import json
import sqlite3

import numpy as np

from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

SAMPLED = 32  # pictures whose boxes are checked
MIN_OUTSIDE, MIN_FITTING = 0.2, 0.95  # shares of boxes: outside as sizes, inside as corners
MIN_BOXES = 3  # boxes
COCO_MARGIN = 0.1  # of the picture's side; even careless COCO boxes do not leave it by more
YOLO_MARGIN = 0.03  # the same for YOLO, whose tools keep boxes inside


def refuse_corners(table: sqlite3.Connection, tree: Tree, name: str, max_bytes: int) -> None:
    """Check boxes x, y, width, height of the first pictures in the table `labels`, which come from the file `name`.

    Raises:
        UserError: they are probably corners.
    """
    query = (
        "SELECT f.name, value FROM labels JOIN files AS f ON nfc(f.name) = labels.name WHERE role = 'picture' "
        "AND value LIKE '%\"boxes\": [[%' ORDER BY f.name LIMIT ?"
    )
    rows = [(picture, json.loads(value)) for picture, value in table.execute(query, [SAMPLED])]
    unknown = [picture for picture, stored in rows if not all(stored["size"])]
    contents = dict(zip(unknown, tree.read(unknown, max_bytes), strict=True))
    boxes: list[list[float]] = []
    sizes: list[tuple[int, int]] = []
    for picture, stored in rows:
        try:
            width, height = stored["size"] if all(stored["size"]) else _size_of(contents[picture])
        except BadPicture:  # it is quarantined later
            continue
        boxes += [box[:4] for box in stored["boxes"] if None not in box[:4]]
        sizes += [(width, height)] * (len(boxes) - len(sizes))
    values, limits = np.array(boxes, np.float64).reshape(-1, 4), np.array(sizes, np.float64).reshape(-1, 2)
    outside = np.any(values[:, :2] + values[:, 2:] > limits * (1 + COCO_MARGIN), axis=1)
    _refuse(outside, _as_corners(values, limits + 1), f"{tree}/{name}", "x, y, w, h", "width and height of each (x2 - x1, y2 - y1)")


def refuse_corners_of_yolo(boxes: list[list[float]], where: str) -> None:
    """The same for YOLO boxes: centre, width and height as fractions."""
    values = np.array(boxes, np.float64).reshape(-1, 4)
    beyond = np.maximum(values[:, :2] + values[:, 2:] / 2 - 1, values[:, 2:] / 2 - values[:, :2])
    corners = _as_corners(values, np.full((len(values), 2), 1.01))
    _refuse(np.any(beyond > YOLO_MARGIN, axis=1), corners, where, "cx, cy, w, h", "centre, width and height of each")


def _as_corners(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return np.all((values[:, :2] < values[:, 2:]) & (values[:, 2:] <= limits), axis=1)


def _refuse(outside: np.ndarray, corners: np.ndarray, where: str, form: str, remedy: str) -> None:
    n = len(outside)
    if n >= MIN_BOXES and outside.any() and outside.sum() >= MIN_OUTSIDE * n and corners.sum() >= MIN_FITTING * n:
        raise UserError(
            f"{where}: {outside.sum()} of {n} boxes leave their pictures as {form}, and {corners.sum()} would not as x1, y1, x2, y2; "
            f"write the {remedy}"
        )


def _size_of(data: bytes | Exception) -> tuple[int, int]:
    if not isinstance(data, bytes):
        raise BadPicture("")
    height, width = decode(data).image.shape[:2]
    return width, height
