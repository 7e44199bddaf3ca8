"""Keypoints of a picture's objects: how labels are stored and follow a picture's changes, and how those that a model finds are chosen.

Needs numpy only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dreamteacher.data.boxes import Boxes, without_repeats

SUFFIX = "keypoints.json"  # of a stored label
OBJECT = 6  # numbers of an object before its keypoints: x1, y1, x2, y2, area, ignored
LEAST_SCORE, MOST = 0.05, 100  # of objects that are found
SAME, REACH = 0.8, 0.15  # likeness from which two findings are one object; distance, in sides of an object, at which it is exp(-1/2)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
Skeleton = tuple[tuple[int, int], ...]  # pairs of keypoints, by number from 0, between which a line is drawn


class Body(NamedTuple):
    """The keypoints that each object has, by name, and the lines between them."""

    names: tuple[str, ...]
    skeleton: Skeleton = ()


@dataclass(frozen=True, eq=False)
class Keypoints:
    """All objects of a picture; none is a label too.

    corners: float32 (N, 4) of x1, y1, x2, y2 in pixels, the picture from (0, 0) to (width, height). areas: float32 (N,), in pixels.
    ignored: bool (N,), of crowds. points: float32 (N, P, 3) of x, y and 0 (not labelled), 1 (hidden) or 2 (visible), as COCO has them.
    body: which they are.
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
        """float32 (N, OBJECT + 3 P), the points behind each object."""
        points = self.points.reshape(len(self.corners), 3 * len(self.body.names))
        return np.column_stack([self.corners, self.areas, self.ignored, points]).astype(np.float32)

    def labelled(self) -> np.ndarray:
        """bool (N, P): where there is a keypoint."""
        return self.points[:, :, 2] > 0

    def scaled(self, across: float, down: float) -> Keypoints:
        """As the picture is resized by these factors."""
        points = (self.points * [across, down, 1]).astype(np.float32)
        areas = (self.areas * (across * down)).astype(np.float32)
        return replace(self, corners=self._boxes().scaled(across, down).corners, areas=areas, points=points)

    def mirrored(self, width: int) -> Keypoints:
        """As the picture of this width is flipped left to right: what was a left hand is a right one then."""
        points = np.stack([width - self.points[:, :, 0], self.points[:, :, 1], self.points[:, :, 2]], axis=2)
        return replace(self, corners=self._boxes().mirrored(width).corners, points=self._in_a_mirror(points))

    def transposed(self) -> Keypoints:
        """As rows and columns of the picture are exchanged, which is a reflection, too."""
        return replace(self, corners=self.corners[:, [1, 0, 3, 2]], points=self._in_a_mirror(self.points[:, :, [1, 0, 2]]))

    def upside_down(self, height: int) -> Keypoints:
        """As the picture of this height is flipped top to bottom."""
        return self.transposed().mirrored(height).transposed()

    def turned_upright(self, orientation: int, width: int, height: int) -> Keypoints:
        """What EXIF's `orientation` does to a picture that is stored as `width` x `height`; the names are those of the upright one."""
        x, y, seen = np.moveaxis(self.points, 2, 0)
        x = width - x if orientation in (2, 3, 7, 8) else x
        y = height - y if orientation in (3, 4, 6, 7) else y
        points = np.stack([y, x, seen] if orientation > 4 else [x, y, seen], axis=2)
        return replace(self, corners=self._boxes().turned_upright(orientation, width, height).corners, points=_clean(points))

    def cropped(self, top: int, left: int, height: int, width: int) -> Keypoints:
        """What a window shows, in its coordinates: boxes as in `Boxes.cropped`; keypoints outside of it are not labelled."""
        boxes = self._boxes().cropped(top, left, height, width)
        points = self.points[boxes.classes] - np.array([left, top, 0], np.float32)
        inside = ((points[:, :, :2] >= 0) & (points[:, :, :2] <= [width, height])).all(axis=2)
        points = np.where(inside[:, :, None], points, np.float32(0))
        return replace(self, corners=boxes.corners, areas=self.areas[boxes.classes], ignored=boxes.ignored, points=_clean(points))

    def as_boxes(self) -> Boxes:
        """Each labelled keypoint as a box without an extent, of the class of its name: by these, keypoints are counted."""
        which, number = np.nonzero(self.labelled())
        places = self.points[which, number, :2]
        return Boxes(np.column_stack([places, places]), number.astype(np.int64), self.ignored[which])

    def _boxes(self) -> Boxes:
        """Their classes are the numbers of the objects."""
        return Boxes(self.corners, np.arange(len(self.corners)), self.ignored)

    def _in_a_mirror(self, points: np.ndarray) -> np.ndarray:
        return _clean(points[:, mirror_partners(self.body.names)])


