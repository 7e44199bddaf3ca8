"""New pictures of a data set compared with the previous one, by content, and the shift of their statistics."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dreamteacher.data.dataset import ImageSet

FLOOR = 1e-6  # minimum spread, for old values that are all equal


@dataclass(frozen=True)
class Shift:
    """Distance between the means of new and old pictures in units of the old spread; by_chance: its expectation without drift."""

    old: float
    new: float
    shift: float
    by_chance: float


def contents(folder: Path) -> dict[str, set[str]]:
    """The sha256 of all source files of the data set `folder`, by split; only its manifest.csv is read."""
    found: dict[str, set[str]] = {"train": set(), "val": set()}
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["split"]].add(row["sha256"])
    return found


def draw(images: ImageSet, wanted: set[str], count: int) -> list[int]:
    """Sorted indices of up to `count` pictures whose sha256 is in `wanted`, independent of their order."""
    there = [i for i in range(len(images)) if images.sha256(i) in wanted]
    return sorted(sorted(there, key=lambda i: hashlib.sha256(images.sha256(i).encode()).digest())[:count])


def brightness_and_size(images: ImageSet, indices: list[int]) -> np.ndarray:
    """`(N, 2)`: mean of the RGB values in [0, 1]; square root of the area as stored, pixels."""
    pictures = (images.read(i).image for i in indices)
    return np.array([[picture.mean() / 255, (picture.shape[0] * picture.shape[1]) ** 0.5] for picture in pictures]).reshape(-1, 2)


def mean_shift(old: np.ndarray, new: np.ndarray) -> Shift:
    """Distance of the means of `(N, C)` and `(M, C)`, relative to the total spread of `old`: |m_new - m_old| / sqrt(tr cov_old).

    For one column this is Glass' delta, the usual standardised mean difference; for embeddings it is the root of the mean term of
    the Frechet distance (Heusel et al. 2017), whose other term needs more pictures than dimensions. Without drift, its square is
    1/N + 1/M on average. `old` and `new` of the result are the means, or their norms for several columns.
    """
    means = old.mean(0), new.mean(0)
    spread = max(float(old.var(0).sum()) ** 0.5, FLOOR)
    levels = [float(mean[0]) if len(mean) == 1 else float(np.linalg.norm(mean)) for mean in means]
    return Shift(levels[0], levels[1], float(np.linalg.norm(means[1] - means[0])) / spread, (1 / len(old) + 1 / len(new)) ** 0.5)
