"""Whether assessments were right: the gain that each predicted, against the gain that its run realised.

    python -m benchmarks.assess PROJECT... [--out assess]

Each PROJECT has `artifacts/assess/assess.json` and `metrics/evaluate.json` of the same labels and settings. Prints a table and the shares
that are right in sign and within their intervals; writes OUT.json and OUT.svg. For the records of `python -m benchmarks.paper --assess`,
`python -m benchmarks.results` does the same in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.comparison import SCRATCH, inits, of_labels
from benchmarks.paper.plots import save
from dreamteacher.assessment.prediction import realised
from dreamteacher.assessment.verdict import points
from dreamteacher.report.summary import markdown, over_seeds

ASSESSMENT, METRICS = Path("artifacts/assess/assess.json"), Path("metrics/evaluate.json")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", type=Path, nargs="+", metavar="PROJECT", help="folder of a finished chain")
    parser.add_argument("--out", type=Path, default=Path("assess"), help="without extension (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = [row for project in options.projects for row in compare(project)]
    if not rows:
        raise SystemExit("error: no initialisation was both predicted and compared with scratch; compare.inits needs scratch and another")
    result = {"right": share(rows, "right"), "within": share(rows, "within"), "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, options.out.with_suffix(".svg"))
    print(table(rows))
    print(f"\nright in sign: {result['right']:.0%}, within the interval: {result['within']:.0%}, of {len(rows)}")


def compare(project: Path) -> list[dict[str, Any]]:
    """A row for each initialisation of a project that was predicted and realised."""
    try:
        assessment, metrics = (json.loads((project / place).read_text()) for place in (ASSESSMENT, METRICS))
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error.filename} is missing; run `dreamteacher assess` and `dvc repro` in {project} first") from error
    name, labels = project.resolve().name, assessment["labels"]["few"]
    return [{"project": name, "labels": labels, "init": init, **row} for init, row in realised(assessment, metrics).items()]


def compare_record(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each assessment and initialisation of a record of `benchmarks.paper` but scratch and the control."""
    rows, figure = [], content["figure"]
    for assessment in content["assessments"]:
        models = of_labels(content, assessment["labels"])
        for init in inits(content, models):
            values = {name: {row["seed"]: row[figure] for row in models if row["init"] == name} for name in (SCRATCH, init)}
            seeds = values[SCRATCH].keys() & values[init].keys()
            if init in (SCRATCH, content["control"]) or not seeds:
                continue
            paired = [{"init": name, "seed": seed, figure: values[name][seed]} for name in values for seed in sorted(seeds)]
            named = {"project": content["set"], "labels": assessment["labels"] or content["data"]["labelled"], "init": init}
            rows += [named | row for row in realised(assessment, over_seeds(paired)).values()]
    return rows


def share(rows: list[dict[str, Any]], key: str) -> float:
    """Of the rows in which `key` is true."""
    return sum(row[key] for row in rows) / len(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """In points."""
    cells = [["project", "labels", "init", "predicted", "from", "to", "realised", "± error", "sign"]]
    for row in rows:
        figures = [points(row[key], "+") for key in ("predicted", "low", "high", "gain")]
        error = "-" if row["error"] is None else points(row["error"])
        cells.append([row["project"], str(row["labels"]), row["init"], *figures, error, "right" if row["right"] else "wrong"])
    return markdown(cells)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted against realised gain, in points; bars are the predicted interval and the standard error."""
    save(partial(_figure, rows), path)


def _figure(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        x, y = 100 * row["predicted"], 100 * row["gain"]
        interval = [[x - 100 * row["low"]], [100 * row["high"] - x]]
        bars = axes.errorbar(x, y, xerr=interval, yerr=100 * (row["error"] or 0), fmt="o", markersize=4, linewidth=0.8)
        axes.annotate(f"{row['project']} {row['labels']} {row['init']}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6,
                      color=bars[0].get_color())  # fmt: skip
    low, high = (function(*axes.get_xlim(), *axes.get_ylim()) for function in (min, max))
    axes.plot([low, high], [low, high], ":", color="0.6", linewidth=1)
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.axvline(0, color="0.8", linewidth=0.8)
    axes.set_xlabel("predicted gain over scratch, points")
    axes.set_ylabel("realised gain, points")
    return figure


if __name__ == "__main__":
    main()
