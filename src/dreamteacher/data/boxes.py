"""Labelled boxes of a picture, and detections: how they are stored, follow a picture's changes, and are chosen. Needs numpy only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SUFFIX = "boxes.json"  # of a stored label
TOLERANCE = 2.0  # pixels beyond the picture that rounding explains
VISIBLE = 0.4  # least share of a box inside a crop; of a box that shows less nothing is learnt
LEAST_SCORE, MOST_OVERLAP, MOST_CANDIDATES, MOST_DETECTIONS = 0.05, 0.6, 1000, 100  # the last as COCO counts


@dataclass(frozen=True, eq=False)
class Boxes:
    """All objects of a picture; none is a label too.

    corners: float32 (N, 4) of x1, y1, x2, y2 in pixels, the picture from (0, 0) to (width, height). classes: int64 (N,). ignored: bool
    (N,), of regions such as crowds, which neither training nor a score counts.
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
        """As the picture is resized by these factors."""
        return Boxes((self.corners * [across, down, across, down]).astype(np.float32), self.classes, self.ignored)

    def mirrored(self, width: int) -> Boxes:
        """As the picture of this width is flipped left to right."""
        x1, y1, x2, y2 = self.corners.T
        return Boxes(np.stack([width - x2, y1, width - x1, y2], axis=1), self.classes, self.ignored)

    def turned_upright(self, orientation: int, width: int, height: int) -> Boxes:
        """What EXIF's `orientation` does to a picture that is stored as `width` x `height`, done to its boxes."""
        x1, y1, x2, y2 = self.corners.T
        if orientation in (2, 3, 7, 8):  # the stored left is the right, or the bottom
            x1, x2 = width - x2, width - x1
        if orientation in (3, 4, 6, 7):
            y1, y2 = height - y2, height - y1
        corners = [y1, x1, y2, x2] if orientation > 4 else [x1, y1, x2, y2]
        return Boxes(np.stack(corners, axis=1).astype(np.float32), self.classes, self.ignored)

    def cropped(self, top: int, left: int, height: int, width: int) -> Boxes:
        """What a window shows, in its coordinates: boxes are cut; one that shows less than VISIBLE of its area is ignored."""
        inside = (self.corners - np.array([left, top, left, top], np.float32)).clip(0, np.array([width, height, width, height], np.float32))
        shown, whole = areas(inside), areas(self.corners)
        seen = shown > 0
        ignored = self.ignored | (shown < VISIBLE * whole)
        return Boxes(inside[seen], self.classes[seen], ignored[seen])


def areas(corners: np.ndarray) -> np.ndarray:
    """(N,) of boxes (N, 4)."""
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with boxes (N, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    return shared / np.maximum(areas(others) + areas(box[None]) - shared, 1e-9)


def choose(scores: np.ndarray, corners: np.ndarray, padded: tuple[int, int], own: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The detections of one picture: the best places of each class, without those that overlap a better one (non-maximum suppression).

    Args:
        scores: (K, A) of each class at each place, in [0, 1].
        corners: (4, A) of x1, y1, x2, y2 of the box at each place, as fractions of the model's input.
        padded: (H, W) of that input.
        own: (h, w) of its upper left part that is the picture.
        size: (H, W) that the boxes are wanted in.

    Returns:
        float32 (D, 6) of x1, y1, x2, y2 in pixels of `size`, class and score, the best first; D <= MOST_DETECTIONS.
    """
    classes, places = np.nonzero(scores > LEAST_SCORE)
    values = scores[classes, places]
    best = np.argsort(-values, kind="stable")[:MOST_CANDIDATES]
    classes, values = classes[best], values[best]
    boxes = corners[:, places[best]].T.astype(np.float32) * np.array([padded[1], padded[0]] * 2, np.float32)
    boxes = boxes.clip(0, np.array([own[1], own[0]] * 2, np.float32))
    real = areas(boxes) > 0  # not in the padding alone
    boxes, classes, values = boxes[real], classes[real], values[real]
    kept = without_repeats(len(boxes), MOST_DETECTIONS, lambda i: (classes != classes[i]) | (overlaps(boxes[i], boxes) <= MOST_OVERLAP))
    boxes = boxes[kept] * np.array([size[1] / own[1], size[0] / own[0]] * 2, np.float32)
    return np.column_stack([boxes, classes[kept], values[kept]]).astype(np.float32)


def without_repeats(count: int, most: int, differ: Callable[[int], np.ndarray]) -> list[int]:
    """Greedy non-maximum suppression of `count` findings, the best first: the indices of those that differ from all kept before, `most` at
    most. differ: of an index, bool (count,): which findings are another object than it."""
    kept: list[int] = []
    free = np.ones(count, bool)
    for index in range(count):
        if free[index]:
            kept.append(index)
            if len(kept) == most:
                break
            free &= differ(index)
    return kept
