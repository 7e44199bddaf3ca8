"""Exponential moving average (EMA) of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3


def create_ema(model: nn.Module, decay: float) -> ModelEmaV3:
    """EMA of the parameters and buffers of `model`; `.module` is in eval mode."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=9, warmup_power=1)


def update_ema(ema: ModelEmaV3, model: nn.Module, step: int) -> None:
    """Update with the weights after `step` (from 0), with decay min(decay, (1 + step) / (10 + step)), so that short runs forget the
    random initialisation.

    timm's warm-up is 1 - 1 / (1 + s / gamma) with s = its step - 1, which equals this for gamma = 9 and s = step + 1.
    """
    ema.update(model, step + 2)
