"""A record of figures as a plot: SVG with the same bytes whenever the figures are the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.paper.comparison import SCRATCH, inits, label_counts, of_labels, values
from dreamteacher.report.paired import gain_over
from dreamteacher.report.summary import TITLES

STYLE = {"svg.hashsalt": "dreamteacher", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}


def is_drawn(content: dict[str, Any]) -> bool:
    """Whether the record has anything to plot: several numbers of labels, or a gain over scratch."""
    counts = label_counts(content)
    rows = of_labels(content, counts[0])
    return len(counts) > 1 or any(gain_over(rows, content["figure"], init, SCRATCH) for init in inits(content, rows) if init != SCRATCH)


def draw(content: dict[str, Any], path: Path) -> None:
    """Gains over scratch of each draw with mean and 95 % interval; of several numbers of labels the figures over their number."""
    save(partial(_curves if len(label_counts(content)) > 1 else _gains, content), path)


def save(make: Callable[[], Figure], path: Path) -> None:
    """Write what `make` draws, in this project's style, to `path` as SVG with the same bytes each time."""
    with matplotlib.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        make().savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _gains(content: dict[str, Any]) -> Figure:
    figure_name, rows = content["figure"], of_labels(content, label_counts(content)[0])
    names = [init for init in inits(content, rows) if init != SCRATCH]
    figure = Figure(figsize=(6.4, 0.8 + 0.34 * max(1, len(names))), layout="constrained")
    axes = figure.subplots()
    for place, init in enumerate(names):
        gain = gain_over(rows, figure_name, init, SCRATCH)
        if gain is None:
            continue
        scratch = {row["seed"]: row[figure_name] for row in rows if row["init"] == SCRATCH}
        own = [100 * (row[figure_name] - scratch[row["seed"]]) for row in rows if row["init"] == init and row["seed"] in scratch]
        axes.plot(own, [place] * len(own), "o", color="0.75", markersize=3)
        half = None if math.isnan(gain.half) else 100 * gain.half
        colour = "#b07020" if init == content["control"] else "#1f3f66"
        axes.errorbar(100 * gain.mean, place, xerr=half, fmt="o", color=colour, markersize=5, capsize=3)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{TITLES.get(figure_name, figure_name)} over scratch, points: each draw, mean, 95 % interval")
    return figure


def _curves(content: dict[str, Any]) -> Figure:
    figure_name, counts = content["figure"], label_counts(content)
    whole = content["data"]["labelled"]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for init in content["inits"]:
        points = {count or whole: values(of_labels(content, count), figure_name, init) for count in counts}
        points = {count: numbers for count, numbers in points.items() if numbers}
        if points:
            axes.fill_between(list(points), [min(n) for n in points.values()], [max(n) for n in points.values()], alpha=0.12)
            axes.plot(list(points), [fmean(numbers) for numbers in points.values()], marker="o", markersize=4, label=init)
    axes.set_xscale("log")
    ticks = [count or whole for count in counts]
    axes.set_xticks(ticks, [str(count or f"all {whole}") for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled pictures: mean, and range over draws")
    axes.set_ylabel(f"{TITLES.get(figure_name, figure_name)}, %")
    axes.legend(fontsize=8)
    return figure
