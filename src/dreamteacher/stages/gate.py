"""Whether a new model may become champion."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

from dreamteacher.data.drift import contents
from dreamteacher.errors import UserError
from dreamteacher.lifecycle.gates import Check, OverSeeds, check_floor, check_latency, check_parity, check_regression, check_same_split
from dreamteacher.lifecycle.promotion import MANIFEST, champion_facts
from dreamteacher.onnx_files import MODEL_FILE, read_metadata
from dreamteacher.report.run import ROWS
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage, read_stage

VERDICT_FILE = "verdict.json"


def run(
    params: Params, *, data: Path, onnx: Path, evaluation: Path, out: Path, champion: Path | None = None, overwrite: bool = False
) -> dict[str, float]:
    """Hold the exported model against `retrain.metric_floor`, the champion, export.tolerance and `retrain.latency_ms`.

    Both the mean over the seeds of the exported initialisation and the seed that is exported, which is what will be served, must reach
    the floor and the champion. If the champion was measured on another validation split, the model fails without a comparison.
    `champion` is what `lifecycle.promotion.fetch_champion` wrote; None: there is none yet. `out` gets verdict.json: `passed`, `reason`
    (the gates that failed, or all of them), `champion` (its version, "" for none) and `checks`. A model that fails is no error. The
    latency is measured by the clock, so verdict.json, unlike all else that stages write, is not the same bytes each time; the figures
    returned are.

    Returns:
        `passed` (0 or 1) and, of the figure that counts, `figure` and `champion_figure` (if compared), the means over seeds, and
        `served_figure`.

    Raises:
        UserError: a figure to compare by is missing.
    """
    settings = params.retrain
    recorded = params.section("retrain") | {"tolerance": params.export.tolerance, "size": params.export.size}
    inputs = {"data": data, "onnx": onnx, "evaluation": evaluation}
    if champion:
        inputs |= {"champion": champion / "evaluation", "champion_data": champion / "data" / MANIFEST}
    with open_stage("gate", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        exported = read_metadata(onnx / MODEL_FILE)
        figure, by_seed = _figures(evaluation, exported["init"])
        seed = json.loads(exported["seed"])
        if seed not in by_seed:
            raise UserError(f"{evaluation} has no figures of init {exported['init']}, seed {seed}; add the seed to compare.seeds")
        judged = {"": list(by_seed.values()), " of the served model": [by_seed[seed]]}
        checks = [check_floor(f"floor{which}", figure, values, settings.metric_floor) for which, values in judged.items()]
        stage.metrics = {"figure": checks[0].value, "served_figure": by_seed[seed]}
        version = ""
        if champion:
            version = champion_facts(champion)["version"]
            checks.append(check_same_split(contents(data)["val"], contents(champion / "data")["val"]))
            if checks[-1].passed:
                old = _champion(champion, figure)
                checks += [
                    check_regression(f"no regression{which}", figure, values, old, settings.regression_z)
                    for which, values in judged.items()
                ]
                stage.metrics["champion_figure"] = old.mean
        checks.append(check_parity(read_stage(onnx)["metrics"]["parity_max"], params.export.tolerance))
        if settings.latency_ms:
            checks.append(check_latency(onnx / MODEL_FILE, params.export.size, settings.latency_ms, settings.latency_runs))
        passed, reason = all(check.passed for check in checks), _reason(checks)
        stage.metrics["passed"] = float(passed)
        verdict = {"passed": passed, "reason": reason, "champion": version, "checks": [asdict(check) for check in checks]}
        (stage.tmp / VERDICT_FILE).write_text(json.dumps(verdict, indent=1) + "\n")
        stage.tracker.tags({"dreamteacher.verdict": reason})
        stage.tracker.artifact(stage.tmp / VERDICT_FILE)
        return stage.metrics


def _figures(evaluation: Path, init: str) -> tuple[str, dict[int, float]]:
    """The name of the figure that counts, and its value for each seed of `init`."""
    with (evaluation / ROWS).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["init"] == init]
    if not rows:
        raise UserError(f"{evaluation} has no figures of init {init}; add it to compare.inits")
    figure = next(name for name in rows[0] if name not in ("init", "seed"))  # evaluate writes the one that counts first
    return figure, {int(row["seed"]): float(row[figure]) for row in rows}


def _champion(champion: Path, figure: str) -> OverSeeds:
    """The champion's figures."""
    stored = champion_facts(champion)
    try:
        return OverSeeds(stored[f"{figure}_mean"], stored[f"{figure}_std"], stored["n_seeds"])
    except KeyError as missing:
        raise UserError(
            f"what is stored with version {stored['version']}, the champion, has no {missing} of init {stored['init']} to compare with; "
            "make and promote a champion anew (`dvc repro`, `dreamteacher promote`)"
        ) from None


def _reason(checks: list[Check]) -> str:
    failed = [f"{check.name}: {check.words}" for check in checks if not check.passed]
    return "; ".join(failed) if failed else "; ".join(check.words for check in checks)
