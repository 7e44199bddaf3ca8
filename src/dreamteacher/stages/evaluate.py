"""Compare the fine-tuned models on the untouched validation split: metrics over seeds, frozen probes, pictures."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.distillation.drawing import draw_features
from dreamteacher.errors import UserError
from dreamteacher.files import read_note, replace_file
from dreamteacher.report.figures import save_bars, save_panels
from dreamteacher.report.run import METRICS, ROWS
from dreamteacher.report.summary import over_seeds
from dreamteacher.report.tables import write_table
from dreamteacher.settings.recipes import bases
from dreamteacher.settings.schema import Params
from dreamteacher.stage import RECORD, open_stage, read_stage
from dreamteacher.students.backbone import BACKBONE_FOLDER, create_backbone, load_backbone
from dreamteacher.students.regressor import REGRESSOR_FILE
from dreamteacher.tasks.base import Task, get_task
from dreamteacher.tasks.model import load_task_model
from dreamteacher.tasks.readout import read_out
from dreamteacher.tasks.scoring import score
from dreamteacher.training.checkpoint import writing
from dreamteacher.training.processes import this_process

log = logging.getLogger(__name__)
PCA_PICTURES = 4  # a generator's forward pass over whole pictures is slow, and a few pictures suffice


def run(
    params: Params,
    *,
    data: Path,
    teachers: Path,
    backbones: Path,
    finetuned: Path,
    out: Path,
    metrics: Path = Path("metrics/evaluate.json"),
    plots: Path = Path("plots/evaluate"),
    overwrite: bool = False,
) -> dict[str, float]:
    """Score every model of compare.inits and compare.seeds below `finetuned` (INIT/SEED) on the validation split of `data`.

    Their teachers and pretrained backbones are below `teachers` and `backbones`, by name.

    `out` gets metrics.json, per_model.csv, curves (finetune_loss.csv, teacher_loss/NAME.csv, distill_quality/RECIPE.csv), results.png,
    overlays/N.png and pca/RECIPE_N.png; when it is complete, `metrics` and `plots` get copies for `dvc metrics` and `dvc plots`.

    `metrics` is {init: {FIGURE_mean, FIGURE_std, n_seeds}}: the metrics of the task's `Score`, such as `miou` and `iou_CLASS`, and for
    scratch and recipes without labels the probes of the backbone before fine-tuning, `linear_` and `knn_` (see `readout.read_out`), if the
    task has classes of pixels or pictures. Masks are compared at their own size, for the probes at the size stored by ingest. The spread
    is the sample standard deviation over seeds, 0 for one seed.

    Returns:
        The same without per-class metrics, as INIT_FIGURE_mean and so on.

    Raises:
        UserError: a model is missing, the models were trained with different settings, the validation split has no labels, or `metrics` or
            `plots` are of another run and `overwrite` is not set; `out` may be complete then.
    """
    models = {(init, seed): finetuned / init / str(seed) for init in params.compare.inits for seed in params.compare.seeds}
    recorded = params.section("few_labels", "few_labels_by", "evaluate") | {"inits": params.compare.inits, "seeds": params.compare.seeds}
    pretrained = _pretrained(params, teachers, backbones)
    inputs = {"data": data}
    for recipe in pretrained:
        inputs |= {f"teachers/{recipe.teacher.name}": recipe.teacher} if recipe.teacher else {}
        inputs[f"backbones/{recipe.name}"] = recipe.backbone
    inputs |= {f"finetuned/{init}/{seed}": folder for (init, seed), folder in models.items()}
    trained, trained_on = _common_settings(models)
    with open_stage("evaluate", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            if not overwrite and not _may_be_ours(metrics, params):
                _refuse_to_replace(metrics, plots)
            if stage.inputs["data"] != trained_on:
                log.warning("the models were fine-tuned on another data set than %s, which may hold out pictures that they have seen", data)
            train, val = ImageSet(data, "train"), ImageSet(data, "val")
            if not val.labelled():
                raise UserError(f"the validation split of {data} has no labels; give ingest.source some to compare models by")
            task = get_task(str(val.task))
            rows, predictions = _score(params, models, val)
            if task.classifies:
                _read_out(params, rows, models=models, size=trained["finetune"]["resolution"], pretrained=pretrained, train=train, val=val)
            results = over_seeds(rows)
            write_table(rows, stage.tmp / ROWS)
            (stage.tmp / METRICS).write_text(json.dumps(results, indent=1) + "\n")
            of_init = {init: [row[task.figure] for row in rows if row["init"] == init] for init in results}
            save_bars(of_init, task.title, stage.tmp / "results.png")
            _write_curves(models, pretrained, stage.tmp)
            _draw_predictions(task, val, predictions, stage.tmp / "overlays")
            shown = _spread_over(val, min(PCA_PICTURES, params.evaluate.overlays))
            for recipe in pretrained if shown else []:
                if recipe.teacher and (recipe.backbone / REGRESSOR_FILE).exists():  # only feature distillation writes it
                    drawn = draw_features(val, shown, recipe.teacher, recipe.backbone, this_process().device)
                    for number, picture in enumerate(drawn):
                        save_panels(picture, stage.tmp / "pca" / f"{recipe.name}_{number}.png")
            for name in ("results.png", "overlays"):
                if (stage.tmp / name).exists():
                    stage.tracker.artifact(stage.tmp / name)
            stage.metrics = {
                f"{init}_{key}": float(value)
                for init, figures in results.items()
                for key, value in figures.items()
                if key.removesuffix("_mean").removesuffix("_std") in (*(f"{of}{task.figure}" for of in ("", "linear_", "knn_")), "n_seeds")
            }
    if not overwrite:
        _refuse_to_replace(metrics, plots, by=out)
    copy_results(out, metrics, plots)
    return stage.metrics


@dataclass(frozen=True)
class _Pretrained:
    """A recipe without labels: its name, and the folders of its teacher, if it has one, and its backbone."""

    name: str
    teacher: Path | None
    backbone: Path


def _pretrained(params: Params, teachers: Path, backbones: Path) -> list[_Pretrained]:
    """The recipes without labels among the compared initialisations, or that these build on."""
    found = []
    for name in bases(params):
        teacher = params.recipes[name].one_teacher
        found.append(_Pretrained(name, teachers / teacher if teacher else None, backbones / name))
    return found


def _may_be_ours(metrics: Path, params: Params) -> bool:
    """Whether `metrics` has the same models, as after the loss of `out`; whether they are equal shows once they are computed."""
    models = {init: len(params.compare.seeds) for init in params.compare.inits}
    found = read_note(metrics)
    return {init: figures.get("n_seeds") for init, figures in found.items() if isinstance(figures, dict)} == models


def _refuse_to_replace(metrics: Path, plots: Path, by: Path | None = None) -> None:
    """Raises UserError if `metrics` or `plots` are not those of the finished output `by`."""
    same = by is not None and (not metrics.exists() or metrics.read_bytes() == (by / METRICS).read_bytes())
    taken = next((place for place in (metrics, plots) if place.exists()), None)
    if taken and not same:
        raise UserError(f"{taken} holds the result of another run; name another --metrics and --plots, or give --overwrite to replace it")


def _common_settings(models: dict[tuple[Any, int], Path]) -> tuple[dict[str, Any], str]:
    """The common settings of all models, of which only the student may differ, by recipe, and the digest of their data.

    Raises:
        UserError: a model is missing, or has other settings or data than the first, so that they cannot be compared.
    """
    first: tuple[Path, Any] | None = None
    for folder in models.values():
        record = read_stage(folder)
        made = {key: value for key, value in record["params"].items() if key not in ("init", "seed", "student")}, record["inputs"]["data"]
        first = first or (folder, made)
        if made != first[1]:
            raise UserError(f"{folder} was trained with other settings or data than {first[0]}; run `dreamteacher finetune` again for it")
    assert first
    return first[1]


def _spread_over(val: ImageSet, count: int) -> list[int]:
    """Up to `count` labelled pictures, spread over the split."""
    labelled = val.labelled()
    count = min(count, len(labelled))
    return [labelled[i * len(labelled) // count] for i in range(count)]


def _score(params: Params, models: dict[tuple[Any, int], Path], val: ImageSet) -> tuple[list[dict[str, Any]], dict[str, dict[int, Any]]]:
    """A row of metrics for each model, and the predictions of each init's first seed for the drawn pictures."""
    shown = _spread_over(val, params.evaluate.overlays)
    rows: list[dict[str, Any]] = []
    predictions: dict[str, dict[int, Any]] = {}
    for (init, seed), folder in models.items():
        figures, kept = score(load_task_model(folder), val, params.evaluate.batch_size, this_process().device, keep=shown)
        log.info("evaluate: %s %s: %s %.3f", init, seed, *next(iter(figures.items())))
        rows.append({"init": init, "seed": seed, **figures})
        predictions.setdefault(init, kept)
    return rows, predictions


