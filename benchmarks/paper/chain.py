"""The chain's own stages as far as a table needs them: each result lies in a folder named by what made it, so none is computed twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.external import External, pretrain
from dreamteacher.assessment.facts import ASSESSMENT
from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.settings.recipes import base_of, of_init, of_recipe, of_teacher
from dreamteacher.settings.schema import FRESH, Params
from dreamteacher.stage import RECORD, read_stage
from dreamteacher.stages import assess, distill_features, distill_labels, finetune, ingest, train_interpreter, train_teacher
from dreamteacher.students.backbone import BACKBONE_FOLDER, create_backbone, load_backbone
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import load_task_model
from dreamteacher.tasks.readout import read_out
from dreamteacher.tasks.scoring import score
from dreamteacher.training.processes import this_process

Run = Callable[..., dict[str, float]]


class OutOfTime(Exception):
    """The session's time is over before the next stage."""


class Chain:
    """The stages of a table's settings, run on demand below `work`; several processes may share it.

    Args:
        params: of the table on its set.
        work: where results and checkpoints lie.
        external: initialisations that a program of others makes, by name.
        deadline: of `time.monotonic()`; no stage but ingest starts after it.
    """

    def __init__(self, params: Params, work: Path, external: dict[str, External], deadline: float = float("inf")):
        self.params, self.work, self.external, self.deadline = params, work, external, deadline
        os.environ["DREAMTEACHER_CHECKPOINTS"] = str((work / ".checkpoints").absolute())
        self._images: dict[str, ImageSet] = {}

    def data(self) -> Path:
        """The data set."""
        return self._stage("data", [self.params.section("ingest")], ingest.run, self.params)

    def images(self, split: str) -> ImageSet:
        """A split of the data set, kept open."""
        if split not in self._images:
            self._images[split] = ImageSet(self.data(), split)  # type: ignore[arg-type]
        return self._images[split]

    def teacher(self, name: str, seed: int) -> Path:
        """A teacher."""
        params = _seeded(of_teacher(self.params, name), seed)
        key = [params.section("seed", "teacher"), self.data().name, name]
        return self._stage("teachers", key, train_teacher.run, params, data=self.data(), name=name)

    def teachers(self, seed: int) -> Path:
        """The folder in which a team looks its teachers up by name."""
        folder = self.work / "teams" / _digest([str(self.teacher(name, seed)) for name in self.params.teachers])
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.params.teachers:
            if not (folder / name).exists():
                (folder / name).symlink_to(self.teacher(name, seed).absolute())
        return folder

    def teacher_of(self, recipe: str, seed: int) -> Path | None:
        """What a recipe without labels learns from."""
        named = self.params.recipes[recipe]
        if named.one_teacher:
            return self.teacher(named.one_teacher, seed)
        return None if named.teacher == "none" else self.teachers(seed)

    def features(self, recipe: str, seed: int) -> Path:
        """A backbone pretrained without labels."""
        params = _seeded(of_recipe(self.params, recipe), seed)
        teacher = self.teacher_of(recipe, seed)
        key = [params.section("seed", "taps", "student", "distill"), recipe, self.data().name, teacher.name if teacher else None]
        given = {"data": self.data(), "teacher": teacher, "recipe": recipe}
        return self._stage("features", key, distill_features.run, params, **given)

    def labels(self, recipe: str, seed: int, draw: int, count: int | None) -> Path:
        """A backbone pretrained with `count` labels too; `seed` made the features and `draw` the labels."""
        params = _seeded(of_recipe(self.params, recipe), seed).model_copy(update={"few_labels": count})
        base = base_of(params, recipe)
        teacher, features = self.teacher_of(base, seed), self.features(base, seed)
        assert teacher  # which the settings make sure of
        given = {"data": self.data(), "teacher": teacher, "seed": draw}
        key: list[Any] = [params.section("few_labels", "taps", "interpreter"), self.data().name, teacher.name, draw]
        interpreter = self._stage("interpreters", key, train_interpreter.run, params, **given)
        key = [params.section("taps", "student", "distill", "labels"), recipe, features.name, interpreter.name]
        given |= {"features": features, "interpreter": interpreter, "recipe": recipe}
        return self._stage("labels", key, distill_labels.run, params, **given)

    def start(self, init: str, seed: int, draw: int, count: int | None) -> Path | None:
        """What fine-tuning starts from; None: scratch and imagenet."""
        if init in FRESH:
            return None
        if init in self.external:
            key = [self.external[init].command, self.external[init].seconds, self.params.section("student"), seed, self.data().name]
            given = {"student": self.params.student, "images": lambda: self.images("train"), "seed": seed}
            return self._stage("external", key, pretrain, self.external[init], **given)
        return self.labels(init, seed, draw, count) if init in self.params.label_recipes else self.features(init, seed)

    def model(self, init: str, seed: int, draw: int, count: int | None) -> Path:
        """A fine-tuned model."""
        of_its_own = self.params if init in self.external else of_init(self.params, init)
        params = of_its_own.model_copy(update={"few_labels": count})
        start = self.start(init, seed, draw, count)
        key = [params.section("few_labels", "student", "finetune"), init, draw, self.data().name, start.name if start else None]
        given = {"data": self.data(), "init": init, "seed": draw, "backbone": start}
        return self._stage("finetuned", key, finetune.run, params, **given)

    def figures(self, init: str, seed: int, draw: int, count: int | None) -> dict[str, float]:
        """Of a fine-tuned model on the validation split, the one that counts first, and what can be read out of the frozen backbone."""
        model, device, batch = self.model(init, seed, draw, count), this_process().device, self.params.evaluate.batch_size
        figures, _ = score(load_task_model(model), self.images("val"), batch, device)
        train = self.images("train")
        if not get_task(str(train.task)).classifies or init == "imagenet" or init in self.params.label_recipes:
            return figures
        start = self.start(init, seed, draw, count)
        if start:
            backbone = load_backbone(start / BACKBONE_FOLDER)
        else:
            torch.manual_seed(draw)
            backbone = create_backbone(self.params.student.backbone, finest=self.params.student.finest_stride)
        size, k = self.params.finetune.resolution, self.params.evaluate.knn_k
        few = few_labelled(train, count, draw)
        return figures | read_out(backbone, train, few, self.images("val"), size=size, k=k, batch_size=batch, device=device)

    def pretraining(self, init: str, seed: int) -> dict[str, float] | None:
        """Figures of the pretraining without labels, and `seconds` of training where they are on record; None where there was none."""
        if init in FRESH or init in self.params.label_recipes:
            return None
        folder = self.start(init, seed, 0, None)
        assert folder
        record = read_stage(folder)
        return record["metrics"] | ({"seconds": log[-1]["seconds"]} if (log := self.log_of(folder)) else {})

    def assess(self, count: int | None, draws: int, minutes: float) -> dict[str, Any]:
        """What `dreamteacher assess` predicts, in about `minutes`, of a comparison over `draws` draws of `count` labels."""
        seeds = self.params.compare.model_copy(update={"seeds": list(range(draws))})
        spent = self.params.assess.model_copy(update={"minutes": minutes})
        params = self.params.model_copy(update={"few_labels": count, "compare": seeds, "assess": spent})
        key = [params.section(*assess.SECTIONS), self.data().name]
        folder = self._stage("assessments", key, assess.run, params, data=self.data())
        return dict(json.loads((folder / ASSESSMENT).read_text()))

    def log_of(self, folder: Path) -> list[dict[str, float]]:
        """The records of the run that made `folder`, with `step` and `seconds`; empty where there was none on this machine."""
        record = read_stage(folder)
        path = self.work / ".checkpoints" / record["stage"] / f"{record['digest']}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if "seconds" in row]

    def _stage(self, kind: str, key: list[Any], run: Run, *positional: Any, **given: Any) -> Path:
        out = self.work / kind / _digest(key)
        if not (out / RECORD).exists():
            if kind != "data" and time.monotonic() > self.deadline:
                raise OutOfTime
            with _alone(out.with_name(f".{out.name}.lock")):
                run(*positional, out=out, **given)
        return out


def _seeded(params: Params, seed: int) -> Params:
    return params.model_copy(update={"seed": seed})


def _digest(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Another session that needs the same waits, and finds it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
