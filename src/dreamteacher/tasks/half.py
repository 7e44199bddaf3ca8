"""How float16 changes a task model's predictions: simulates the arithmetic of a GPU's tensor cores on any device."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet
from dreamteacher.tasks.model import TaskModel, normalize
from dreamteacher.tasks.scoring import whole_batches

BATCH = 8


@torch.inference_mode()
def half_agreement(model: TaskModel, images: ImageSet, size: int | None, count: int) -> float:
    """The share of decisions (of pixels, pictures or locations with an object) that float16 does not change, on `count` pictures spread
    over `images`.

    Weights, input and the output of each layer are rounded to float16 and sums are formed in float32, as TensorRT does with FP16.
    A value beyond float16's 65504 becomes infinite; decisions that depend on such a value count as changed.

    Args:
        model: on the CPU.
        images: at least one picture; labels are not needed.
        size: short side at which the model sees a picture, pixels; None: unscaled (`Task.picture_size`).
        count: maximum number of pictures.

    Returns:
        In [0, 1].
    """
    model.eval()
    half = _rounded(model)
    task = model.get_task()
    step = max(1, len(images) // count)
    same = total = 0
    for _, batch in whole_batches(images, list(range(0, len(images), step))[:count], BATCH, size):
        normalized = normalize(batch["image"], model.mean, model.std)
        more_same, more = task.agreement(model(normalized), half(_round(normalized)))
        same, total = same + more_same, total + more
    return same / total if total else 1.0


def _rounded(model: TaskModel) -> nn.Module:
    half = deepcopy(model)
    for parameter in half.parameters():
        parameter.copy_(_round(parameter))
    for module in half.modules():
        if not any(module.children()):
            module.register_forward_hook(_round_output)
    return half


def _round_output(_: nn.Module, __: Any, output: Any) -> Any:
    return _round(output) if isinstance(output, Tensor) and output.is_floating_point() else output


def _round(values: Tensor) -> Tensor:
    return values.to(torch.float16).to(values.dtype)