def _read_out(
    params: Params,
    rows: list[dict[str, Any]],
    *,
    models: dict[tuple[Any, int], Path],
    size: int,
    pretrained: list[_Pretrained],
    train: ImageSet,
    val: ImageSet,
) -> None:
    """Add probes of the initial backbone to the rows of scratch and recipes without labels."""
    backbones = {recipe.name: recipe.backbone for recipe in pretrained}
    for row in rows:
        if row["init"] == "scratch":
            torch.manual_seed(row["seed"])
            student = read_stage(models["scratch", row["seed"]])["params"]["student"]
            backbone = create_backbone(student["backbone"], finest=student["finest_stride"])
        elif row["init"] in backbones:
            backbone = load_backbone(backbones[row["init"]] / BACKBONE_FOLDER)
        else:
            continue
        few = few_labelled(train, params.few_labels, row["seed"], params.few_labels_by)
        settings, device = params.evaluate, this_process().device
        figures = read_out(backbone, train, few, val, size=size, k=settings.knn_k, batch_size=settings.batch_size, device=device)
        words = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        log.info("evaluate: %s %s, frozen: %s", row["init"], row["seed"], words)
        row.update(figures)


def _write_curves(models: dict[tuple[Any, int], Path], pretrained: list[_Pretrained], folder: Path) -> None:
    """The stages' curves for `dvc plots`: without gaps; for fine-tuning a column per init, its mean over seeds."""
    losses: dict[str, dict[str, list[float]]] = {}
    for (init, _), model in models.items():
        for row in _curve(model, ["loss"]):
            losses.setdefault(row["step"], {}).setdefault(init, []).append(float(row["loss"]))
    inits = dict.fromkeys(init for init, _ in models)
    columns = ((step, {init: fmean(of[init]) if init in of else "" for init in inits}) for step, of in losses.items())
    write_table([{"step": step, **means} for step, means in columns], folder / "finetune_loss.csv")
    for recipe in pretrained:
        curves = [("distill_quality", recipe.name, recipe.backbone, "explained_variance")]
        if recipe.teacher:
            curves.append(("teacher_loss", recipe.teacher.name, recipe.teacher, "loss"))
        for curve, name, of, column in curves:
            if rows := _curve(of, [column]):  # no explained variance: distill.method is not features
                (folder / curve).mkdir(exist_ok=True)
                write_table(rows, folder / curve / f"{name}.csv")