def _clean(points: np.ndarray) -> np.ndarray:
    """A keypoint without a label lies at 0, 0."""
    return np.where(points[:, :, 2:] > 0, points, np.float32(0)).astype(np.float32)


@lru_cache(maxsize=16)
def mirror_partners(names: tuple[str, ...]) -> list[int]:
    """Which keypoint each one is in a mirror: the one with left and right exchanged in its name, else itself. See `without_partner`."""
    partners = []
    for i, name in enumerate(names):
        found = [j for j, other in enumerate(names) if other != name and _words(other) in _mirrored_names(name)]
        partners.append(found[0] if len(found) == 1 else i)
    return partners


def without_partner(names: tuple[str, ...]) -> list[str]:
    """Keypoints whose names say left or right (or L or R) while none is the other side, so that nobody knows what they are in a mirror."""
    return [name for i, name in enumerate(names) if _mirrored_names(name) and mirror_partners(names)[i] == i]


def has_sides(names: tuple[str, ...]) -> bool:
    """Whether any name says left or right."""
    return any(map(_mirrored_names, names))


def _words(name: str) -> tuple[str, ...]:
    """`left_eye`, `LeftEye` and `lefteye` are the words left and eye."""
    split: list[str] = []
    for word in (each.lower() for each in _WORDS.findall(name)):
        side = next((side for side in ("left", "right") if word.startswith(side)), "")
        split += [part for part in (side, word[len(side) :]) if part]
    return tuple(split)


def _mirrored_names(name: str) -> list[tuple[str, ...]]:
    """The words of a name with one side exchanged, or all of them; none where it has no side."""
    words = _words(name)
    sides = [i for i, word in enumerate(words) if word in _OTHER_SIDE]
    if any(len(words[i]) > 1 for i in sides):  # in left_r1, r is no side
        sides = [i for i in sides if len(words[i]) > 1]
    changes = [{i} for i in sides] + ([set(sides)] if len(sides) > 1 else [])
    return [tuple(_OTHER_SIDE[word] if i in change else word for i, word in enumerate(words)) for change in changes]


def choose_objects(
    centres: np.ndarray, points: np.ndarray, seen: np.ndarray, padded: tuple[int, int], own: tuple[int, int], *, size: tuple[int, int]
) -> np.ndarray:
    """The objects of one picture: the peaks of the map of centres, without those whose keypoints lie where a better one has them.

    Args:
        centres: (1, h, w) in [0, 1].
        points: (2 P, h, w): x and y of each keypoint of the object whose centre is there, as fractions of the model's input.
        seen: (P, h, w) in [0, 1], how likely each keypoint is in the picture.
        padded: (H, W) of that input.
        own: (H, W) of its upper left part that is the picture.
        size: (H, W) that the keypoints are wanted in.

    Returns:
        float32 (D, 1 + 3 P): an object's score, and of each keypoint x and y in pixels of `size` and `seen`; the best first, D <= MOST.
    """
    heat = centres[0]
    around = np.pad(heat, 1, constant_values=-1)
    highest = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).max((2, 3))
    height, width = (-(-side * cells // whole) for side, cells, whole in zip(own, heat.shape, padded, strict=True))
    rows, columns = np.nonzero((heat == highest)[:height, :width] & (heat > LEAST_SCORE)[:height, :width])
    order = np.argsort(-heat[rows, columns], kind="stable")[: 4 * MOST]
    rows, columns = rows[order], columns[order]
    places = points[:, rows, columns].T.reshape(len(rows), len(seen), 2).astype(np.float32) * np.array([padded[1], padded[0]], np.float32)
    places = places.clip(0, np.array([own[1], own[0]], np.float32))
    kept = without_repeats(len(rows), MOST, lambda i: likeness(places[i], places) < SAME)
    places = places[kept] * np.array([size[1] / own[1], size[0] / own[0]], np.float32)
    found = np.concatenate([places, seen[:, rows[kept], columns[kept]].T[:, :, None]], axis=2)
    return np.column_stack([heat[rows[kept], columns[kept]], found.reshape(len(kept), 3 * len(seen))]).astype(np.float32)


def likeness(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) in [0, 1]: how near keypoints (P, 2) are to those of `others` (N, P, 2), relative to the longer side of their bounds."""
    side = max(float((points.max(0) - points.min(0)).max()), 1.0)
    return np.exp(-np.square(others - points).sum(2) / (2 * (REACH * side) ** 2)).mean(1)
