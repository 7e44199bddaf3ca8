"""Choose the noise step and the taps of a teacher before distillation, with or without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from dreamteacher.data.dataset import ImageSet, Samples, few_labelled
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.tuning import FOLDS, measure_shares, probe
from dreamteacher.errors import UserError
from dreamteacher.report.figures import save_curves
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.teachers.base import Teacher
from dreamteacher.teachers.encodings import Encoding, Inversion, Stochastic
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.training.order import draw_batches
from dreamteacher.training.processes import this_process

log = logging.getLogger(__name__)
SHARES = (0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # noise steps that `auto` tries, as shares of the schedule
PROBE_PICTURES, PROBE_CROPS = 64, 4  # maximum labelled pictures, and crops of each
WORTH = 0.5  # keep taps whose teachable share at the chosen step is at least this fraction of the best tap's
NEAR = 0.01  # steps whose score is this close to the best count as equally good: with few labels that much is noise
RISE = 0.05  # a curve has a peak if it rises above its start by more than this fraction of its range
SUGGESTION = "suggestion.txt"

Row = dict[str, float]  # T, stride and metrics of one tap at one step


def run(params: Params, *, data: Path, teacher: Path, out: Path, recipe: str = "features", overwrite: bool = False) -> dict[str, float]:
    """Measure `teacher` on the train split of `data`; `out` gets `tune.csv`, `tune.png` and `suggestion.txt`, which is printed.

    `recipe` is the recipe whose taps and distillation are tuned.

    The share of a tap's variance that is `teachable` (see `tuning.Shares`) falls with T as noise hides the picture, after a rise if the
    teacher knows more than colours. With enough labels for FOLDS, T is chosen by a cross-validated linear probe of each tap: of the steps
    as good as the best by its mean over taps, the one with the largest teachable share. Taps are chosen by that share alone, because a
    probe of single pixels favours fine taps, whatever context a coarse one has. The validation split is not used.

    Returns:
        `T`, and at it the mean over taps of `teachable` and, with labels, of `probe`; `monotone`, 1 if the deciding score only falls with
        T.

    Raises:
        UserError: a step is beyond the teacher's schedule, there are too few pictures, or data and teacher do not fit.
    """
    recorded = params.section("seed", "few_labels", "taps", "tune")
    recorded |= {
        "recipe": recipe,
        "resolution": params.distill.resolution,
        "encoding": params.distill.encoding,
        "passes": params.distill.passes,
    }
    with open_stage("tune", params=recorded, inputs={"data": data, "teacher": teacher}, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            images = ImageSet(data, "train")
            if len(images) < 2:
                raise UserError(f"{data} has {len(images)} train pictures, which is too few to choose by; ingest more")
            generator = open_teacher(teacher, choose_strides(teacher, params.taps), Stochastic(0), this_process().device)
            labelled = _labelled(params, images)
            rows = _measure(params, generator, images, labelled)
            best, taps, near, monotone = _choose(rows, "probe" if labelled else "teachable")
            write_table(rows, stage.tmp / "tune.csv")
            _draw(rows, best, get_task(str(images.task)).title if labelled else None, stage.tmp / "tune.png")
            (stage.tmp / SUGGESTION).write_text(_suggestion(best, taps, near, monotone, len(labelled)))
            at_best = [row for row in rows if row["T"] == best]
            stage.metrics = {"T": best, "monotone": float(monotone)}
            stage.metrics |= {name: fmean(row[name] for row in at_best) for name in ("teachable", "probe") if name in at_best[0]}
    if this_process().is_main_process:
        print((out / SUGGESTION).read_text(), end="")
    return stage.metrics


def _labelled(params: Params, images: ImageSet) -> list[int]:
    """The labelled pictures for the probe: those of `few_labels`; none if there are too few, or no classes."""
    if images.task is None or not get_task(images.task).classifies:
        return []
    few = few_labelled(images, min(params.few_labels or PROBE_PICTURES, PROBE_PICTURES, len(images.labelled())), params.seed)
    if len(few) < FOLDS:
        log.info("tune: %d labelled pictures are too few for a probe, which takes %d; chosen without labels", len(few), FOLDS)
        return []
    return few


def _measure(params: Params, generator: Teacher, images: ImageSet, labelled: list[int]) -> list[Row]:
    settings, device = params.tune, this_process().device
    crop = pretrain_crop(params.distill.resolution)
    some, few = Samples(images, crop), Samples(images, pretrain_crop(params.distill.resolution, params.interpreter.mirror), labelled)
    batches = list(draw_batches(some, settings.images, params.seed, device))
    if len(batches) < 2:  # two batches for cross-validation
        batches = list(batches[0].chunk(2))
    rows: list[Row] = []
    for T in sorted({round(share * params.teacher.T_train) for share in SHARES} if settings.T == "auto" else set(settings.T)):
        teacher = generator.with_encoding(_encoding(params, T))
        shares = measure_shares(teacher, batches, settings.noises, params.seed)
        read = probe(teacher, _task(images), few, images.classes, crops=PROBE_CROPS, seed=params.seed, device=device) if labelled else []
        for place, (tap, share) in enumerate(zip(teacher.taps, shares, strict=True)):
            figures = {"signal": share.signal, "pixels": share.pixels, "teachable": share.teachable}
            rows.append({"T": T, "stride": tap.stride, **figures, **({"probe": read[place]} if read else {})})
        log.info(
            "tune: T = %d: %s", T, ", ".join(f"{name} {_mean(rows, T, name):.3f}" for name in ("teachable", "probe") if name in rows[-1])
        )
    return rows


def _task(images: ImageSet) -> Task:
    return get_task(str(images.task))


def _encoding(params: Params, T: int) -> Encoding:
    """The encoding at T: deterministic if distillation's is, else stochastic."""
    return Inversion(T, params.distill.passes) if params.distill.encoding == "ddim" else Stochastic(T)


