"""Fine-tune for the task from one initialisation, on the few labels, with the same budget for every initialisation."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples, few_labelled
from dreamteacher.data.transforms import AUGMENTATIONS
from dreamteacher.errors import UserError
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import FRESH, Params
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.finetuning import freeze_backbone, keep_statistics, pretrained_rates, start_from_features
from dreamteacher.tasks.model import TaskModel, is_task_model, load_task_model, normalize, save_task_model
from dreamteacher.tasks.unseen import check_labels, require_labels
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Place, Trained


def run(
    params: Params, *, data: Path, init: str, seed: int, out: Path, backbone: Path | None = None, overwrite: bool = False
) -> dict[str, float]:
    """Fine-tune on the few labelled pictures that `seed` draws; `out` gets a task model and `curves.csv`.

    Args:
        params: settings; `finetune`, `student`, `few_labels` and `few_labels_by` are read.
        data: data set made by ingest.
        init: scratch, imagenet, or the name of the recipe that made `backbone`.
        seed: seed of the few labels, the random weights and the sample order.
        out: output folder.
        backbone: output of distill-features, or of distill-labels, whose head is used too.
        overwrite: replace another result in `out`.

    Returns:
        `loss` over the last records and `n_labels`.
    """
    recorded = {**params.section("few_labels", "few_labels_by", "student", "finetune"), "init": init, "seed": seed}
    inputs = {"data": data} if backbone is None else {"data": data, "backbone": backbone}
    with open_stage("finetune", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        images = ImageSet(data, "train")
        require_labels(images, data, "fine-tune")
        few = few_labelled(images, params.few_labels, seed, params.few_labels_by)
        check_labels(images, few)
        trained = fit(params, images, few, init=init, seed=seed, backbone=backbone, place=stage)
        if this_process().is_main_process:
            save_task_model(cast(TaskModel, trained.ema or trained.model), stage.tmp)
            write_table(trained.history, stage.tmp / "curves.csv")
        stage.metrics.update(loss=trained.last_loss(), n_labels=len(few))
    return stage.metrics


def fit(params: Params, images: ImageSet, few: list[int], *, init: str, seed: int, place: Place, backbone: Path | None = None) -> Trained:
    """Train a task model on the labelled pictures `few` of `images`; `place` has its checkpoints.

    `init`, `seed` and `backbone` are those of `run`; `finetune` and `student` of the settings are read.
    """
    settings, task = params.finetune, get_task(str(images.task), params.finetune.head)
    torch.manual_seed(seed)
    task.check(images.classes, AUGMENTATIONS[settings.augment])
    model, pretrained = _build(params, images, init, backbone)
    mean, std = model.mean, model.std
    head_steps = 0 if init == "scratch" else settings.head_steps

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        freeze_backbone(model, random.step < head_steps)
        if settings.norm_eval:
            keep_statistics(model, pretrained)
        labels = [batch["label"]] if task.with_labels else []
        return task.loss(model(normalize(batch["image"], mean, std), *labels), batch, settings)

    return train(
        model,
        step,
        Samples(images, task.crop(settings.resolution, AUGMENTATIONS[settings.augment]), few),
        settings,
        place,
        seed=seed,
        count=task.count,
        rates=None if init == "scratch" else pretrained_rates(model, settings, distilled=init != "imagenet"),
    )


def _build(params: Params, images: ImageSet, init: str, folder: Path | None) -> tuple[TaskModel, list[str]]:
    """The model with the seed's random weights, the same for every init, then overwritten by those of `folder`; and the names of its
    pretrained modules ("": all)."""
    student = create_backbone(params.student.backbone, init == "imagenet", params.student.finest_stride)
    shape = params.finetune.resolution, params.student.width
    model = TaskModel(student, cast(str, images.task), images.classes, *shape, neck=params.student.neck, head=params.finetune.head)
    if init in FRESH:
        return model.train(), ["backbone"] if init == "imagenet" else []
    if folder is None:
        raise UserError(f"init {init} needs --backbone: the output of distill-features or distill-labels")
    with_head = is_task_model(folder)
    try:
        if with_head:
            labelled = load_task_model(folder)
            if labelled.classes != model.classes:
                raise RuntimeError("as many classes would fit, though others")
            model.load_state_dict(labelled.state_dict())
            pretrained = [""]
        else:
            pretrained = start_from_features(model, folder, params.finetune.carry_neck)
    except RuntimeError as error:
        maker = "distill-labels" if with_head else "distill-features"
        raise UserError(
            f"{folder} does not fit student.backbone = {params.student.backbone!r}, student.width = {params.student.width}, student.neck = "
            f"{params.student.neck!r} and the {len(images.classes)} classes of the data; run `dreamteacher {maker}` again with these"
        ) from error
    return model.train(), pretrained
