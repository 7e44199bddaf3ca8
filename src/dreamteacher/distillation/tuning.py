"""Quality of a teacher's features at a noise step, per tap, before distillation: without labels, and with the few labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.data.dataset import Samples
from dreamteacher.data.items import IGNORE
from dreamteacher.tasks.base import Task
from dreamteacher.tasks.readout import linear, pixel_features, standardize
from dreamteacher.teachers.base import Tap, Teacher
from dreamteacher.training.randomness import StepRandom, derive_seed

AT_ONCE = 16  # pictures in one pass
AROUND = 3  # side of the neighbourhood whose colours explain a feature, cells
RIDGE = 1e-4  # of the mean square of a colour
PROBE_PIXELS = 4096  # over all crops
FOLDS = 4


@dataclass(frozen=True)
class Shares:
    """Shares of the variance of one tap's standardised features; all in [0, 1] up to estimation error.

    Attributes:
        signal: the share that depends on the picture, not on the noise: an upper bound for a student that sees clean pictures.
        pixels: the share that a linear function of the surrounding colours explains, which needs no teacher.
    """

    signal: float
    pixels: float

    @property
    def teachable(self) -> float:
        """The signal that the pixels do not explain."""
        return self.signal - self.pixels


def measure_shares(teacher: Teacher, batches: Iterable[Tensor], noises: int, seed: int) -> list[Shares]:
    """The shares of each tap, fine to coarse.

    Args:
        teacher: the teacher with its encoding.
        batches: at least two, of pictures `(B, 3, H, W)` in [0, 1]. The fit on colours is cross-validated: fitted on every second batch and
            measured on the others, and vice versa.
        noises: forward passes per picture, each with new noise; with one, or an encoding without noise, everything is signal.
        seed: draws the noise.
    """
    sums = [[_Sums(tap.channels) for tap in teacher.taps] for _ in range(2)]
    for i, images in enumerate(batches):
        lessons = [teacher.teach(images, StepRandom(seed, i * noises + n, 0, 1, images.device)) for n in range(noises)]
        for place, tap in enumerate(teacher.taps):
            maps = torch.stack([lesson.features[place] for lesson in lessons])
            sums[i % 2][place].add(maps, _colours(lessons[0].images, tap))
    return [_shares(first, second) for first, second in zip(*sums, strict=True)]


class _Sums:
    """Sufficient statistics for the shares of a tap; their size does not depend on the number of pictures."""

    def __init__(self, channels: int):
        colours = 3 * AROUND**2 + 1
        self.count, self.noises = 0, 1
        self.total, self.squares, self.noise, self.of_means = (torch.zeros(channels, dtype=torch.float64) for _ in range(4))
        self.colours = torch.zeros(colours, colours, dtype=torch.float64)
        self.both = torch.zeros(colours, channels, dtype=torch.float64)

    def add(self, maps: Tensor, colours: Tensor) -> None:
        """Maps `(noises, B, C, h, w)` of the same pictures, and colours `(B * h * w, colours)`."""
        flat = maps.double().movedim(2, -1).flatten(1, 3)  # (noises, B * h * w, C)
        mean = flat.mean(0)
        self.count += len(mean)
        self.noises = len(flat)
        self.total += mean.sum(0).cpu()
        self.squares += flat.square().mean(0).sum(0).cpu()
        self.of_means += mean.square().sum(0).cpu()
        self.noise += (flat - mean).square().sum((0, 1)).cpu() / max(len(flat) - 1, 1)
        self.colours += (colours.T @ colours).cpu()
        self.both += (colours.T @ mean).cpu()


def _colours(images: Tensor, tap: Tap) -> Tensor:
    """`(B * h * w, 28)`, float64: the mean colours of AROUND x AROUND cells of the tap, and 1."""
    cells = F.avg_pool2d(images.double(), tap.stride)
    around = F.unfold(F.pad(cells, [AROUND // 2] * 4, mode="replicate"), AROUND).movedim(1, -1).flatten(0, 1)
    return torch.cat([around, torch.ones_like(around[:, :1])], dim=1)


def _shares(first: _Sums, second: _Sums) -> Shares:
    count = first.count + second.count
    variance = (first.squares + second.squares) / count - ((first.total + second.total) / count).square()
    weight = 1 / variance.clamp(min=1e-4 * float(variance.quantile(0.75)) + 1e-12)
    noise = (first.noise + second.noise) / count
    explained = torch.zeros_like(variance)
    for fitted, measured in ((first, second), (second, first)):
        ridge = RIDGE * fitted.colours.diagonal() * torch.eye(len(fitted.colours), dtype=torch.float64)
        beta = torch.linalg.solve(fitted.colours + ridge, fitted.both)
        left = measured.of_means - 2 * (beta * measured.both).sum(0) + (beta * (measured.colours @ beta)).sum(0)
        explained += (measured.of_means - measured.total.square() / measured.count - left) / count
    all_of_it = float((weight * variance).sum())
    return Shares(1 - float((weight * noise).sum()) / all_of_it, float((weight * explained.clamp(min=0)).sum()) / all_of_it)


def probe(
    teacher: Teacher, task: Task, samples: Samples, classes: list[str], *, crops: int, seed: int, device: torch.device
) -> list[float]:
    """The task's metric of a linear probe of each tap, fine to coarse, cross-validated with FOLDS folds.

    Args:
        teacher: the teacher with its encoding.
        task: classifies pixels or pictures.
        samples: crops of the labelled pictures, and their labels.
        classes: their names.
        crops: number of crops per picture.
        seed: draws crops, pixels and noise.
        device: of the teacher.
    """
    items = [(i, derive_seed("probe", seed, i, crop)) for i in range(len(samples)) for crop in range(crops)]
    each = max(1, PROBE_PIXELS // len(items))
    features: list[list[Tensor]] = [[] for _ in teacher.taps]
    labels, picture = [], []
    for start in range(0, len(items), AT_ONCE):
        batch = [samples[item] for item in items[start : start + AT_ONCE]]
        images = torch.stack([sample["image"] for sample in batch]).to(device)
        lesson = teacher.teach(images, StepRandom(seed, start, 0, 1, device))
        for place, sample in enumerate(batch):
            index, chosen_by = items[start + place]
            if task.classifies == "pixels":
                counted = (sample["label"] != IGNORE).nonzero()
                generator = torch.Generator().manual_seed(chosen_by)
                chosen = counted[torch.randperm(len(counted), generator=generator)[:each]]
                read = [pixel_features([maps[place]], chosen.to(device), sample["label"].shape) for maps in lesson.features]
                label = sample["label"][chosen[:, 0], chosen[:, 1]]
            else:
                read, label = [maps[place].mean((1, 2))[None] for maps in lesson.features], sample["label"][None]
            for of_tap, values in zip(features, read, strict=True):
                of_tap.append(values.cpu())
            labels.append(label)
            picture.append(torch.full((len(label),), index % FOLDS))
    truth, fold = torch.cat(labels).long(), torch.cat(picture)
    return [_cross_validated(task, torch.cat(of_tap), truth, fold, classes) for of_tap in features]


def _cross_validated(task: Task, features: Tensor, truth: Tensor, fold: Tensor, classes: list[str]) -> float:
    predicted = torch.zeros_like(truth)
    for held in fold.unique():
        support, queries = standardize(features[fold != held], features[fold == held], [features.shape[1]])
        predicted[fold == held] = linear(support, truth[fold != held], queries, len(classes))
    total = task.score(classes)
    total.update(predicted, truth)
    return total.compute()[task.figure]
