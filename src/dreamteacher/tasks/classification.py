"""Classification: linear head on the pooled embedding, loss, metric."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from dreamteacher.data.dataset import ImageSet

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

log = logging.getLogger(__name__)


def warn_of_unseen(images: ImageSet, few: list[int]) -> None:
    """Say which classes none of the labelled pictures `few` is of: what is trained on them never answers these."""
    seen = {images.label(index) for index in few}
    if unseen := [name for number, name in enumerate(images.classes) if number not in seen]:
        shown = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        log.warning("none of the %d labelled pictures is of class %s; raise few_labels or label more", len(few), shown)


def loss(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross entropy of `(B, K)` logits and `(B,)` labels."""
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
