"""Optimiser and learning rate from the settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from dreamteacher.settings.section import Training


class Rate(NamedTuple):
    """Learning rate of a parameter relative to settings.lr, and the step at which it starts, with its own warm-up."""

    scale: float = 1.0
    start: int = 0


def create_optimizer(model: nn.Module, settings: Training, rates: Callable[[str], Rate] | None = None) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters.

    No weight decay on biases and norms (at most one dimension) and on parameters in timm's `no_weight_decay()`, such as position
    embeddings. Each group stores its `start` and its `peak_lr`, settings.lr times the scale of `rates(parameter name)`.
    """
    exempt = _exempt_from_decay(model)
    groups: dict[tuple[float, Rate], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 and name not in exempt else 0.0
            groups.setdefault((decay, rates(name) if rates else Rate()), []).append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    plain: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr": settings.lr * rate.scale, "peak_lr": settings.lr * rate.scale, "start": rate.start}
        for (decay, rate), members in groups.items()
    ]
    if settings.optimizer == "sgd":
        momentum = settings.betas[0]
        return torch.optim.SGD(plain, lr=settings.lr, momentum=momentum, nesterov=momentum > 0)
    if settings.optimizer == "lamb":
        from timm.optim import Lamb

        # The loop clips; Lamb would clip a second time.
        return Lamb(plain, lr=settings.lr, betas=settings.betas, max_grad_norm=None)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.AdamW(plain, lr=settings.lr, betas=settings.betas, fused=fused)


def _exempt_from_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that `model` or one of its modules lists in timm's `no_weight_decay()`."""
    names = set()
    for prefix, module in model.named_modules():
        if callable(listed := getattr(module, "no_weight_decay", None)):
            names |= {f"{prefix}.{name}" if prefix else name for name in listed()}
    return names


def schedule(step: int, warmup_steps: int, steps: int) -> float:
    """Factor of the peak learning rate at `step` in [0, steps).

    Linear from 1 / warmup to 1 over the warm-up, then cosine decay to 0. The warm-up is limited to half of the run.
    """
    warmup = min(warmup_steps, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, step: int, settings: Training) -> float:
    """Set every group's learning rate at `step`; returns the largest.

    It is the group's peak times `schedule`; 0 before its `start`, followed by its own warm-up.
    """
    share = schedule(step, settings.warmup_steps, settings.steps)
    for group in optimizer.param_groups:
        start = group.get("start", 0)  # missing in older checkpoints
        warmup = max(1, min(settings.warmup_steps, (settings.steps - start) // 2))
        own = min(1.0, max(0, step - start + 1) / warmup) if start else 1.0
        group["lr"] = group["peak_lr"] * share * own
    return max(group["lr"] for group in optimizer.param_groups)
