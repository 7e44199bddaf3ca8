"""COCO's run lengths."""

import numpy as np
import pytest
from pycocotools import mask as coco

from dreamteacher.data.run_lengths import bounds_of_runs, decode_runs


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    draw = np.random.default_rng(seed)
    mask = np.zeros((int(draw.integers(1, 30)), int(draw.integers(1, 30))), np.uint8)
    for _ in range(int(draw.integers(0, 4))):
        top, left = (int(draw.integers(side)) for side in mask.shape)
        mask[top : top + 5, left : left + 7] = 1
    encoded = coco.encode(np.asfortranarray(mask))
    outline = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert np.array_equal(decode_runs(outline, *mask.shape), mask)
    assert bounds_of_runs(outline) == coco.toBbox(encoded).tolist()
