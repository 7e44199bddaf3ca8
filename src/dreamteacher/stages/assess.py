"""What pretraining will gain on this data set, what else would, and what it costs: told by short trainings from scratch, beforehand."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np
import torch

from dreamteacher.assessment.changes import Change, changes, shortened, with_settings
from dreamteacher.assessment.curve import Curve
from dreamteacher.assessment.curve import fit as fit_curve
from dreamteacher.assessment.plan import Plan, Point, Speed, make_plan, sizes
from dreamteacher.assessment.prediction import described, predict
from dreamteacher.assessment.verdict import duration, text, verdict
from dreamteacher.data.dataset import ImageSet, few_labelled, label_tensor
from dreamteacher.data.holdout import hold_out, is_crossed
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.project.cost import START, StageCost, stage_costs
from dreamteacher.project.machine import look
from dreamteacher.report.figures import save_curves
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import FRESH, Params
from dreamteacher.stage import Stage, digest_of, open_stage
from dreamteacher.stages.finetune import fit
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import NeckHead, Task, get_task
from dreamteacher.tasks.model import TaskModel
from dreamteacher.tasks.readout import read_out
from dreamteacher.tasks.scoring import score
from dreamteacher.tasks.unseen import check_labels
from dreamteacher.tracking import Tracker
from dreamteacher.training.checkpoint import writing
from dreamteacher.training.processes import this_process

log = logging.getLogger(__name__)
ASSESSMENT, TEXT = "assess.json", "assess.txt"
SECTIONS = ("few_labels", "student", "finetune", "assess", "compare", "evaluate",
            "taps", "teachers", "recipes", "label_recipes", "teacher", "distill", "interpreter", "labels")  # fmt: skip
TIMED_PICTURES = 4  # that are scored to time it
LONG = 5.0  # seconds of a training of one step, beyond which few more are timed


def run(params: Params, *, data: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Train from scratch on draws of the labelled train pictures of `data`; `out` gets assess.json, assess.txt, curve.csv and curve.png.

    Everything is measured on labelled train pictures that are held out (`data.holdout`): by the validation split the chain reports its
    results, and what was decided by it would look better there than it is. Each finished training is kept, by what it depends on, in
    `.checkpoints/assess/points`, so that a stopped assessment goes on, and another with more minutes repeats nothing.

    Returns:
        `scratch`, `double` (gain of twice the labels) and `expected_INIT` of what compare.inits names besides scratch.

    Raises:
        UserError: the data has no labels, or too few.
    """
    machine = look().line().removeprefix("machine: ")
    recorded = params.section(*SECTIONS) | {"machine": machine}  # which the cost is of
    with open_stage("assess", params=recorded, inputs={"data": data}, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            images = ImageSet(data, "train")
            if not images.labelled():
                raise UserError(_without_labels(params, images, data, machine))
            facts = _Assessment(params, images, data, stage).facts(machine)
            _write(facts, stage.tmp)
            stage.metrics = {"scratch": facts["scratch"], "double": facts["headroom"]["double"]}
            stage.metrics |= {f"expected_{init}": each["expected"] for init, each in facts["prediction"].items()}
    if this_process().is_main_process:
        print((out / TEXT).read_text(), end="")
    return stage.metrics


def _without_labels(params: Params, images: ImageSet, data: Path, machine: str) -> str:
    costs = stage_costs(params, images, this_process().device, with_labels=False)
    said = ", ".join(f"{cost.name} {duration(cost.seconds)}" for cost in costs if cost.seconds is not None)
    return (
        f"{data} has no labelled train pictures, so what pretraining gains cannot be told; label some and run `dreamteacher ingest`. "
        f"What it costs on {machine}: {said or 'not measured'}"
    )


@dataclass
class _Place:
    """Where a training of an assessment keeps its checkpoints; it is no run of its own to trackers."""

    title: str
    checkpoints: Path
    tracker: Tracker = field(default_factory=Tracker)


class _Assessment:
    """The trainings of one assessment, and what they tell."""

    def __init__(self, params: Params, images: ImageSet, data: Path, stage: Stage):
        self.params, self.images, self.data, self.stage = params, images, data, stage
        self.digest, self.device = digest_of(data), this_process().device
        self.task: Task = get_task(str(images.task))
        self.parts = [hold_out(images, draw) for draw in range(params.assess.draws)]
        self.labelled, self.pool = len(images.labelled()), min(len(pool) for pool, _ in self.parts)
        self.few = params.few_labels or self.labelled
        self.measured = min(self.few, self.pool)
        least = max(2, len(images.classes)) if images.form == "class" else 2
        if self.few > self.labelled:
            few_labelled(images, self.few, 0)  # raises
        if self.pool < 2 * least or not all(held for _, held in self.parts):
            raise UserError(
                f"{data}: {self.labelled} labelled train pictures are too few to hold some out and draw a learning curve from the others; "
                f"label {max(2 * least + 2, 6)} at least"
            )
        self.numbers = sizes(self.measured, self.pool, least)
        check_labels(images, self._few(self.measured, 0))

    def facts(self, machine: str) -> dict[str, Any]:
        """All that `assess.json` holds."""
        plan, tried, speed = self._plan()
        figures = self._measure(plan, tried)
        params, few = self.params, self.measured
        curve: list[dict[str, Any]] = [
            {"labels": n, "mean": fmean(values), "std": stdev(values), "draws": values}
            for n in self._numbers(plan)
            for values in [[figures[point] for point in plan.points if point.labels == n and not point.change]]
        ]
        fitted = fit_curve({each["labels"]: (each["mean"], each["std"] / math.sqrt(len(each["draws"]))) for each in curve})
        of_few = next(each for each in curve if each["labels"] == few)
        told = [_changed(name, tried[name], plan, figures) for name in tried if any(point.change == name for point in plan.points)]
        longer = next((change["gain"] for change in told if change["name"] == "longer"), 0.0)
        full = plan.steps == params.finetune.steps
        facts: dict[str, Any] = {
            "task": self.images.task,
            "figure": self.task.figure,
            "title": self.task.title,
            "classes": self.images.classes,
            "labels": {
                "few": self.few,
                "labelled": self.labelled,
                "pool": self.pool,
                "held_out": len(self.parts[0][1]),
                "crossed": is_crossed(self.images),
                "measured": few,
            },
            "budget": {
                "steps": plan.steps,
                "full": params.finetune.steps,
                "draws": len(of_few["draws"]),
                "minutes": params.assess.minutes,
                "needed_minutes": plan.needed / 60,
                "seeds": len(params.compare.seeds),
            },
            "floor": self._floor(),
            "read_out": self._read_out(len(of_few["draws"])),
            "curve": curve,
            "fit": asdict(fitted),
            "scratch": of_few["mean"] if few == self.few else fitted.at(self.few),
            "headroom": {
                "all": curve[-1]["mean"] - of_few["mean"],
                "double": fitted.at(2 * self.few) - fitted.at(self.few),
                "more": fitted.at(8 * self.few) - fitted.at(self.few),
            },
            "spread": of_few["std"],
            "changes": told,
            "prediction": self._predictions(fitted, longer if full else 0.0, of_few["std"]),
            "cost": self._cost(machine, speed),
        }
        return facts | {"verdict": verdict(facts)}

    def _plan(self) -> tuple[Plan, dict[str, Change], Speed]:
        """What is trained. A resumed assessment keeps the plan of its first start, whose steps follow from the machine's speed then."""
        path, settings = self.stage.checkpoints / "plan.json", self.params.assess
        full = self.params.finetune.steps
        has_neck = isinstance(self.task.head([8, 8, 8, 8], 8, len(self.images.classes)), NeckHead)
        short_side = int(np.median([min(self.images.size(index)) for index in self.images.labelled()[:1000]]))
        if path.exists():
            kept = json.loads(path.read_text())
            points = [Point(**point) for point in kept["points"]]
            plan, speed = Plan(kept["steps"], points, kept["seconds"], kept["needed"]), Speed(**kept["speed"])
        else:
            log.info("assess: timing a few steps")
            speed = self._time()
            tried = changes(shortened(self.params, settings.steps or full), short_side, has_neck)
            plan = make_plan(
                self.measured, self.numbers, settings.draws, tried, speed, steps=settings.steps or full, seconds=60 * settings.minutes
            )
            if settings.steps:
                plan = Plan(settings.steps, plan.points, plan.needed, plan.needed)
            _save(path, asdict(plan) | {"speed": asdict(speed)})
        log.info("assess: %d trainings of %d steps, about %s", len(plan.points), plan.steps, duration(plan.seconds))
        return plan, changes(shortened(self.params, plan.steps), short_side, has_neck), speed

    def _numbers(self, plan: Plan) -> list[int]:
        return sorted({point.labels for point in plan.points})

    def _few(self, n: int, draw: int) -> list[int]:
        """The first `n` pictures of a draw, which those with more labels begin with, too."""
        return few_labelled(self.images, n, draw, self.params.few_labels_by, among=self.parts[draw][0])

    def _time(self) -> Speed:
        """Seconds of a step, of scoring, and of the rest of a training."""

        def spent(steps: int) -> float:
            place = self.stage.checkpoints / "timing"
            begin = time.perf_counter()
            fit(shortened(self.params, steps), self.images, few, init="scratch", seed=0, place=_Place("assess timing", place))
            seconds = time.perf_counter() - begin
            shutil.rmtree(place, ignore_errors=True)
            return seconds

        few = self._few(self.measured, 0)
        spent(1)  # allocates, chooses algorithms, decodes pictures
        first = spent(1)
        more = 3 if first > LONG else 12
        step = max((spent(1 + more) - first) / more, 1e-4)
        held, model = self.parts[0][1], self._model()
        some = held[:TIMED_PICTURES]
        for _ in range(2):  # the first time allocates
            begin = time.perf_counter()
            score(model, self.images, self.params.evaluate.batch_size, self.device, among=some)
        each = (time.perf_counter() - begin) / len(some)
        return Speed(step, each * len(held), max(first - step, 0.0))

    def _model(self) -> TaskModel:
        student = self.params.student
        backbone = create_backbone(student.backbone, finest=student.finest_stride)
        shape = self.params.finetune.resolution, student.width
        return TaskModel(backbone, str(self.images.task), self.images.classes, *shape, neck=student.neck)

    def _measure(self, plan: Plan, tried: dict[str, Change]) -> dict[Point, float]:
        """The figure of each training, of which those that are done are read."""
        base, figures = shortened(self.params, plan.steps), {}
        weights = {point: tried[point.change].cost if point.change else 1.0 for point in plan.points}
        begin, trained = time.perf_counter(), 0.0
        for number, point in enumerate(plan.points, 1):
            params = with_settings(base, tried[point.change].settings) if point.change else base
            kept = self.stage.checkpoints.parent / "points" / f"{self._key(params, point)}.json"
            if kept.exists():
                figures[point] = json.loads(kept.read_text())["figure"]
                continue
            words = f"{point.labels} labels, draw {point.draw}" + (f", {tried[point.change].words}" if point.change else "")
            place = self.stage.checkpoints / point.key
            few, held = self._few(point.labels, point.draw), self.parts[point.draw][1]
            done = fit(params, self.images, few, init="scratch", seed=point.draw, place=_Place(f"assess {words}", place))
            model = cast(TaskModel, done.ema or done.model)
            of_held, _ = score(model, self.images, params.evaluate.batch_size, self.device, among=held)
            figures[point] = of_held[self.task.figure]
            _save(kept, {"figure": figures[point], "labels": point.labels, "draw": point.draw, "change": point.change})
            shutil.rmtree(place, ignore_errors=True)
            trained += weights[point]
            left = sum(weights[each] for each in plan.points[number:]) * (time.perf_counter() - begin) / trained
            log.info("assess [%d/%d]: %s: %s %.1f; about %s left",
                     number, len(plan.points), words, self.task.title, 100 * figures[point], duration(left))  # fmt: skip
        return figures

    def _key(self, params: Params, point: Point) -> str:
        """All that a training and its figure depend on."""
        plain = params.section("student", "finetune")
        for name in ("workers", "checkpoint_every", "log_every"):
            plain["finetune"].pop(name)
        content = {**plain, "data": self.digest, "labels": point.labels, "draw": point.draw, "crossed": is_crossed(self.images)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _floor(self) -> float | None:
        """The figure of the one class, always predicted, that is best with the few labels; None of tasks that classify nothing."""
        if not self.task.classifies:
            return None
        classes = len(self.images.classes)
        seen = torch.zeros(classes, dtype=torch.long)
        for index in self._few(self.measured, 0):
            label = label_tensor(self.images.label(index))
            seen += torch.bincount(label[label != IGNORE].flatten(), minlength=classes)  # type: ignore[index]
        total = self.task.score(self.images.classes)
        for index in self.parts[0][1]:
            truth = label_tensor(self.images.full_size_label(index))
            total.update(torch.full_like(truth, int(seen.argmax())), truth)  # type: ignore[arg-type]
        return total.compute().get(self.task.figure)

    def _read_out(self, draws: int) -> dict[str, tuple[float, float]] | None:
        """{"linear", "kNN": (mean, standard deviation)} over the draws of random weights; None of tasks that classify nothing."""
        if not self.task.classifies:
            return None
        settings, rows = self.params.evaluate, []
        for draw in range(draws):
            torch.manual_seed(draw)
            backbone = create_backbone(self.params.student.backbone, finest=self.params.student.finest_stride)
            few, held = self._few(self.measured, draw), self.parts[draw][1]
            rows.append(
                read_out(
                    backbone,
                    self.images,
                    few,
                    self.images,
                    size=self.params.finetune.resolution,
                    k=settings.knn_k,
                    batch_size=settings.batch_size,
                    device=self.device,
                    among=held,
                )
            )
        values = {name: [row[f"{key}_{self.task.figure}"] for row in rows] for name, key in (("linear", "linear"), ("kNN", "knn"))}
        return {name: (fmean(of_draws), stdev(of_draws)) for name, of_draws in values.items()}

    def _predictions(self, curve: Curve, longer: float, spread: float) -> dict[str, dict[str, Any]]:
        found = {}
        for init in self.params.compare.inits:
            if init != "scratch":
                kind = init if init in FRESH else "label_recipe" if init in self.params.label_recipes else "recipe"
                seeds = len(self.params.compare.seeds)
                made = predict(curve, self.few, kind, longer=longer, spread=spread, seeds=seeds)
                found[init] = described(made)
        return found

    def _cost(self, machine: str, speed: Speed) -> dict[str, Any]:
        """Of every stage of the chain from here on; what is trained here is measured, the rest is a share of it."""
        params, val = self.params, ImageSet(self.data, "val")
        inits, seeds = len(params.compare.inits), len(params.compare.seeds)
        stages = stage_costs(params, self.images, self.device)
        trained = inits * seeds
        stages.append(StageCost("finetune", trained * (START + params.finetune.steps * speed.step), trained))
        each = speed.score / len(self.parts[0][1])
        stages.append(StageCost("evaluate", START + each * len(val.labelled()) * (trained + 2 * seeds)))
        seconds = sum(stage.seconds or 0.0 for stage in stages)
        price = params.assess.price_per_hour
        return {
            "machine": machine,
            "stages": [asdict(stage) for stage in stages],
            "seconds": seconds,
            "price": None if price is None else price * seconds / 3600,
        }


def _changed(name: str, change: Change, plan: Plan, figures: dict[Point, float]) -> dict[str, Any]:
    """What a change gained over the same draws without it."""
    points = [point for point in plan.points if point.change == name]
    gains = [figures[point] - figures[Point(point.labels, point.draw)] for point in points]
    return {
        "name": name,
        "words": change.words,
        "settings": change.settings,
        "mean": fmean(figures[point] for point in points),
        "gain": fmean(gains),
        "error": stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
        "draws": gains,
    }


def _write(facts: dict[str, Any], folder: Path) -> None:
    (folder / ASSESSMENT).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    (folder / TEXT).write_text(text(facts))
    write_table([{"labels": each["labels"], "mean": each["mean"], "std": each["std"]} for each in facts["curve"]], folder / "curve.csv")
    fitted, few = Curve(**facts["fit"]), facts["labels"]["few"]
    ends = facts["curve"][0]["labels"], max(facts["curve"][-1]["labels"], 8 * few)
    curves = {
        "scratch, measured": [(each["labels"], 100 * each["mean"]) for each in facts["curve"]],
        "fitted": [(n, 100 * fitted.at(n)) for n in np.geomspace(*ends, 30)],
    }
    save_curves({f"{facts['title']}, %": curves}, "labelled pictures", few, folder / "curve.png")


def _save(path: Path, content: dict[str, Any]) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(content) + "\n")
        temporary.replace(path)
