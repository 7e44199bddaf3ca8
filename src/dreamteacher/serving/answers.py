"""What served models say of pictures, as typed results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dreamteacher.serving.contract import Contract, to_detections, to_mask, to_probabilities, to_shares


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
class Detections:
    """Objects in the picture, the likeliest first.

    boxes: float32 (D, 4) of x1, y1, x2, y2 in pixels of the picture itself, which lies from (0, 0) to (W, H). labels: int64 (D,) of class
    ids. scores: float32 (D,) in [0, 1]; choose a threshold for yours, as D may be up to 100 with low scores.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of_rows(cls, rows: np.ndarray, classes: tuple[str, ...]) -> Detections:
        """Of float32 (D, 6): box, class id, score."""
        return cls(rows[:, :4], rows[:, 4].astype(np.int64), rows[:, 5], classes)


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in a picture.

    maps: `strideS` -> float32 (C, H'/S, W'/S), of the picture as prepared (padded to H' x W'), fine to coarse. embedding: float32 (C,).
    size: (h, w) of the prepared picture without its padding.
    """

    maps: dict[str, np.ndarray]
    embedding: np.ndarray
    size: tuple[int, int]


Prediction = Segmentation | Classification | Detections
Answer = Prediction | Features


def to_answer(contract: Contract, outputs: Mapping[str, np.ndarray], prepared: tuple[int, int], size: tuple[int, int]) -> Answer:
    """The result for one picture of `size` (H, W), prepared as (h, w), from a model's outputs for it (without the batch dimension)."""
    if contract.task == "segmentation":
        mask = to_mask(outputs["logits"], prepared, size)
        return Segmentation(mask, to_shares(mask, len(contract.classes)), contract.classes)
    if contract.task == "classification":
        return Classification(to_probabilities(outputs["logits"]), contract.classes)
    if contract.task == "detection":
        return Detections.of_rows(to_detections(outputs["scores"], outputs["boxes"], prepared, size, contract), contract.classes)
    maps = {name: np.array(outputs[name]) for name in outputs if name != "embedding"}  # copies, or each would hold its whole batch
    return Features(maps, np.array(outputs["embedding"]), prepared)
