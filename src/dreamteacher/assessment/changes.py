"""What else may raise the figure of a training from scratch, and is tried beside more labels: each a change of a few settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamteacher.settings.schema import Params

TIMES = 3  # as many steps, and the change of the rate


@dataclass(frozen=True)
class Change:
    """Settings, by dotted names, that differ. cost: seconds of a training over those of one without the change, about."""

    words: str
    settings: dict[str, Any]
    cost: float


def changes(params: Params, short_side: int, has_neck: bool) -> dict[str, Change]:
    """What is worth a try, the most telling first.

    Args:
        params: of the training that is changed; its finetune.steps are those that are multiplied.
        short_side: median of the pictures, pixels; crops grow only where pictures are larger.
        has_neck: the task's head has a neck.
    """
    settings = params.finetune
    found = {"longer": Change(f"{TIMES} times the steps", {"finetune.steps": TIMES * settings.steps}, TIMES)}
    larger = min(2 * settings.resolution, short_side) // 32 * 32
    if larger >= 1.5 * settings.resolution:
        words = f"crops of {larger} instead of {settings.resolution} pixels"
        found["larger-crops"] = Change(words, {"finetune.resolution": larger}, (larger / settings.resolution) ** 2)
    found["higher-rate"] = Change(f"{TIMES} times the rate", {"finetune.lr": TIMES * settings.lr}, 1)
    found["lower-rate"] = Change(f"a rate of 1/{TIMES}", {"finetune.lr": settings.lr / TIMES}, 1)
    if has_neck:
        neck = "pafpn" if params.student.neck != "pafpn" else "fpn-ppm"
        found["neck"] = Change(f"another head: neck {neck} instead of {params.student.neck}", {"student.neck": neck}, 1.3)
    return found


def with_settings(params: Params, settings: dict[str, Any]) -> Params:
    """`params` with `settings`, by dotted names of two words, which are not checked again."""
    for name, value in settings.items():
        group, key = name.split(".")
        params = params.model_copy(update={group: getattr(params, group).model_copy(update={key: value})})
    return params


def shortened(params: Params, steps: int) -> Params:
    """`params` with `steps` of fine-tuning, and as large a share of them for the warm-up as before; too few for torch.compile to pay."""
    warmup = params.finetune.warmup_steps * steps // params.finetune.steps
    return with_settings(params, {"finetune.steps": steps, "finetune.warmup_steps": warmup, "finetune.compile": False})
