"""A teacher that generates pictures; their features come from the same forward pass (Sec 3.1, "synthesized dataset")."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamteacher.teachers.base import FrozenTeacher, Lesson, Tap
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import damaged
from dreamteacher.training.randomness import StepRandom

COARSEST = 32  # no backbone pyramid has a coarser level
WEIGHTS = "generator.safetensors"


class Dreamer(Protocol):
    """The network of such a generator."""

    def dream(self, count: int, random: StepRandom) -> tuple[Tensor, dict[int, Tensor]]:
        """Pictures `(count, 3, H, W)` in [0, 1], and `(count, C, H/stride, W/stride)` by stride."""
        ...


class SynthesisTeacher(FrozenTeacher):
    """A frozen generator of pictures."""

    dreams = True
    multiple = 1

    def __init__(self, network: nn.Module, offered: list[Tap], strides: list[int] | None, encoding: Encoding):
        """`network`: a Dreamer; `strides` selects taps, None all.

        Raises:
            UserError: a stride that the generator does not have.
        """
        super().__init__(offered, strides, encoding)
        self.network = network
        self.freeze()

    @torch.no_grad()
    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """As many samples as there are `images` `(B, 3, H, W)`, at the generator's resolution; the content of `images` has no effect."""
        pictures, maps = cast(Dreamer, self.network).dream(len(images), random)
        return Lesson(pictures, [maps[tap.stride].float() for tap in self.taps])


def read_weights(folder: Path, file: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a teacher's folder, in float32.

    Raises:
        UserError: they are missing or damaged.
    """
    try:
        return {name: value.float() for name, value in load_file(folder / file).items()}
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error


def fill(network: nn.Module, weights: dict[str, Tensor], folder: Path) -> Any:
    """`network` with `weights`.

    Raises:
        UserError: they do not fit, so that `folder` is damaged.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise damaged(folder, error) from error
    return network
