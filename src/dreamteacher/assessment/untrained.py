"""Baselines without training: a constant prediction, and probes of random weights."""

from __future__ import annotations

from statistics import fmean, stdev

import torch

from dreamteacher.assessment.draws import Draws
from dreamteacher.data.dataset import label_tensor
from dreamteacher.data.items import IGNORE
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.readout import read_out


def constant_prediction(draws: Draws) -> float | None:
    """The metric of always predicting the most frequent class of the few labels; None for tasks that do not classify."""
    images, task = draws.images, get_task(str(draws.images.task))
    if not task.classifies:
        return None
    seen = torch.zeros(len(images.classes), dtype=torch.long)
    for index in draws.few_of(0, draws.measured):
        label = label_tensor(images.label(index))
        seen += torch.bincount(label[label != IGNORE].flatten(), minlength=len(images.classes))  # type: ignore[index]
    total = task.score(images.classes)
    for index in draws.held_out(0):
        truth = label_tensor(images.full_size_label(index))
        total.update(torch.full_like(truth, int(seen.argmax())), truth)  # type: ignore[arg-type]
    return total.compute().get(task.figure)


def random_weights(params: Params, draws: Draws, count: int, device: torch.device) -> dict[str, tuple[float, float]] | None:
    """{"linear", "kNN": (mean, standard deviation)} over `count` draws of weights and labels; None for tasks that do not classify."""
    images, task = draws.images, get_task(str(draws.images.task))
    if not task.classifies:
        return None
    rows = []
    for draw in range(count):
        torch.manual_seed(draw)
        rows.append(
            read_out(
                create_backbone(params.student.backbone, finest=params.student.finest_stride),
                images,
                draws.few_of(draw, draws.measured),
                images,
                size=params.finetune.resolution,
                k=params.evaluate.knn_k,
                batch_size=params.evaluate.batch_size,
                device=device,
                among=draws.held_out(draw),
            )
        )
    values = {name: [row[f"{key}_{task.figure}"] for row in rows] for name, key in (("linear", "linear"), ("kNN", "knn"))}
    return {name: (fmean(of_draws), stdev(of_draws)) for name, of_draws in values.items()}
