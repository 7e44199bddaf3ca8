"""Metrics on whole pictures, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_sets import write_masks_set
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.tasks.scoring import score

CPU = torch.device("cpu")


class ReadsColours(nn.Module):
    """A task model whose logits are the picture's own red, green and blue."""

    task, classes, size, mean, std = "segmentation", ["red", "green", "blue"], 32, [0.0] * 3, [1.0] * 3

    def get_task(self) -> Task:
        return get_task(self.task)

    def forward(self, normalized: Tensor) -> Tensor:
        return normalized


def intersection_over_union(truth: np.ndarray, predicted: np.ndarray, cls: int) -> float:
    return ((truth == cls) & (predicted == cls)).sum() / ((truth == cls) | (predicted == cls)).sum()


def test_masks_larger_than_their_pictures_are_compared_at_their_own_size(tmp_path: Path) -> None:
    """Of masks that are four times as large as the pictures, as ingest stores them when it reduces a validation picture."""
    random, val = np.random.default_rng(0), []
    for height, width in ((40, 48), (33, 50), (32, 32)):
        mask = random.integers(0, 3, (4 * height, 4 * width), np.uint8)
        mask[:3] = 255
        val.append((random.integers(0, 256, (height, width, 3), np.uint8), mask))
    images = ImageSet(write_masks_set(tmp_path / "data", ReadsColours.classes, val), "val")
    figures, kept = score(ReadsColours(), images, 2, CPU, keep=[0])
    truths, predictions = [], []
    for picture, mask in val:
        logits = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        answer = F.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        truths.append(mask[mask != 255])
        predictions.append(answer[mask != 255])
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    for cls, name in enumerate(ReadsColours.classes):
        assert figures[f"iou_{name}"] == pytest.approx(intersection_over_union(truth, predicted, cls))
    assert figures["accuracy"] == pytest.approx((truth == predicted).mean())
    assert np.array_equal(kept[0], val[0][0].argmax(2))  # drawn on the picture


def test_an_object_that_the_reduced_picture_has_no_pixel_for_counts_as_missed(tmp_path: Path) -> None:
    """Scaled down by the nearest pixel, a line of one pixel vanishes from the mask, and the figure was perfect."""
    picture, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((128, 128), np.uint8)
    picture[..., 0], mask[4] = 255, 1
    images = ImageSet(write_masks_set(tmp_path / "data", ReadsColours.classes, [(picture, mask)]), "val")
    assert (images.label(0) == 0).all()
    figures, _ = score(ReadsColours(), images, 1, CPU)
    assert figures["iou_green"] == 0
    assert figures["miou"] == pytest.approx((127 / 128) / 2)


def test_masks_without_a_known_pixel_are_no_figure(tmp_path: Path) -> None:
    picture, mask = np.zeros((32, 32, 3), np.uint8), np.full((64, 64), IGNORE, np.uint8)
    images = ImageSet(write_masks_set(tmp_path / "data", ReadsColours.classes, [(picture, mask)]), "val")
    with pytest.raises(UserError, match="no label of a validation picture has a class, so nothing can be measured; label some"):
        score(ReadsColours(), images, 1, CPU)


def test_classes_that_changed_after_training_are_refused(tmp_path: Path) -> None:
    val = [(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8))]
    for classes in (["blue", "green", "red"], ["red", "green"]):
        images = ImageSet(write_masks_set(tmp_path / f"{len(classes)}", classes, val), "val")
        with pytest.raises(
            UserError, match=r"the model predicts segmentation of 3 classes \(red, green, blue\), and the data has segmentation"
        ):
            score(ReadsColours(), images, 2, CPU)
