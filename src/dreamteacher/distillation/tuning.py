"""How good a teacher's features are at a noise step, tap by tap, before anything is distilled: without labels, and with the few."""

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
AROUND = 3  # cells, by cells, whose colours explain a feature
RIDGE = 1e-4  # of the mean square of a colour
PROBE_PIXELS = 4096  # over all crops
FOLDS = 4


@dataclass(frozen=True)
class Shares:
    """Of the variance of one tap's features, each channel by its spread; all in [0, 1] up to the error of an estimate.

    Attributes:
        signal: what depends on the picture and not on the noise. No student of clean pictures can explain more.
        pixels: what a linear function of the colours around explains, which no network needs to be taught.
    """

    signal: float
    pixels: float

    @property
    def teachable(self) -> float:
        """What there is to learn: signal that is not in the pixels."""
        return self.signal - self.pixels


def measure_shares(teacher: Teacher, batches: Iterable[Tensor], noises: int, seed: int) -> list[Shares]:
    """Of each tap, fine to coarse.

    Args:
        teacher: whose features are measured, with its encoding.
        batches: two at least, of pictures `(B, 3, H, W)` in [0, 1]. The colours are fitted on every second one, measured on the others, and
            the other way round.
        noises: passes for each picture, each with noise of its own; with one, or an encoding that draws none, all is signal.
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
    """What the shares of a tap are computed from: its size does not depend on the number of pictures."""

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
    """The task's figure of a linear read-out of each tap, fine to coarse, on pictures that it was not fitted on (FOLDS of them).

    Args:
        teacher: whose features are read, with its encoding.
        task: classifies pixels or pictures.
        samples: crops of the labelled pictures, and their labels.
        classes: their names.
        crops: of each picture.
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
