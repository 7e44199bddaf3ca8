"""W of Eq 1: what is done to the targets before they are regressed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from dreamteacher.distillation.objectives import layernorm_whitening, standardize_whitening
from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Tap, Teacher
from dreamteacher.training.randomness import StepRandom

Whitening = Callable[[list[Tensor]], list[Tensor]]  # one (B, C_l, h_l, w_l) a tap, to the same shapes
Statistics = dict[str, dict[str, list[float]]]  # by the name of the tap: `mean` and `std` of its channels

STATISTICS_FILE = "statistics.json"
LEAST_SPREAD = 0.01  # of a channel, as a share of its tap's upper quartile


def layernorm(maps: list[Tensor]) -> list[Tensor]:
    """Each tap by `objectives.layernorm_whitening`."""
    return [layernorm_whitening(m) for m in maps]


def standardize(taps: list[Tap], statistics: Statistics) -> Whitening:
    """Each tap by the statistics of its channels.

    A channel that hardly varied when they were measured is divided by a hundredth of what others vary by: where another picture wakes
    it up, it would outweigh all of them.
    """
    measured = [[torch.tensor(statistics[tap.name][key]) for key in ("mean", "std")] for tap in taps]
    measured = [[mean, std.clamp(min=LEAST_SPREAD * float(std.quantile(0.75)))] for mean, std in measured]
    return lambda maps: [standardize_whitening(m, mean.to(m), std.to(m)) for m, (mean, std) in zip(maps, measured, strict=True)]


def measure_statistics(teacher: Teacher, batches: Iterable[Tensor], seed: int) -> Statistics:
    """Of the teacher's features of pictures, batches of `(B, 3, H, W)` in [0, 1] on its device. `seed` draws the noise."""
    sums = {tap.name: torch.zeros(3, tap.channels, dtype=torch.float64) for tap in teacher.taps}
    for i, images in enumerate(batches):
        lesson = teacher.teach(images, StepRandom(seed, i, 0, 1, images.device))
        for tap, maps in zip(teacher.taps, lesson.features, strict=True):
            flat = maps.double().movedim(1, 0).flatten(1).cpu()
            sums[tap.name] += torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])
    statistics = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        statistics[name] = {"mean": mean.tolist(), "std": (squares / n - mean.square()).clamp(min=1e-8).sqrt().tolist()}
    return statistics


def save_statistics(statistics: Statistics, folder: Path) -> None:
    """For `load_whitening`."""
    (folder / STATISTICS_FILE).write_text(json.dumps(statistics, indent=1) + "\n")


def load_whitening(kind: str, folder: Path, taps: list[Tap]) -> Whitening:
    """That of `kind` ("layernorm" or "standardize") which distill-features used when it made `folder`.

    Raises:
        UserError: it holds no statistics of these taps.
    """
    if kind == "layernorm":
        return layernorm
    try:
        return standardize(taps, json.loads((folder / STATISTICS_FILE).read_text()))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} holds no feature statistics of these taps, which distill.whitening = 'standardize' needs; "
            "run `dreamteacher distill-features` again with it"
        ) from error
