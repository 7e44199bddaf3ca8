"""Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with limited data").

With few pictures a discriminator memorises them. So it only sees augmented pictures, real and generated, each change with probability p.
As p is below 1, augmentations do not leak into generated pictures (Sec 2.2). p rises while the discriminator recognises real pictures too
well, and falls otherwise (Sec 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamteacher.teachers.augmentation import draw_parameters, transform
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.transfer import constant

LARGEST = 0.8  # maximum of p; above, augmentations leak into generated pictures (Fig 4)
PICTURES = 500_000  # real pictures in which p can go from 0 to 1
EVERY = 4  # steps between changes of p


def augment(images: Tensor, p: Tensor, random: StepRandom) -> Tensor:
    """Augment pictures `(B, 3, S, S)` in [-1, 1]: flip, rotation, scale, stretch, shift and colour, each with probability `p`."""
    return recolour(transform(images, draw_parameters(len(images), random, p)), p, random)


def recolour(images: Tensor, p: Tensor, random: StepRandom) -> Tensor:
    """Random brightness, contrast, negative of the luminance, hue and saturation (App B)."""
    count = len(images)

    def uniform() -> Tensor:
        return random.integers(0, 1 << 24, count).to(images.device) / (1 << 24)

    def sometimes(values: Tensor, neutral: float) -> Tensor:
        return torch.where(uniform() < p, values, torch.full_like(values, neutral))

    brightness = sometimes(random.normal((count,)) * 0.2, 0.0)
    contrast = sometimes((random.normal((count,)) * 0.5 * math.log(2)).exp(), 1.0)
    negative = sometimes(1 - 2 * (uniform() < 0.5).float(), 1.0)
    angle = sometimes((uniform() * 2 - 1) * math.pi, 0.0)
    saturation = sometimes((random.normal((count,)) * math.log(2)).exp(), 1.0)

    grey = torch.full((3, 3), 1 / 3, device=images.device)  # projection to the luminance axis
    a = 1 / math.sqrt(3)
    cross = constant([[0, -a, a], [a, 0, -a], [-a, a, 0]], images.device)
    rest = torch.eye(3, device=images.device) - grey
    angle, saturation, negative = (values[:, None, None] for values in (angle, saturation, negative))
    # Along the axis: its sign. Across it: rotation by the hue angle, and saturation.
    matrix = contrast[:, None, None] * (negative * grey + saturation * (angle.cos() * rest + angle.sin() * cross))
    shift = (contrast * brightness)[:, None, None, None]
    return torch.einsum("bij,bjhw->bihw", matrix, images.float()) + shift


class Adaptation(nn.Module):
    """p and the statistic that it follows, the sign of the discriminator on real pictures. Buffers, so that checkpoints contain them."""

    def __init__(self, target: float | None):
        """`target`: mean sign of the discriminator on real pictures at which p stays; None: p stays 0."""
        super().__init__()
        self.target = target
        self.p: Tensor
        self.signs: Tensor
        self.seen: Tensor
        for name in ("p", "signs", "seen"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, logits: Tensor, random: StepRandom) -> None:
        """Add the logits `(B,)` of a part of a batch of real pictures; p is updated at the first part of every EVERY-th step."""
        if self.target is None:
            return
        if random.part == 0 and random.step % EVERY == 0:
            change = torch.sign(self.signs / self.seen.clamp(min=1) - self.target) * (self.seen > 0)
            self.p.add_(change * EVERY * len(logits) * random.parts / PICTURES).clamp_(0, LARGEST)
            self.signs.zero_()
            self.seen.zero_()
        self.signs.add_(logits.sign().sum())
        self.seen.add_(len(logits))
