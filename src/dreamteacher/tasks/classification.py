"""Classification: linear head on the pooled embedding, cross entropy, top-1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.transforms import Augmentation, Transform, picture_crop
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.students.backbone import Backbone
from dreamteacher.tasks.base import Size, Task

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel


class ClassificationHead(nn.Linear):
    """The embedding to logits."""

    def forward(self, pyramid: list[Tensor], size: Size) -> Tensor:  # type: ignore[override]
        """A pyramid, fine to coarse, to logits `(B, K)`."""
        return super().forward(Backbone.embed(pyramid))


class Accuracy:
    """`top1`, and `accuracy_CLASS` of each class that occurs in the labels."""

    def __init__(self, classes: list[str]):
        self.classes = classes
        self._predicted: list[int] = []  # computed in one go, since each update of torchmetrics takes 2 ms
        self._truth: list[int] = []

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Class ids, int64 of one shape."""
        self._predicted += predicted.flatten().tolist()
        self._truth += truth.flatten().tolist()

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        from torchmetrics.functional.classification import multiclass_accuracy

        if not self._truth:
            return {}
        predicted, truth, count = torch.tensor(self._predicted), torch.tensor(self._truth), len(self.classes)
        top1 = multiclass_accuracy(predicted, truth, count, average="micro")
        by_class = multiclass_accuracy(predicted, truth, count, average="none").reshape(-1)
        return {"top1": float(top1), **{f"accuracy_{self.classes[i]}": float(by_class[i]) for i in truth.unique().tolist()}}


class PictureTask(Task):
    """Base of tasks that predict for the whole picture, from its embedding."""

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """Logits `(B, K)`."""
        return ClassificationHead(channels[-1], classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random part of the picture, scaled to the crop size."""
        return picture_crop(size, augmentation)

    def picture_size(self, size: int) -> int | None:
        """The crop size, as in training."""
        return size


class Classification(PictureTask):
    """One class for a picture."""

    figure, title, classifies = "top1", "top-1 accuracy", "pictures"

    def loss(self, outputs: Tensor, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Cross entropy of `(B, K)` logits and `(B,)` labels, averaged over the pictures."""
        return {"loss": F.cross_entropy(outputs.float(), batch["label"])}

    def decode(self, output: Tensor, own: Size, size: Size) -> Tensor:
        """The class id, `()`, of logits `(K,)`."""
        return output.argmax(0)

    def score(self, classes: list[str]) -> Accuracy:
        """Of pictures."""
        return Accuracy(classes)

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture with its classes as text above."""
        return [("\n".join(f"{name}: {classes[int(label)]}" for name, label in labels.items()), image)]


TASK = Classification()
