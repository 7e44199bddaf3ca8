"""Alternatives to more labels that may improve training from scratch, each a change of a few settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamteacher.settings.schema import Params

FACTOR = 3  # by which steps and learning rate are changed


@dataclass(frozen=True)
class Change:
    """words: description. settings: {dotted name: value} that differ. cost: training time relative to that without the change, about."""

    words: str
    settings: dict[str, Any]
    cost: float


def changes(params: Params, short_side: int, has_neck: bool) -> dict[str, Change]:
    """{name: change} to try, the most informative first.

    Args:
        params: of the training that is changed.
        short_side: median of the pictures, pixels; larger crops are tried only if pictures are larger.
        has_neck: the task's head has a neck.
    """
    settings = params.finetune
    found = {"longer": Change(f"{FACTOR} times the steps", {"finetune.steps": FACTOR * settings.steps}, FACTOR)}
    larger = min(2 * settings.resolution, short_side) // 32 * 32
    if larger >= 1.5 * settings.resolution:
        words = f"crops of {larger} instead of {settings.resolution} pixels"
        found["larger-crops"] = Change(words, {"finetune.resolution": larger}, (larger / settings.resolution) ** 2)
    found["higher-rate"] = Change(f"{FACTOR} times the rate", {"finetune.lr": FACTOR * settings.lr}, 1)
    found["lower-rate"] = Change(f"a rate of 1/{FACTOR}", {"finetune.lr": settings.lr / FACTOR}, 1)
    if has_neck:
        neck = "pafpn" if params.student.neck != "pafpn" else "fpn-ppm"
        found["neck"] = Change(f"another head: neck {neck} instead of {params.student.neck}", {"student.neck": neck}, 1.3)
    return found


def with_settings(params: Params, settings: dict[str, Any]) -> Params:
    """`params` with `settings`, {GROUP.KEY: value}, without validation."""
    for name, value in settings.items():
        group, key = name.split(".")
        params = params.model_copy(update={group: getattr(params, group).model_copy(update={key: value})})
    return params


def shortened(params: Params, steps: int) -> Params:
    """`params` with `steps` of fine-tuning, the same share of warm-up, and without torch.compile, which does not pay for so few steps."""
    warmup = params.finetune.warmup_steps * steps // params.finetune.steps
    return with_settings(params, {"finetune.steps": steps, "finetune.warmup_steps": warmup, "finetune.compile": False})
