"""The gates that a new model must pass before it becomes champion."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import onnxruntime

from dreamteacher.onnx_files import INPUT

ROUNDS = 3  # of timing; the best is used, as it is least disturbed by other load
TRIES, PAUSE = 5, 20.0  # seconds; a model that seems too slow is timed again later, in case of other load


@dataclass(frozen=True)
class Check:
    """The result of a gate: measured value, limit, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    words: str


@dataclass(frozen=True)
class OverSeeds:
    """A metric over the seeds of an initialisation: mean, sample standard deviation (0 for one seed), number of seeds."""

    mean: float
    std: float
    count: int


def check_floor(name: str, figure: str, values: Sequence[float], floor: float) -> Check:
    """Gate: the mean of `values`, one per seed, is at least `floor`."""
    value = fmean(values)
    return Check(name, value >= floor, value, floor, f"{figure} {value:.4f}, at least {floor:g}")


def check_regression(name: str, figure: str, values: Sequence[float], champion: OverSeeds, z: float) -> Check:
    """Gate: the mean of `values` over n seeds is at least the champion's mean over m seeds less `z` standard errors of the difference.

    The standard error is s sqrt(1/n + 1/m), with the champion's standard deviation s for both, so that a model cannot widen its tolerance
    by its own variance. If the champion has one seed, s is 0 and no loss is allowed.
    """
    error = champion.std * (1 / len(values) + 1 / champion.count) ** 0.5
    value, limit = fmean(values), champion.mean - z * error
    words = f"{figure} {value:.4f}, at least {limit:.4f} (champion's {champion.mean:.4f} less {z:g} standard errors of {error:.4f})"
    return Check(name, value >= limit, value, limit, words)


def check_same_split(ours: set[str], theirs: set[str]) -> Check:
    """Gate: the validation pictures, by sha256, are the champion's; if not, a comparison would not be fair."""
    differ = len(ours ^ theirs)
    then = ", so the models cannot be compared; a person must decide" if differ else ""
    words = f"{differ} validation pictures differ from the champion's{then}"
    return Check("same validation split", not differ, differ, 0, words)


def check_parity(parity: float, tolerance: float) -> Check:
    """Gate: onnxruntime and torch agree within `tolerance`."""
    return Check("parity", parity <= tolerance, parity, tolerance, f"|onnxruntime - torch| {parity:.2g}, at most {tolerance:g}")


def check_latency(model: Path, size: int, budget_ms: float, runs: int) -> Check:
    """Gate: median time of one `size` x `size` picture in onnxruntime on this CPU, best of ROUNDS rounds of `runs`.

    Over the budget it is measured again, up to TRIES times; the best is used. onnxruntime gets torch's number of threads, which pods set by
    OMP_NUM_THREADS; its own default is the node's cores.
    """
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    picture = np.zeros((1, 3, size, size), np.float32)
    value = math.inf
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        value = min(value, *(_median_ms(session, picture, runs) for _ in range(ROUNDS)))
        if value <= budget_ms:
            break
    return Check("latency", value <= budget_ms, value, budget_ms, f"{value:.1f} ms for one {size} x {size} picture, at most {budget_ms:g}")


def _median_ms(session: onnxruntime.InferenceSession, picture: np.ndarray, runs: int) -> float:
    session.run(None, {INPUT: picture})
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, {INPUT: picture})
        times.append(time.perf_counter() - start)
    return 1000 * median(times)
