"""Keypoint labels of one picture from COCO files, checked, and the keypoints that COCO categories define."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dreamteacher.data.boxes import TOLERANCE
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import BoxLabel
from dreamteacher.data.keypoints import Body, Keypoints
from dreamteacher.data.names import class_name
from dreamteacher.errors import UserError

SMALLEST = 8  # pixels of the shorter side from which keypoints or boxes within one pixel are taken for fractions
AROUND = 0.25  # of a box's side; keypoints of an object may lie this far outside its box


def read_body(category: dict[str, Any]) -> Body | None:
    """The keypoints and the skeleton (1-based in COCO) of a category; None if it has no keypoints.

    Raises:
        ValueError: a name occurs twice, or the skeleton has an index out of range.
    """
    names = tuple(class_name(str(name)) for name in category.get("keypoints") or ())
    if not names:
        return None
    if len(set(names)) < len(names):
        raise ValueError(f"the category {category['name']!r} names a keypoint twice")
    skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
    if any(not 0 <= end < len(names) for line in skeleton for end in line):
        raise ValueError(f"the skeleton of {category['name']!r} has a number beyond 1 to {len(names)}")
    return Body(names, skeleton)


def the_body(bodies: dict[str, Body], where: str) -> Body:
    """The keypoints that all categories with keypoints share.

    Raises:
        UserError: no category has keypoints, or two have different ones.
    """
    if not bodies:
        raise UserError(f"{where}: no category names its `keypoints`; add them, or set ingest.task to detection")
    (first, body), *others = bodies.items()
    for name, other in others:
        if other.names != body.names:
            raise UserError(
                f"{where}: the categories {first!r} and {name!r} have different keypoints, and one model learns those of one; put them "
                "into data sets of their own"
            )
    return body


def count_of(element: dict[str, Any]) -> int:
    """Number of labelled keypoints of an annotation."""
    return sum(1 for value in (element.get("keypoints") or ())[2::3] if value)


def bounds_of(element: dict[str, Any]) -> list[float] | None:
    """Bounding box x, y, width, height of the labelled keypoints of an annotation; None without any."""
    values = element.get("keypoints") or []
    found = [(float(x), float(y)) for x, y, seen in zip(values[::3], values[1::3], values[2::3], strict=False) if seen]
    if not found:
        return None
    (left, top), (right, bottom) = map(min, zip(*found, strict=True)), map(max, zip(*found, strict=True))
    return [left, top, max(right - left, 1.0), max(bottom - top, 1.0)]


def read_keypoints(label: BoxLabel, body: Body, stored: tuple[int, int], orientation: int) -> tuple[Keypoints, tuple[str, ...]]:
    """Parse the keypoints of a picture and transform them to its upright orientation, with the rules of `box_labels.read_boxes`.

    A keypoint outside the picture counts as not labelled.

    Args:
        label: as read from the source.
        body: the keypoints of an object.
        stored: (width, height) of the stored pixels.
        orientation: EXIF orientation of the picture.

    Returns:
        The keypoints on the upright picture; keys of `decode.WARNINGS`.

    Raises:
        BadPicture: the label is for another size or number of keypoints, or has invalid numbers.
    """
    upright = stored[::-1] if orientation > 4 else stored
    if label.form == "stored":
        try:
            return Keypoints.from_json(label.data, body), ()
        except (ValueError, KeyError, TypeError) as error:
            raise BadPicture(f"its keypoints are not what ingest writes for {len(body.names)} of them: {type(error).__name__}") from error
    entry = json.loads(label.data)
    size = tuple(int(side) if side else 0 for side in entry["size"])
    turn = orientation > 4 and size == stored != upright
    if all(size) and not turn and size != upright:
        raise BadPicture(f"its keypoints are for a picture of {size[0]} x {size[1]}, it has {upright[0]} x {upright[1]}")
    found = _of_entry(entry, body)
    labelled = found.points[found.labelled()][:, :2]
    if min(upright) > SMALLEST and any(
        len(values) > 1 and values.min() >= 0 and 0 < values.max() <= 1 for values in (labelled, found.corners)
    ):
        raise BadPicture("its keypoints or boxes lie within one pixel, as fractions would; write them in pixels")
    at_origin = bool((labelled == 0).all(axis=1).any())
    if turn:
        found = found.exif_transposed(orientation, *stored)
    inside, warnings = _inside(found, *upright)
    return inside, warnings + ("keypoints_away",) * _are_away(found) + ("keypoints_at_origin",) * at_origin


def _of_entry(entry: dict[str, Any], body: Body) -> Keypoints:
    count = len(body.names)
    details = entry["keypoints"]
    try:
        boxes = np.array([box[:4] for box in entry["boxes"]], np.float64).reshape(-1, 4)
        areas = np.array([np.nan if each["area"] is None else each["area"] for each in details], np.float64)
        rows = [each["points"] or [0] * (3 * count) for each in details]
        if wrong := [row for row in rows if len(row) != 3 * count]:
            raise BadPicture(f"an object has {len(wrong[0])} numbers of keypoints, and {count} keypoints are {3 * count}")
        points = np.array(rows, np.float64).reshape(-1, count, 3)
    except (TypeError, ValueError) as error:
        raise BadPicture("its keypoints are no numbers") from error
    if not np.isfinite(boxes).all() or not np.isfinite(points).all():
        raise BadPicture("a box or keypoint holds a number that is not finite")
    if not np.isin(points[:, :, 2], (0, 1, 2)).all():
        raise BadPicture("a keypoint's third number is none of 0 (not labelled), 1 (hidden) and 2 (visible)")
    areas = np.where(np.isfinite(areas) & (areas > 0), areas, boxes[:, 2] * boxes[:, 3])
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    crowds = np.array([box[5] for box in entry["boxes"]], bool)
    return Keypoints(corners.astype(np.float32), areas.astype(np.float32), crowds, points.astype(np.float32), body)


def _are_away(found: Keypoints) -> bool:
    """Whether most labelled keypoints of an object that is no crowd lie outside its box, enlarged by AROUND."""
    low, high = found.corners[:, None, :2], found.corners[:, None, 2:]
    margin = AROUND * (high - low)
    places, labelled = found.points[:, :, :2], found.labelled()
    beyond = labelled & ((places < low - margin) | (places > high + margin)).any(axis=2)
    return bool((~found.ignored & (2 * beyond.sum(axis=1) > labelled.sum(axis=1))).any())


def _inside(found: Keypoints, width: int, height: int) -> tuple[Keypoints, tuple[str, ...]]:
    """Drop empty objects, clip boxes at the border, and unlabel keypoints more than TOLERANCE outside."""
    places, warnings = found.points[:, :, :2], []
    beyond = found.labelled() & ((places < -TOLERANCE) | (places > np.array([width, height]) + TOLERANCE)).any(axis=2)
    if beyond.any():
        warnings.append("keypoints_outside")
    points = np.where(beyond[:, :, None], 0, np.concatenate([places.clip(0, [width, height]), found.points[:, :, 2:]], axis=2))
    points = np.where(points[:, :, 2:] > 0, points, 0)
    corners = found.corners.clip(0, np.array([width, height, width, height], np.float32))
    real = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    if not real.all():
        warnings.append("boxes_empty")
    rows = Keypoints(corners, found.areas, found.ignored, points.astype(np.float32), found.body).rows()[real]
    return Keypoints.of_rows(rows, found.body), tuple(warnings)
