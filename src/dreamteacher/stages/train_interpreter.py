"""Train the feature interpreter on the frozen generator's features from the few labels (Sec 3.2, Eq 4)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples, collate, few_labelled
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.interpreter import FeatureInterpreter, save_interpreter
from dreamteacher.errors import UserError
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.tasks.unseen import check_labels, require_labels
from dreamteacher.teachers.base import Teacher, dreams
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom, derive_seed

log = logging.getLogger(__name__)

MEASURED = 256  # maximum number of validation pictures for measuring the interpreter


def run(
    params: Params, *, data: Path, teacher: Path, seed: int, out: Path, recipe: str = "mix", overwrite: bool = False
) -> dict[str, float]:
    """Train on the few labelled pictures that `seed` draws; `out` gets `interpreter.safetensors`, `interpreter.json`, `curves.csv`.

    `recipe` is the name of the label recipe in the settings.

    Returns:
        `loss` over the last log records, `n_labels`, the number of labelled pictures, and val_FIGURE (`val_miou`, `val_top1`), the
        interpreter's metric on crops of labelled validation pictures, if any: a student learns little beyond that from soft labels.

    Raises:
        UserError: the data has no labels, or none with classes, or the teacher cannot encode pictures.
    """
    settings = params.interpreter
    recorded = {**params.section("few_labels", "few_labels_by", "taps", "interpreter"), "recipe": recipe, "seed": seed}
    inputs = {"data": data, "teacher": teacher}
    with open_stage("train-interpreter", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        images = ImageSet(data, "train")
        task = get_task(require_labels(images, data, "train an interpreter"))
        if task.classifies is None:
            raise UserError(
                f"{images.task} predicts no classes that an interpreter could read; drop label_recipes, and them from compare.inits"
            )
        strides = choose_strides(teacher, params.taps)
        generator = open_teacher(teacher, strides, get_encoding(settings), this_process().device)
        if dreams(generator):
            raise UserError(
                f"{teacher} makes pictures of its own and cannot encode labelled ones, so there is no label for its features; "
                "drop label_recipes, and them from compare.inits, or take a teacher that encodes pictures"
            )
        few = few_labelled(images, params.few_labels, seed, params.few_labels_by)
        check_labels(images, few)
        torch.manual_seed(seed)
        channels, dense = [tap.channels for tap in generator.taps], task.classifies == "pixels"
        interpreter = FeatureInterpreter(channels, len(images.classes), settings.width, settings.dropout, dense)

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            lesson = generator.teach(batch["image"], random)
            return task.loss(model(lesson.features, tuple(lesson.images.shape[2:])), batch, settings)

        trained = train(
            interpreter,
            step,
            Samples(images, pretrain_crop(settings.resolution, settings.mirror), few),
            settings,
            stage,
            seed=seed,
            count=task.count,
        )
        stage.metrics.update(loss=trained.last_loss(), n_labels=len(few))
        if this_process().is_main_process:
            interpreter = cast(FeatureInterpreter, trained.ema or trained.model)
            save_interpreter(interpreter, strides, settings, stage.tmp)
            write_table(trained.history, stage.tmp / "curves.csv")
            val = ImageSet(data, "val")
            measured = val.labelled()[:: -(-len(val.labelled()) // MEASURED) or 1]
            crops = Samples(val, pretrain_crop(settings.resolution, settings.mirror), measured)
            if (value := _figure(interpreter, generator, task, crops, batch_size=settings.batch_size, seed=seed)) is not None:
                stage.metrics[f"val_{task.figure}"] = value
                log.info("train-interpreter %s %s: %s %.3f on validation crops", recipe, seed, task.figure, value)
    return stage.metrics


@torch.inference_mode()
def _figure(interpreter: FeatureInterpreter, generator: Teacher, task: Task, crops: Samples, *, batch_size: int, seed: int) -> float | None:
    """The task's metric in [0, 1] on labelled crops; None without labels."""
    totals, device = task.score(crops.images.classes), this_process().device
    interpreter = interpreter.eval().to(device)
    for start in range(0, len(crops), batch_size):
        chosen = range(start, min(start + batch_size, len(crops)))
        batch = collate([crops[i, derive_seed("interpreter's figure", seed, i)] for i in chosen])
        lesson = generator.teach(batch["image"].to(device), StepRandom(seed, start, 0, 1, device))
        size = (lesson.images.shape[2], lesson.images.shape[3])
        for logits, label in zip(interpreter(lesson.features, size), batch["label"], strict=True):
            totals.update(task.decode(logits, size, size), label)
    return totals.compute().get(task.figure)
