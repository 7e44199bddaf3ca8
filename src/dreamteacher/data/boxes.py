"""Labelled boxes and detections: storage, geometric transforms, non-maximum suppression. Needs only numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SUFFIX = "boxes.json"  # of a stored label file
TOLERANCE = 2.0  # pixels outside the picture that are attributed to rounding
MIN_VISIBLE = 0.4  # share of a box inside a crop below which the box is ignored
MIN_SCORE, MAX_OVERLAP, MAX_CANDIDATES, MAX_DETECTIONS = 0.05, 0.6, 1000, 100  # 100 detections as in COCO


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a picture; an empty set is a valid label.

    corners: float32 (N, 4) of x1, y1, x2, y2 in pixels, the picture from (0, 0) to (width, height). classes: int64 (N,). ignored: bool
    (N,), regions such as crowds, which count neither in the loss nor in the metric.
    """

    corners: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> Boxes:
        """The inverse of `rows`."""
        return cls(rows[:, :4], rows[:, 4].astype(np.int64), rows[:, 5] > 0)

    @classmethod
    def from_json(cls, data: bytes) -> Boxes:
        """The inverse of `to_json`."""
        stored = json.loads(data)
        corners = np.array(stored["boxes"], np.float32).reshape(-1, 4)
        return cls(corners, np.array(stored["labels"], np.int64), np.array(stored["iscrowd"], bool))

    def to_json(self) -> bytes:
        """`{"boxes": [[x1, y1, x2, y2], ...], "labels": [class id, ...], "iscrowd": [0 or 1, ...]}`, the names of torchvision's targets."""
        corners = [[round(float(value), 3) for value in box] for box in self.corners]
        stored = {"boxes": corners, "labels": self.classes.tolist(), "iscrowd": self.ignored.astype(int).tolist()}
        return json.dumps(stored).encode()

    def rows(self) -> np.ndarray:
        """float32 (N, 6) of x1, y1, x2, y2, class, ignored."""
        return np.column_stack([self.corners, self.classes, self.ignored]).astype(np.float32)

    def scaled(self, across: float, down: float) -> Boxes:
        """The boxes of the picture resized by these factors."""
        return Boxes((self.corners * [across, down, across, down]).astype(np.float32), self.classes, self.ignored)

    def hflipped(self, width: int) -> Boxes:
        """The boxes of the picture, `width` pixels wide, flipped left to right."""
        x1, y1, x2, y2 = self.corners.T
        return Boxes(np.stack([width - x2, y1, width - x1, y2], axis=1), self.classes, self.ignored)

    def exif_transposed(self, orientation: int, width: int, height: int) -> Boxes:
        """The boxes after EXIF's `orientation` has been applied to the picture, stored as `width` x `height`."""
        x1, y1, x2, y2 = self.corners.T
        if orientation in (2, 3, 7, 8):  # the stored left is the right, or the bottom
            x1, x2 = width - x2, width - x1
        if orientation in (3, 4, 6, 7):
            y1, y2 = height - y2, height - y1
        corners = [y1, x1, y2, x2] if orientation > 4 else [x1, y1, x2, y2]
        return Boxes(np.stack(corners, axis=1).astype(np.float32), self.classes, self.ignored)

    def cropped(self, top: int, left: int, height: int, width: int) -> Boxes:
        """The boxes of a crop, in its coordinates, clipped; a box with less than MIN_VISIBLE of its area inside is ignored."""
        inside = (self.corners - np.array([left, top, left, top], np.float32)).clip(0, np.array([width, height, width, height], np.float32))
        shown, whole = areas(inside), areas(self.corners)
        seen = shown > 0
        ignored = self.ignored | (shown < MIN_VISIBLE * whole)
        return Boxes(inside[seen], self.classes[seen], ignored[seen])


def areas(corners: np.ndarray) -> np.ndarray:
    """Areas (N,) of boxes (N, 4)."""
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])


def box_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with boxes (N, 4)."""
    x1, y1, x2, y2 = others.T
    width = np.minimum(box[2], x2) - np.maximum(box[0], x1)
    height = np.minimum(box[3], y2) - np.maximum(box[1], y1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    return shared / np.maximum(areas(others) + areas(box[None]) - shared, 1e-9)


def select_detections(
    scores: np.ndarray, corners: np.ndarray, padded: tuple[int, int], own: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The detections of one picture after non-maximum suppression per class.

    Args:
        scores: (K, A) of each class at each location, in [0, 1].
        corners: (4, A) of x1, y1, x2, y2 of the box at each location, as fractions of the model's input.
        padded: (H, W) of that input.
        own: (h, w) of the picture, the upper left part of the input; the rest is padding.
        size: (H, W) to which the boxes are scaled.

    Returns:
        float32 (D, 6) of x1, y1, x2, y2 in pixels of `size`, class and score, by descending score; D <= MAX_DETECTIONS.
    """
    classes, places = np.nonzero(scores > MIN_SCORE)
    values = scores[classes, places]
    best = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    classes, values = classes[best], values[best]
    boxes = corners[:, places[best]].T.astype(np.float32) * np.array([padded[1], padded[0]] * 2, np.float32)
    boxes = boxes.clip(0, np.array([own[1], own[0]] * 2, np.float32))
    real = areas(boxes) > 0  # not only in the padding
    boxes, classes, values = boxes[real], classes[real], values[real]
    kept = non_maximum_suppression(
        len(boxes), MAX_DETECTIONS, lambda i: (classes != classes[i]) | (box_iou(boxes[i], boxes) <= MAX_OVERLAP)
    )
    boxes = boxes[kept] * np.array([size[1] / own[1], size[0] / own[0]] * 2, np.float32)
    return np.column_stack([boxes, classes[kept], values[kept]]).astype(np.float32)


def non_maximum_suppression(count: int, most: int, differ: Callable[[int], np.ndarray]) -> list[int]:
    """Greedy non-maximum suppression of `count` candidates, sorted by descending score: the indices of at most `most` that are kept.

    differ: index -> bool (count,), which candidates it does not suppress.
    """
    kept: list[int] = []
    free = np.ones(count, bool)
    for index in range(count):
        if free[index]:
            kept.append(index)
            if len(kept) == most:
                break
            free &= differ(index)
    return kept
