"""Instance maps: storage, and assembly from a model's outputs. Needs only numpy and Pillow.

An instance map is an integer array (H, W): 0 for no object, IGNORE for unknown, else (class id + 1) x 65536 + number, plus the score of
predictions (0 to 65535) x 2^32. It can be cropped, flipped and resized (nearest) like any mask.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dreamteacher.data.boxes import Boxes, non_maximum_suppression
from dreamteacher.data.items import IGNORE

SUFFIX = "instances.png"  # of a stored label file
MAX_OBJECTS = 1000  # predicted objects per picture
MIN_HEAT = 0.2  # threshold for centres
MIN_DISTANCE = 5  # pixels between two centres
MIN_SHOWN = 0.5  # visible share of an object's pixels; below it is a duplicate
CHUNK = 1 << 22  # distances that are computed together
_CLASS, _SCORE, _UNIT = 16, 32, 65535


def pack(numbers: np.ndarray, classes: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """int64 instance map of `numbers` (H, W), from 1, 0 for none; `classes` (N,) and `scores` (N,) in [0, 1] are indexed by number - 1."""
    codes = np.zeros(len(classes) + 1, np.int64)
    codes[1:] = ((classes.astype(np.int64) + 1) << _CLASS) + np.arange(1, len(classes) + 1)
    if scores is not None:
        codes[1:] += np.rint(scores * _UNIT).astype(np.int64) << _SCORE
    return codes[numbers]


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `pack`: numbers int64 (H, W), renumbered from 1 by descending score, then code; classes (N,); scores (N,).

    Unknown pixels have number 0.
    """
    codes, _, which = unique_by_runs(packed)
    real = codes > IGNORE
    order = np.argsort(-(codes[real] >> _SCORE), kind="stable")
    numbers = np.zeros(len(codes), np.int64)
    numbers[np.flatnonzero(real)[order]] = np.arange(1, real.sum() + 1)
    found = codes[real][order]
    return numbers[which], (found >> _CLASS & 0xFFFF) - 1, (found >> _SCORE) / _UNIT


def unique_by_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """np.unique of `values` (H, W) with return_index and return_inverse (H, W), computed on runs: sorting a million pixels takes half a
    second, and label maps have few runs."""
    flat = values.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    found, first, which = np.unique(flat[starts], return_index=True, return_inverse=True)
    return found, starts[first], np.repeat(which, np.diff(starts, append=len(flat))).reshape(values.shape)


def to_png(packed: np.ndarray) -> bytes:
    """Encode a label as an RGB PNG: red is the class id (255: unknown), green and blue the number (0: no object)."""
    known = packed != IGNORE
    red = np.where(known, np.maximum((packed >> _CLASS) - 1, 0), IGNORE)
    green, blue = (packed >> 8 & 0xFF) * known, (packed & 0xFF) * known
    buffer = io.BytesIO()
    Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """The inverse of `to_png`, int32 (H, W)."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB")).astype(np.int32), 2, 0)
    number = green << 8 | blue
    return np.where(number > 0, (red + 1) << _CLASS | number, np.where(red == IGNORE, IGNORE, 0)).astype(np.int32)


def boxes_of(packed: np.ndarray) -> Boxes:
    """Bounding boxes and classes of the objects, in the order of `unpack`'s numbers."""
    numbers, classes, _ = unpack(packed)
    corners = np.array([[packed.shape[1], packed.shape[0], 0, 0]] * len(classes), np.int64).reshape(-1, 4)
    rows, columns = np.nonzero(numbers)
    of = numbers[rows, columns] - 1
    np.minimum.at(corners[:, 0], of, columns)
    np.minimum.at(corners[:, 1], of, rows)
    np.maximum.at(corners[:, 2], of, columns + 1)
    np.maximum.at(corners[:, 3], of, rows + 1)
    return Boxes(corners.astype(np.float32), classes, np.zeros(len(classes), bool))


