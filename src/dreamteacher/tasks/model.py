"""The task model: a backbone with the head of its task; build, save, load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamteacher.errors import UserError, first_line
from dreamteacher.settings.downstream import AUTO
from dreamteacher.stage import RECORD, read_stage
from dreamteacher.students.backbone import BACKBONE_FOLDER, Backbone, load_backbone, save_backbone
from dreamteacher.students.necks import DEFAULT, create_neck
from dreamteacher.tasks.base import NeckHead, Task, get_task
from dreamteacher.training.transfer import constant

TASK_FILE, HEAD_FILE = "task.json", "head.safetensors"


class TaskModel(nn.Module):
    """Backbone and head.

    Attributes:
        task: name of the task (see `base.get_task`).
        classes: names, in the order of the logits.
        size: side of the crops it was trained on, pixels.
        neck: name of the neck, for heads that have one.
        head_name: as `finetune.head`.
        mean, std: of the normalisation of RGB values in [0, 1] that `forward` expects.
    """

    def __init__(self, backbone: Backbone, task: str, classes: list[str], size: int, width: int, *, neck: str = DEFAULT, head: str = AUTO):
        super().__init__()
        self.backbone = backbone
        self.task, self.classes, self.size, self.width, self.neck, self.head_name = task, classes, size, width, neck, head
        self.mean, self.std = backbone.mean, backbone.std
        self.head = self.get_task().head(backbone.channels, width, len(classes))
        if isinstance(self.head, NeckHead):
            self.head.see_strides(backbone.strides)
            if neck != DEFAULT:
                self.head.neck = create_neck(neck, backbone.channels, width)

    def get_task(self) -> Task:
        """The task with this head."""
        return get_task(self.task, self.head_name)

    def forward(self, normalized: Tensor, labels: Tensor | None = None) -> Any:
        """`(B, 3, H, W)` to the head's outputs: logits `(B, K, H, W)` for segmentation, `(B, K)` for classification; see `Task.head`.

        labels: as in a batch, for heads that need them in training (`Task.with_labels`).
        """
        given = () if labels is None else (labels,)
        return self.head(self.backbone(normalized), normalized.shape[2:], *given)


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Normalise RGB `(B, 3, H, W)` in [0, 1]: (x - mean) / std per channel."""
    shape = (1, 3, 1, 1)
    return (images - constant(mean, images.device).view(shape)) / constant(std, images.device).view(shape)


def save_task_model(model: TaskModel, folder: Path) -> None:
    """Write `backbone/` (timm local folder), `head.safetensors` and `task.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(model.backbone, folder / BACKBONE_FOLDER)
    save_file({k: v.contiguous() for k, v in model.head.state_dict().items()}, folder / HEAD_FILE)
    facts = {"task": model.task, "classes": model.classes, "size": model.size, "width": model.width, "neck": model.neck}
    facts |= {"mean": model.mean, "std": model.std} | ({} if model.head_name == AUTO else {"head": model.head_name})
    (folder / TASK_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def is_task_model(folder: Path) -> bool:
    """Whether `save_task_model` wrote `folder`."""
    return (folder / TASK_FILE).is_file()


def load_task_model(folder: Path | str) -> TaskModel:
    """The model of a folder written by `save_task_model`, in eval mode.

    Raises:
        UserError: the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / TASK_FILE).exists():
        raise UserError(f"{folder} is not a task model (no {TASK_FILE}); run `dreamteacher finetune` first")
    if (folder / RECORD).exists():
        read_stage(folder)
    try:
        facts: dict[str, Any] = json.loads((folder / TASK_FILE).read_text())
        shape = facts["task"], facts["classes"], facts["size"], facts["width"]
        model = TaskModel(load_backbone(folder / BACKBONE_FOLDER), *shape, neck=facts.get("neck", DEFAULT), head=facts.get("head", AUTO))
        model.head.load_state_dict(load_file(folder / HEAD_FILE))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:  # in a copy without its stage.json
        raise UserError(f"{folder} is damaged ({first_line(error)}); copy it again") from error
    return cast(TaskModel, model.eval())
