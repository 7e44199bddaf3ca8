"""Estimate, from short trainings from scratch, what pretraining will gain and cost on this data set, and what else would help."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from dreamteacher.assessment.costs import chain_cost, pretraining_cost
from dreamteacher.assessment.draws import Draws
from dreamteacher.assessment.facts import TEXT, conditions, results, write_facts
from dreamteacher.assessment.trainings import Trainings
from dreamteacher.assessment.untrained import constant_prediction, random_weights
from dreamteacher.assessment.verdict import verdict
from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.project.machine import look
from dreamteacher.settings.schema import Params
from dreamteacher.stage import Stage, digest_of, open_stage
from dreamteacher.stages.finetune import fit
from dreamteacher.tasks.model import TaskModel
from dreamteacher.tasks.unseen import check_labels
from dreamteacher.training.processes import this_process
from dreamteacher.training.run import Place

SECTIONS = ("few_labels", "student", "finetune", "assess", "compare", "evaluate",
            "taps", "teachers", "recipes", "label_recipes", "teacher", "distill", "interpreter", "labels")  # fmt: skip


def run(params: Params, *, data: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Train from scratch on draws of the labelled train pictures of `data`; `out` gets assess.json, assess.txt, curve.csv and curve.png.

    Everything is measured on labelled train pictures that are held out (`data.holdout`): the chain reports its results on the validation
    split, and metrics on pictures that also guided decisions would be biased. Finished trainings are cached by settings and data in
    `.checkpoints/assess/points`, so that a stopped assessment resumes, and one with more minutes repeats nothing.

    Returns:
        `scratch`, `double` (gain from twice the labels) and `expected_INIT` for each of compare.inits except scratch.

    Raises:
        UserError: the data has no labels, or too few.
    """
    machine = look().line().removeprefix("machine: ")
    recorded = params.section(*SECTIONS) | {"machine": machine}  # the cost depends on the machine
    with open_stage("assess", params=recorded, inputs={"data": data}, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            facts = _assess(params, data, machine, stage)
            write_facts(facts, stage.tmp)
            stage.metrics = {"scratch": facts["scratch"], "double": facts["headroom"]["double"]}
            stage.metrics |= {f"expected_{init}": each["expected"] for init, each in facts["prediction"].items()}
    if this_process().is_main_process:
        print((out / TEXT).read_text(), end="")
    return stage.metrics


def _assess(params: Params, data: Path, machine: str, stage: Stage) -> dict[str, Any]:
    """The content of assess.json."""
    images, device = ImageSet(data, "train"), this_process().device
    if not images.labelled():
        raise UserError(
            f"{data} has no labelled train pictures, so the gain of pretraining cannot be estimated; label some and run "
            f"`dreamteacher ingest`. What it costs on {machine}: {pretraining_cost(params, images, device)}"
        )
    draws = Draws(params, images, data)
    check_labels(images, draws.few_of(0, draws.measured))

    def train(params: Params, few: list[int], seed: int, place: Place) -> TaskModel:
        done = fit(params, images, few, init="scratch", seed=seed, place=place)
        return cast(TaskModel, done.ema or done.model)

    trainings = Trainings(params, draws, train, stage.checkpoints, digest_of(data), device)
    plan, speed = trainings.plan()
    facts = conditions(params, draws, plan)
    figures = trainings.figures(plan)
    facts |= {"floor": constant_prediction(draws), "read_out": random_weights(params, draws, facts["budget"]["draws"], device)}
    facts |= results(params, draws, plan, trainings.changes(plan.steps), figures)
    facts["cost"] = {
        "machine": machine,
        **chain_cost(params, images, ImageSet(data, "val"), speed=speed, held_out=len(draws.held_out(0)), device=device),
    }
    return facts | {"verdict": verdict(facts)}
