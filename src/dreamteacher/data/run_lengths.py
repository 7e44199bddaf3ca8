"""COCO's run-length encoding of masks: column-major, background first, as a list or compressed to text."""

from __future__ import annotations

from typing import Any

import numpy as np


def decode_runs(outline: dict[str, Any], height: int, width: int) -> np.ndarray:
    """bool (height, width). Errors: as `runs_of`; ValueError if the size or the sum of the runs differs."""
    counts = runs_of(outline)
    if [int(side) for side in outline["size"]] != [height, width] or min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise ValueError
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def bounds_of_runs(outline: dict[str, Any]) -> list[float]:
    """Bounding box x, y, width, height; all 0 for an empty mask. Errors: as `runs_of`."""
    height = int(outline["size"][0])
    ends = np.cumsum(runs_of(outline))
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts] - 1
    if not len(starts) or height < 1:
        return [0.0] * 4
    left, right = int(starts.min()) // height, int(ends.max()) // height
    whole = (starts // height < ends // height).any()  # a run that continues in the next column
    top, bottom = (0, height - 1) if whole else (int((starts % height).min()), int((ends % height).max()))
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def runs_of(outline: dict[str, Any]) -> list[int]:
    """The run lengths, alternating background and foreground. ValueError, KeyError or TypeError if they cannot be parsed."""
    counts = outline["counts"]
    return _decompressed(counts) if isinstance(counts, str) else [int(count) for count in counts]


def _decompressed(text: str) -> list[int]:
    """COCO's compressed counts: 5-bit digits offset by '0', lowest first; from the fourth on, differences to the count before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        value -= (digit & 16) << (shift - 4)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
