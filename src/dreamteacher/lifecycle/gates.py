"""What a new model must show before it becomes champion."""

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

ROUNDS = 3  # of timing; the best counts, since other work on the machine disturbed it least
TRIES, PAUSE = 5, 20.0  # a model that looks too slow is timed again some seconds later, in case other work outlasted the rounds


@dataclass(frozen=True)
class Check:
    """One gate: what was measured, what is asked for, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    words: str


@dataclass(frozen=True)
class OverSeeds:
    """A figure over the seeds of one initialisation: mean, sample standard deviation (0 for one seed), how many there are."""

    mean: float
    std: float
    count: int


def check_floor(name: str, figure: str, values: Sequence[float], floor: float) -> Check:
    """The mean of `values`, of as many seeds, is at least `floor`."""
    value = fmean(values)
    return Check(name, value >= floor, value, floor, f"{figure} {value:.4f}, at least {floor:g}")


def check_regression(name: str, figure: str, values: Sequence[float], champion: OverSeeds, z: float) -> Check:
    """The mean of `values`, of n seeds, is at least that of the champion's m less `z` standard errors of their difference.

    The error is that of two models alike, s sqrt(1/n + 1/m), with s of the champion alone: a model must not widen by its own scatter
    what is allowed to it. With one seed of the champion nothing is known of the spread, and no loss is allowed.
    """
    error = champion.std * (1 / len(values) + 1 / champion.count) ** 0.5
    value, limit = fmean(values), champion.mean - z * error
    words = f"{figure} {value:.4f}, at least {limit:.4f} (champion's {champion.mean:.4f} less {z:g} standard errors of {error:.4f})"
    return Check(name, value >= limit, value, limit, words)


def check_parity(parity: float, tolerance: float) -> Check:
    """onnxruntime computes what torch does."""
    return Check("parity", parity <= tolerance, parity, tolerance, f"|onnxruntime - torch| {parity:.2g}, at most {tolerance:g}")


def check_latency(model: Path, size: int, budget_ms: float, runs: int) -> Check:
    """The median time of one `size` x `size` picture in onnxruntime on this CPU, the best of three rounds of `runs`.

    Over the budget it is measured again, up to TRIES times, and the best of all counts. onnxruntime gets as many threads as torch, which
    OMP_NUM_THREADS names in a pod; its own default is the node's cores.
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
