"""Paired gains of an initialisation over another, from evaluate's per_model.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

EQUAL = 1e-9  # range of gains that differ by rounding only
Row = dict[str, Any]  # of per_model.csv: init, seed, and metrics in [0, 1]


@dataclass(frozen=True)
class Gain:
    """mean: of `init` less the reference over `pairs` seeds, in [-1, 1]. half: half width of its 95 % interval; nan where there is
    none: for one pair, and for equal gains, which tell nothing of the spread."""

    init: str
    mean: float
    half: float
    pairs: int

    @property
    def verdict(self) -> Literal["gain", "loss", "no gain beyond the spread", "no interval"]:
        """gain or loss if the interval excludes 0."""
        if math.isnan(self.half):
            return "no interval"
        if abs(self.mean) <= self.half:
            return "no gain beyond the spread"
        return "gain" if self.mean > 0 else "loss"

    @property
    def short(self) -> str:
        """`+2.3 ± 1.9`; without the half width where there is none."""
        return points(self.mean) if math.isnan(self.half) else f"{points(self.mean)} ± {100 * self.half:.1f}"

    @property
    def words(self) -> str:
        """`+2.3 points, 95 % interval +0.4 to +4.2`."""
        interval = f"95 % interval {points(self.mean - self.half)} to {points(self.mean + self.half)}"
        without = f"{'one pair' if self.pairs == 1 else f'{self.pairs} equal gains'}, so no interval"
        return f"{points(self.mean)} points, {without if math.isnan(self.half) else interval}"


def gain_over(rows: Sequence[Row], metric: str, init: str, reference: str) -> Gain | None:
    """The gain of `init` over `reference` on their common seeds (same draws of labels), with Student's 95 % interval.

    The half width is nan for one pair or equal gains. None without a pair.
    """
    by_seed = {(row["init"], int(row["seed"])): float(row[metric]) for row in rows if row.get(metric) not in (None, "")}
    pairs = [(value, by_seed[reference, seed]) for (name, seed), value in by_seed.items() if name == init and (reference, seed) in by_seed]
    gains = [value - other for value, other in pairs]
    if not gains:
        return None
    if max(gains) - min(gains) < EQUAL:
        return Gain(init, fmean(gains), math.nan, len(gains))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
    return Gain(init, fmean(gains), half, len(gains))


def points(value: float) -> str:
    """A difference of metrics in [0, 1] in percentage points with its sign: `+2.3`, `−0.4`."""
    return f"{100 * value:+.1f}".replace("-", "−")
