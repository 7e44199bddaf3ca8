"""PNG figures, reproducible to the byte: overlays, feature maps as colours, bar charts, curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

Panel = tuple[str, np.ndarray | None]  # title, uint8 RGB (H, W, 3) or None
SIDE = 2.2  # inches per panel


def save_panels(rows: Sequence[Sequence[Panel]], path: Path) -> None:
    """Save a grid of titled pictures as a PNG; all rows have the same length."""
    first = next(image for _, image in rows[0] if image is not None)
    across = SIDE * min(2.0, max(0.5, first.shape[1] / first.shape[0]))
    lines = 1 + max(title.count("\n") for panels in rows for title, _ in panels)
    above = 0.1 + 0.14 * lines  # inches for the titles
    tall = (SIDE + above) * len(rows)
    figure = Figure(figsize=(across * len(rows[0]), tall))
    # Explicit margins, since matplotlib's layout engines draw everything twice.
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=1 - above / tall, wspace=0.03, hspace=above / SIDE)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, panels in zip(grid, rows, strict=True):
        for axes, (title, image) in zip(row, panels, strict=True):
            axes.set_axis_off()
            axes.set_title(_drawable(title), fontsize=8, parse_math=False)  # a class may be called $5 to $9
            if image is not None:
                axes.imshow(image, interpolation="nearest")
    _save(figure, path)


def pca_colours(reference: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first three principal components of `reference` as RGB, for `reference` and `others`.

    Both are lists of maps `(C, h, w)` of the same features, of any sizes. Components and colour range (the middle 96 % of values) are
    fitted to the reference without the outer eighth of each side, where the padding of convolutions dominates, and applied to all maps, so
    that colours are comparable. Returns uint8 `(h, w, 3)` each.
    """
    flat = np.concatenate([_inner(maps).reshape(len(maps), -1).T for maps in reference]).astype(np.float64)
    mean = flat.mean(0)
    directions = np.linalg.eigh(np.cov(flat - mean, rowvar=False))[1][:, ::-1][:, :3]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(3)])  # eigh leaves the signs open
    low, high = np.percentile((flat - mean) @ directions, [2, 98], axis=0)

    def colour(maps: np.ndarray) -> np.ndarray:
        values = (np.moveaxis(maps, 0, -1) - mean) @ directions
        return ((values - low) / np.maximum(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)

    return [colour(maps) for maps in reference], [colour(maps) for maps in others]


def _inner(maps: np.ndarray) -> np.ndarray:
    down, across = maps.shape[1] // 8, maps.shape[2] // 8
    return maps[:, down : maps.shape[1] - down, across : maps.shape[2] - across]


def save_bars(values: dict[str, list[float]], label: str, path: Path) -> None:
    """Save a bar chart: for each name the mean of its values in per cent, their sample standard deviation, and each value as a dot."""
    figure = Figure(figsize=(1.2 + 0.9 * len(values), 3.2), layout="constrained")
    axes = figure.subplots()
    for place, of_name in enumerate(values.values()):
        percent = 100 * np.array(of_name)
        spread = percent.std(ddof=1) if len(percent) > 1 else None
        axes.bar(place, percent.mean(), yerr=spread, width=0.6, capsize=4, color="#8fb3d9")
        axes.text(place, 2, f"{percent.mean():.1f}", ha="center")
        axes.plot(np.full(len(percent), place), percent, "o", color="#1f3f66", markersize=3)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel(f"{label}, %")
    axes.set_ylim(bottom=0)
    _save(figure, path)


def save_curves(panels: dict[str, dict[str, list[tuple[float, float]]]], x: str, marked: float, path: Path) -> None:
    """Save panels {title: {name: [(x, y)]}} of curves side by side; `x` is the axis label, a vertical line is drawn at `marked`."""
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.axvline(marked, color="0.6", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(x)
        axes.legend(fontsize=7)
    _save(figure, path)


def _drawable(text: str) -> str:
    """`text` with `<U+1F98A>` for each character that matplotlib's font lacks, which would otherwise be drawn as the same box."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return "".join(each if each.isspace() or font.get_char_index(ord(each)) else f"<U+{ord(each):04X}>" for each in text)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
