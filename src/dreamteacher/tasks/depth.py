"""Depth of each pixel from one picture: a dense head on the neck, scale-invariant logarithmic loss (Eigen et al. 2014, arXiv 1406.2283)."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamteacher.data.depth import DepthCounts, describe_span
from dreamteacher.data.transforms import Augmentation, Transform, pixel_crop
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.students.necks import resize
from dreamteacher.tasks.base import NeckHead, Size, Task
from dreamteacher.tasks.segmentation import SegmentationHead

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

log = logging.getLogger(__name__)

INVARIANCE = 0.5  # share of a picture's common scale error that is not penalised (λ of Eq 4)
UNIT_STEP = 64.0  # of the common offset of all logarithms: metres and millimetres are far apart, and Adam's steps are small
RANGE = 25.0  # logarithms are clipped to this, so that no depth is infinite
CLOSE = 1.25


class DepthHead(SegmentationHead):
    """The segmentation head with one map, of log depth, and an offset that adapts to the unit of the labels."""

    def __init__(self, channels: list[int], width: int):
        super().__init__(channels, width, 1)
        self.shift = nn.Parameter(torch.zeros(1))

    def from_neck(self, levels: list[Tensor], size: Size) -> Tensor:
        """The neck's outputs to logarithms of depth `(B, 1, H, W)`."""
        return (super().from_neck(levels, size) + self.shift * UNIT_STEP).clamp(-RANGE, RANGE)


class DepthErrors:
    """`delta1`, the share of pixels whose depth is within a factor of 1.25, `abs_rel`, the mean of |error| / depth, and `rmse`, in the unit
    of the labels; each a mean over the pictures. The last two are errors, so lower is better, and may exceed 1."""

    def __init__(self) -> None:
        self._figures: list[tuple[float, float, float]] = []
        self._labels = DepthCounts()

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Depths, float `(H, W)`; pixels with `truth` 0 are ignored."""
        predicted, truth = predicted.cpu().double(), truth.cpu().double()
        self._labels.add(truth.numpy())
        found, there = predicted[truth > 0], truth[truth > 0]
        if len(there):
            ratio = torch.maximum(found / there, there / found.clamp(min=1e-12))
            error = found - there
            self._figures.append(
                (float((ratio < CLOSE).double().mean()), float((error.abs() / there).mean()), float(error.square().mean().sqrt()))
            )

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        if not self._figures:
            return {}
        _say_unit(describe_span(self._labels.span()))
        means = np.mean(self._figures, axis=0).tolist()
        return dict(zip(("delta1", "abs_rel", "rmse"), means, strict=True))


@lru_cache(maxsize=1)  # once for all models measured on the same labels
def _say_unit(span: str) -> None:
    log.info("the depth labels of the evaluation are %s; rmse is in the same unit, delta1 and abs_rel have none", span)


class Depth(Task):
    """A distance for each pixel."""

    figure, title, classifies = "delta1", "share within a factor of 1.25", None
    served = ("depth",)

    def head(self, channels: list[int], width: int, classes: int) -> NeckHead:
        """Logarithms of depth `(B, 1, H, W)`."""
        return DepthHead(channels, width)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of picture and map without rescaling, since another scale would look like another depth."""
        return pixel_crop(size, replace(augmentation, scale=False))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """mean(d²) - λ mean(d)² over the known pixels of a picture, d the difference of logarithms; a mean over the pictures."""
        truth = batch["label"]
        known = truth > 0
        count = known.sum((1, 2)).clamp(min=1)
        difference = torch.where(known, outputs[:, 0].float() - truth.clamp(min=1e-12).log(), 0)
        mean, square = difference.sum((1, 2)) / count, difference.square().sum((1, 2)) / count
        return {"loss": (square - INVARIANCE * mean.square()).mean()}

    def serve(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """`depth` (B, 1, H, W), in the unit of the labels."""
        return (outputs.exp(),)

    def decode(self, output: Tensor, own: Size, size: Size) -> Tensor:
        """Depth, float32 `(H, W)` of `size`."""
        return resize(output[None, :, : own[0], : own[1]].float().exp(), size)[0, 0]

    def score(self, classes: list[str]) -> DepthErrors:
        """Of pixels."""
        return DepthErrors()

    def agreement(self, exact: Tensor, rounded: Tensor) -> tuple[int, int]:
        """Over the pixels: within 1 %."""
        equal = (exact - rounded).abs() < 0.01
        return int(equal.sum()), equal.numel()

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture, and each map colour-coded from near to far in the label's range."""
        from dreamteacher.data.drawing import draw_depth

        known = next(iter(labels.values()))
        known = known[known > 0]
        span = (float(known.min()), float(known.max())) if known.size else None
        return [("picture", image), *((name, draw_depth(np.asarray(label), span)) for name, label in labels.items())]


TASK = Depth()
