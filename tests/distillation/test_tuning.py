"""Quality of a teacher's features: shares of constructed features, and a probe that must be cross-validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.distillation.tuning import measure_shares, probe
from dreamteacher.tasks.base import get_task
from dreamteacher.teachers.base import Lesson, Tap
from dreamteacher.training.randomness import StepRandom


class Made:
    """A teacher with one tap whose features are `make(pictures, random)`."""

    def __init__(self, make: Callable[[Tensor, StepRandom], Tensor], channels: int = 1):
        self.make, self.taps = make, [Tap("made", 4, channels)]

    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        return Lesson(images, [self.make(images, random)])


def pictures(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.rand(count * 2, 3, 32, 32, generator=generator).split(2))


def colour(images: Tensor, random: StepRandom) -> Tensor:
    return F.avg_pool2d(images, 4)[:, :1] * 100 - 7


def texture(images: Tensor, random: StepRandom) -> Tensor:
    """The spread within a cell, which its mean colour does not explain."""
    return (F.avg_pool2d(images.square(), 4) - F.avg_pool2d(images, 4).square())[:, :1]


def noise(images: Tensor, random: StepRandom) -> Tensor:
    return random.normal((len(images), 1, 8, 8))


def unit(make: Callable[[Tensor, StepRandom], Tensor]) -> Callable[[Tensor, StepRandom], Tensor]:
    def scaled(images: Tensor, random: StepRandom) -> Tensor:
        known = torch.cat([make(batch, random) for batch in pictures()])
        return (make(images, random) - known.mean()) / known.std()

    return scaled


@pytest.mark.parametrize(
    ("make", "signal", "pixels"),
    [
        (colour, 1, 1),
        (texture, 1, 0),
        (noise, 0, 0),
        (lambda images, random: unit(colour)(images, random) + noise(images, random), 0.5, 0.5),
        (lambda images, random: unit(texture)(images, random) + noise(images, random), 0.5, 0),
        (lambda images, random: unit(texture)(images, random) + unit(colour)(images, random), 1, 0.5),
        # Each channel counts alike, however loud; one that never varies does not count.
        (lambda i, r: torch.cat([1e3 * texture(i, r), unit(colour)(i, r), noise(i, r), 0 * noise(i, r)], 1), 2 / 3, 1 / 3),
    ],
)
def test_shares_of_constructed_features_are_recovered(make: Any, signal: float, pixels: float) -> None:
    channels = make(pictures()[0], StepRandom(0, 0, 0, 1)).shape[1]
    (shares,) = measure_shares(Made(make, channels), pictures(), noises=2, seed=1)  # type: ignore[arg-type]
    assert shares.signal == pytest.approx(signal, abs=0.05)
    assert shares.pixels == pytest.approx(pixels, abs=0.07)
    assert shares.teachable == shares.signal - shares.pixels


def test_shares_do_not_depend_on_how_many_passes_tell_the_noise() -> None:
    made = Made(lambda images, random: unit(texture)(images, random) + noise(images, random))
    few, many = (measure_shares(made, pictures(), noises, seed=1)[0].signal for noises in (2, 8))  # type: ignore[arg-type]
    assert few == pytest.approx(many, abs=0.05)


class Crops:
    """Labelled pictures: the left half is of class 1, brighter or not."""

    def __init__(self, dense: bool):
        self.dense = dense

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.5
        mask = torch.zeros(32, 32, dtype=torch.uint8)
        if self.dense or index % 2:
            image[:, :, :16] += 0.5
            mask[:, :16] = 1
        mask[:2] = 255
        return {"image": image, "label": mask if self.dense else torch.tensor(index % 2)}


@pytest.mark.parametrize("dense", [True, False])
def test_a_probe_is_scored_on_pictures_that_it_was_not_fitted_on(dense: bool) -> None:
    task = get_task("segmentation" if dense else "classification")

    def read(make: Any, channels: int) -> float:
        (figure,) = probe(Made(make, channels), task, Crops(dense), ["a", "b"], crops=2, seed=0, device=torch.device("cpu"))  # type: ignore[arg-type]
        return figure

    assert read(colour, 1) > 0.95
    many = 200 if not dense else 30  # enough noise to memorise the pictures of the fit
    assert read(lambda images, random: random.normal((len(images), many, 8, 8)), many) < 0.75
    assert read(colour, 1) == read(colour, 1)
