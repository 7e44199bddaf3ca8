"""Batched box operations with fixed output sizes, for torch and ONNX; torchvision does them picture by picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

from dreamteacher.tasks.base import Size

SAME = 1e-2  # tolerance (fractions of the picture, or score) for matching a box of ONNX with one of torch
FLIPS = 0.2  # allowed share of unmatched boxes; 2 % are usual, more if many scores are within 1e-6; a wrong file changes all


class _NonMaximumSuppression(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
        kept = torch.zeros_like(scores)
        for corners, of_classes, of_kept in zip(boxes, scores, kept, strict=True):
            for values, result in zip(of_classes, of_kept, strict=True):
                (real,) = (values > 0).nonzero(as_tuple=True)
                result[real[nms(corners[real], values[real], overlap)]] = 1
        return kept

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, overlap: float) -> Any:
        """NMS by ONNX' operator, which takes a batch and returns (batch, class, box) of each kept box."""
        least, threshold = torch.tensor([0.0]), torch.tensor([overlap])
        most = g.op("Constant", value_t=torch.tensor([torch.iinfo(torch.int32).max]))
        constants = (g.op("Constant", value_t=value) for value in (threshold, least))
        kept = g.op("NonMaxSuppression", boxes, scores, most, *constants)
        count = g.op("Gather", g.op("Shape", kept), g.op("Constant", value_t=torch.tensor([0])), axis_i=0)
        ones = g.op("ConstantOfShape", count, value_t=torch.tensor([1.0]))
        zeros = g.op("ConstantOfShape", g.op("Shape", scores), value_t=torch.tensor([0.0]))
        return g.op("ScatterND", zeros, kept, ones).setType(scores.type())


def not_suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """NMS as a mask `(B, K, A)`: 1.0 for boxes that overlap no better one of their class and picture by more than `overlap`, else 0.0.

    boxes: (B, A, 4) of x1, y1, x2, y2. scores: (B, K, A); 0 means no box.
    """
    result: Tensor = _NonMaximumSuppression.apply(boxes.detach(), scores.detach(), overlap)
    return result


class _BestPlaces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> Tensor:
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]

    @staticmethod
    def symbolic(g: Any, scores: Any, count: int) -> Any:
        """ONNX' operator takes the lower index of equal values, too."""
        return g.op("TopK", scores, g.op("Constant", value_t=torch.tensor([count])), axis_i=1, largest_i=1, sorted_i=1, outputs=2)[1]


def best_places(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of `scores` (B, A) in descending order, ties by lower index: int64 (B, count).

    `topk` does not define the order of ties. In a picture of one colour, for example, hundreds of cells have equal scores, and torch and
    onnxruntime would select different ones.
    """
    places: Tensor = _BestPlaces.apply(scores.detach(), count)
    return places


def pool_boxes(pool: MultiScaleRoIAlign, levels: list[Tensor], boxes: Tensor) -> Tensor:
    """RoI pooling of boxes `(B, A, 4)` in pixels by `pool`, whose scales are set: `(B * A, C, side, side)`."""
    pictures = torch.arange(boxes.shape[0], device=boxes.device).to(boxes)[:, None, None].expand(-1, boxes.shape[1], 1)
    return pool_regions(pool, levels, torch.cat([pictures, boxes], 2).flatten(0, 1))


def pool_regions(pool: MultiScaleRoIAlign, levels: list[Tensor], regions: Tensor) -> Tensor:
    """As `pool_boxes`, for regions `(R, 5)`: index of the picture, and the box in it."""
    assert pool.scales is not None and pool.map_levels is not None, "see_strides sets them"
    chosen = pool.map_levels([regions[:, 1:]])
    pooled = torch.zeros(regions.shape[0], levels[0].shape[1], *pool.output_size, device=regions.device)
    for number, (level, scale) in enumerate(zip(levels, pool.scales, strict=True)):
        (here,) = (chosen == number).nonzero(as_tuple=True)
        pooled = pooled.index_put((here,), roi_align(level, regions[here], pool.output_size, scale, pool.sampling_ratio).float())
    return pooled


def spans(boxes: Tensor, size: Size) -> Tensor:
    """bool (H, W): the pixels that boxes `(N, 4)` cover together."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    x1, y1, x2, y2 = boxes.T[:, :, None]
    inside = ((y > y1) & (y < y2))[:, :, None] & ((x > x1) & (x < x2))[:, None]
    return inside.any(0)


def unknown_share(boxes: Tensor, unknown: Tensor) -> Tensor:
    """`(A,)`: the share of each box `(A, 4)`, clipped to the picture, that is `unknown`, bool (H, W)."""
    height, width = unknown.shape
    sums = torch.zeros(height + 1, width + 1, device=boxes.device)
    sums[1:, 1:] = unknown.double().cumsum(0).cumsum(1)
    x1, y1, x2, y2 = boxes.detach().round().long().T
    x1, x2, y1, y2 = x1.clamp(0, width), x2.clamp(0, width), y1.clamp(0, height), y2.clamp(0, height)
    return (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) / ((x2 - x1) * (y2 - y1)).clamp(min=1)


def align_boxes(theirs: list[np.ndarray], ours: list[np.ndarray]) -> list[np.ndarray]:
    """`scores` (B, K, A), `boxes` (B, 4, A) and, if present, `masks` (B, A, M, M), reordered to match `ours`.

    Boxes are sorted and selected by score, so differences of 1e-6 between two runtimes can swap neighbours, or keep the other of two boxes
    that overlap by just the threshold. So up to FLIPS of a picture's boxes may be unmatched; they are replaced by those of `ours`. With
    more, or other shapes, everything is returned unchanged. Masks of boxes without a score count as equal.
    """
    if any(one.shape != other.shape for one, other in zip(theirs, ours, strict=True)):
        return theirs
    aligned = [values.copy() for values in theirs]
    for picture in range(len(ours[0])):
        one, other = (np.concatenate([side[0][picture], side[1][picture]]).T for side in (theirs, ours))  # (A, K + 4)
        nearest, alone, way_back = np.zeros(len(other), int), np.zeros(len(other), bool), np.full(len(one), np.inf)
        for row, values in enumerate(other):
            distance = np.abs(one - values).max(1)
            nearest[row] = distance.argmin()
            alone[row] = not distance[nearest[row]] <= SAME
            way_back = np.minimum(way_back, distance)
        flips = max(alone.sum(), (~(way_back <= SAME)).sum())
        if flips > max(FLIPS * len(one), 1):
            return theirs
        for result, wanted in zip(aligned[:2], ours[:2], strict=True):
            result[picture] = np.where(alone, wanted[picture], result[picture][:, nearest])
        for result, wanted in zip(aligned[2:], ours[2:], strict=True):
            masks = result[picture][nearest]
            nothing = ~(masks.any((1, 2)) & wanted[picture].any((1, 2))) & ~ours[0][picture].any(0)
            result[picture] = np.where((alone | nothing)[:, None, None], wanted[picture], masks)
    return aligned
