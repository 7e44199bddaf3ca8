"""Figures on whole pictures, against counts by numpy."""

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
from dreamteacher.tasks import scoring
from dreamteacher.tasks.scoring import Score, resized_argmax, score

CPU = torch.device("cpu")


class ReadsColours(nn.Module):
    """A task model whose logits are the picture's own red, green and blue."""

    task, classes, size, mean, std = "segmentation", ["red", "green", "blue"], 32, [0.0] * 3, [1.0] * 3

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
    with pytest.raises(UserError, match="no pixel of the validation masks has a class, so nothing can be measured; label some"):
        score(ReadsColours(), images, 1, CPU)


def test_classes_are_found_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[3] = logits[1]  # of equal logits the first counts
    expected = F.interpolate(logits[None], size=(20, 25), mode="bilinear", align_corners=False)[0].argmax(0)
    for values in (1, 1100, 1 << 20):
        monkeypatch.setattr(scoring, "RESIZED", values)
        assert torch.equal(resized_argmax(logits, (20, 25)), expected)
    assert torch.equal(resized_argmax(logits, (5, 6)), logits.argmax(0))


def test_classes_that_do_not_occur_do_not_lower_the_mean() -> None:
    truth = torch.tensor([[0, 0, 1, IGNORE]])
    total = Score("segmentation", ["a", "b", "never"])
    total.update(torch.tensor([[0, 1, 1, 2]]), truth)
    assert total.compute() == pytest.approx({"miou": 0.5, "accuracy": 2 / 3, "iou_a": 0.5, "iou_b": 0.5})


def test_class_255_of_many_counts_like_any_other() -> None:
    """255 means unknown in masks alone."""
    classes = [f"c{i}" for i in range(300)]
    total = Score("classification", classes)
    total.update(torch.tensor([255, 255, 7, 299]), torch.tensor([255, 255, 255, 299]))
    figures = total.compute()
    assert figures["top1"] == pytest.approx(3 / 4)
    assert {name: value for name, value in figures.items() if name != "top1"} == pytest.approx(
        {"accuracy_c255": 2 / 3, "accuracy_c299": 1.0}
    )
