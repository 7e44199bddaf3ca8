"""The content of `assess.json`, from the metrics of the trainings, and the files derived from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dreamteacher.assessment.changes import Change
from dreamteacher.assessment.curve import Curve
from dreamteacher.assessment.curve import fit as fit_curve
from dreamteacher.assessment.draws import Draws
from dreamteacher.assessment.plan import Plan, Point
from dreamteacher.assessment.prediction import predict, to_json
from dreamteacher.assessment.verdict import text
from dreamteacher.report.assessed import ASSESSMENT
from dreamteacher.report.figures import save_curves
from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import FRESH, Params
from dreamteacher.tasks.base import get_task

TEXT = "assess.txt"


def conditions(params: Params, draws: Draws, plan: Plan) -> dict[str, Any]:
    """Task, metric, numbers of labels, and budget of steps and draws."""
    task = get_task(str(draws.images.task))
    return {
        "task": draws.images.task,
        "figure": task.figure,
        "title": task.title,
        "classes": draws.images.classes,
        "labels": {
            "few": draws.few,
            "labelled": draws.labelled,
            "pool": draws.pool,
            "held_out": len(draws.held_out(0)),
            "crossed": draws.crossed,
            "measured": draws.measured,
        },
        "budget": {
            "steps": plan.steps,
            "full": params.finetune.steps,
            "draws": sum(point.labels == draws.measured and not point.change for point in plan.points),
            "minutes": params.assess.minutes,
            "needed_minutes": plan.needed / 60,
            "seeds": len(params.compare.seeds),
        },
    }


def results(params: Params, draws: Draws, plan: Plan, tried: dict[str, Change], figures: dict[Point, float]) -> dict[str, Any]:
    """Learning curve, gains of changes, and predictions, from the metrics (`figures`) of the trainings."""
    points, few = learning_curve(plan, figures), draws.few
    curve = fit_curve({each["labels"]: (each["mean"], each["std"] / math.sqrt(len(each["draws"]))) for each in points})
    of_few = next(each for each in points if each["labels"] == draws.measured)
    changed = [gain_of(name, change, plan, figures) for name, change in tried.items() if any(point.change == name for point in plan.points)]
    full = plan.steps == params.finetune.steps
    longer = next((change["gain"] for change in changed if change["name"] == "longer"), 0.0) if full else 0.0
    return {
        "curve": points,
        "fit": asdict(curve),
        "scratch": of_few["mean"] if draws.measured == few else curve.at(few),
        "headroom": {
            "all": points[-1]["mean"] - of_few["mean"],
            "double": curve.at(2 * few) - curve.at(few),
            "more": curve.at(8 * few) - curve.at(few),
        },
        "spread": of_few["std"],
        "changes": changed,
        "prediction": predictions(params, curve, few, longer=longer, spread=of_few["std"]),
    }


def learning_curve(plan: Plan, figures: dict[Point, float]) -> list[dict[str, Any]]:
    """`labels`, `mean`, `std` and metrics of all `draws` for each number of labels, without changes."""
    by_labels: dict[int, list[float]] = {}
    for point in sorted((point for point in plan.points if not point.change), key=lambda point: point.labels):
        by_labels.setdefault(point.labels, []).append(figures[point])
    return [{"labels": n, "mean": fmean(values), "std": stdev(values), "draws": values} for n, values in by_labels.items()]


def gain_of(name: str, change: Change, plan: Plan, figures: dict[Point, float]) -> dict[str, Any]:
    """The paired gain of a change over the same draws without it."""
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


def predictions(params: Params, curve: Curve, few: int, *, longer: float, spread: float) -> dict[str, dict[str, Any]]:
    """The predicted gain of each init of compare.inits over scratch. See `prediction.predict`."""
    found = {}
    for init in params.compare.inits:
        if init != "scratch":
            kind = init if init in FRESH else "label_recipe" if init in params.label_recipes else "recipe"
            found[init] = to_json(predict(curve, few, kind, longer=longer, spread=spread, seeds=len(params.compare.seeds)))
    return found


def write_facts(facts: dict[str, Any], folder: Path) -> None:
    """Write assess.json, assess.txt, curve.csv and curve.png."""
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
