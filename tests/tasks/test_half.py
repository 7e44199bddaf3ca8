"""Predictions that change in float16, on models with known results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_sets import write_masks_set
from dreamteacher.data.dataset import ImageSet
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.tasks.half import half_agreement


class Weighs(nn.Module):
    """Logits of each pixel: its red, times a number a class."""

    task, mean, std = "segmentation", [0.0] * 3, [1.0] * 3

    def __init__(self, *weights: float):
        super().__init__()
        self.layer = nn.Conv2d(3, len(weights), 1, bias=False)
        self.layer.weight.data.zero_()
        self.layer.weight.data[:, 0, 0, 0] = torch.tensor(weights)

    def get_task(self) -> Task:
        return get_task(self.task)

    def forward(self, normalized: Tensor) -> Tensor:
        return self.layer(normalized)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Half of the pixels of three pictures are black, of every other one all."""
    folder: Path = tmp_path_factory.mktemp("half")
    grey = np.full((32, 64, 3), 200, np.uint8)
    grey[:16] = 0
    labelled = (grey, np.zeros((32, 64), np.uint8))
    return ImageSet(write_masks_set(folder / "data", ["a", "b"], [labelled, (np.zeros_like(grey), labelled[1])] * 3), "val")


def test_classes_apart_stay_apart(images: ImageSet) -> None:
    assert half_agreement(Weighs(1.0, 1.5), images, None, 6) == 1.0


def test_classes_that_round_to_one_number_change_where_they_decided(images: ImageSet) -> None:
    """1 + 2**-12 is 1 in float16, so that the first of the equal classes wins; in black pixels it wins anyway."""
    assert half_agreement(Weighs(1.0, 1.0 + 2**-12), images, None, 6) == 0.75
    assert half_agreement(Weighs(1.0, 1.0 + 2**-12), images, None, 3) == 0.5  # every second picture


def test_what_overflows_is_no_decision(images: ImageSet) -> None:
    assert half_agreement(Weighs(6e4, 9e4), images, None, 6) == 0.0  # a weight is infinite, and so times black not a number
    assert half_agreement(nn_pair(6e4), images, None, 6) == 0.75  # only what is bright is beyond 65504


def nn_pair(weight: float) -> Weighs:
    """The same with a layer that doubles behind it."""
    model = Weighs(weight, weight / 2)
    double = nn.Conv2d(2, 2, 1, bias=False)
    double.weight.data[:, :, 0, 0] = 2 * torch.eye(2)
    model.layer = nn.Sequential(model.layer, double)  # type: ignore[assignment]
    return model


def test_the_model_stays_as_it_is(images: ImageSet) -> None:
    model = Weighs(1.0, 1.0 + 2**-12)
    half_agreement(model, images, None, 6)
    assert float(model.layer.weight.detach()[1, 0, 0, 0]) == 1.0 + 2**-12
    assert not model.layer._forward_hooks
