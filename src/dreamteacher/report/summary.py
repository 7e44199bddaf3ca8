"""The results of a chain as a table."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

TITLES = {"miou": "mIoU", "top1": "top-1", "ap": "AP", "map": "mAP", "delta1": "δ < 1.25"}  # display names of metrics


def table(metrics: dict[str, dict[str, Any]]) -> str:
    """`metrics/evaluate.json` as an aligned Markdown table; metrics in per cent."""
    metric = main_metric(metrics)
    rows = [["init", f"{TITLES.get(metric, metric)} mean ± std", "seeds", "frozen linear", "frozen kNN"]]
    for init, of_init in metrics.items():
        rows.append(
            [init, spread(of_init, metric), str(of_init["n_seeds"]), *(spread(of_init, f"{r}_{metric}") for r in ("linear", "knn"))]
        )
    return markdown(rows)


def main_metric(metrics: dict[str, dict[str, Any]]) -> str:
    """The key of the main metric, which evaluate writes first."""
    return next(iter(next(iter(metrics.values())))).removesuffix("_mean")


def markdown(rows: list[list[str]]) -> str:
    """Rows of text, the first of which is the header, as an aligned Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def spread(of_init: dict[str, Any], metric: str) -> str:
    """`79.7 ± 0.4`; without the spread for one seed."""
    if f"{metric}_mean" not in of_init:
        return "-"
    mean = f"{100 * of_init[f'{metric}_mean']:.1f}"
    return mean if of_init["n_seeds"] < 2 else f"{mean} ± {100 * of_init[f'{metric}_std']:.1f}"


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{init: {METRIC_mean, METRIC_std, ..., n_seeds}} of rows with `init`, `seed` and metrics, as in metrics/evaluate.json."""
    results: dict[str, dict[str, float]] = {}
    for init in dict.fromkeys(row["init"] for row in rows):
        of_init = [row for row in rows if row["init"] == init]
        metrics: dict[str, float] = {}
        for name in of_init[0]:
            if name not in ("init", "seed"):
                values = [row[name] for row in of_init]
                metrics |= {f"{name}_mean": fmean(values), f"{name}_std": stdev(values) if len(values) > 1 else 0.0}
        results[init] = metrics | {"n_seeds": len(of_init)}
    return results
