"""What served models say of pictures, as typed results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dreamteacher.serving.contract import Contract, to_mask, to_probabilities, to_shares


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A class for each pixel. mask: uint8 (H, W) of class ids, in the picture's own size. shares: float32 (K,), of each class in it."""

    mask: np.ndarray
    shares: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Classification:
    """A class for the picture. probabilities: float32 (K,), the sum is 1."""

    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def best(self) -> str:
        """The likeliest class."""
        return self.classes[int(self.probabilities.argmax())]


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in a picture.

    maps: `strideS` -> float32 (C, H'/S, W'/S), of the picture as prepared (padded to H' x W'), fine to coarse. embedding: float32 (C,).
    size: (h, w) of the prepared picture without its padding.
    """

    maps: dict[str, np.ndarray]
    embedding: np.ndarray
    size: tuple[int, int]


Answer = Segmentation | Classification | Features


def to_answer(contract: Contract, outputs: Mapping[str, np.ndarray], prepared: tuple[int, int], size: tuple[int, int]) -> Answer:
    """The result for one picture of `size` (H, W), prepared as (h, w), from a model's outputs for it (without the batch dimension)."""
    if contract.task == "segmentation":
        mask = to_mask(outputs["logits"], prepared, size)
        return Segmentation(mask, to_shares(mask, len(contract.classes)), contract.classes)
    if contract.task == "classification":
        return Classification(to_probabilities(outputs["logits"]), contract.classes)
    maps = {name: np.array(outputs[name]) for name in outputs if name != "embedding"}  # copies, or each would hold its whole batch
    return Features(maps, np.array(outputs["embedding"]), prepared)
