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
from dreamteacher.errors import UserError
from dreamteacher.students.neck import resize
from dreamteacher.tasks import classification, segmentation
from dreamteacher.tasks.model import TaskModel, normalize

PENDING = 8  # batches that wait at most for companions of their size
RESIZED = 1 << 26  # logits that are resized at once


class Score:
    """Accumulates predicted and true class ids, of pixels or of pictures, into the figures of the task."""

    def __init__(self, task: str, classes: list[str]):
        self.classes, self.dense = classes, task == "segmentation"
        self._metrics = (segmentation if self.dense else classification).metrics(len(classes))
        self._seen = torch.zeros(len(classes), dtype=torch.long)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Two int64 tensors of one shape; of masks, nothing is counted where `truth` is IGNORE."""
        predicted, truth = predicted.cpu(), truth.cpu()
        self._metrics.update(predicted, truth)
        counted = truth[truth != IGNORE] if self.dense else truth.flatten()
        self._seen += torch.bincount(counted, minlength=len(self.classes))

    @property
    def counted(self) -> int:
        """Pixels or pictures so far."""
        return int(self._seen.sum())

    def compute(self) -> dict[str, float]:
        """Figures in [0, 1] of what was counted, at least one pixel or picture.

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

    Masks are compared at their own size: where ingest reduced the picture, the logits are resized to the mask (bilinear), not the mask
    to the picture, in which thin objects may be lost.

    Returns:
        What `Score.compute` returns, and the predictions for the pictures in `keep` by index: class id, or uint8 (H, W) of the
        picture's size.

    Raises:
        UserError: there is no label to measure by.
    """
    totals = Score(model.task, model.classes)
    kept: dict[int, Any] = {}
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for indices, batch in whole_batches(images, images.labelled(), batch_size, picture_size(model.task, model.size)):
        pictures = batch["image"].to(device, memory_format=torch.channels_last)
        logits = model(normalize(pictures, model.mean, model.std))
        if not totals.dense:
            predicted = logits.argmax(1)
            totals.update(predicted, batch["label"])
            kept |= {index: int(label) for index, label in zip(indices, predicted, strict=True) if index in keep}
            continue
        for index, padded in zip(indices, logits, strict=True):
            height, width = images.size(index)
            own, truth = padded[:, :height, :width], torch.from_numpy(images.full_size_label(index)).long()
            totals.update(resized_argmax(own, truth.shape), truth)
            if index in keep:
                kept[index] = own.argmax(0).cpu().numpy().astype(np.uint8)
    if not totals.counted:
        raise UserError(
            "no pixel of the validation masks has a class, so nothing can be measured; label some, then run `dreamteacher ingest`"
        )
    return totals.compute(), kept


def resized_argmax(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
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
