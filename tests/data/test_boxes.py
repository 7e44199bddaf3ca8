"""Boxes stay on their objects under all transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamteacher.data.boxes import Boxes, select_detections
from dreamteacher.data.dataset import Sample, collate
from dreamteacher.data.masks import exif_transpose
from dreamteacher.data.transforms import AUGMENTATIONS, GREY, full_image, object_crop, pretrain_crop

BRIGHT = 250


def boxes_of(*corners: list[float], classes: list[int] | None = None) -> Boxes:
    n = len(corners)
    return Boxes(np.array(corners, np.float32).reshape(-1, 4), np.array(classes or [0] * n, np.int64), np.zeros(n, bool))


def sample(height: int, width: int, x1: int, y1: int, x2: int, y2: int) -> Sample:
    """A dark picture with one bright object, and its box."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[y1:y2, x1:x2] = BRIGHT
    return Sample(image, boxes_of([x1, y1, x2, y2]), "a")


def seen(bright: np.ndarray) -> list[int]:
    """The bounding box of the true pixels."""
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pictures_do(orientation: int) -> None:
    image = sample(20, 30, 4, 5, 14, 9).image
    turned = boxes_of([4, 5, 14, 9]).exif_transposed(orientation, 30, 20)
    assert turned.corners.tolist() == [seen(exif_transpose(image[..., 0], orientation) == BRIGHT)]


@pytest.mark.parametrize("augment", ["natural", "overhead", "no-flip", "none"])
@pytest.mark.parametrize("size", [(64, 80), (20, 24)])
def test_boxes_of_crops_are_around_what_the_crops_show(augment: str, size: tuple[int, int]) -> None:
    transform, whole_ones = object_crop(32, AUGMENTATIONS[augment]), 0  # type: ignore[index]
    for seed in range(60):
        torch.manual_seed(seed)
        item = transform(sample(*size, 8, 6, 18, 16))
        assert item["image"].shape == (3, 32, 32)
        for x1, y1, x2, y2, cls, ignored in item["label"].tolist():
            around = seen((item["image"][0] > 0.7 * item["image"][0].max()).numpy())
            assert np.allclose([x1, y1, x2, y2], around, atol=1.0)
            assert cls == 0
            whole_ones += not ignored
    assert whole_ones > 2


def test_the_outside_of_a_small_picture_shows_no_mirrored_objects() -> None:
    torch.manual_seed(0)
    item = object_crop(64, AUGMENTATIONS["none"])(sample(20, 24, 8, 6, 18, 16))
    assert int((item["image"][0] > 0.9).sum()) == 100
    assert int(((item["image"][0] * 255).round() == GREY).sum()) == 64 * 64 - 20 * 24
    assert len(item["label"]) == 1


def test_a_box_that_is_mostly_outside_is_ignored_and_one_wholly_outside_is_gone() -> None:
    cropped = boxes_of([0, 0, 10, 10], [7, 0, 17, 10], [2, 0, 12, 10], [20, 20, 30, 30]).cropped(0, 5, 20, 10)
    assert cropped.corners.tolist() == [[0, 0, 5, 10], [2, 0, 10, 10], [0, 0, 7, 10]]
    assert cropped.ignored.tolist() == [False, False, False]
    assert boxes_of([0, 0, 10, 10]).cropped(0, 8, 20, 10).ignored.tolist() == [True]


def test_pretraining_crops_keep_boxes_too() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        item = pretrain_crop(32)(sample(40, 50, 8, 6, 18, 16))
        for row in item["label"].tolist():
            assert row[:4] == seen((item["image"][0] > 0.9).numpy())


def test_whole_pictures_are_scaled_with_their_boxes() -> None:
    item = full_image(size=32)(sample(64, 80, 8, 6, 18, 16))
    assert item["image"].shape == (3, 32, 64)
    assert item["label"][0, :4].tolist() == [4, 3, 9, 8]


def test_pictures_with_more_and_fewer_boxes_are_one_batch() -> None:
    items = [{"image": torch.zeros(3, 8, 8), "label": torch.ones(n, 6)} for n in (0, 2, 1)]
    labels = collate(items)["label"]
    assert labels.shape == (3, 2, 6)
    assert (labels[:, :, 4] == -1).tolist() == [[True, True], [False, False], [False, True]]


def test_boxes_are_stored_as_torchvision_names_them() -> None:
    there = Boxes(np.float32([[1.5, 2, 3, 4.25]]), np.array([3]), np.array([True]))
    assert there.to_json() == b'{"boxes": [[1.5, 2.0, 3.0, 4.25]], "labels": [3], "iscrowd": [1]}'
    assert Boxes.from_json(there.to_json()).rows().tolist() == there.rows().tolist()
    assert Boxes.from_json(boxes_of().to_json()).rows().shape == (0, 6)


def test_of_overlapping_detections_of_a_class_the_best_stays() -> None:
    corners = np.float32([[0, 0, 0.5, 0.5], [0.02, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.9, 0.9, 0.95, 0.95]]).T
    scores = np.float32([[0.9, 0.8, 0.01, 0.6], [0.0, 0.7, 0.3, 0.0]])
    found = select_detections(scores, corners, padded=(64, 64), own=(48, 56), size=(96, 112))
    expected = [[0, 0, 64, 64, 0, 0.9], [2.56, 0, 64, 64, 1, 0.7], [64, 64, 112, 96, 1, 0.3]]  # the last lies in the padding
    assert np.allclose(found, expected, atol=1e-4)


def test_no_detection_is_an_empty_table_and_there_are_at_most_a_hundred() -> None:
    assert select_detections(np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32), (32, 32), (32, 32), (32, 32)).shape == (0, 6)
    places = np.arange(400) / 400
    corners = np.float32([places, np.zeros(400), places + 1 / 400, np.ones(400)])
    scores = np.linspace(0.1, 1, 400, dtype=np.float32)[None]
    found = select_detections(scores, corners, (64, 800), (64, 800), (64, 800))
    assert found.shape == (100, 6)
    assert (np.diff(found[:, 5]) <= 0).all()
    assert found[0, 0] == pytest.approx(798)
