"""The learning curve: a figure as a function of the number of labels, fitted to few and noisy points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Learning curves are power laws with a ceiling; exponents of 0.07 to 0.5 are reported (Hestness et al., arXiv 1712.00409), larger ones
# where a ceiling is near. Without points enough to tell, 0.5 is the cautious choice: it promises less of more labels than a smaller one.
USUAL = 0.5
SPREAD = math.log(2)  # standard deviation of the logarithm of the exponent
EXPONENTS = np.geomspace(0.05, 3, 60)
LEAST_ERROR = 0.005  # standard error of a point at least: half a point, as two or three draws may agree by chance


@dataclass(frozen=True)
class Curve:
    """`ceiling - scale * n ** -exponent`, a figure in [0, 1] of a training from scratch with `n` labelled pictures; it never falls."""

    ceiling: float
    scale: float
    exponent: float

    def at(self, n: float) -> float:
        """The figure with `n` > 0 labelled pictures; never below 0."""
        return max(0.0, self.ceiling - self.scale * n**-self.exponent)

    def labels_for(self, figure: float) -> float:
        """How many labelled pictures reach `figure`; infinity where the ceiling is not above it."""
        if figure >= self.ceiling or self.scale == 0:
            return math.inf
        return float((self.scale / (self.ceiling - figure)) ** (1 / self.exponent))


def fit(points: dict[int, tuple[float, float]]) -> Curve:
    """The likeliest curve through `points`, {labels: (mean figure, its standard error)}, at least two.

    Least squares in units of the standard errors; the exponent's prior is log-normal around USUAL, so that two or three points suffice.
    The ceiling is at most 1, and the curve never falls: where the points do, it is level.
    """
    n = np.array(list(points), dtype=float)
    figure, error = np.array(list(points.values())).T
    weight = np.maximum(error, LEAST_ERROR) ** -2
    best, lowest = Curve(1.0, 0.0, USUAL), math.inf
    for exponent in EXPONENTS:
        basis = n**-exponent
        ceiling, scale = _line(basis, figure, weight)
        misfit = float((weight * (ceiling - scale * basis - figure) ** 2).sum()) + (math.log(exponent / USUAL) / SPREAD) ** 2
        if misfit < lowest:
            best, lowest = Curve(ceiling, scale, float(exponent)), misfit
    return best


def _line(basis: np.ndarray, figure: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """(ceiling <= 1, scale >= 0) of the line `ceiling - scale * basis` that is nearest to `figure`."""
    mean_basis, mean_figure = np.average(basis, weights=weight), np.average(figure, weights=weight)
    centred = basis - mean_basis
    scale = max(0.0, -float((weight * centred * (figure - mean_figure)).sum() / (weight * centred**2).sum()))
    ceiling = float(mean_figure + scale * mean_basis)
    if ceiling > 1:
        return 1.0, max(0.0, float((weight * basis * (1 - figure)).sum() / (weight * basis**2).sum()))
    return ceiling, scale
