"""The interface of a task: everything that depends on the kind of prediction, in one object, found by its name."""

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
    """Accumulates predictions and labels into metrics, in one process.

    The other training processes have ended, so anything that synchronises with them (torchmetrics without `sync_on_compute=False`) hangs.
    """

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Add the output of `Task.decode` for a picture, and its label as in a batch (see `dataset.label_tensor`)."""

    def compute(self) -> dict[str, float]:
        """Metrics by name, per-class ones as KIND_CLASS; `Task.figure` is in [0, 1], higher is better. {} if nothing was counted."""


class Task(ABC):
    """A downstream task. A subclass is one file; its single instance is stateless.

    Attributes:
        figure: key of the main metric, by which models are compared.
        title: of that metric, for display.
        classifies: what is assigned one of the data's classes (pixels or pictures); None: nothing. If set, the interpreter, label
            distillation and the frozen probes apply, and `head`'s outputs are logits `(B, K, H, W)` or `(B, K)`.
        served: names of the outputs of `serve`, and of the ONNX file.
        labels: for a task of another package, the built-in task whose label formats it uses, if `ingest.task` names it.
        of: for an alternative head (`finetune.head`), the name of its task; predictions are decoded and drawn as the task's.
        with_labels: whether the head takes the labels in training, after the pictures' size, and then returns its losses.
        count: number of items in an accumulation part that the loss is a mean over (see `training.loop.train`); None: the pictures.
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
        """The head on a backbone's pyramid: its `forward` takes the levels, fine to coarse, and the pictures' (H, W).

        Args:
            channels: of the levels.
            width: params.student.width.
            classes: of the data.
        """

    @abstractmethod
    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """The transform to train crops of `size` x `size` pixels, with their labels."""

    def picture_size(self, size: int) -> int | None:
        """Short side at which a model trained on crops of side `size` sees a whole picture.

        None: unscaled, which is right if the scale of a picture determines the size or distance of its objects.
        """
        return None

    @abstractmethod
    def loss(self, outputs: Any, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """`loss` and its terms. `batch` has `image`, `label` and, if `count` is set, the mean `count` over the parts of the batch."""

    @abstractmethod
    def decode(self, output: Any, own: Size, size: Size) -> Tensor:
        """The prediction for one picture.

        Args:
            output: the head's output for this picture, which was padded at the bottom and the right.
            own: (H, W) of the picture without the padding.
            size: (H, W) of the mask that it is compared with, or of the picture on which it is drawn.
        """

    @abstractmethod
    def score(self, classes: list[str]) -> Score:
        """An empty score."""

    @abstractmethod
    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """A row of panels: the picture, uint8 `(H, W, 3)`, with its label and predictions by name."""

    def check(self, classes: list[str], augmentation: Augmentation) -> None:
        """Refuse an augmentation that would make labels wrong.

        Raises:
            UserError: the augmentation changes the meaning of a class in an unknown way.
        """
        return

    def serve(self, outputs: Any) -> tuple[Tensor, ...]:
        """The exported model's outputs, from the head's outputs: for each name in `served` a tensor whose first two sizes are known."""
        return (outputs,)

    def align(self, theirs: list[np.ndarray], ours: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs of an exported model in the order of torch's `serve`, for the parity check of heads that select and sort."""
        return theirs

    def agreement(self, exact: Any, rounded: Any) -> tuple[int, int]:
        """(equal decisions, decisions) of two outputs of the head; a decision based on an infinite value counts as different."""
        equal = (exact.argmax(1) == rounded.argmax(1)) & rounded.isfinite().all(1)
        return int(equal.sum()), equal.numel()


def count_known(batch: dict[str, Tensor]) -> int:
    """Number of label values in a batch (of pixels or classes) that are not IGNORE: the items that the loss is a mean over."""
    return int((batch["label"] != IGNORE).sum())


def of_picture(outputs: Outputs, place: int) -> Outputs:
    """The outputs of a head for one picture of the batch."""
    return {name: values[place] for name, values in outputs.items()} if isinstance(outputs, dict) else outputs[place]


class NeckHead(nn.Module):
    """A head on a neck. Label distillation shares the neck with the heads of the teacher's taps (Eq 6).

    Attributes:
        neck: the default neck; the task model replaces it by `student.neck`. All necks have the same outputs.
    """

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.neck: Neck = create_neck(DEFAULT, channels, width)

    def see_strides(self, strides: list[int]) -> None:
        """Set what depends on the strides of the pyramid's levels, fine to coarse; nothing in most heads."""
        return

    def forward(self, pyramid: list[Tensor], size: Size) -> Any:
        """Pyramid, fine to coarse, of pictures of `size` (H, W) to outputs."""
        return self.from_neck(self.neck(pyramid), size)

    def from_neck(self, levels: list[Tensor], size: Size) -> Any:
        """The neck's outputs to those of the head."""
        raise NotImplementedError


def convolved(inputs: int, width: int) -> list[nn.Module]:
    """A 3x3 convolution to `width` channels, normalised, with ReLU."""
    return [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def at_finest(levels: list[Tensor]) -> Tensor:
    """All levels `(B, C, h, w)` of a neck, fine to coarse, at the resolution of the finest, concatenated along the channels."""
    return torch.cat([levels[0], *(resize(level, levels[0].shape[2:]) for level in levels[1:])], dim=1)


@cache
def get_task(name: str, head: str = AUTO) -> Task:
    """The task with this name, one of BUILT_IN or an entry point of GROUP; `head`: with an alternative head of HEADS or HEADS_GROUP.

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