def group(
    probabilities: np.ndarray, centres: np.ndarray, offsets: np.ndarray, own: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of one picture (Cheng et al. 2020, arXiv 1911.10194, Sec 3.2): each foreground pixel joins a centre.

    Args:
        probabilities: (K + 1, H', W') of the background and each class.
        centres: (1, H', W') heat map of object centres, in [0, 1].
        offsets: (2, H', W'), pixels down and right from a pixel to the centre of its object.
        own: (h, w) of the picture, the upper left part of the maps; the rest is padding.
        size: (H, W) of the result.

    Returns:
        numbers (H, W) from 1 by descending score, 0 for none; classes int64 (D,); scores float32 (D,), D <= MAX_OBJECTS.
    """
    peaks, heat = _peaks(centres[0, : own[0], : own[1]])
    if not len(peaks):
        return np.zeros(size, np.uint16), np.zeros(0, np.int64), np.zeros(0, np.float32)
    none = _resized(probabilities[0, : own[0], : own[1]], size)
    rows, columns = np.nonzero(none < 0.5)
    ratio = np.array([own[0] / size[0], own[1] / size[1]], np.float32)
    votes = (np.stack([rows, columns], axis=1).astype(np.float32) + 0.5) * ratio - 0.5
    votes += np.stack([_resized(plane[: own[0], : own[1]], size)[rows, columns] for plane in offsets], axis=1)
    owners = _nearest(votes, peaks)
    areas = np.bincount(owners, minlength=len(peaks))
    by_class = [
        np.bincount(owners, _resized(plane[: own[0], : own[1]], size)[rows, columns], len(peaks)) / np.maximum(areas, 1)
        for plane in probabilities[1:]
    ]
    means = np.stack(by_class)
    scores = np.where(areas > 0, means.max(0) * heat, -1)
    order = np.argsort(-scores, kind="stable")[: int((areas > 0).sum())]
    numbers = np.zeros(len(peaks), np.uint16)
    numbers[order] = np.arange(1, len(order) + 1)
    result = np.zeros(size, np.uint16)
    result[rows, columns] = numbers[owners]
    return result, means.argmax(0)[order], scores[order].astype(np.float32)


def paste(
    found: tuple[np.ndarray, np.ndarray, np.ndarray], padded: tuple[int, int], own: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of one picture from boxes with masks (He et al. 2017, arXiv 1703.06870); where they overlap, the higher score is on top.

    Args:
        found: scores (K, D) of each class for each box, in [0, 1], all 0 for unused boxes; corners (4, D) of x1, y1, x2, y2 as fractions of
            the model's input; masks (D, M, M) in [0, 1], each stretched over its box.
        padded: (H, W) of that input.
        own: (h, w) of the picture, the upper left part of the input; the rest is padding.
        size: (H, W) of the result.

    Returns:
        As `group`. Objects with less than MIN_SHOWN of their pixels visible are dropped.
    """
    scores, corners, masks = found
    best = scores.max(0)
    scale = np.array([padded[1] * size[1] / own[1], padded[0] * size[0] / own[0]] * 2, np.float32)
    numbers, kept = np.zeros(size, np.uint16), []
    for index in np.argsort(-best, kind="stable")[: int((best > 0).sum())]:
        left, top, right, bottom = corners[:, index] * scale
        rows, down = _samples(top, bottom, size[0], masks.shape[1])
        columns, across = _samples(left, right, size[1], masks.shape[2])
        inside = down @ masks[index] @ across.T >= 0.5
        window = numbers[rows, columns]
        free = inside & (window == 0)
        if free.sum() > MIN_SHOWN * inside.sum():
            kept.append(index)
            window[free] = len(kept)
    return numbers, scores.argmax(0)[kept], best[kept].astype(np.float32)


def _samples(low: float, high: float, length: int, cells: int) -> tuple[slice, np.ndarray]:
    """The pixels below `length` whose centres lie between `low` and `high`, and the weights (pixels, cells) that interpolate `cells` values
    spread over that range linearly."""
    first, last = max(int(np.ceil(low - 0.5)), 0), min(int(np.floor(high - 0.5)) + 1, length)
    places = (np.arange(first, max(first, last)) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    weights = (1 - np.abs(places.clip(0, cells - 1)[:, None] - np.arange(cells))).clip(0)
    return slice(first, max(first, last)), weights.astype(np.float32)


def _peaks(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres as rows and columns (P, 2) and their heat (P,), descending: local maxima within MIN_DISTANCE, above MIN_HEAT."""
    highest = heat
    for axis in (0, 1):
        padded = np.pad(highest, [(MIN_DISTANCE, MIN_DISTANCE) if axis == each else (0, 0) for each in (0, 1)], constant_values=-1)
        highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * MIN_DISTANCE + 1, axis).max(-1)
    found = np.argwhere((heat == highest) & (heat > MIN_HEAT))
    values = heat[found[:, 0], found[:, 1]]
    order = np.argsort(-values, kind="stable")[: 4 * MAX_OBJECTS]
    places = found[order]
    # One pixel of each plateau.
    kept = non_maximum_suppression(len(places), MAX_OBJECTS, lambda i: np.abs(places - places[i]).max(1) > MIN_DISTANCE)
    return places[kept].astype(np.float32), values[order][kept]


def _nearest(votes: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """For each vote (P, 2) the index of the nearest peak (C, 2)."""
    lengths = (peaks**2).sum(1)
    step = max(1, CHUNK // len(peaks))
    parts = [(lengths - 2 * votes[first : first + step] @ peaks.T).argmin(1) for first in range(0, len(votes), step)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if plane.shape == size:
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
