"""Fine-tuning that preserves pretrained features: learning rates of the backbone, head first, and the pretrained neck."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import BACKBONE_FOLDER, load_backbone
from dreamteacher.students.layer_decay import layer_scales
from dreamteacher.students.regressor import REGRESSOR_FILE, load_regressor
from dreamteacher.tasks.base import NeckHead
from dreamteacher.tasks.model import TaskModel
from dreamteacher.training.optim import Rate


def pretrained_rates(model: TaskModel, settings: Finetune, distilled: bool) -> Callable[[str], Rate]:
    """The learning rate of each parameter of a model with a pretrained backbone, by name.

    The backbone's is scaled by `backbone_lr_scale` and, per layer, by `layer_decay`, and starts after `head_steps`. The pyramid of a
    backbone with one resolution counts as its last layer if it was `distilled` too; timm's own weights have none.
    """
    prefix = "backbone.model."
    layers = layer_scales(model.backbone.model, settings.layer_decay)

    def rate(name: str) -> Rate:
        if name.startswith(prefix):
            return Rate(settings.backbone_lr_scale * layers[name.removeprefix(prefix)], settings.head_steps)
        return Rate(settings.backbone_lr_scale) if distilled and name.startswith("backbone.") else Rate()

    return rate


def freeze_backbone(model: nn.Module, frozen: bool) -> None:
    """Freeze or unfreeze the backbone of a task model, which may be wrapped in DDP; see `Backbone.freeze`."""
    cast(TaskModel, getattr(model, "module", model)).backbone.freeze(frozen)


def keep_statistics(model: nn.Module, parts: list[str]) -> None:
    """Put the batch norms of these modules of a task model (perhaps in DDP) in eval mode, as mmdetection's `norm_eval` does.

    Call it after each `train()` of the model, which resets the mode.
    """
    task_model: nn.Module = getattr(model, "module", model)
    for part in parts:
        for module in task_model.get_submodule(part).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def start_from_features(model: TaskModel, folder: Path, carry_neck: bool) -> list[str]:
    """Load the backbone of a pretraining without labels and, with `carry_neck`, its neck into the task's head.

    Only feature distillation pretrains a neck, and only dense tasks have one; otherwise the backbone alone is loaded.

    Returns:
        The names of the loaded modules.

    Raises:
        RuntimeError: the weights do not fit.
    """
    if carry_neck and isinstance(model.head, NeckHead) and (folder / REGRESSOR_FILE).exists():
        regressor = load_regressor(folder)
        model.backbone.load_state_dict(regressor.backbone.state_dict())
        model.head.neck.load_state_dict(regressor.neck.state_dict())
        return ["backbone", "head.neck"]
    model.backbone.load_state_dict(load_backbone(folder / BACKBONE_FOLDER).state_dict())
    return ["backbone"]
