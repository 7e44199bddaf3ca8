"""What a diffusion network may see beside the noisy picture: its own earlier estimate of the picture, and the picture's class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WITHOUT_CLASS = 10  # one in so many pictures is shown without its class (Ho & Salimans 2022), so that features can be taken without any


def is_self_conditioned(unet: UNet2DModel) -> bool:
    """Whether the U-Net takes an estimate of the picture beside the noisy one (Chen et al. 2022, arXiv 2208.04202)."""
    return bool(unet.config.in_channels == 6)


def beside(noisy: Tensor, estimate: Tensor | None) -> Tensor:
    """Inputs `(B, 6, H, W)` of a self-conditioned U-Net: `(B, 3, H, W)` each, an estimate of None is nothing, zeros."""
    return torch.cat([noisy, torch.zeros_like(noisy) if estimate is None else estimate], 1)


@torch.no_grad()
def half_of_the_time(predict: Callable[[], Tensor], count: int, random: StepRandom) -> Tensor:
    """What `predict` returns of `count` pictures without an estimate, of half of them; of the others zeros."""
    kept = random.normal((count,)) > 0
    return predict() * kept[:, None, None, None]


def some_without(classes: Tensor, none: int, random: StepRandom) -> Tensor:
    """Class ids `(B,)`, of one in WITHOUT_CLASS pictures the id `none`, which stands for no class."""
    return torch.where(random.integers(0, WITHOUT_CLASS, len(classes)) == 0, none, classes)


def no_class(count: int, classes: int, device: Any) -> Tensor:
    """`(count,)` of the id that stands for no class, the one behind the ids of `classes`."""
    return torch.full((count,), classes, device=device)


def each_in_turn(count: int, classes: int, device: Any) -> Tensor:
    """`(count,)` class ids 0, 1, ... of pictures that are sampled."""
    return torch.arange(count, device=device) % classes