def _mean(rows: list[Row], T: float, score: str) -> float:
    return fmean(row[score] for row in rows if row["T"] == T)


def _choose(rows: list[Row], score: str) -> tuple[int, list[int], list[int], bool]:
    """The chosen step and taps; the steps as good as the best; whether the mean score over taps only falls with the step."""
    steps = sorted({int(row["T"]) for row in rows})
    means = [_mean(rows, T, score) for T in steps]
    near = [T for T, mean in zip(steps, means, strict=True) if mean >= max(means) - NEAR]
    chosen = max(near, key=lambda T: _mean(rows, T, "teachable"))
    share = {int(row["stride"]): row["teachable"] for row in rows if row["T"] == chosen}
    taps = [stride for stride, value in share.items() if value >= WORTH * max(share.values())]
    span = max(means) - min(means)
    return chosen, taps or sorted(share), near, span > NEAR and max(means) - means[0] <= RISE * span


def _draw(rows: list[Row], best: int, title: str | None, path: Path) -> None:
    """A curve over T for each tap: teachable share and, with labels, linear probe."""

    def curves(of: Callable[[Row], float]) -> dict[str, list[tuple[float, float]]]:
        strides = sorted({row["stride"] for row in rows})
        return {f"stride {stride:g}": [(row["T"], of(row)) for row in rows if row["stride"] == stride] for stride in strides}

    panels = {"teachable share of the variance": curves(lambda row: row["teachable"])}
    if title:
        panels[f"{title} of a linear probe"] = curves(lambda row: row["probe"])
    save_curves(panels, "noise step T", best, path)


def _suggestion(best: int, taps: list[int], near: list[int], monotone: bool, labels: int) -> str:
    by = f"a linear probe on {labels} labelled pictures" if labels else "the teachable share, without labels"
    lines = [f"chosen by {by}; steps that are as good: {', '.join(map(str, near))}"]
    if monotone:
        lines.append(
            "warning: the score falls with the noise from the first step on: a teacher that has memorised its pictures looks so (arXiv "
            "2502.05743), and one that has learned no more than edges; compare an earlier stop (fewer teacher.steps), or teacher.kind = edm"
        )
    return "\n".join([*lines, f"--set distill.T={best}", f"--set interpreter.T={best}", f"--set taps=[{','.join(map(str, taps))}]", ""])
