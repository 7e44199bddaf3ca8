"""A control: the downscaled pictures themselves as targets: kind `pixels`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.settings import presets
from dreamteacher.teachers.base import Lesson, Tap, check_sides, choose_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import read_facts, write_facts
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from dreamteacher.settings.pretraining import Teacher as Settings


class Generator:
    """Nothing is trained. Its taps have the strides of a generator of `settings.size`."""

    trains = False

    def __init__(self, settings: Settings):
        self.taps = [Tap(f"stride{stride}", stride, 3) for stride in presets.decoder_strides(settings.size)]

    def build(self) -> nn.Module:
        """No network."""
        return nn.Identity()

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """Never called, as nothing is trained."""
        raise NotImplementedError

    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Never called, as it makes no pictures."""
        raise NotImplementedError

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """There are none."""

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write `teacher.json`."""
        write_facts(folder, "pixels", self.taps, facts)


class Pixels(nn.Module):
    """The average of the pixels in each cell of a tap, in [-1, 1], without noise, whatever the encoding."""

    def __init__(self, taps: list[Tap], multiple: int, encoding: Encoding):
        super().__init__()
        self.taps, self.multiple, self.encoding = taps, multiple, encoding

    def with_encoding(self, encoding: Encoding) -> Pixels:
        """Itself, since encodings have no effect."""
        return Pixels(self.taps, self.multiple, encoding)

    @torch.no_grad()
    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """The lesson of pictures `(B, 3, H, W)` in [0, 1], whose sides are multiples of `multiple`."""
        check_sides(images, self.multiple)
        return Lesson(images, [F.avg_pool2d(images.float() * 2 - 1, tap.stride) for tap in self.taps])


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> Pixels:
    """See `folder.open_teacher`."""
    offered = [Tap(**tap) for tap in read_facts(folder)["taps"]]
    return Pixels(choose_taps(offered, strides), offered[-1].stride, encoding)
