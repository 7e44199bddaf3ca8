"""Interfaces of a teacher and of its training. Each kind is one module: `folder.KINDS`."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.training.randomness import StepRandom


@dataclass(frozen=True)
class Tap:
    """One feature map that a teacher offers: `channels` maps at 1/`stride` of the picture's sides."""

    name: str
    stride: int
    channels: int


def choose_taps(offered: list[Tap], strides: list[int] | None) -> list[Tap]:
    """The taps of `offered` at `strides`; None: all.

    Raises:
        UserError: there is no tap at one of the strides.
    """
    there = [tap.stride for tap in offered]
    if missing := sorted(set(strides or []) - set(there)):
        raise UserError(f"the teacher has no tap at stride {missing[0]}; it has {there}")
    return [tap for tap in offered if not strides or tap.stride in strides]


def check_sides(images: Tensor, multiple: int) -> None:
    """Check that a teacher accepts pictures `(B, 3, H, W)`.

    Raises:
        UserError: H or W is no multiple of `multiple`.
    """
    height, width = images.shape[2:]
    if height % multiple or width % multiple:
        raise UserError(f"pictures of {height}x{width} px do not fit the teacher: their sides must be multiples of {multiple}")


@dataclass(frozen=True)
class Lesson:
    """Pictures with their features.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1], to which the features belong: the input pictures, or the generator's own samples.
        features: one float32 `(B, C_l, H/s_l, W/s_l)` per tap, fine to coarse.
        step: `(B,)`, int64, the noise step of each picture; None: the teacher has no noise steps.
    """

    images: Tensor
    features: list[Tensor]
    step: Tensor | None = None


class Teacher(Protocol):
    """A frozen generator whose decoder features are regressed (Sec 3.1).

    Attributes:
        taps: fine to coarse.
        multiple: height and width of pictures must be multiples of it, pixels.
        encoding: how pictures enter it.
    """

    taps: list[Tap]
    multiple: int
    encoding: Encoding

    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """The lesson for pictures `(B, 3, H, W)` in [0, 1]; `random` is the only source of randomness.

        Raises:
            UserError: the pictures do not fit the generator.
        """
        ...

    def with_encoding(self, encoding: Encoding) -> Teacher:
        """The same network with another encoding.

        Raises:
            UserError: the encoding does not fit the generator.
        """
        ...

    def to(self, device: Any) -> Teacher:
        """Move to `device`, as torch's modules."""
        ...


class FrozenTeacher(nn.Module):
    """Base of teachers whose frozen network does not depend on the encoding."""

    def __init__(self, offered: list[Tap], strides: list[int] | None, encoding: Encoding):
        """`strides` selects taps of `offered`, None all. Call `freeze` once the network is built.

        Raises:
            UserError: a stride is not among `offered`.
        """
        super().__init__()
        self.taps = choose_taps(offered, strides)
        self.encoding = encoding

    def freeze(self) -> None:
        """No gradients, and eval mode."""
        self.requires_grad_(False)
        self.eval()

    def with_encoding(self, encoding: Encoding) -> Self:
        """The same network, not a copy of it."""
        other = copy(self)
        other.encoding = encoding
        return other

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, also as a submodule."""
        return super().train(False)


def dreams(teacher: Teacher) -> bool:
    """Whether its lessons are on its own samples instead of the input pictures: its attribute `dreams`, default False."""
    return getattr(teacher, "dreams", False)


class Generator(Protocol):
    """Training of one kind of generator; constructed from the settings `teacher`.

    Attributes:
        trains: whether it is trained at all; for a control, neither `loss` nor `sample` is called.
        classes: optional, for class-conditional kinds: the number of classes, default 0. If set, `loss` also gets the class ids `classes`
            `(B,)`, with this number as the null class.
    """

    trains: bool

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UserError: the settings do not fit together.
        """
        ...

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """`loss`, which is minimised, and its terms, for pictures `(B, 3, H, W)` in [0, 1]."""
        ...

    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Samples, `(count, 3, H, W)` in [0, 1] on the CPU, determined by the seed."""
        ...

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """Load the weights of the teacher in `folder` into `network`.

        Raises:
            UserError: `folder` holds no teacher, a damaged one, or one that does not fit.
        """
        ...

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write the files for `folder.open_teacher`, including `teacher.json` with the kind, the taps and `facts`."""
        ...
