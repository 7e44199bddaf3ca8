"""Pretrain the backbone without labels, by distill.method: feature distillation (Sec 3.1) or a method to compare it with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, get_method
from dreamteacher.report.tables import write_table
from dreamteacher.settings.pretraining import Distill
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of, open_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom, derive_seed

log = logging.getLogger(__name__)

COLLAPSED = 0.02  # embedding spread below which the backbone has collapsed; also in report.learning
TAUGHT_BY = "taught_by.json"  # the teacher's digest; train-interpreter depends on it in dvc.yaml
NO_RESULT = {"step", "lr", "grad_norm"}  # columns of the curves that are not metrics of the backbone


def run(
    params: Params,
    *,
    data: Path,
    out: Path,
    teacher: Path | None = None,
    recipe: str = "features",
    start: Path | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Pretrain on the train split of `data`; `out` gets `backbone/`, `curves.csv` and further files of the method.

    `teacher` is only used by methods that need one, such as `features`. `recipe` is its name in the settings. `start` is an earlier
    output of this stage for the same backbone (and neck and taps, with `features`), from whose weights training continues.

    Returns:
        The last losses, `pictures` seen in training, `embedding_spread` on held-out unlabelled pictures and, for `features`, also
        `explained_variance` of the whitened targets, in total and by tap.

    Raises:
        UserError: the method needs a teacher and there is none, or the settings do not fit the teacher or the backbone.
    """
    settings = params.distill
    kind = get_method(settings.method)
    inputs = {"data": data} | ({"start": start} if start else {})
    if kind.needs_teacher and teacher is None:
        raise UserError(f"distill.method = {settings.method!r} needs --teacher: the output of train-teacher")
    inputs |= kind.inputs(params, teacher)
    recorded = {**params.section("seed", "taps", "student", "distill"), "recipe": recipe}
    with open_stage("distill-features", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        method = kind(params, teacher if kind.needs_teacher else None, stage.checkpoints, this_process().device)
        samples, held_out = hold_out(ImageSet(data, "train"), settings.monitor_images, settings.resolution, params.seed)
        torch.manual_seed(params.seed)
        model = method.build(create_backbone(params.student.backbone, finest=params.student.finest_stride), samples)
        if start:
            method.go_on_from(start, model)
        samples.transform = method.transform()
        trained = train(
            model,
            method.loss,
            samples,
            settings,
            stage,
            seed=params.seed,
            on_eval=_monitor(method, held_out, settings),
            eval_every=settings.monitor_every,
            after_step=method.after_step,
            kept=method.kept,
        )
        if this_process().is_main_process:
            method.save(trained.ema or method.kept(trained.model), stage.tmp)
            write_table(trained.history, stage.tmp / "curves.csv")
            if kind.needs_teacher and teacher and "teacher" in inputs:
                (stage.tmp / TAUGHT_BY).write_text(json.dumps({"teacher": digest_of(teacher)}) + "\n")
        stage.metrics.update({key: value for key, value in trained.history[-1].items() if key not in NO_RESULT})
        stage.metrics["pictures"] = settings.steps * settings.batch_size
    return stage.metrics


def hold_out(images: ImageSet, count: int, resolution: int, seed: int) -> tuple[Samples, Samples]:
    """The train split without `count` pictures, and these held-out pictures, for the label-free metrics.

    Raises:
        UserError: fewer pictures would be left to train on than are held out.
    """
    if len(images) < 2 * count:
        raise UserError(f"{len(images)} train pictures are too few to hold {count} out; lower distill.monitor_images")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, "hold-out"))).tolist()
    crop = pretrain_crop(resolution)
    return Samples(images, crop, sorted(order[count:])), Samples(images, crop, sorted(order[:count]))


def _monitor(method: Method, held_out: Samples, settings: Distill) -> Callable[[nn.Module, int], dict[str, float]]:
    """The method's metrics on the same held-out crops and noise each time, in parts no larger than those of training."""
    images = torch.stack([held_out[(i, i)]["image"] for i in range(len(held_out))])
    at_once = max(1, settings.batch_size // settings.accumulate)
    parts = next(parts for parts in range(1, len(images) + 1) if len(images) % parts == 0 and len(images) // parts <= at_once)

    @torch.no_grad()
    def measure(kept: nn.Module, step: int) -> dict[str, float]:
        device = next(kept.parameters()).device
        batches = ((batch.to(device), StepRandom(0, 0, part, parts, device)) for part, batch in enumerate(images.chunk(parts)))
        figures = method.measure(kept, batches)
        if (spread := figures["embedding_spread"]) < COLLAPSED:
            log.warning("step %d: the backbone gives all pictures nearly the same embedding (spread %.3f); lower distill.lr", step, spread)
        return figures

    return measure
