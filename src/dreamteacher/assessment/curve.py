"""The learning curve: a metric as a function of the number of labels, fitted to few and noisy points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Learning curves are power laws with a ceiling; reported exponents are 0.07 to 0.5 (Hestness et al., arXiv 1712.00409), larger near the
# ceiling. With few points 0.5 is the cautious choice, as it predicts less gain from more labels than a smaller one.
USUAL_EXPONENT = 0.5
EXPONENT_SPREAD = math.log(2)  # standard deviation of the logarithm of the exponent
EXPONENTS = np.geomspace(0.05, 3, 60)
MIN_ERROR = 0.005  # minimum standard error of a point, as two or three draws may agree by chance


@dataclass(frozen=True)
class Curve:
    """`ceiling - scale * n ** -exponent`, the metric in [0, 1] of training from scratch with `n` labels; it never decreases."""

    ceiling: float
    scale: float
    exponent: float

    def at(self, n: float) -> float:
        """The metric with `n` > 0 labels; at least 0."""
        return max(0.0, self.ceiling - self.scale * n**-self.exponent)

    def labels_for(self, figure: float) -> float:
        """The number of labels that reach `figure`; infinity if the ceiling is not above it."""
        if figure >= self.ceiling or self.scale == 0:
            return math.inf
        return float((self.scale / (self.ceiling - figure)) ** (1 / self.exponent))


def fit(points: dict[int, tuple[float, float]]) -> Curve:
    """The maximum a posteriori curve through at least two `points`, {labels: (mean metric, standard error)}.

    Weighted least squares with a log-normal prior of the exponent around USUAL_EXPONENT, so that two or three points suffice. The ceiling
    is at most 1, and the curve is constant where the points decrease.
    """
    n = np.array(list(points), dtype=float)
    figure, error = np.array(list(points.values())).T
    weight = np.maximum(error, MIN_ERROR) ** -2
    best, lowest = Curve(1.0, 0.0, USUAL_EXPONENT), math.inf
    for exponent in EXPONENTS:
        basis = n**-exponent
        ceiling, scale = _line(basis, figure, weight)
        misfit = (
            float((weight * (ceiling - scale * basis - figure) ** 2).sum()) + (math.log(exponent / USUAL_EXPONENT) / EXPONENT_SPREAD) ** 2
        )
        if misfit < lowest:
            best, lowest = Curve(ceiling, scale, float(exponent)), misfit
    return best


def _line(basis: np.ndarray, figure: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted least-squares fit of `ceiling - scale * basis` to `figure` with ceiling <= 1 and scale >= 0."""
    mean_basis, mean_figure = np.average(basis, weights=weight), np.average(figure, weights=weight)
    centred = basis - mean_basis
    scale = max(0.0, -float((weight * centred * (figure - mean_figure)).sum() / (weight * centred**2).sum()))
    ceiling = float(mean_figure + scale * mean_basis)
    if ceiling > 1:
        return 1.0, max(0.0, float((weight * basis * (1 - figure)).sum() / (weight * basis**2).sum()))
    return ceiling, scale
