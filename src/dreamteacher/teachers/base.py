"""What a generator must offer to teach, and to be trained. Each kind is one module: `folder.KINDS`."""

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
    """Those of `offered` at `strides`; None: all.

    Raises:
        UserError: nothing is offered at one of the strides.
    """
    there = [tap.stride for tap in offered]
    if missing := sorted(set(strides or []) - set(there)):
        raise UserError(f"the teacher has no tap at stride {missing[0]}; it has {there}")
    return [tap for tap in offered if not strides or tap.stride in strides]


def check_sides(images: Tensor, multiple: int) -> None:
    """Whether a teacher takes pictures `(B, 3, H, W)`.

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
        images: `(B, 3, H, W)` in [0, 1], of which the features are: those that were given, or the generator's own.
        features: one float32 `(B, C_l, H/s_l, W/s_l)` a tap, fine to coarse.
        step: `(B,)`, int64, the noise step of each picture; None: the teacher knows none.
    """

    images: Tensor
    features: list[Tensor]
    step: Tensor | None = None


class Teacher(Protocol):
    """A frozen generator whose decoder features are regressed (Sec 3.1).

    Attributes:
        taps: fine to coarse.
        multiple: of which the sides of pictures must be multiples, pixels.
        encoding: how pictures enter it.
    """

    taps: list[Tap]
    multiple: int
    encoding: Encoding

    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """The lesson of pictures `(B, 3, H, W)` in [0, 1]; `random` is the source of all that is drawn.

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
        """On `device`, as torch's modules."""
        ...


class FrozenTeacher(nn.Module):
    """What teachers share whose network never learns and is the same whatever the encoding."""

    def __init__(self, offered: list[Tap], strides: list[int] | None, encoding: Encoding):
        """`strides` chooses taps of `offered`, None all. Call `freeze` once the network is there.

        Raises:
            UserError: a stride that is not offered.
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
        """Stay in eval, whatever module holds it."""
        return super().train(False)


def dreams(teacher: Teacher) -> bool:
    """Whether its lessons are of pictures of its own instead of the given ones: its attribute `dreams`, False where it has none."""
    return getattr(teacher, "dreams", False)


class Generator(Protocol):
    """How one kind of generator is trained; made of the settings `teacher`.

    Attributes:
        trains: whether it is trained at all; a control is not, and gets neither `loss` nor `sample` asked.
        classes: optional, of a kind that can be told of the pictures' classes: how many there are, 0 by default. Where it is set, `loss`
            also gets `classes` `(B,)`, their ids, and this number for a picture without one.
    """

    trains: bool

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UserError: the settings do not fit together.
        """
        ...

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """What is minimised, as `loss`, and its parts, of pictures `(B, 3, H, W)` in [0, 1]."""
        ...

    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Pictures that the generator makes, `(count, 3, H, W)` in [0, 1] on the CPU; the same ones for the same seed."""
        ...

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """Give `network` the weights of the teacher in `folder`.

        Raises:
            UserError: `folder` holds no teacher, a damaged one, or one that does not fit.
        """
        ...

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write all that `folder.open_teacher` reads, and `teacher.json` with the kind, the taps and `facts`."""
        ...
