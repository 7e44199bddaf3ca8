"""Keypoints: storage, geometric transforms, and selection of predicted objects. Needs only numpy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dreamteacher.data.boxes import Boxes, non_maximum_suppression

SUFFIX = "keypoints.json"  # of a stored label file
OBJECT = 6  # columns of an object before its keypoints: x1, y1, x2, y2, area, ignored
MIN_SCORE, MAX_OBJECTS = 0.05, 100  # of predicted objects
NMS_SIMILARITY, SIMILARITY_SIGMA = (
    0.8,
    0.15,
)  # similarity from which two predictions are one object; its Gaussian's sigma in sides of the object
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
Skeleton = tuple[tuple[int, int], ...]  # pairs of keypoint indices that are connected by a line


class Body(NamedTuple):
    """Keypoint names of an object, and the lines between them."""

    names: tuple[str, ...]
    skeleton: Skeleton = ()


@dataclass(frozen=True, eq=False)
class Keypoints:
    """The keypoints of all objects of a picture; an empty set is a valid label.

    corners: float32 (N, 4) of x1, y1, x2, y2 in pixels, the picture from (0, 0) to (width, height). areas: float32 (N,), in pixels.
    ignored: bool (N,), crowds. points: float32 (N, P, 3) of x, y and 0 (not labelled), 1 (hidden) or 2 (visible), as in COCO.
    body: names of the P keypoints.
    """

    corners: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray
    points: np.ndarray
    body: Body

    @classmethod
    def of_rows(cls, rows: np.ndarray, body: Body) -> Keypoints:
        """The inverse of `rows`."""
        return cls(rows[:, :4], rows[:, 4], rows[:, 5] > 0, rows[:, OBJECT:].reshape(len(rows), len(body.names), 3), body)

    @classmethod
    def from_json(cls, data: bytes, body: Body) -> Keypoints:
        """The inverse of `to_json`."""
        stored = json.loads(data)
        corners = np.array(stored["boxes"], np.float32).reshape(-1, 4)
        points = np.array(stored["keypoints"], np.float32).reshape(len(corners), len(body.names), 3)
        return cls(corners, np.array(stored["areas"], np.float32), np.array(stored["iscrowd"], bool), points, body)

    def to_json(self) -> bytes:
        """`{"boxes": [[x1, y1, x2, y2], ...], "areas": [...], "iscrowd": [0 or 1, ...], "keypoints": [[[x, y, v], ...], ...]}`."""
        named = {"boxes": self.corners, "areas": self.areas, "keypoints": self.points}
        stored = {name: values.astype(np.float64).round(3).tolist() for name, values in named.items()}
        return json.dumps(stored | {"iscrowd": self.ignored.astype(int).tolist()}).encode()

    def rows(self) -> np.ndarray:
        """float32 (N, OBJECT + 3 P): the object, then its keypoints."""
        points = self.points.reshape(len(self.corners), 3 * len(self.body.names))
        return np.column_stack([self.corners, self.areas, self.ignored, points]).astype(np.float32)

    def labelled(self) -> np.ndarray:
        """bool (N, P): which keypoints are labelled."""
        return self.points[:, :, 2] > 0

    def scaled(self, across: float, down: float) -> Keypoints:
        """The keypoints of the picture resized by these factors."""
        points = (self.points * [across, down, 1]).astype(np.float32)
        areas = (self.areas * (across * down)).astype(np.float32)
        return replace(self, corners=self._boxes().scaled(across, down).corners, areas=areas, points=points)

    def hflipped(self, width: int) -> Keypoints:
        """The keypoints of the picture, `width` pixels wide, flipped left to right; left and right keypoints are swapped."""
        points = np.stack([width - self.points[:, :, 0], self.points[:, :, 1], self.points[:, :, 2]], axis=2)
        return replace(self, corners=self._boxes().hflipped(width).corners, points=self._swap_sides(points))

    def transposed(self) -> Keypoints:
        """The keypoints of the transposed picture; left and right keypoints are swapped, as this is a reflection."""
        return replace(self, corners=self.corners[:, [1, 0, 3, 2]], points=self._swap_sides(self.points[:, :, [1, 0, 2]]))

    def vflipped(self, height: int) -> Keypoints:
        """The keypoints of the picture, `height` pixels high, flipped top to bottom."""
        return self.transposed().hflipped(height).transposed()

    def exif_transposed(self, orientation: int, width: int, height: int) -> Keypoints:
        """The keypoints after EXIF's `orientation` has been applied to the picture, stored as `width` x `height`; names do not change."""
        x, y, seen = np.moveaxis(self.points, 2, 0)
        x = width - x if orientation in (2, 3, 7, 8) else x
        y = height - y if orientation in (3, 4, 6, 7) else y
        points = np.stack([y, x, seen] if orientation > 4 else [x, y, seen], axis=2)
        return replace(self, corners=self._boxes().exif_transposed(orientation, width, height).corners, points=_clean(points))

    def cropped(self, top: int, left: int, height: int, width: int) -> Keypoints:
        """The keypoints of a crop, in its coordinates: boxes as in `Boxes.cropped`; keypoints outside are not labelled."""
        boxes = self._boxes().cropped(top, left, height, width)
        points = self.points[boxes.classes] - np.array([left, top, 0], np.float32)
        inside = ((points[:, :, :2] >= 0) & (points[:, :, :2] <= [width, height])).all(axis=2)
        points = np.where(inside[:, :, None], points, np.float32(0))
        return replace(self, corners=boxes.corners, areas=self.areas[boxes.classes], ignored=boxes.ignored, points=_clean(points))

    def as_boxes(self) -> Boxes:
        """Each labelled keypoint as an empty box whose class is the keypoint's index, to count keypoints as boxes."""
        which, number = np.nonzero(self.labelled())
        places = self.points[which, number, :2]
        return Boxes(np.column_stack([places, places]), number.astype(np.int64), self.ignored[which])

    def _boxes(self) -> Boxes:
        """The boxes of the objects, with the object's index as class."""
        return Boxes(self.corners, np.arange(len(self.corners)), self.ignored)

    def _swap_sides(self, points: np.ndarray) -> np.ndarray:
        return _clean(points[:, flip_indices(self.body.names)])


