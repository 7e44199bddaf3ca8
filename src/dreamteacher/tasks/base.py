"""What a task is: all that differs between kinds of predictions, in one object, which is found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.plugins import load_plugin
from dreamteacher.settings.downstream import AUTO, HEADS, HEADS_GROUP, Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.students.necks import DEFAULT, Neck, create_neck, resize

if TYPE_CHECKING:
    from dreamteacher.data.transforms import Augmentation, Transform
    from dreamteacher.report.figures import Panel

GROUP = "dreamteacher.tasks"  # of entry points, by which packages add tasks
BUILT_IN = {
    name: f"dreamteacher.tasks.{name}:TASK"
    for name in ("segmentation", "classification", "detection", "instances", "multilabel", "depth", "keypoints")
}
Outputs = Tensor | dict[str, Tensor]  # of a head: one tensor, or several by name, each with the batch first
Size = torch.Size | tuple[int, int]


class Score(Protocol):
    """Accumulates predictions and labels into figures, in one process.

    Others that trained beside it have ended: what waits for them, as torchmetrics does without `sync_on_compute=False`, waits for ever.
    """

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """What `Task.decode` returned for a picture, and its label as it stands in a batch (see `dataset.label_tensor`)."""

    def compute(self) -> dict[str, float]:
        """Figures by name, those of single classes as KIND_CLASS; `Task.figure` is in [0, 1], more is better. {} if nothing was counted."""


class Task(ABC):
    """What is predicted for a picture, learned from its label. A subclass is one file; its one instance holds no state.

    Attributes:
        figure: key of the figure by which models are compared and judged.
        title: of that figure, in print.
        classifies: what gets one of the data's classes; None: nothing, as in a regression. With classes, the interpreter, label
            distillation and the frozen read-outs apply: `head`'s outputs are then logits `(B, K, H, W)` or `(B, K)`.
        served: names of the outputs of `serve`, as an ONNX file has them.
        labels: of a task from outside the package, the task of ours whose labels it learns from, where `ingest.task` names it.
        of: of another head of a task (`finetune.head`), the name of that task; its answers are read and drawn as the task's.
        with_labels: whether the head takes the labels in training, behind the pictures' size, and then returns its losses.
        count: of a part of a batch, how many things the loss is a mean over (see `training.loop.train`); None: the pictures.
    """

    figure: str
    title: str
    classifies: Literal["pixels", "pictures"] | None
    served: tuple[str, ...] = ("logits",)
    labels: str = ""
    of: str = ""
    with_labels: bool = False
    count: Callable[[dict[str, Tensor]], int] | None = None

    @abstractmethod
    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """What predicts from the pyramid of a backbone: its `forward` takes the levels, fine to coarse, and the pictures' (H, W).

        Args:
            channels: of the levels.
            width: params.student.width.
            classes: of the data.
        """

    @abstractmethod
    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """The crops of `size` x `size` pixels that the task is trained on, and their labels."""

    def picture_size(self, size: int) -> int | None:
        """Short side at which a model that was trained on crops of side `size` sees a whole picture.

        None: as it is, which is right where the scale of a picture says how large or how far its objects are.
        """
        return None

    @abstractmethod
    def loss(self, outputs: Any, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """`loss` and its parts. `batch` holds `image`, `label` and, with `count`, the mean `count` of the parts of the batch."""

    @abstractmethod
    def decode(self, output: Any, own: Size, size: Size) -> Tensor:
        """The prediction for one picture.

        Args:
            output: of the head for this picture, which was padded on the bottom and the right.
            own: (H, W) of the picture without the padding.
            size: of the mask that it is compared with, or (H, W) of the picture on which it is drawn.
        """

    @abstractmethod
    def score(self, classes: list[str]) -> Score:
        """An empty score."""

    @abstractmethod
    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """A row of panels: the picture, uint8 `(H, W, 3)`, with its truth and predictions by name."""

    def check(self, classes: list[str], augmentation: Augmentation) -> None:
        """Refuse a training whose labels would not stay true.

        Raises:
            UserError: nobody knows what the augmentation makes of a class.
        """
        return

    def serve(self, outputs: Any) -> tuple[Tensor, ...]:
        """What an exported model computes from the head's outputs: of each name in `served` a tensor whose first two sizes are known."""
        return (outputs,)

    def align(self, theirs: list[np.ndarray], ours: list[np.ndarray]) -> list[np.ndarray]:
        """What an exported model computed, in the order of what `serve` did in torch, to compare both: for heads that choose and sort."""
        return theirs

    def agreement(self, exact: Any, rounded: Any) -> tuple[int, int]:
        """(decisions that are the same, decisions) in two outputs of the head; one that rests on an infinite value is not the same."""
        equal = (exact.argmax(1) == rounded.argmax(1)) & rounded.isfinite().all(1)
        return int(equal.sum()), equal.numel()


