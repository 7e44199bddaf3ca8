"""Metrics of a task model on whole pictures: every labelled picture of a split, once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dreamteacher.data.dataset import ImageSet, collate, label_tensor
from dreamteacher.data.transforms import full_image
from dreamteacher.errors import UserError
from dreamteacher.tasks.base import of_picture
from dreamteacher.tasks.model import TaskModel, normalize

PENDING = 8  # maximum number of unfinished batches, one per picture size


def whole_batches(images: ImageSet, indices: list[int], batch_size: int, size: int | None) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Whole pictures (see `transforms.full_image`), batched by padded size; each index comes once, in any order."""
    transform = full_image(size=size)
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
    return list(bucket), collate(items)


def _brief(task: str | None, classes: Sequence[str]) -> str:
    return f"{task} of {len(classes)} classes ({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''})"


@torch.inference_mode()
def score(
    model: TaskModel,
    images: ImageSet,
    batch_size: int,
    device: torch.device,
    *,
    keep: Collection[int] = (),
    among: list[int] | None = None,
) -> tuple[dict[str, float], dict[int, np.ndarray]]:
    """The metrics of `model` on all labelled pictures of `images`, at the labels' own size (see `Task.decode`).

    `among`: only on these labelled pictures.

    Returns:
        Metrics in [0, 1], the main one first, and the predictions for the pictures in `keep`, by index, from `Task.decode` at the picture's
        size.

    Raises:
        UserError: there are no labels, or those of other classes than the model's, as where classes changed after it was trained.
    """
    if (model.task, model.classes) != (images.task, images.classes):
        raise UserError(
            f"the model predicts {_brief(model.task, model.classes)}, and the data has {_brief(images.task, images.classes)}; run "
            "`dreamteacher finetune` again"
        )
    task = model.get_task()
    totals, kept = task.score(model.classes), {}
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for indices, batch in whole_batches(images, images.labelled() if among is None else among, batch_size, task.picture_size(model.size)):
        pictures = batch["image"].to(device, memory_format=torch.channels_last)
        outputs = model(normalize(pictures, model.mean, model.std))
        for place, index in enumerate(indices):
            own, label, output = images.size(index), images.full_size_label(index), of_picture(outputs, place)
            truth = label_tensor(label)
            assert truth is not None, "only labelled pictures are read"
            totals.update(task.decode(output, own, truth.shape if isinstance(label, np.ndarray) else own), truth)
            if index in keep:
                kept[index] = task.decode(output, own, own).cpu().numpy()
    figures = totals.compute()
    if not figures:
        raise UserError(
            "no label of a validation picture has a class, so nothing can be measured; label some, then run `dreamteacher ingest`"
        )
    return {task.figure: figures[task.figure], **figures}, kept
