"""Semantic segmentation: UPerNet head, cross entropy and Dice, mean IoU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import Augmentation, Transform, pixel_crop
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.students.necks import resize
from dreamteacher.tasks.base import NeckHead, Size, Task, at_finest, convolved, count_known

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

RESIZED = 1 << 26  # maximum number of logits resized at once


class SegmentationHead(NeckHead):
    """UPerNet: the neck's levels at the finest resolution, fused by one 3x3 convolution, classified by a 1x1."""

    def __init__(self, channels: list[int], width: int, classes: int):
        super().__init__(channels, width)
        self.fuse = nn.Sequential(*convolved(width * len(channels), width))
        self.classify = nn.Conv2d(width, classes, 1)

    def from_neck(self, levels: list[Tensor], size: Size) -> Tensor:
        """The neck's outputs to logits `(B, K, H, W)`."""
        return resize(self.classify(self.fuse(at_finest(levels))), size)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of the soft prediction (Milletari et al. 2016), averaged over pictures and classes; `(B, K, H, W)` and `(B, H, W)`.

    Dice is computed per picture, not per batch, so that the loss does not depend on how a batch is split.
    """
    counted = (labels != IGNORE)[:, None]
    truth = F.one_hot(labels.clamp(max=logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1) * counted
    soft = logits.float().softmax(1) * counted
    overlap, total = (soft * truth).sum((2, 3)), (soft + truth).sum((2, 3))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


def resized_argmax(logits: Tensor, size: Size) -> Tensor:
    """The class of each pixel, int64 `(H, W)` of `size`, from logits `(K, h, w)`, resized for a few classes at a time to save memory."""
    if logits.shape[1:] == size:
        return logits.argmax(0)
    best, classes = torch.full(size, -torch.inf, device=logits.device), torch.zeros(size, dtype=torch.long, device=logits.device)
    at_once = max(1, RESIZED // (size[0] * size[1]))
    for first in range(0, len(logits), at_once):
        values, found = resize(logits[None, first : first + at_once], size)[0].max(0)
        classes = torch.where(values > best, found + first, classes)
        best = torch.maximum(values, best)
    return classes


class IntersectionOverUnion:
    """`miou`, the mean over the classes that occur in the masks, `accuracy` of pixels, and `iou_CLASS` of those classes."""

    def __init__(self, classes: list[str]):
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        self.classes = classes
        self._seen = torch.zeros(len(classes), dtype=torch.long)
        alone: dict[str, Any] = {"ignore_index": IGNORE, "sync_on_compute": False}  # see `Score`
        iou = MulticlassJaccardIndex(len(classes), average="none", **alone)
        accuracy = MulticlassAccuracy(len(classes), average="micro", **alone)
        self._metrics = MetricCollection({"iou": iou, "accuracy": accuracy})

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Class ids, int64 of one shape; pixels with `truth` IGNORE are not counted."""
        predicted, truth = predicted.cpu(), truth.cpu()
        self._metrics.update(predicted, truth)
        self._seen += torch.bincount(truth[truth != IGNORE], minlength=len(self.classes))

    def compute(self) -> dict[str, float]:
        """Figures of all pixels so far."""
        if not self._seen.any():
            return {}
        values = self._metrics.compute()
        iou = values["iou"].reshape(-1)
        by_class = {f"iou_{self.classes[i]}": float(iou[i]) for i in self._seen.nonzero().flatten().tolist()}
        return {"miou": sum(by_class.values()) / len(by_class), "accuracy": float(values["accuracy"]), **by_class}


class Segmentation(Task):
    """One class for each pixel."""

    figure, title, classifies = "miou", "mIoU", "pixels"
    count = staticmethod(count_known)

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """Logits `(B, K, H, W)`."""
        return SegmentationHead(channels, width, classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of picture and mask, at about their own scale."""
        return pixel_crop(size, augmentation)

    def loss(self, outputs: Tensor, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Cross entropy + `dice_weight` x Dice (Eq 4) of `(B, K, H, W)` logits and `(B, H, W)` labels, both without ignored pixels."""
        labels = batch["label"]
        ce = F.cross_entropy(outputs.float(), labels, ignore_index=IGNORE, reduction="sum") / batch["count"]
        if settings.dice_weight == 0:
            return {"loss": ce}
        dice = dice_loss(outputs, labels)
        return {"loss": ce + settings.dice_weight * dice, "ce": ce, "dice": dice}

    def decode(self, output: Tensor, own: Size, size: Size) -> Tensor:
        """Class ids, int64 `(H, W)` of `size`.

        If ingest downscaled the picture, the logits are resized to the mask; resizing the mask instead would lose thin objects.
        """
        return resized_argmax(output[:, : own[0], : own[1]], size)

    def score(self, classes: list[str]) -> IntersectionOverUnion:
        """Of pixels."""
        return IntersectionOverUnion(classes)

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture, and an overlay of each mask."""
        from dreamteacher.data.drawing import draw_classes

        return [("picture", image), *((name, draw_classes(image, mask, classes)) for name, mask in labels.items())]


TASK = Segmentation()
