"""Figures of recipes over paired draws of labels: means, spreads, gains with their intervals, and the paper's order."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

Row = dict[str, Any]  # of a record's models: init, labels, draw, pretraining, and figures in [0, 1]
Pair = tuple[Any, Any]  # draw and seed of the pretraining


def by_pair(rows: list[Row], figure: str, init: str, labels: int | None) -> dict[Pair, float]:
    """The figures of an initialisation with so many labels, by draw and seed of the pretraining."""
    return {
        (row["draw"], row["pretraining"]): float(row[figure])
        for row in rows
        if row["init"] == init and row["labels"] == labels and figure in row
    }


@dataclass(frozen=True)
class Gain:
    """mean: over the draws that both have, of one minus the other. half: of its 95 % interval by Student's t; nan of one pair."""

    mean: float
    half: float
    pairs: int

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return 0 if not abs(self.mean) > self.half else 1 if self.mean > 0 else -1


def gain(one: dict[Pair, float], other: dict[Pair, float]) -> Gain | None:
    """Of the same draws; None: they share none."""
    gains = [one[pair] - other[pair] for pair in one if pair in other]
    if not gains:
        return None
    half = float(t.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return Gain(fmean(gains), half, len(gains))


def mean_and_spread(values: dict[Pair, float]) -> str:
    """In per cent, with the sample standard deviation."""
    numbers = [100 * value for value in values.values()]
    return f"{fmean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "") if numbers else ""


def in_words(gained: Gain | None) -> str:
    """`+4.3 ± 2.1` in points, without the interval where one pair gives none."""
    if gained is None:
        return ""
    return f"{100 * gained.mean:+.1f}" + (f" ± {100 * gained.half:.1f}" if gained.pairs > 1 else "")


def by_pretraining(one: dict[Pair, float], other: dict[Pair, float]) -> dict[Any, float]:
    """The mean gain of each seed of the pretraining."""
    seeds = sorted({seed for _, seed in one})
    found = {seed: gain({pair: value for pair, value in one.items() if pair[1] == seed}, other) for seed in seeds}
    return {seed: each.mean for seed, each in found.items() if each}
