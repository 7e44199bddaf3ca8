"""Feature distillation: the backbone, through the feature regressor, learns the frozen generator's decoder features (Sec 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.features import FeatureObjective, Quality, embedding_spread, feature_objective, student_options
from dreamteacher.distillation.whitening import fit_whitening, save_statistics
from dreamteacher.errors import UserError
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import Distill, Params
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.neck import FeatureRegressor, load_regressor, save_regressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.base import Teacher
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.training.loop import train
from dreamteacher.training.order import draw_batches
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom, derive_seed

COLLAPSED = 0.02


def run(
    params: Params,
    *,
    data: Path,
    teacher: Path,
    out: Path,
    recipe: str = "features",
    start: Path | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Distil `teacher` on the train split of `data`; `out` gets `backbone/`, the regressor, `curves.csv`.

    `recipe` is its name in the settings. `start` is an earlier output of this stage for the same backbone and taps, whose weights it goes
    on from instead of random ones.

    Returns:
        `explained_variance` of the whitened targets on held-out unlabelled pictures, also by tap, and `embedding_spread`.
    """
    settings = params.distill
    recorded = {**params.section("seed", "taps", "student", "distill"), "recipe": recipe}
    inputs = {"data": data, "teacher": teacher} | ({"start": start} if start else {})
    with open_stage("distill-features", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        device = this_process().device
        generator = open_teacher(teacher, choose_strides(teacher, params.taps), get_encoding(settings)).to(device)
        torch.manual_seed(params.seed)
        channels, strides = [tap.channels for tap in generator.taps], [tap.stride for tap in generator.taps]
        backbone = create_backbone(params.student.backbone, finest=params.student.finest_stride)
        shape = params.student.width, params.student.neck
        regressor = FeatureRegressor(backbone, channels, strides, *shape, **student_options(settings))
        if start:
            _go_on_from(start, regressor)
        mean, std = regressor.backbone.mean, regressor.backbone.std
        samples, held_out = hold_out(ImageSet(data, "train"), settings.monitor_images, settings.resolution, params.seed)

        measured_on = draw_batches(samples, settings.stats_images, params.seed, device)
        whiten, statistics = fit_whitening(settings.whitening, generator, measured_on, params.seed, stage.checkpoints)
        objective = feature_objective(settings, whiten, generator.taps)

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            lesson = generator.teach(batch["image"], random)
            return objective(model(normalize(lesson.images, mean, std), lesson.step), lesson.features)

        trained = train(
            regressor,
            step,
            samples,
            settings,
            stage,
            seed=params.seed,
            on_eval=_monitor(generator, held_out, settings, objective),
            eval_every=settings.monitor_every,
        )
        student = trained.ema or trained.model
        assert isinstance(student, FeatureRegressor)
        if this_process().is_main_process:
            save_regressor(student, stage.tmp)
            save_statistics(statistics, stage.tmp)
            write_table(trained.history, stage.tmp / "curves.csv")
        stage.metrics.update(
            {k: v for k, v in trained.history[-1].items() if k.startswith("ev_") or k in ("explained_variance", "embedding_spread")}
        )
    return stage.metrics


def _go_on_from(start: Path, regressor: FeatureRegressor) -> None:
    try:
        regressor.load_state_dict(load_regressor(start).state_dict())
    except RuntimeError as error:
        raise UserError(f"{start} has another backbone, neck or taps than the settings say; start from one alike, or without") from error


def hold_out(images: ImageSet, count: int, resolution: int, seed: int) -> tuple[Samples, Samples]:
    """The train split without, and only, `count` pictures for the label-free quality signal.

    Raises:
        UserError: fewer pictures would be left to train on than are held out.
    """
    if len(images) < 2 * count:
        raise UserError(f"{len(images)} train pictures are too few to hold {count} out; lower distill.monitor_images")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, "hold-out"))).tolist()
    crop = pretrain_crop(resolution)
    return Samples(images, crop, sorted(order[count:])), Samples(images, crop, sorted(order[:count]))


def _monitor(
    generator: Teacher, held_out: Samples, settings: Distill, objective: FeatureObjective
) -> Callable[[nn.Module, int], dict[str, float]]:
    """Explained variance and collapse on the same held-out crops and noise each time, in parts no larger than those of training."""
    images = torch.stack([held_out[(i, i)]["image"] for i in range(len(held_out))])
    at_once = max(1, settings.batch_size // settings.accumulate)
    parts = next(parts for parts in range(1, len(images) + 1) if len(images) % parts == 0 and len(images) // parts <= at_once)

    @torch.no_grad()
    def measure(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, FeatureRegressor)
        device = next(model.parameters()).device
        quality, embeddings = Quality(generator.taps), []
        for part, batch in enumerate(images.chunk(parts)):
            lesson = generator.teach(batch.to(device), StepRandom(0, 0, part, parts, device))
            pyramid = model.backbone(normalize(lesson.images, model.backbone.mean, model.backbone.std))
            embeddings.append(model.backbone.embed(pyramid))
            regressed = model.regress(pyramid, lesson.images.shape[2:], lesson.step)
            quality.update(*objective.compared(regressed, lesson.features))
        spread = embedding_spread(torch.cat(embeddings))
        if spread < COLLAPSED:
            print(
                f"warning: step {step}: the backbone gives all pictures nearly the same embedding (spread {spread:.3f}); lower distill.lr"
            )
        return {**quality.compute(), "embedding_spread": spread}

    return measure
