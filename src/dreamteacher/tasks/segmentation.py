"""Semantic segmentation: UPerNet head, loss, metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.items import IGNORE
from dreamteacher.students.neck import PyramidNeck, resize

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class SegmentationHead(nn.Module):
    """UPerNet: the neck's levels at the finest resolution, fused by one 3x3 convolution, classified by a 1x1."""

    def __init__(self, channels: list[int], width: int, classes: int):
        super().__init__()
        self.neck = PyramidNeck(channels, width)
        self.fuse = nn.Sequential(
            nn.Conv2d(width * len(channels), width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, pyramid: list[Tensor], size: torch.Size | tuple[int, int]) -> Tensor:
        """A pyramid, fine to coarse, of pictures of `size` (H, W) to logits `(B, K, H, W)`."""
        return self.decode(self.neck(pyramid), size)

    def decode(self, levels: list[Tensor], size: torch.Size | tuple[int, int]) -> Tensor:
        """The neck's outputs to logits `(B, K, H, W)`."""
        finest = levels[0].shape[2:]
        fused = self.fuse(torch.cat([levels[0], *(resize(level, finest) for level in levels[1:])], dim=1))
        return resize(self.classify(fused), size)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of the soft prediction (Milletari et al. 2016), averaged over pictures and classes; `(B, K, H, W)` and `(B, H, W)`.

    Dice is taken of each picture, not of the batch, so that the loss is the same however a batch is split.
    """
    counted = (labels != IGNORE)[:, None]
    truth = F.one_hot(labels.clamp(max=logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1) * counted
    soft = logits.float().softmax(1) * counted
    overlap, total = (soft * truth).sum((2, 3)), (soft + truth).sum((2, 3))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


def count_labelled(batch: dict[str, Tensor]) -> int:
    """How many pixels of a batch have a class: those that the cross entropy is a mean over."""
    return int((batch["label"] != IGNORE).sum())


def loss(logits: Tensor, labels: Tensor, dice_weight: float, count: Tensor | int) -> dict[str, Tensor]:
    """Cross entropy + `dice_weight` x Dice (Eq 4), both without ignored pixels.

    `count`: what the sum of the cross entropy is divided by. For a batch that is split it is the mean of `count_labelled` over its parts.
    """
    ce = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum") / count
    if dice_weight == 0:
        return {"loss": ce}
    dice = dice_loss(logits, labels)
    return {"loss": ce + dice_weight * dice, "ce": ce, "dice": dice}


def metrics(classes: int) -> MetricCollection:
    """IoU of each class and pixel accuracy, over the whole split."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    return MetricCollection(
        {
            "iou": MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE),
            "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE),
        }
    )