def _clean(points: np.ndarray) -> np.ndarray:
    """Move keypoints without a label to 0, 0."""
    return np.where(points[:, :, 2:] > 0, points, np.float32(0)).astype(np.float32)


@lru_cache(maxsize=16)
def flip_indices(names: tuple[str, ...]) -> list[int]:
    """Index of the keypoint with left and right swapped in its name, else its own, for each keypoint. See `unpaired_sides`."""
    indices = []
    for i, name in enumerate(names):
        found = [j for j, other in enumerate(names) if other != name and _words(other) in _swapped_names(name)]
        indices.append(found[0] if len(found) == 1 else i)
    return indices


def unpaired_sides(names: tuple[str, ...]) -> list[str]:
    """Names that contain left or right (or L or R) without a counterpart, so that they cannot be swapped in a flip."""
    return [name for i, name in enumerate(names) if _swapped_names(name) and flip_indices(names)[i] == i]


def has_sides(names: tuple[str, ...]) -> bool:
    """Whether any name contains left or right."""
    return any(map(_swapped_names, names))


def _words(name: str) -> tuple[str, ...]:
    """The words of a name: (left, eye) for `left_eye`, `LeftEye` and `lefteye`."""
    split: list[str] = []
    for word in (each.lower() for each in _WORDS.findall(name)):
        side = next((side for side in ("left", "right") if word.startswith(side)), "")
        split += [part for part in (side, word[len(side) :]) if part]
    return tuple(split)


def _swapped_names(name: str) -> list[tuple[str, ...]]:
    """The words of a name with one side swapped, or all sides; empty if it has no side."""
    words = _words(name)
    sides = [i for i, word in enumerate(words) if word in _OTHER_SIDE]
    if any(len(words[i]) > 1 for i in sides):  # in left_r1, r is not a side
        sides = [i for i in sides if len(words[i]) > 1]
    changes = [{i} for i in sides] + ([set(sides)] if len(sides) > 1 else [])
    return [tuple(_OTHER_SIDE[word] if i in change else word for i, word in enumerate(words)) for change in changes]


def select_objects(
    centres: np.ndarray, points: np.ndarray, seen: np.ndarray, padded: tuple[int, int], own: tuple[int, int], *, size: tuple[int, int]
) -> np.ndarray:
    """The objects of one picture: peaks of the centre heat map, after non-maximum suppression by keypoint similarity.

    Args:
        centres: (1, h, w) heat map in [0, 1].
        points: (2 P, h, w), x and y of each keypoint of the object centred there, as fractions of the model's input.
        seen: (P, h, w) in [0, 1], probability that each keypoint is in the picture.
        padded: (H, W) of that input.
        own: (H, W) of the picture, the upper left part of the input; the rest is padding.
        size: (H, W) to which the keypoints are scaled.

    Returns:
        float32 (D, 1 + 3 P): score of the object, then x and y in pixels of `size` and `seen` of each keypoint; by descending score,
        D <= MAX_OBJECTS.
    """
    heat = centres[0]
    around = np.pad(heat, 1, constant_values=-1)
    highest = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).max((2, 3))
    height, width = (-(-side * cells // whole) for side, cells, whole in zip(own, heat.shape, padded, strict=True))
    rows, columns = np.nonzero((heat == highest)[:height, :width] & (heat > MIN_SCORE)[:height, :width])
    order = np.argsort(-heat[rows, columns], kind="stable")[: 4 * MAX_OBJECTS]
    rows, columns = rows[order], columns[order]
    places = points[:, rows, columns].T.reshape(len(rows), len(seen), 2).astype(np.float32) * np.array([padded[1], padded[0]], np.float32)
    places = places.clip(0, np.array([own[1], own[0]], np.float32))
    kept = non_maximum_suppression(len(rows), MAX_OBJECTS, lambda i: similarity(places[i], places) < NMS_SIMILARITY)
    places = places[kept] * np.array([size[1] / own[1], size[0] / own[0]], np.float32)
    found = np.concatenate([places, seen[:, rows[kept], columns[kept]].T[:, :, None]], axis=2)
    return np.column_stack([heat[rows[kept], columns[kept]], found.reshape(len(kept), 3 * len(seen))]).astype(np.float32)


def similarity(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Similarity (N,) in [0, 1] of keypoints (P, 2) with `others` (N, P, 2): mean Gaussian of relative distances."""
    side = max(float((points.max(0) - points.min(0)).max()), 1.0)
    return np.exp(-np.square(others - points).sum(2) / (2 * (SIMILARITY_SIGMA * side) ** 2)).mean(1)
