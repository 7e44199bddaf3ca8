"""The step of feature distillation (Eq 1-3), shared by distill-features and the mix of distill-labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dreamteacher.distillation.objectives import (
    ExplainedVariance,
    attention_transfer,
    feature_mse,
    layernorm_whitening,
    standardize_whitening,
)
from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Tap

LEAST_SPREAD = 0.01  # of a channel, as a share of its tap's upper quartile


def whitening(kind: str, taps: list[Tap], facts: dict[str, Any], T: int) -> Callable[[list[Tensor]], list[Tensor]]:
    """W of Eq 1 for all taps, of features at noise step `T`.

    For `standardize` the teacher's `facts` hold `statistics`, the `mean` and `std` of each tap's channels by its name, and their step `T`.
    A channel that hardly varied when they were measured is divided by a hundredth of what others vary by: where another picture wakes
    it up, it would outweigh all of them.

    Raises:
        UserError: they are those of another noise step.
    """
    if kind == "layernorm":
        return lambda maps: [layernorm_whitening(m) for m in maps]
    if facts["T"] != T:
        raise UserError(
            f"distill.whitening = 'standardize' needs statistics of distill.T = {T}, but the teacher's were measured at {facts['T']}; "
            f"set distill.T = {facts['T']}, or train the teacher with teacher.stats_T = {T}"
        )
    measured = [[torch.tensor(facts["statistics"][tap.name][key]) for key in ("mean", "std")] for tap in taps]
    measured = [[mean, std.clamp(min=LEAST_SPREAD * float(std.quantile(0.75)))] for mean, std in measured]
    return lambda maps: [standardize_whitening(m, mean.to(m), std.to(m)) for m, (mean, std) in zip(maps, measured, strict=True)]


def inner_cells(maps: list[Tensor], strides: list[int], margin: int) -> list[Tensor]:
    """Maps `(B, C_l, h_l, w_l)` at `strides` without the ceil(margin / stride) outer cells of each side; `margin` in pixels.

    Convolutions pad with zeros, so near the border of a crop a generator's features show that border; with random crops they also
    differ from those that the same place has in the middle of another crop.

    Raises:
        UserError: fewer than two cells would be left in a row or column.
    """
    if not margin:
        return maps
    inner = []
    for of_tap, stride in zip(maps, strides, strict=True):
        outer, (height, width) = -(-margin // stride), of_tap.shape[2:]
        if min(height, width) - 2 * outer < 2:
            raise UserError(
                f"distill.margin = {margin} leaves less than 2 x 2 of the {height} x {width} cells at stride {stride}; "
                "lower it, raise distill.resolution, or leave that stride out of taps"
            )
        inner.append(of_tap[:, :, outer : height - outer, outer : width - outer])
    return inner


def feature_loss(
    regressed: list[Tensor], target: list[Tensor], whiten: Callable[[list[Tensor]], list[Tensor]], at_weight: float
) -> dict[str, Tensor]:
    """Eq 3: MSE on whitened targets + `at_weight` x attention transfer on raw ones; both lists as `(B, C_l, h_l, w_l)` a tap."""
    regressed = [r.float() for r in regressed]
    mse, at = feature_mse(regressed, whiten(target)), attention_transfer(regressed, target)
    return {"loss": mse + at_weight * at, "mse": mse, "at": at}


class Quality:
    """The label-free signal: explained variance of each tap on held-out pictures, batch by batch."""

    def __init__(self, taps: list[Tap]):
        self._explained = {f"ev_stride{tap.stride}": ExplainedVariance() for tap in taps}

    def update(self, regressed: list[Tensor], whitened: list[Tensor]) -> None:
        """Take in a batch, one `(B, C_l, h_l, w_l)` a tap."""
        for explained, r, w in zip(self._explained.values(), regressed, whitened, strict=True):
            explained.update(r.float(), w)

    def compute(self) -> dict[str, float]:
        """By stride of the taps, and their mean."""
        values = {name: explained.compute() for name, explained in self._explained.items()}
        return {**values, "explained_variance": sum(values.values()) / len(values)}


def embedding_spread(embedding: Tensor) -> float:
    """Collapse signal: how far pictures' unit embeddings `(B, C)` lie from their mean, in [0, 1]; near 0 all pictures look the same."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())
