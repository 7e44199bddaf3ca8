"""The trainings from scratch of an assessment: timing, planning, training and scoring; each result is cached."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamteacher.assessment.changes import Change, changes, shortened, with_settings
from dreamteacher.assessment.draws import Draws
from dreamteacher.assessment.plan import Plan, Point, Speed, make_plan
from dreamteacher.files import replace_file
from dreamteacher.project.cost import rough_duration
from dreamteacher.settings.schema import Params
from dreamteacher.stage import NOT_DIGESTED
from dreamteacher.tasks.base import NeckHead, get_task
from dreamteacher.tasks.model import TaskModel
from dreamteacher.tasks.scoring import score
from dreamteacher.tracking import Tracker
from dreamteacher.training.checkpoint import writing
from dreamteacher.training.run import Place

log = logging.getLogger(__name__)
TIMED_PICTURES = 4  # with which scoring is timed
LONG = 5.0  # seconds; if a training of one step takes longer, fewer steps are timed

Train = Callable[[Params, list[int], int, Place], TaskModel]  # params, indices of pictures, seed, place of its checkpoints


@dataclass
class Untracked:
    """A `training.run.Place` whose training is not tracked."""

    title: str
    checkpoints: Path
    tracker: Tracker = field(default_factory=Tracker)


@dataclass
class Trainings:
    """Trainings from scratch on the few labelled pictures of each draw.

    Attributes:
        params: settings.
        draws: of the labelled pictures.
        train: fine-tunes a new model.
        checkpoints: folder of this assessment, for resuming. Metrics are cached beside it in `points`, by digest of all that they depend
            on, and shared with other assessments.
        data_digest: of the data set.
        device: where models are scored.
    """

    params: Params
    draws: Draws
    train: Train
    checkpoints: Path
    data_digest: str
    device: torch.device

    def plan(self) -> tuple[Plan, Speed]:
        """The plan, and the measured speed.

        A resumed assessment keeps its first plan, because the number of steps depends on the speed measured then.
        """
        path, settings = self.checkpoints / "plan.json", self.params.assess
        if path.exists():
            kept = json.loads(path.read_text())
            points = [Point(**point) for point in kept["points"]]
            plan, speed = Plan(kept["steps"], points, kept["seconds"], kept["needed"]), Speed(**kept["speed"])
        else:
            log.info("assess: timing a few steps")
            speed, draws, steps = self.speed(), self.draws, settings.steps or self.params.finetune.steps
            tried, seconds = self.changes(steps), 60 * settings.minutes
            plan = make_plan(draws.measured, draws.numbers, settings.draws, tried, speed, steps=steps, seconds=seconds)
            if settings.steps:
                plan = Plan(settings.steps, plan.points, plan.needed, plan.needed)
            _save_json(path, asdict(plan) | {"speed": asdict(speed)})
        log.info("assess: %d trainings of %d steps, about %s", len(plan.points), plan.steps, rough_duration(plan.seconds))
        return plan, speed

    def changes(self, steps: int) -> dict[str, Change]:
        """The changes to try in trainings of `steps` steps."""
        images = self.draws.images
        head = get_task(str(images.task), self.params.finetune.head).head([8, 8, 8, 8], 8, len(images.classes))
        short_side = int(np.median([min(images.size(index)) for index in images.labelled()[:1000]]))
        return changes(shortened(self.params, steps), short_side, isinstance(head, NeckHead))

    def speed(self) -> Speed:
        """Measure the speed of trainings and scoring."""
        few, held = self.draws.few_of(0, self.draws.measured), self.draws.held_out(0)

        def train(steps: int) -> tuple[TaskModel, float]:
            folder = self.checkpoints / "timing"
            begin = time.perf_counter()
            model = self.train(shortened(self.params, steps), few, 0, Untracked("assess timing", folder))
            seconds = time.perf_counter() - begin
            shutil.rmtree(folder, ignore_errors=True)
            return model, seconds

        train(1)  # warm-up
        model, first = train(1)
        more = 3 if first > LONG else 12
        step = max((train(1 + more)[1] - first) / more, 1e-4)
        some = held[:TIMED_PICTURES]
        for _ in range(2):  # the first is a warm-up
            begin = time.perf_counter()
            score(model, self.draws.images, self.params.evaluate.batch_size, self.device, among=some)
        each = (time.perf_counter() - begin) / len(some)
        return Speed(step, each * len(held), max(first - step, 0.0))

    def figures(self, plan: Plan) -> dict[Point, float]:
        """The metric of each training of the plan; cached ones are read."""
        base, tried, figures = shortened(self.params, plan.steps), self.changes(plan.steps), {}
        weights = {point: tried[point.change].cost if point.change else 1.0 for point in plan.points}
        task = get_task(str(self.draws.images.task))
        begin, trained = time.perf_counter(), 0.0
        for number, point in enumerate(plan.points, 1):
            params = with_settings(base, tried[point.change].settings) if point.change else base
            kept = self.checkpoints.parent / "points" / f"{self._key(params, point)}.json"
            if kept.exists():
                figures[point] = json.loads(kept.read_text())["figure"]
                continue
            words = f"{point.labels} labels, draw {point.draw}" + (f", {tried[point.change].words}" if point.change else "")
            folder = self.checkpoints / point.key
            few, held = self.draws.few_of(point.draw, point.labels), self.draws.held_out(point.draw)
            model = self.train(params, few, point.draw, Untracked(f"assess {words}", folder))
            of_held, _ = score(model, self.draws.images, params.evaluate.batch_size, self.device, among=held)
            figures[point] = of_held[task.figure]
            _save_json(kept, {"figure": figures[point], "labels": point.labels, "draw": point.draw, "change": point.change})
            shutil.rmtree(folder, ignore_errors=True)
            trained += weights[point]
            left = sum(weights[each] for each in plan.points[number:]) * (time.perf_counter() - begin) / trained
            log.info("assess [%d/%d]: %s: %s %.1f; about %s left",
                     number, len(plan.points), words, task.title, 100 * figures[point], rough_duration(left))  # fmt: skip
        return figures

    def _key(self, params: Params, point: Point) -> str:
        """Digest of all that a training and its metric depend on."""
        plain = params.section("student", "finetune")
        plain["finetune"] = {name: value for name, value in plain["finetune"].items() if name not in NOT_DIGESTED}
        content = {**plain, "data": self.data_digest, "labels": point.labels, "draw": point.draw, "crossed": self.draws.crossed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _save_json(path: Path, content: dict[str, Any]) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content) + "\n")
