"""Label distillation: the interpreter's soft labels for all pictures, alone (Eq 5) or mixed with feature distillation (Eq 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.features import create_regressor, feature_objective, student_options
from dreamteacher.distillation.interpreter import load_interpreter
from dreamteacher.distillation.mix import MixStudent
from dreamteacher.distillation.objectives import soft_label_cross_entropy, soft_label_dice
from dreamteacher.distillation.whitening import layernorm, load_whitening
from dreamteacher.errors import UserError
from dreamteacher.report.tables import write_table
from dreamteacher.settings.pretraining import Labels, Student
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage, read_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor, load_regressor
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import TaskModel, normalize, save_task_model
from dreamteacher.tasks.unseen import require_labels
from dreamteacher.teachers.base import Tap, Teacher
from dreamteacher.teachers.diffusion import DenoisingTeacher
from dreamteacher.teachers.encodings import Dream, Inversion, Stochastic, encoding_of_pictures, get_encoding
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.training.loop import train
from dreamteacher.training.precision import move_frozen
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom


def run(
    params: Params,
    *,
    data: Path,
    teacher: Path,
    features: Path,
    interpreter: Path,
    seed: int,
    out: Path,
    recipe: str = "mix",
    overwrite: bool = False,
) -> dict[str, float]:
    """Distil on the train split of `data`; `out` gets a task model (`backbone/`, `head.safetensors`, `task.json`) and `curves.csv`.

    `recipe` is its name in the settings. With `labels.start = features` backbone and neck start from those of `features`.

    Returns:
        `loss` and its terms over the last log records.
    """
    settings = params.labels
    recorded = {**params.section("taps", "student", "distill", "labels"), "recipe": recipe, "seed": seed}
    inputs = {"data": data, "teacher": teacher, "features": features, "interpreter": interpreter}
    with open_stage("distill-labels", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        reader, facts = load_interpreter(interpreter)
        device = this_process().device
        generator = open_teacher(teacher, choose_strides(teacher, params.taps), get_encoding(facts["encoding"]), device)
        regressed_from = generator.with_encoding(encoding_of_pictures(params.distill))
        dreamer = _dreaming(generator, settings) if settings.dreams else generator
        reader = move_frozen(reader, device)
        images = ImageSet(data, "train")
        _check_interpreter(interpreter, facts, data, stage.inputs["data"], images=images, taps=generator.taps)
        torch.manual_seed(seed)
        student = _build_student(params, images, generator.taps, features)
        mean, std = student.task.mean, student.task.std
        whiten = load_whitening(params.distill.whitening, features, generator.taps) if settings.mode == "mix" else layernorm
        objective = feature_objective(params.distill, whiten, generator.taps)

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            # A share of the steps: those at which floor(step x share) increases.
            source = dreamer if int((random.step + 1) * settings.dreams) > int(random.step * settings.dreams) else generator
            lesson = source.teach(batch["image"], random)
            with torch.no_grad():
                soft = reader(lesson.features, tuple(lesson.images.shape[2:]))
            taught = lesson
            if settings.mode == "mix" and regressed_from.encoding != source.encoding:
                again = regressed_from.teach(lesson.images, random)
                taught = again if again.images is lesson.images else lesson  # a GAN has generated other pictures this time
            logits, regressed = model(normalize(lesson.images, mean, std), taught.step)
            labels = soft_label_cross_entropy(logits, soft, settings.tau)
            if settings.dice_weight and reader.dense:
                labels = labels + settings.dice_weight * soft_label_dice(logits, soft)
            if not regressed:
                return {"loss": labels}
            losses = objective(regressed, taught.features)
            return {**losses, "loss": losses["loss"] + settings.label_weight * labels, "labels": labels}

        trained = train(
            student,
            step,
            Samples(images, pretrain_crop(params.distill.resolution)),
            settings,
            stage,
            seed=seed,
        )
        if this_process().is_main_process:
            save_task_model(cast(MixStudent, trained.ema or trained.model).task, stage.tmp)
            write_table(trained.history, stage.tmp / "curves.csv")
        stage.metrics.update({k: v for k, v in trained.history[-1].items() if k in ("loss", *params.distill.objectives, "labels")})
    return stage.metrics


def _dreaming(generator: Teacher, settings: Labels) -> Teacher:
    """The generator with the encoding `dream`, for features at the interpreter's noise step.

    Raises:
        UserError: it cannot generate pictures, or the interpreter does not use a single noise step.
    """
    if not isinstance(generator, DenoisingTeacher):
        raise UserError("labels.dreams needs a teacher that is a diffusion model, which makes pictures of noise; set it to 0")
    if not isinstance(generator.encoding, (Stochastic, Inversion)):
        raise UserError("labels.dreams needs an interpreter of one noise step; set it to 0, or interpreter.encoding to stochastic")
    return generator.with_encoding(Dream(generator.encoding.T, settings.passes))


def _check_interpreter(interpreter: Path, facts: dict[str, Any], data: Path, digest: str, *, images: ImageSet, taps: list[Tap]) -> None:
    """Check that the interpreter has these taps and was trained with `data`, whose classes it numbers; `digest`: of the data.

    Raises:
        UserError: it does not.
    """
    task = require_labels(images, data, "distil labels")
    classifies, classes = "pixels" if facts["shape"]["dense"] else "pictures", facts["shape"]["classes"]
    if (classifies, classes) != (get_task(task).classifies, len(images.classes)):
        trained = f"{classes} classes of {'segmentation' if facts['shape']['dense'] else 'classification'}"
        found = f"{len(images.classes)} classes of {task}"
        raise UserError(f"{interpreter} was trained for {trained}, {data} has {found}; run `dreamteacher train-interpreter` with this data")
    if read_stage(interpreter)["inputs"]["data"] != digest:  # it records no names of classes, which may be others or in another order
        raise UserError(
            f"{interpreter} was trained with another data set than {data}, and its classes may be others; "
            "run `dreamteacher train-interpreter` with this data"
        )
    _check_taps(interpreter, "train-interpreter", facts["strides"], facts["shape"]["tap_channels"], taps)


def _check_features(features: Path, start: FeatureRegressor, params: Params, taps: list[Tap]) -> None:
    """Check that the features were distilled into the student of the settings, from these taps.

    Raises:
        UserError: they were not.
    """
    distilled = read_stage(features)["params"]["student"]
    for name, wanted in params.student:
        if (found := distilled.get(name, Student.model_fields[name].default)) != wanted:  # the default of a setting added later
            raise UserError(
                f"{features} was distilled with student.{name} = {found!r}, the settings say {wanted!r}; "
                "run `dreamteacher distill-features` with these settings, or set labels.start = fresh"
            )
    _check_taps(features, "distill-features", start.facts["tap_strides"], start.facts["tap_channels"], taps)
    if any(start.facts.get(name, False) != wanted for name, wanted in student_options(params.distill).items()):
        raise UserError(
            f"{features} was distilled with heads for another distill.encoding or another term `global` of distill.objectives; "
            "run `dreamteacher distill-features` with these settings, or set labels.start = fresh"
        )


def _check_taps(folder: Path, stage: str, strides: list[int], channels: list[int], taps: list[Tap]) -> None:
    wanted = [tap.stride for tap in taps]
    if strides != wanted:
        raise UserError(f"{folder} was made with taps {strides}, here they are {wanted}; run `dreamteacher {stage}` with the same taps")
    if channels != [tap.channels for tap in taps]:
        raise UserError(f"{folder} was made with a teacher of another size; run `dreamteacher {stage}` with this one")


def _build_student(params: Params, images: ImageSet, taps: list[Tap], features: Path) -> MixStudent:
    start = load_regressor(features) if params.labels.start == "features" else None
    if start:
        _check_features(features, start, params, taps)
    backbone = start.backbone if start else create_backbone(params.student.backbone, finest=params.student.finest_stride)
    width, neck = params.student.width, params.student.neck
    task = TaskModel(backbone, cast(str, images.task), images.classes, params.distill.resolution, width, neck=neck)
    regressor = start or create_regressor(backbone, taps, params.student, params.distill)
    return MixStudent(task, regressor, regress=params.labels.mode == "mix").train()
