"""Estimated seconds of each stage on this machine: a few real training steps, timed, times the number of steps."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, get_method
from dreamteacher.project.machine import Speed, step_seconds
from dreamteacher.settings.presets import UNTRAINED_KINDS
from dreamteacher.settings.recipes import of_recipe, of_teacher
from dreamteacher.settings.schema import ALL_TEACHERS, Params
from dreamteacher.students.backbone import create_backbone
from dreamteacher.teachers.folder import find_pretrained, get_kind
from dreamteacher.training.randomness import StepRandom

START = 10.0  # seconds of a stage besides its steps
MEASURED = 16  # maximum pictures of a timed step


@dataclass(frozen=True)
class StageCost:
    """Seconds of a stage, for all `times` that the chain runs it (for example per seed); None: not measurable, because of `why`."""

    name: str
    seconds: float | None
    times: int = 1
    why: str = ""


def rough_duration(seconds: float) -> str:
    """An estimate in the largest fitting unit: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def picture_seconds(params: Params, speed: Speed) -> dict[str, float]:
    """Seconds per picture of a training step, by group of settings.

    teacher and distill are measured. The others are estimated from them: the generator's forward pass is a third of its training,
    the interpreter trains on that, label distillation is feature distillation with a head, and fine-tuning has no generator, but a head.
    """

    def area(group: str) -> float:
        return float((getattr(params, group).resolution / params.distill.resolution) ** 2)

    generator = speed.teacher / 3 * (params.distill.resolution / params.teacher.resolution) ** 2
    return {
        "teacher": speed.teacher,
        "distill": speed.features,
        "interpreter": 1.5 * generator * area("interpreter"),
        "labels": 1.3 * speed.features,
        "finetune": max(speed.features - generator, speed.features / 3) * area("finetune"),
    }


def stage_costs(params: Params, images: ImageSet, device: torch.device, with_labels: bool = True) -> list[StageCost]:
    """Costs of the pretraining stages, in order of the chain: teachers, recipes and, `with_labels`, interpreters and label recipes."""
    seeds, costs = len(params.compare.seeds), []
    with tempfile.TemporaryDirectory() as scratch:
        teachers: dict[str, tuple[float | None, str]] = {}  # seconds per picture of its training, or why not measurable
        for name in params.teachers:
            own = of_teacher(params, name)
            try:
                teachers[name] = _prepare_teacher(own, Path(scratch) / "teachers" / name, device), ""
            except UserError as error:
                teachers[name] = None, str(error)
            taken = own.teacher.pretrained or own.teacher.kind in UNTRAINED_KINDS
            costs.append(_cost(f"train-teacher {name}", 0.0 if taken else teachers[name][0], own.teacher, 1, teachers[name][1]))
        speeds: dict[str, Speed | None] = {}
        for name, recipe in params.recipes.items():
            own = of_recipe(params, name)
            of_one = teachers[recipe.one_teacher] if recipe.one_teacher else (None, "")
            seconds, why = None, of_one[1]
            if not why:
                folder = Path(scratch) / "teachers"
                place = folder if recipe.teacher == ALL_TEACHERS else folder / str(recipe.one_teacher)
                try:
                    seconds = _method_seconds(own, place, images, Path(scratch) / name, device)
                except UserError as error:
                    why = str(error)
            speeds[name] = Speed(of_one[0] or seconds, seconds) if seconds is not None else None
            costs.append(_cost(f"distill-features {name}", seconds, own.distill, 1, why))
    for name, recipe_with in params.label_recipes.items() if with_labels else ():
        own, speed = of_recipe(params, name), speeds[recipe_with.features]
        each = picture_seconds(own, speed) if speed else {}
        why = "" if speed else f"recipe {recipe_with.features} is not measured"
        costs.append(_cost(f"train-interpreter {name}", each.get("interpreter"), own.interpreter, seeds, why))
        costs.append(_cost(f"distill-labels {name}", each.get("labels"), own.labels, seeds, why))
    return costs


def _cost(name: str, picture: float | None, settings: object, times: int, why: str) -> StageCost:
    if picture is None:
        return StageCost(name, None, times, why or "this kind is only imported")
    steps, batch = settings.steps, settings.batch_size  # type: ignore[attr-defined]
    return StageCost(name, times * (START + picture * steps * batch), times)


def _prepare_teacher(params: Params, folder: Path, device: torch.device) -> float | None:
    """Write a teacher as in `params` to `folder`, for timing recipes, and time a step of its training.

    Returns:
        Seconds per picture; None for kinds that are not trained here.

    Raises:
        UserError: the teacher is missing, or cannot be built.
    """
    settings = params.teacher
    folder.parent.mkdir(parents=True, exist_ok=True)
    if settings.pretrained:
        folder.symlink_to(find_pretrained(settings.pretrained).absolute())
    kind = get_kind(settings.kind)
    if not hasattr(kind, "Generator"):
        return None
    generator = kind.Generator(settings)
    network = generator.build()
    if not settings.pretrained:
        folder.mkdir()
        generator.save(network, folder, {"resolution": settings.resolution})
    if not generator.trains:
        return None
    network.to(device)
    some = min(MEASURED, settings.batch_size)
    crops = torch.rand(some, 3, settings.resolution, settings.resolution, device=device)
    random = StepRandom(0, 0, 0, 1, device)
    return step_seconds(lambda: generator.loss(network, crops, random)["loss"], network, device) / some


def _method_seconds(params: Params, teacher: Path, images: ImageSet, scratch: Path, device: torch.device) -> float:
    """Seconds per picture of a step of distill.method.

    Raises:
        UserError: method, teacher and student do not fit together.
    """
    # Without the whitening measurement: it takes only seconds, and does not change a step.
    params = params.model_copy(update={"distill": params.distill.model_copy(update={"whitening": "layernorm", "stats_images": 2})})
    kind = get_method(params.distill.method)
    scratch.mkdir()
    method: Method = kind(params, teacher if kind.needs_teacher else None, scratch, device)
    samples = Samples(images, method.transform())
    network = method.build(create_backbone(params.student.backbone, finest=params.student.finest_stride), samples).train().to(device)
    some = min(MEASURED, params.distill.batch_size)
    items = [samples[i % len(samples), i] for i in range(some)]
    batch = {key: torch.stack([item[key] for item in items]).to(device) for key in items[0] if key != "label"}
    random = StepRandom(0, 0, 0, 1, device)

    def loss() -> Tensor:
        return method.loss(cast(nn.Module, network), batch, random)["loss"]

    return step_seconds(loss, network, device) / some
