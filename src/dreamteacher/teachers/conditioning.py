"""Additional inputs of a diffusion network: its own earlier estimate of the picture (self-conditioning), and the picture's class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WITHOUT_CLASS = 10  # one in this many pictures gets the null class (Ho & Salimans 2022), so that features can be taken without a class


def is_self_conditioned(unet: UNet2DModel) -> bool:
    """Whether the U-Net is self-conditioned: takes an estimate of the picture as well (Chen et al. 2022, arXiv 2208.04202)."""
    return bool(unet.config.in_channels == 6)


def beside(noisy: Tensor, estimate: Tensor | None) -> Tensor:
    """Inputs `(B, 6, H, W)` of a self-conditioned U-Net: `(B, 3, H, W)` each; an estimate of None is zeros."""
    return torch.cat([noisy, torch.zeros_like(noisy) if estimate is None else estimate], 1)


@torch.no_grad()
def half_of_the_time(predict: Callable[[], Tensor], count: int, random: StepRandom) -> Tensor:
    """Estimates for training: `predict` without an estimate for half of `count` pictures, zeros for the others."""
    kept = random.normal((count,)) > 0
    return predict() * kept[:, None, None, None]


def some_without(classes: Tensor, none: int, random: StepRandom) -> Tensor:
    """Class dropout: class ids `(B,)`, with one in WITHOUT_CLASS replaced by the null class `none`."""
    return torch.where(random.integers(0, WITHOUT_CLASS, len(classes)) == 0, none, classes)


def no_class(count: int, classes: int, device: Any) -> Tensor:
    """`(count,)` null class ids: the id after those of `classes`."""
    return torch.full((count,), classes, device=device)


def each_in_turn(count: int, classes: int, device: Any) -> Tensor:
    """`(count,)` class ids 0, 1, ... in turn, for sampling."""
    return torch.arange(count, device=device) % classes
