"""The step of feature distillation (Eq 1-3), shared by distill-features and the mix of distill-labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dreamteacher.distillation.objectives import (
    attention_transfer,
    explained_variance,
    feature_mse,
    layernorm_whitening,
    standardize_whitening,
)
from dreamteacher.teachers.base import Tap


def whitening(kind: str, taps: list[Tap], statistics: dict[str, Any]) -> Callable[[list[Tensor]], list[Tensor]]:
    """W of Eq 1 for all taps; `statistics` holds `mean` and `std` of each tap's channels by its name, for `standardize`."""
    if kind == "layernorm":
        return lambda maps: [layernorm_whitening(m) for m in maps]
    measured = [[torch.tensor(statistics[tap.name][key]) for key in ("mean", "std")] for tap in taps]
    return lambda maps: [standardize_whitening(m, mean.to(m), std.to(m)) for m, (mean, std) in zip(maps, measured, strict=True)]


def feature_loss(
    regressed: list[Tensor], target: list[Tensor], whiten: Callable[[list[Tensor]], list[Tensor]], at_weight: float
) -> dict[str, Tensor]:
    """Eq 3: MSE on whitened targets + `at_weight` x attention transfer on raw ones; both lists as `(B, C_l, h_l, w_l)` a tap."""
    regressed = [r.float() for r in regressed]
    mse, at = feature_mse(regressed, whiten(target)), attention_transfer(regressed, target)
    return {"loss": mse + at_weight * at, "mse": mse, "at": at}


def quality(
    regressed: list[Tensor], target: list[Tensor], whiten: Callable[[list[Tensor]], list[Tensor]], taps: list[Tap]
) -> dict[str, float]:
    """The label-free signal: explained variance of each tap on held-out pictures, by stride, and their mean."""
    explained = {
        f"ev_stride{tap.stride}": explained_variance(r.float(), w) for tap, r, w in zip(taps, regressed, whiten(target), strict=True)
    }
    return {**explained, "explained_variance": sum(explained.values()) / len(explained)}


def embedding_spread(embedding: Tensor) -> float:
    """Collapse signal: how far pictures' unit embeddings `(B, C)` lie from their mean, in [0, 1]; near 0 all pictures look the same."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())