def _curve(folder: Path, columns: list[str]) -> list[dict[str, str]]:
    """The records of a stage's curves.csv that have all of `columns`."""
    with (folder / "curves.csv").open(newline="") as file:
        return [{name: row[name] for name in ("step", *columns)} for row in csv.DictReader(file) if all(row.get(name) for name in columns)]


def _draw_predictions(task: Task, val: ImageSet, predictions: dict[str, dict[int, Any]], folder: Path) -> None:
    """For each picture its label and predictions."""
    for number, index in enumerate(sorted(next(iter(predictions.values())))):
        sample = val.read(index)
        labels: dict[str, Any] = {"truth": sample.label, **{init: kept[index] for init, kept in predictions.items()}}
        save_panels([task.draw(sample.image, labels, val.classes)], folder / f"{number}.png")


def copy_results(out: Path, metrics: Path, plots: Path) -> None:
    """Copy an evaluation's metrics and plots if missing or different, each file atomically; remove files that it does not have."""
    files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file() and path.name not in (RECORD, METRICS)]
    _copy(out / METRICS, metrics)
    for file in files:
        _copy(out / file, plots / file)
    for left in [*plots.glob("*/*.png"), *plots.glob("*/*.csv")]:
        if left.relative_to(plots) not in files:
            left.unlink()


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
