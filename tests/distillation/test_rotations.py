"""Rotations that equalise the variance of channels, by both constructions."""

from __future__ import annotations

import pytest
import torch

from dreamteacher.distillation.rotations import equalizing_rotation, hadamard


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 48, 64, 96, 192, 320, 768, 1152, 1280])
def test_hadamard_matrices_hold_ones_in_orthogonal_rows(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert matrix.abs().unique().tolist() == [1]
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 12, 16, 48, 96, 130])
@pytest.mark.parametrize("rank", [1, 4, 500])
def test_after_the_rotation_all_channels_have_the_mean_variance(channels: int, rank: int) -> None:
    """Also for channels with 190 times the amplitude of others, and for low-rank features."""
    generator = torch.Generator().manual_seed(channels)
    loudness = torch.logspace(0, 2.28, channels, dtype=torch.float64)[torch.randperm(channels, generator=generator)]
    factor = torch.randn(channels, rank, generator=generator, dtype=torch.float64) * loudness[:, None]
    covariance = factor @ factor.T / rank
    rotation = equalizing_rotation(covariance)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(channels, dtype=torch.float64), rtol=0, atol=1e-10)
    variances = (rotation @ covariance @ rotation.T).diagonal()
    torch.testing.assert_close(variances, covariance.trace().div(channels).expand(channels), rtol=1e-8, atol=0)


def test_the_rotation_is_finite_for_channels_that_never_vary() -> None:
    for channels in (3, 16):
        rotation = equalizing_rotation(torch.zeros(channels, channels))
        assert rotation.isfinite().all()
