"""Figures of a task model on whole pictures: every labelled one of a split, each counted once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import whole
from dreamteacher.tasks import classification, segmentation
from dreamteacher.tasks.model import TaskModel, normalize

PENDING = 8  # batches that wait at most for companions of their size


class Score:
    """Accumulates predicted and true class ids, of pixels or of pictures, into the figures of the task."""

    def __init__(self, task: str, classes: list[str]):
        self.classes, self.dense = classes, task == "segmentation"
        self._metrics = (segmentation if self.dense else classification).metrics(len(classes))
        self._seen = torch.zeros(len(classes), dtype=torch.long)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Two int64 tensors of one shape; where `truth` is IGNORE nothing is counted."""
        predicted, truth = predicted.cpu(), truth.cpu()
        self._metrics.update(predicted, truth)
        self._seen += torch.bincount(truth[truth != IGNORE].flatten(), minlength=len(self.classes))

    def compute(self) -> dict[str, float]:
        """Figures in [0, 1].

        Segmentation: `miou`, the mean over the classes that occur in the truth, `accuracy` of pixels, `iou_CLASS`.
        Classification: `top1`, `accuracy_CLASS`. A class that does not occur has no figure of its own.
        """
        values = self._metrics.compute()
        present = self._seen.nonzero().flatten().tolist()
        if self.dense:
            iou = values["iou"].reshape(-1)
            by_class = {f"iou_{self.classes[i]}": float(iou[i]) for i in present}
            return {"miou": sum(by_class.values()) / len(by_class), "accuracy": float(values["accuracy"]), **by_class}
        accuracy = values["class_accuracy"].reshape(-1)
        return {"top1": float(values["top1"]), **{f"accuracy_{self.classes[i]}": float(accuracy[i]) for i in present}}


def whole_batches(images: ImageSet, indices: list[int], batch_size: int, size: int | None) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Whole pictures (see `transforms.whole`), batched with others of the same padded size; each index comes once, in any order."""
    transform = whole(size=size)
    waiting: dict[tuple[int, ...], dict[int, dict[str, Tensor]]] = {}
    for index in indices:
        item = transform(images.read(index))
        bucket = waiting.setdefault(tuple(item["image"].shape), {})
        bucket[index] = item
        if len(bucket) == batch_size or sum(map(len, waiting.values())) >= PENDING * batch_size:
            largest = max(waiting, key=lambda shape: len(waiting[shape]))
            yield _stack(waiting.pop(largest))
    for bucket in waiting.values():
        yield _stack(bucket)


def _stack(bucket: dict[int, dict[str, Tensor]]) -> tuple[list[int], dict[str, Tensor]]:
    items = list(bucket.values())
    return list(bucket), {key: torch.stack([item[key] for item in items]) for key in items[0]}


def picture_size(task: str, size: int) -> int | None:
    """Short side at which a model trained on crops of side `size` sees a whole picture; None: as it is.

    Segmentation trains on crops at the picture's own scale, classification on crops that are scaled to `size`.
    """
    return None if task == "segmentation" else size


@torch.inference_mode()
def score(
    model: TaskModel, images: ImageSet, batch_size: int, device: torch.device, keep: Collection[int] = ()
) -> tuple[dict[str, float], dict[int, Any]]:
    """The figures of `model` on all labelled pictures of `images`.

    Returns:
        What `Score.compute` says, and the predictions for the pictures in `keep` by index: class id, or uint8 (H, W).
    """
    totals = Score(model.task, model.classes)
    kept: dict[int, Any] = {}
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for indices, batch in whole_batches(images, images.labelled(), batch_size, picture_size(model.task, model.size)):
        pictures = batch["image"].to(device, memory_format=torch.channels_last)
        predicted = model(normalize(pictures, model.mean, model.std)).argmax(1).cpu()
        totals.update(predicted, batch["label"])
        for index, answer in zip(indices, predicted, strict=True):
            if index in keep:
                height, width = images.read(index).image.shape[:2]
                kept[index] = answer[:height, :width].numpy().astype(np.uint8) if totals.dense else int(answer)
    return totals.compute(), kept
