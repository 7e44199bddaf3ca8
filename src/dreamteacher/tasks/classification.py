"""Classification: linear head on the pooled embedding, loss, metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


def loss(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross entropy of `(B, K)` logits and `(B,)` labels, averaged over the pictures."""
    return {"loss": F.cross_entropy(logits.float(), labels)}


def metrics(classes: int) -> MetricCollection:
    """Top-1 accuracy and its mean over the classes, over the whole split."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy

    return MetricCollection(
        {
            "top1": MulticlassAccuracy(classes, average="micro"),
            "class_accuracy": MulticlassAccuracy(classes, average="none"),
        }
    )
