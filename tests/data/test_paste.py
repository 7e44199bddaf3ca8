"""Boxes with small masks become an instance map."""

from __future__ import annotations

import numpy as np

from dreamteacher.data.instances import paste

SIZE = (20, 30)


def found(*boxes: tuple[float, float, float, float], scores: list[float], masks: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Of one class, in pixels of a picture of 20 x 30 that is padded to 32 x 32."""
    corners = np.array(boxes, np.float32).T / 32
    masks = np.ones((len(boxes), 28, 28), np.float32) if masks is None else masks
    return np.array([scores], np.float32), corners, masks


def test_a_mask_fills_the_pixels_whose_middles_are_in_its_box() -> None:
    numbers, classes, scores = paste(found((2, 3, 6, 8), (10.4, 10.6, 15.6, 12.4), scores=[0.6, 0.9]), (32, 32), SIZE, SIZE)
    assert (classes.tolist(), scores.tolist()) == ([0, 0], [np.float32(0.9), np.float32(0.6)])
    assert np.argwhere(numbers == 2).min(0).tolist() == [3, 2]
    assert np.argwhere(numbers == 2).max(0).tolist() == [7, 5]
    assert np.argwhere(numbers == 1).tolist() == [[11, column] for column in range(10, 16)]


def test_it_is_spread_over_its_box_at_the_size_that_is_wanted() -> None:
    half = np.zeros((1, 28, 28), np.float32)
    half[:, :, :14] = 1  # the left one
    given = found((4, 4, 12, 12), scores=[0.7], masks=half)
    for scale in (1, 3):
        numbers, _, _ = paste(given, (32, 32), SIZE, (SIZE[0] * scale, SIZE[1] * scale))
        expected = np.zeros((SIZE[0] * scale, SIZE[1] * scale), bool)
        expected[4 * scale : 12 * scale, 4 * scale : 8 * scale] = True
        assert np.array_equal(numbers == 1, expected)


def test_of_objects_that_overlap_the_likeliest_lies_above() -> None:
    numbers, _, scores = paste(found((2, 2, 10, 10), (6, 2, 16, 10), (3, 3, 9, 9), scores=[0.8, 0.5, 0.4]), (32, 32), SIZE, SIZE)
    assert len(scores) == 2  # the third is hidden
    assert [(numbers == number).sum() for number in (1, 2)] == [64, 48]


def test_padding_shows_no_objects_and_no_box_is_none() -> None:
    numbers, classes, scores = paste(found((2, 22, 10, 30), (25, 15, 32, 32), (0, 0, 0, 0), scores=[0.9, 0.8, 0]), (32, 32), SIZE, SIZE)
    assert (len(classes), len(scores)) == (1, 1)
    assert (numbers[15:, 25:] == 1).all()
    assert (numbers > 0).sum() == 5 * 5
    nothing, _, scores = paste(found((0, 0, 0, 0), scores=[0]), (32, 32), SIZE, SIZE)
    assert not nothing.any()
    assert not len(scores)
