"""What a generator must offer to teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dreamteacher.training.randomness import StepRandom


@dataclass(frozen=True)
class Tap:
    """One feature map that a teacher offers: `channels` maps at 1/`stride` of the picture's sides."""

    name: str
    stride: int
    channels: int


class Teacher(Protocol):
    """A frozen generator whose decoder features are regressed (Sec 3.1)."""

    taps: list[Tap]

    def features(self, images: Tensor, T: int, random: StepRandom) -> list[Tensor]:
        """Encode real pictures `(B, 3, H, W)` in [0, 1]; one `(B, C_l, H/s_l, W/s_l)` a tap, fine to coarse."""
        ...
