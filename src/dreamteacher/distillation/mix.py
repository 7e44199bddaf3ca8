"""The student of label distillation: a task model whose neck may also regress the generator's features (Eq 5 and 6)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from dreamteacher.students.necks import Neck
from dreamteacher.students.regressor import FeatureRegressor, TapHeads
from dreamteacher.tasks.base import NeckHead
from dreamteacher.tasks.model import TaskModel


class MixStudent(nn.Module):
    """One backbone and (if the task has one) one neck, shared by the task's head and the heads of the teacher's taps.

    Every module is registered once, because EMA would otherwise update shared weights twice per step.
    """

    def __init__(self, task: TaskModel, regressor: FeatureRegressor, regress: bool):
        """`regress=False`: label distillation alone. In both cases the task model uses the regressor's backbone and neck."""
        super().__init__()
        self.task = task
        task.backbone = regressor.backbone
        self.heads = regressor.heads if regress else None
        self.pooled = regressor.pooled if regress else None
        self.condition = regressor.condition if regress else None
        self.neck: Neck | None = None  # the neck of the taps, if the task has none
        if isinstance(task.head, NeckHead):
            task.head.neck = regressor.neck
        elif regress:
            self.neck = regressor.neck

    def forward(self, normalized: Tensor, step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """`(B, 3, H, W)` to the task's logits and the outputs of a FeatureRegressor (none for labels alone); `step` as there."""
        size = normalized.shape[2:]
        pyramid = self.task.backbone(normalized)
        if isinstance(self.task.head, NeckHead):
            levels = self.task.head.neck(pyramid)
            logits = self.task.head.from_neck(levels, size)
        else:
            levels = self.neck(pyramid, cast(TapHeads, self.heads).finest) if self.neck else []
            logits = self.task.head(pyramid, size)
        if self.heads is None:
            return logits, []
        if self.condition is not None and step is not None:
            levels = self.condition(levels, step)
        regressed = self.heads(levels, size)
        return logits, regressed if self.pooled is None else [*regressed, self.pooled(self.task.backbone.embed(pyramid))]
