"""Standardised targets: statistics against numpy, through their file, and channels that were dead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamteacher.distillation.whitening import layernorm, load_whitening, measure_statistics, save_statistics, standardize
from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Lesson, Tap
from dreamteacher.training.randomness import StepRandom

TAPS = [Tap("up_blocks.1", 2, 3), Tap("up_blocks.0", 4, 5)]


class Echo:
    """A teacher whose features are its pictures, scaled down, and some noise."""

    taps = TAPS

    def teach(self, images: torch.Tensor, random: StepRandom) -> Lesson:
        fine = images[:, :, ::2, ::2] * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        coarse = random.normal((len(images), 5, images.shape[2] // 4, images.shape[3] // 4)) * 7 + 3
        return Lesson(images, [fine, coarse])


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, 3, 16, 16, generator=generator) for count in (4, 2)]


def test_statistics_are_those_of_all_pictures_whatever_their_batches() -> None:
    statistics = measure_statistics(Echo(), pictures(), seed=3)  # type: ignore[arg-type]
    fine = torch.cat([images[:, :, ::2, ::2] for images in pictures()]) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    assert statistics["up_blocks.1"]["mean"] == pytest.approx(fine.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert statistics["up_blocks.1"]["std"] == pytest.approx(fine.std((0, 2, 3), correction=0).tolist(), rel=1e-5)
    assert statistics == measure_statistics(Echo(), pictures(), seed=3)  # type: ignore[arg-type]
    assert statistics["up_blocks.0"] != measure_statistics(Echo(), pictures(), seed=4)["up_blocks.0"]  # type: ignore[arg-type]


def test_whitened_maps_have_mean_0_and_spread_1_in_each_channel(tmp_path: Path) -> None:
    lessons = [Echo().teach(images, StepRandom(3, i, 0, 1)) for i, images in enumerate(pictures())]
    save_statistics(measure_statistics(Echo(), pictures(), seed=3), tmp_path)  # type: ignore[arg-type]
    whiten = load_whitening("standardize", tmp_path, TAPS)
    for maps in zip(*(whiten(lesson.features) for lesson in lessons), strict=True):
        whitened = torch.cat(maps)
        torch.testing.assert_close(whitened.mean((0, 2, 3)), torch.zeros(whitened.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(whitened.std((0, 2, 3), correction=0), torch.ones(whitened.shape[1]))


def test_a_channel_that_was_dead_when_measured_does_not_outweigh_the_others() -> None:
    std = torch.ones(40)
    std[3] = 1e-4
    whiten = standardize([Tap("up_blocks.1", 2, 40)], {"up_blocks.1": {"mean": [0.0] * 40, "std": std.tolist()}})
    (whitened,) = whiten([torch.ones(1, 40, 4, 4)])
    assert whitened[0, 3].unique().tolist() == pytest.approx([100.0])
    assert (whitened[0, 4:] == 1).all()


def test_what_was_distilled_otherwise_is_refused(tmp_path: Path) -> None:
    assert load_whitening("layernorm", tmp_path, TAPS) is layernorm
    with pytest.raises(UserError, match=r"holds no feature statistics of these taps.*run `dreamteacher distill-features` again"):
        load_whitening("standardize", tmp_path, TAPS)
    save_statistics({"up_blocks.7": {"mean": [0.0], "std": [1.0]}}, tmp_path)
    with pytest.raises(UserError, match="holds no feature statistics of these taps"):
        load_whitening("standardize", tmp_path, TAPS)