def count_known(batch: dict[str, Tensor]) -> int:
    """How many values of a batch's labels, of pixels or of classes, are not IGNORE: those that the loss is a mean over."""
    return int((batch["label"] != IGNORE).sum())


def of_picture(outputs: Outputs, place: int) -> Outputs:
    """The outputs of a head for one picture of the batch."""
    return {name: values[place] for name, values in outputs.items()} if isinstance(outputs, dict) else outputs[place]


class NeckHead(nn.Module):
    """A head on a neck, which label distillation shares with the heads of the teacher's taps (Eq 6).

    Attributes:
        neck: the default one; where `student.neck` names another, the task model puts that in its place. All have the same outputs.
    """

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.neck: Neck = create_neck(DEFAULT, channels, width)

    def see_strides(self, strides: list[int]) -> None:
        """Take over what depends on the strides of the pyramid's levels, fine to coarse: nothing, in most heads."""
        return

    def forward(self, pyramid: list[Tensor], size: Size) -> Any:
        """A pyramid, fine to coarse, of pictures of `size` (H, W) to outputs."""
        return self.from_neck(self.neck(pyramid), size)

    def from_neck(self, levels: list[Tensor], size: Size) -> Any:
        """The neck's outputs to those of the head."""
        raise NotImplementedError


def convolved(inputs: int, width: int) -> list[nn.Module]:
    """A 3x3 convolution to `width` channels, normalised, with ReLU."""
    return [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def at_finest(levels: list[Tensor]) -> Tensor:
    """All levels `(B, C, h, w)` of a neck, fine to coarse, at the resolution of the finest, one behind the other in the channels."""
    return torch.cat([levels[0], *(resize(level, levels[0].shape[2:]) for level in levels[1:])], dim=1)


@cache
def get_task(name: str, head: str = AUTO) -> Task:
    """The task of a name, one of BUILT_IN or that of an entry point of GROUP; with `head`, as a head of HEADS or of HEADS_GROUP does it.

    Raises:
        UserError: there is none of this name, it cannot be loaded (see `plugins.load_plugin`), or the task has no such head.
    """
    if head == AUTO:
        return _load(GROUP, name, BUILT_IN, "task")
    built_in = {each: f"dreamteacher.tasks.{each.replace('-', '_')}:TASK" for each in HEADS}
    task = _load(HEADS_GROUP, head, built_in, "head")
    if task.of != name:
        known = [AUTO, *(each for each, of in HEADS.items() if of == name)]
        raise UserError(f"finetune.head = {head!r} is a head for {task.of}, and the labels are for {name}; set it to {' or '.join(known)}")
    return task


def _load(group: str, name: str, built_in: dict[str, str], noun: str) -> Task:
    task = load_plugin(group, name, built_in, noun)
    if not isinstance(task, Task):
        raise UserError(f"what {noun} {name!r} names is no instance of a subclass of {Task.__module__}.Task; install its package again")
    return task
