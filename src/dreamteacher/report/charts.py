"""SVG plots for a page with light and dark theme: they use the page's colours and font."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamteacher.report.paired import Gain

Points = Sequence[tuple[float, float]]
# Placeholder colours in matplotlib's output, which are replaced by variables of the page's style sheet.
INK, FAINT = "#010203", "#010204"
SERIES = [f"#0102{16 + i:02x}" for i in range(8)]
_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)"} | {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)}
WIDTH = 5.2  # inches; text stays readable on a phone
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def curves(named: Mapping[str, Points], x: str, y: str) -> Markup:
    """Line plot of named series of points (x, y); colours repeat."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _open(2.9)
        for i, (name, points) in enumerate(named.items()):
            marker = "." if len(points) < 20 else ""
            axes.plot(*zip(*points, strict=True), color=SERIES[i % len(SERIES)], linewidth=1.8, marker=marker, label=name)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(named) > 1:
            axes.legend()
        return _svg(figure, f"{y} over {x}: {', '.join(named)}")


def strips(values: Mapping[str, Sequence[float]], x: str) -> Markup:
    """Strip plot: for each name its values in per cent as dots, and their mean as a bar."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _lines(list(values))
        for place, of_name in enumerate(values.values()):
            percent = [100 * value for value in of_name]
            mean = sum(percent) / len(percent)
            axes.plot(percent, [place] * len(percent), "o", color=SERIES[0], markersize=5, alpha=0.65)
            axes.plot([mean, mean], [place - 0.28, place + 0.28], color=INK, linewidth=2.2)
        axes.set_xlabel(x)
        return _svg(figure, f"{x} of {', '.join(values)}, a dot for each seed")


def intervals(gains: Sequence[Gain], x: str) -> Markup:
    """Interval plot: for each gain its mean in points and its 95 % interval, with a line at 0."""
    colours = {"gain": SERIES[2], "loss": SERIES[1]}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _lines([gain.init for gain in gains])
        axes.axvline(0, color=INK, linewidth=1)
        for place, gain in enumerate(gains):
            colour = colours.get(gain.verdict, SERIES[0])
            half = None if gain.verdict == "no interval" else 100 * gain.half
            axes.errorbar(100 * gain.mean, place, xerr=half, fmt="o", color=colour, markersize=6, linewidth=2, capsize=4)
        axes.set_xlabel(x)
        return _svg(figure, "; ".join(f"{gain.init}: {gain.words}" for gain in gains))


def _open(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def _lines(names: list[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each name, the first on top."""
    figure, axes = _open(0.9 + 0.36 * len(names))
    axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _svg(figure: Figure, words: str) -> Markup:
    """The figure as an SVG element; `words` are its accessible label."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": words}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>| xmlns(:xlink)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    key = hashlib.sha256(words.encode()).hexdigest()[:8]  # ids must be unique in a page
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{key}-")
    return Markup(text.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(words), 1))
