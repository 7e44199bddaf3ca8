"""Whitening by measured statistics: against numpy, after a round trip through the file, and with dead channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamteacher.distillation.whitening import (
    Statistics,
    fit_whitening,
    layernorm,
    load_whitening,
    measure_statistics,
    save_statistics,
    standardize,
)
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


def measured(kind: str, seed: int = 3) -> Statistics:
    return measure_statistics(kind, Echo(), pictures(), seed)  # type: ignore[arg-type]


def whitened_by(kind: str, folder: Path) -> list[torch.Tensor]:
    """Of each tap the whitened maps of all pictures, by statistics that went through their file."""
    save_statistics(measured(kind), folder)
    whiten = load_whitening(kind, folder, TAPS)
    lessons = [Echo().teach(images, StepRandom(3, i, 0, 1)) for i, images in enumerate(pictures())]
    return [torch.cat(maps) for maps in zip(*(whiten(lesson.features) for lesson in lessons), strict=True)]


def test_statistics_are_those_of_all_pictures_whatever_their_batches() -> None:
    statistics = measured("standardize")
    fine = torch.cat([images[:, :, ::2, ::2] for images in pictures()]) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    assert statistics["up_blocks.1"]["mean"].tolist() == pytest.approx(fine.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert statistics["up_blocks.1"]["std"].tolist() == pytest.approx(fine.std((0, 2, 3), correction=0).tolist(), rel=1e-5)
    assert torch.equal(statistics["up_blocks.0"]["std"], measured("standardize")["up_blocks.0"]["std"])
    assert not torch.equal(statistics["up_blocks.0"]["std"], measured("standardize", seed=4)["up_blocks.0"]["std"])
    assert measured("layernorm") == {}


def test_standardised_maps_have_mean_0_and_spread_1_in_each_channel(tmp_path: Path) -> None:
    for maps in whitened_by("standardize", tmp_path):
        torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(maps.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(maps.std((0, 2, 3), correction=0), torch.ones(maps.shape[1]))


def test_maps_by_phi_s_have_mean_0_and_variance_1_in_each_channel_and_keep_all_distances_up_to_a_scale(tmp_path: Path) -> None:
    fine, coarse = whitened_by("phi-s", tmp_path)
    for maps in (fine, coarse):
        torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(maps.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(maps.std((0, 2, 3), correction=0), torch.ones(maps.shape[1]), rtol=1e-4, atol=0)
    raw = torch.cat([images[:, :, ::2, ::2] for images in pictures()]) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    apart, apart_raw = (torch.pdist(m.movedim(1, -1).flatten(0, 2)) for m in (fine, raw))
    torch.testing.assert_close(apart / apart.mean(), apart_raw / apart_raw.mean(), rtol=1e-3, atol=1e-4)


def test_phi_s_is_computed_in_float32_under_autocast(tmp_path: Path) -> None:
    save_statistics(measured("phi-s"), tmp_path)
    whiten, maps = load_whitening("phi-s", tmp_path, TAPS), [torch.rand(1, 3, 4, 4), torch.rand(1, 5, 2, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(whiten(maps), whiten(maps), strict=True))
        rounded = whiten(maps)
    assert all(torch.equal(a, b) for a, b in zip(rounded, whiten(maps), strict=True))


def test_a_channel_that_was_dead_when_measured_does_not_outweigh_the_others() -> None:
    std = torch.ones(40)
    std[3] = 1e-4
    whiten = standardize([Tap("up_blocks.1", 2, 40)], {"up_blocks.1": {"mean": torch.zeros(40), "std": std}})
    (whitened,) = whiten([torch.ones(1, 40, 4, 4)])
    assert whitened[0, 3].unique().tolist() == pytest.approx([100.0])
    assert (whitened[0, 4:] == 1).all()


@pytest.mark.parametrize("kind", ["standardize", "phi-s"])
def test_a_resumed_run_whitens_by_what_was_measured_first(kind: str, tmp_path: Path) -> None:
    maps = Echo().teach(pictures()[0], StepRandom(0, 0, 0, 1)).features
    first, statistics = fit_whitening(kind, Echo(), pictures(), 3, tmp_path)  # type: ignore[arg-type]
    again, same = fit_whitening(kind, Echo(), iter(()), 3, tmp_path)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first(maps), again(maps), strict=True))
    assert statistics.keys() == same.keys() == {tap.name for tap in TAPS}


@pytest.mark.parametrize("kind", ["standardize", "phi-s"])
def test_what_was_distilled_otherwise_is_refused(kind: str, tmp_path: Path) -> None:
    assert load_whitening("layernorm", tmp_path, TAPS) is layernorm
    with pytest.raises(UserError, match=r"holds no feature statistics of these taps.*run `dreamteacher distill-features` again"):
        load_whitening(kind, tmp_path, TAPS)
    one = torch.ones(1, dtype=torch.float64)
    save_statistics(
        {"up_blocks.7": {"mean": one, "std": one} if kind == "standardize" else {"mean": one, "matrix": torch.eye(1)}}, tmp_path
    )
    with pytest.raises(UserError, match="holds no feature statistics of these taps"):
        load_whitening(kind, tmp_path, TAPS)
