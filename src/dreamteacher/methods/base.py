"""The interface of a pretraining method. Each method is one file, found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.data.transforms import Transform, pretrain_crop
from dreamteacher.distillation.features import embedding_spread
from dreamteacher.errors import UserError
from dreamteacher.plugins import load_plugin
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import BACKBONE_FOLDER, Backbone, load_backbone, save_backbone
from dreamteacher.tasks.model import normalize
from dreamteacher.training.randomness import StepRandom

GROUP = "dreamteacher.methods"  # of entry points, by which packages add methods
BUILT_IN = {
    "features": "dreamteacher.methods.features:Features",
    "team": "dreamteacher.methods.team:Team",
    "simclr": "dreamteacher.methods.simclr:SimCLR",
    "moco": "dreamteacher.methods.moco:MoCo",
    "byol": "dreamteacher.methods.byol:BYOL",
    "swav": "dreamteacher.methods.swav:SwAV",
    "densecl": "dreamteacher.methods.densecl:DenseCL",
    "mae": "dreamteacher.methods.mae:MAE",
    "simmim": "dreamteacher.methods.simmim:SimMIM",
    "spark": "dreamteacher.methods.spark:SparK",
    "denoising": "dreamteacher.methods.denoising:Denoising",
}


class Method(ABC):
    """A pretraining method: what the stage distill-features trains and saves. A subclass is one file.

    The whole network that `build` returns is trained. State between steps (momentum encoders, queues) is a buffer or a frozen parameter of
    it, so that checkpoints contain it. Only the backbone is saved, averaged and measured, unless a subclass overrides this.

    Attributes:
        needs_teacher: whether it learns from a teacher; if not, `teacher` is None.
    """

    needs_teacher = False

    def __init__(self, params: Params, teacher: Path | None, scratch: Path, device: torch.device):
        """Open the teacher, if any.

        Args:
            params: the settings, of which `seed`, `distill`, `student` and `taps` may be read.
            teacher: its folder.
            scratch: a folder for measurements before training, which a resumed run reuses.
            device: the training device, also for frozen networks.

        Raises:
            UserError: the teacher is damaged, or does not fit the settings.
        """
        self.params, self.settings, self.scratch, self.device = params, params.distill, scratch, device

    @classmethod
    def inputs(cls, params: Params, teacher: Path | None) -> dict[str, Path]:
        """The inputs to record in stage.json, by name; by default the teacher's folder, if the method needs one.

        Raises:
            UserError: `teacher` lacks a teacher that `params` name.
        """
        return {"teacher": teacher} if cls.needs_teacher and teacher else {}

    def transform(self) -> Transform:
        """The transform of train pictures; by default the random crop of feature distillation."""
        return pretrain_crop(self.settings.resolution)

    @abstractmethod
    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """The network to be trained, with `backbone` as its attribute of this name.

        Args:
            backbone: with random weights.
            samples: the train pictures, as crops; most methods need only their number.

        Raises:
            UserError: the backbone or the settings do not fit the method.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """`loss` and its terms, for an accumulation part of the batch; see `training.run.Step`. `model` may be wrapped in DDP."""

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Called after optimiser step `step` (from 0), for example to update a momentum encoder; `model` is never wrapped in DDP."""

    def kept(self, model: nn.Module) -> nn.Module:
        """The part of the network that EMA averages, `measure` gets and `save` writes."""
        return model.backbone  # type: ignore[return-value]

    def go_on_from(self, folder: Path, model: nn.Module) -> None:
        """Load the weights that `save` wrote to `folder` into `model`.

        Raises:
            UserError: they do not fit.
        """
        try:
            model.backbone.load_state_dict(load_backbone(folder / BACKBONE_FOLDER).state_dict())  # type: ignore[union-attr]
        except RuntimeError as error:
            raise UserError(f"{folder} has another backbone than student.backbone; start from a matching one, or without") from error

    def measure(self, kept: nn.Module, batches: Iterable[tuple[Tensor, StepRandom]]) -> dict[str, float]:
        """Label-free metrics, including `embedding_spread`, on held-out pictures `(B, 3, H, W)` in [0, 1] on the device."""
        assert isinstance(kept, Backbone)
        return {"embedding_spread": embedding_spread(torch.cat([kept.embed(kept(normal(images, kept))) for images, _ in batches]))}

    def save(self, kept: nn.Module, folder: Path) -> None:
        """Write the output; at least `backbone/`, from which fine-tuning starts."""
        assert isinstance(kept, Backbone)
        save_backbone(kept, folder / BACKBONE_FOLDER)


def normal(images: Tensor, backbone: Backbone) -> Tensor:
    """RGB `(B, 3, H, W)` in [0, 1] normalised as the backbone expects."""
    return normalize(images, backbone.mean, backbone.std)


def get_method(name: str) -> type[Method]:
    """The method with this name: one of BUILT_IN, or an entry point of GROUP.

    Raises:
        UserError: there is none of this name.
    """
    method = load_plugin(GROUP, name, BUILT_IN, "method")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"distill.method = {name!r} leads to {method!r}, which is no subclass of {Method.__module__}.Method")
    return method
