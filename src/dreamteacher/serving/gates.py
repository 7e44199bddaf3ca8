"""What a new model must show before it becomes champion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, variance

import numpy as np
import onnxruntime

from dreamteacher.serving.onnx_files import INPUT

ROUNDS = 3  # of latency: the best of them is that which other work on the machine disturbed least


@dataclass(frozen=True)
class Check:
    """One gate: what was measured, what is asked for, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    words: str


def check_floor(figure: str, values: Sequence[float], floor: float) -> Check:
    """The mean over seeds is at least `floor`."""
    value = fmean(values)
    return Check("floor", value >= floor, value, floor, f"{figure} {value:.4f}, at least {floor:g}")


def check_regression(figure: str, values: Sequence[float], champion: Sequence[float], z: float) -> Check:
    """The mean over seeds is at least the champion's less `z` standard errors of their difference.

    The error is pooled, as in Student's t: s^2 = sum of squared deviations of both / (n1 + n2 - 2), error = s sqrt(1/n1 + 1/n2).
    With one seed each nothing is known of the spread, and no loss is allowed.
    """
    error = 0.0
    freedom = len(values) + len(champion) - 2
    if freedom:
        squares = sum(variance(seeds) * (len(seeds) - 1) for seeds in (values, champion) if len(seeds) > 1)
        error = (squares / freedom * (1 / len(values) + 1 / len(champion))) ** 0.5
    value, limit = fmean(values), fmean(champion) - z * error
    words = f"{figure} {value:.4f}, at least {limit:.4f} (champion's {fmean(champion):.4f} less {z:g} standard errors of {error:.4f})"
    return Check("no regression", value >= limit, value, limit, words)


def check_parity(parity: float, tolerance: float) -> Check:
    """onnxruntime computes what torch does."""
    return Check("parity", parity <= tolerance, parity, tolerance, f"|onnxruntime - torch| {parity:.2g}, at most {tolerance:g}")


def check_latency(model: Path, size: int, budget_ms: float, runs: int) -> Check:
    """The median time of one `size` x `size` picture in onnxruntime on this CPU, the best of three rounds of `runs`."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    picture = {INPUT: np.zeros((1, 3, size, size), np.float32)}
    medians = []
    for _ in range(ROUNDS):
        session.run(None, picture)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            session.run(None, picture)
            times.append(time.perf_counter() - start)
        medians.append(1000 * median(times))
    value = min(medians)
    return Check("latency", value <= budget_ms, value, budget_ms, f"{value:.1f} ms for one {size} x {size} picture, at most {budget_ms:g}")
