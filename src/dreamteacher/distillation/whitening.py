"""W of Eq 1: whitening of the regression targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamteacher.distillation.objectives import layernorm_whitening, standardize_whitening
from dreamteacher.distillation.rotations import equalizing_rotation
from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Tap, Teacher
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

Whitening = Callable[[list[Tensor]], list[Tensor]]  # one (B, C_l, h_l, w_l) per tap, to the same shapes
# By the tap's name, in float64: `mean` and `std` of its channels, both (C,), or `mean` and the `matrix` (C, C) of phi-s; {} of layernorm
Statistics = dict[str, dict[str, Tensor]]

STATISTICS_FILE, MATRICES_FILE = "statistics.json", "statistics.safetensors"
MIN_SPREAD = 0.01  # minimum std of a channel, as a share of its tap's upper quartile


def layernorm(maps: list[Tensor]) -> list[Tensor]:
    """`objectives.layernorm_whitening` of each tap."""
    return [layernorm_whitening(m) for m in maps]


def standardize(taps: list[Tap], statistics: Statistics) -> Whitening:
    """Standardise each tap by the statistics of its channels.

    The std of a channel that hardly varied in the measurement is raised to a hundredth of the others': otherwise a picture that activates
    this channel would outweigh all others.
    """
    measured = [[statistics[tap.name][key].float() for key in ("mean", "std")] for tap in taps]
    measured = [[mean, std.clamp(min=MIN_SPREAD * float(std.quantile(0.75)))] for mean, std in measured]
    moved = _beside_maps(measured)
    return lambda maps: [standardize_whitening(m, *moved(place, m)) for place, m in enumerate(maps)]


def phi_s(taps: list[Tap], statistics: Statistics) -> Whitening:
    """One linear map of each tap's channel vectors, after which all channels have mean 0 and variance 1 (PHI-S, arXiv 2410.01680).

    Distances are preserved up to one scale, unlike with `standardize`, which amplifies channels of noise.
    """
    moved = _beside_maps([[statistics[tap.name][key].float() for key in ("mean", "matrix")] for tap in taps])

    def whiten(maps: list[Tensor]) -> list[Tensor]:
        whitened = []
        for place, m in enumerate(maps):
            mean, matrix = moved(place, m)
            with torch.autocast(m.device.type, enabled=False):
                whitened.append((matrix @ (m - mean[:, None, None]).flatten(2)).view_as(m))
        return whitened

    return whiten


def _beside_maps(measured: list[list[Tensor]]) -> Callable[[int, Tensor], list[Tensor]]:
    """The statistics of a tap on the device of its maps. They are copied only once, because the copy synchronises."""

    def moved(place: int, maps: Tensor) -> list[Tensor]:
        measured[place] = [each.to(maps) for each in measured[place]]
        return measured[place]

    return moved


KINDS: dict[str, Callable[[list[Tap], Statistics], Whitening]] = {
    "layernorm": lambda taps, statistics: layernorm,
    "standardize": standardize,
    "phi-s": phi_s,
}


def measure_statistics(kind: str, teacher: Teacher, batches: Iterable[Tensor], seed: int) -> Statistics:
    """Measure the statistics of the teacher's features that the whitening `kind` needs.

    Args:
        kind: one of KINDS; layernorm needs no statistics.
        teacher: whose features are measured.
        batches: of pictures `(B, 3, H, W)` in [0, 1] on its device.
        seed: draws the noise.
    """
    if kind == "layernorm":
        return {}
    sums = {tap.name: torch.zeros(3, tap.channels, dtype=torch.float64) for tap in teacher.taps}
    products = {tap.name: torch.zeros(tap.channels, tap.channels, dtype=torch.float64) for tap in teacher.taps}
    for i, images in enumerate(batches):
        lesson = teacher.teach(images, StepRandom(seed, i, 0, 1, images.device))
        for tap, maps in zip(teacher.taps, lesson.features, strict=True):
            flat = maps.double().movedim(1, 0).flatten(1)
            if kind == "phi-s":
                products[tap.name] += (flat @ flat.T).cpu()
            flat = flat.cpu()
            sums[tap.name] += torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])
    statistics = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        if kind == "phi-s":
            covariance = products[name] / n - mean[:, None] * mean
            scale = covariance.trace().div(len(mean)).clamp(min=1e-8).sqrt()
            statistics[name] = {"mean": mean, "matrix": equalizing_rotation(covariance) / scale}
        else:
            statistics[name] = {"mean": mean, "std": (squares / n - mean.square()).clamp(min=1e-8).sqrt()}
    return statistics


def fit_whitening(kind: str, teacher: Teacher, batches: Iterable[Tensor], seed: int, kept: Path) -> tuple[Whitening, Statistics]:
    """The whitening `kind` for this teacher, and its statistics (see `measure_statistics`).

    The first process measures once and saves to `kept`, the folder of the run's checkpoints, so that a resumed run and other processes use
    bit-identical statistics: with nearly equal eigenvalues, another measurement would give another rotation.
    """
    if kind != "layernorm":
        with this_process().main_process_first():
            if not _files(kept):
                save_statistics(measure_statistics(kind, teacher, batches, seed), kept)
    statistics = {} if kind == "layernorm" else _read_statistics(kept)
    return KINDS[kind](teacher.taps, statistics), statistics


def save_statistics(statistics: Statistics, folder: Path) -> None:
    """Write the statistics for `load_whitening`; nothing if there are none."""
    matrices = any("matrix" in of_tap for of_tap in statistics.values())
    path = folder / (MATRICES_FILE if matrices else STATISTICS_FILE)
    unfinished = path.with_name(f".{path.name}.tmp")
    if matrices:
        save_file({f"{tap}/{key}": value for tap, of_tap in statistics.items() for key, value in of_tap.items()}, unfinished)
    elif statistics:
        plain = {tap: {key: value.tolist() for key, value in of_tap.items()} for tap, of_tap in statistics.items()}
        unfinished.write_text(json.dumps(plain, indent=1) + "\n")
    if statistics:
        unfinished.replace(path)


def load_whitening(kind: str, folder: Path, taps: list[Tap]) -> Whitening:
    """The whitening `kind` (one of KINDS) with the statistics in `folder`, an output of distill-features.

    Raises:
        UserError: it holds no statistics of these taps.
    """
    try:
        return KINDS[kind](taps, {} if kind == "layernorm" else _read_statistics(folder))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no feature statistics of these taps, which distill.whitening = {kind!r} needs; "
            "run `dreamteacher distill-features` again with it"
        ) from error


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / STATISTICS_FILE, folder / MATRICES_FILE) if path.is_file()]


def _read_statistics(folder: Path) -> Statistics:
    if (folder / STATISTICS_FILE).is_file():
        plain = json.loads((folder / STATISTICS_FILE).read_text())
        return {tap: {key: torch.tensor(value, dtype=torch.float64) for key, value in of_tap.items()} for tap, of_tap in plain.items()}
    statistics: Statistics = {}
    for name, value in load_file(folder / MATRICES_FILE).items():
        tap, _, key = name.rpartition("/")
        statistics.setdefault(tap, {})[key] = value
    return statistics
