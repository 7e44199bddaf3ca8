"""Signs of problems in a data set: masks resized with interpolation, pictures that are frames of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dreamteacher.data.items import IGNORE

SIDE = 16  # of a thumbnail
WINDOW = 512  # pixels per side of a mask that are checked
MIN_CORRELATION = 0.97  # of thumbnails, from which two pictures look alike


def thin_between(mask: np.ndarray) -> np.ndarray:
    """int64 (256): for each value, the pixels of a mask (H, W) in thin lines between a lower and a higher value.

    A mask that was resized with interpolation has such lines between classes. Thin: in no 3 x 3 square of that value.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    part = mask[:WINDOW, :WINDOW]
    if np.count_nonzero(np.bincount(part.ravel())) < 3:
        return np.zeros(256, np.int64)
    known = np.where(part == IGNORE, 0, part)  # IGNORE is not a higher class
    thin = minimum_filter(part, 3) != maximum_filter(part, 3)
    thin = ~(maximum_filter((~thin).astype(np.uint8), 3) > 0)
    between = (minimum_filter(part, 5) < part) & (maximum_filter(known, 5) > part)
    return np.bincount(part[thin & between], minlength=256)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """float32 (SIDE^2): brightness of a picture, uint8 (H, W, 3), on a coarse grid, zero mean, unit norm; 0 if uniform."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX).convert("L")
    values = np.asarray(small, np.float32).ravel()
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > SIDE else values * 0  # a uniform picture is similar to none


def looks_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures look alike, by their thumbnails."""
    return float(one @ other) > MIN_CORRELATION
