"""How pictures enter a diffusion model: which noise step they get, and what of the noise (Sec 3.1, Tab 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class Encoding(Protocol):
    """Equal encodings encode alike."""

    def check(self, scheduler: DDPMScheduler) -> None:
        """UserError where the schedule does not have the noise steps that are asked for."""
        ...

    def encode(self, scheduler: DDPMScheduler, images: Tensor, random: StepRandom) -> tuple[Tensor, Tensor]:
        """Pictures `(B, 3, H, W)` in [0, 1] to the network's input, `(B, 3, H, W)`, and their noise steps `(B,)`, int64."""
        ...


@dataclass(frozen=True)
class Stochastic:
    """Forward diffusion of each picture to noise step `T`, with noise of its own."""

    T: int

    def check(self, scheduler: DDPMScheduler) -> None:
        """0 <= T < steps of the schedule."""
        if not 0 <= self.T < scheduler.config.num_train_timesteps:
            raise UserError(f"noise step T = {self.T} does not fit the teacher, which has {scheduler.config.num_train_timesteps} of them")

    def encode(self, scheduler: DDPMScheduler, images: Tensor, random: StepRandom) -> tuple[Tensor, Tensor]:
        """q(x_T | x_0) of pictures scaled to [-1, 1]."""
        steps = torch.full((len(images),), self.T, device=images.device, dtype=torch.long)
        return scheduler.add_noise(images * 2 - 1, random.normal(images.shape), cast(Any, steps)), steps
