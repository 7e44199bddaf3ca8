"""Predictions of `dreamteacher assess` compared with the results of the run."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from dreamteacher.clock import clock_of
from dreamteacher.report.paired import gain_over, points
from dreamteacher.report.records import duration
from dreamteacher.report.run import REFERENCE, Run, Table

ASSESSMENT = "assess.json"


def assessment(run: Run) -> dict[str, Any]:
    """The verdict of the assessment, and tables of predicted and measured gains and times; {} without an assessment."""
    predicted = run.found["assess"].json(ASSESSMENT) if "assess" in run.found else {}
    if not predicted:
        return {}
    verdict = predicted["verdict"]
    return {
        "verdict": verdict["words"],
        "because": verdict["because"],
        "help": [f"{each['words']}: {points(each['gain'])} points" for each in verdict["help"]],
        "warnings": verdict["warnings"],
        "gains": _gains(run, predicted),
        "costs": _costs(run, predicted["cost"]["stages"]),
    }


def _gains(run: Run, predicted: dict[str, Any]) -> Table:
    """Predicted and measured metric of scratch, and gain of each other initialisation."""
    same = predicted["figure"] == run.metric
    scratch = [float(row[run.metric]) for row in run.models if row["init"] == REFERENCE] if same else []
    measured = f"{100 * fmean(scratch):.1f}" if scratch else "not measured"
    rows = [[REFERENCE, f"{100 * predicted['scratch']:.1f}", "", measured, ""]]
    for init, each in predicted["prediction"].items():
        gain = gain_over(run.models, run.metric, init, REFERENCE) if same else None
        between = f"{points(each['low'])} to {points(each['high'])}"
        inside = "" if gain is None else "yes" if each["low"] <= gain.mean <= each["high"] else "no"
        rows.append([init, points(each["expected"]), between, gain.words if gain else "not measured", inside])
    head = ["", f"predicted, {predicted['title']}", "range", "measured", "in the range"]
    return Table(head, rows, frozenset({1, 2}))


def _costs(run: Run, stages: list[dict[str, Any]]) -> Table:
    """Predicted and measured time of each stage, summed over seeds."""
    rows = []
    for each in stages:
        stage = each["name"].split()[0]
        name = each["name"].partition(" ")[2]
        outputs = [
            output
            for place, output in run.found.items()
            if output.record["stage"] == stage and (not name or name in place.split("/"))
        ]  # fmt: skip
        clocks = [clock_of(stage, output.record["digest"]) for output in outputs]
        spent = sum(clock["seconds"] for clock in clocks) if clocks and all(clocks) else None
        predicted_time = duration(each["seconds"]) if each["seconds"] is not None else "not measured"
        rows.append([each["name"], predicted_time, duration(spent) if spent is not None else "not recorded"])
    return Table(["stage", "predicted", "measured"], rows, frozenset({1, 2}))
