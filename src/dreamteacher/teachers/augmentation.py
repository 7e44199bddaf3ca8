"""Non-leaking augmentation: the generator is conditioned on it (Karras et al. 2022, App F.2, their Tab 6).

A generator memorises few pictures; augmentation gives it more. Since the network gets the augmentation's parameters as input, with zeros
for none, it still models the original pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.training.randomness import StepRandom

PARAMETERS = 9  # flips left to right and upside down, ln scale, cos - 1 and sin of the angle, ln stretch along 2 directions, 2 shifts
SHARE = 0.12  # probability of each change
SCALE, SHIFT = 0.2 * math.log(2), 0.125  # standard deviations: of ln scale and ln stretch, and of the shift as a share of the side


def draw_parameters(count: int, random: StepRandom, share: Tensor | float | None = None) -> Tensor:
    """Random parameters of `count` augmentations, `(count, 9)`; 0 for no change. `share`: probability of each change; default SHARE."""
    share = SHARE if share is None else share

    def uniform() -> Tensor:
        return random.integers(0, 1 << 24, count) / (1 << 24)

    def sometimes(values: Tensor) -> Tensor:
        return torch.where((uniform() < share)[:, None], values, torch.zeros_like(values))

    flips = torch.stack([uniform() < 0.5, uniform() < 0.5], 1).float()
    angle, direction, amount = uniform() * 2 * math.pi, uniform() * 2 * math.pi, random.normal((count,)) * SCALE
    changes = [
        sometimes(flips[:, :1]),
        sometimes(flips[:, 1:]),
        sometimes(random.normal((count, 1)) * SCALE),
        sometimes(torch.stack([angle.cos() - 1, angle.sin()], 1)),
        sometimes(torch.stack([amount * direction.cos(), amount * direction.sin()], 1)),
        sometimes(random.normal((count, 2)) * SHIFT),
    ]
    return torch.cat(changes, 1)


def transform(images: Tensor, parameters: Tensor) -> Tensor:
    """Augment square pictures `(B, C, S, S)` by `parameters` `(B, 9)`, with reflection at the border.

    Order: flip, scale, rotation (counterclockwise), stretch (doubling along a direction halves across it), shift.
    """
    p = parameters.float()
    left, up, scale, cosine, sine, along, across, right, down = p.unbind(1)
    cosine = cosine + 1
    # The source position of each target position: the inverse changes, last one first.
    amount = torch.hypot(along, across)
    direction = torch.atan2(across, along)
    inverse = _rotation(direction.cos(), direction.sin()) @ _diagonal((-amount).exp(), amount.exp())
    inverse = inverse @ _rotation(direction.cos(), -direction.sin())
    inverse = _rotation(cosine, sine) @ inverse
    inverse = _diagonal((-scale).exp() * (1 - 2 * left), (-scale).exp() * (1 - 2 * up)) @ inverse
    shift = inverse @ torch.stack([right, down], 1)[:, :, None] * -2  # the side is 2 in the coordinates of affine_grid
    grid = F.affine_grid(torch.cat([inverse, shift], 2).to(images), list(images.shape), align_corners=False)
    changed = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # All are resampled, because selecting the changed ones would synchronise with the host. The others stay bit-identical.
    return torch.where(parameters.ne(0).any(1)[:, None, None, None], changed, images)


def _rotation(cosine: Tensor, sine: Tensor) -> Tensor:
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([first, second], 1))
