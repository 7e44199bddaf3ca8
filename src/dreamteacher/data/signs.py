"""Signs that a set is not what it seems: masks that were smoothed, pictures that are frames of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dreamteacher.data.items import IGNORE

SIDE = 16  # of a thumbnail
WINDOW = 512  # pixels of a mask that are looked at, each way
ALIKE = 0.97  # correlation of thumbnails, from which on two pictures are alike


def thin_between(mask: np.ndarray) -> np.ndarray:
    """int64 (256): of each value, the pixels of a mask (H, W) that lie in no square of 3 x 3 of it, with a lower and a higher value near.

    Where a mask was resized with smoothing, the values between two classes are such lines, and each counts as another class.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    part = mask[:WINDOW, :WINDOW]
    if np.count_nonzero(np.bincount(part.ravel())) < 3:
        return np.zeros(256, np.int64)
    known = np.where(part == IGNORE, 0, part)  # which is no higher class
    thin = minimum_filter(part, 3) != maximum_filter(part, 3)
    thin = ~(maximum_filter((~thin).astype(np.uint8), 3) > 0)
    between = (minimum_filter(part, 5) < part) & (maximum_filter(known, 5) > part)
    return np.bincount(part[thin & between], minlength=256)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """float32 (SIDE^2) of a picture uint8 (H, W, 3): its brightness on a coarse grid, with a mean of 0 and a length of 1, or 0."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX).convert("L")
    values = np.asarray(small, np.float32).ravel()
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > SIDE else values * 0  # a picture that is all one brightness is like none


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures look the same from afar, by their thumbnails."""
    return float(one @ other) > ALIKE
