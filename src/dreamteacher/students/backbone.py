"""The student: any timm model with a feature pyramid, kept whole so that timm loads what we save."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from dreamteacher.errors import UserError

FINEST = 4  # stride of the pyramid's first level in the paper (Sec 3.1: l = 2, 3, 4, 5)
FINEST_KEY = "finest_stride"  # in config.json; timm passes over it
BACKBONE_FOLDER = "backbone"  # where an artifact with more in it keeps its backbone


class Backbone(nn.Module):
    """A timm model that returns its pyramid.

    Attributes:
        name: timm's name of the architecture.
        strides: of the pyramid's levels, fine to coarse: `finest` and coarser, as far as the model has them.
        finest: the smallest stride that was asked for.
        channels: of the same levels.
        mean, std: of the RGB normalisation that the model expects, per channel, for values in [0, 1].
    """

    def __init__(self, model: Any, name: str, finest: int = FINEST):
        super().__init__()
        self.model = model
        self.name, self.finest = name, finest
        config: dict[str, Any] = self.model.pretrained_cfg
        self.mean, self.std = [float(v) for v in config["mean"]], [float(v) for v in config["std"]]
        # feature_info differs between families, so the pyramid is measured: the last map of each resolution is its level.
        side = 128
        was_training = model.training
        with torch.no_grad():
            maps = self.model.eval().forward_intermediates(torch.zeros(1, 3, side, side), intermediates_only=True)
        self.model.train(was_training)
        if odd := [m.shape[-1] for m in maps if side % m.shape[-1]]:
            raise ValueError(f"{side} px become {odd[0]}, which is not a whole fraction")
        last = {side // m.shape[-1]: i for i, m in enumerate(maps) if side // m.shape[-1] >= finest}
        self._levels = sorted(last.values())
        self.strides = [side // maps[i].shape[-1] for i in self._levels]
        self.channels = [maps[i].shape[1] for i in self._levels]

    def forward(self, normalized: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)`, normalised by mean and std, to one `(B, C_l, H/s_l, W/s_l)` a level, fine to coarse."""
        return self.model.forward_intermediates(normalized, indices=self._levels, intermediates_only=True)

    @staticmethod
    def embed(pyramid: list[Tensor]) -> Tensor:
        """Global average of the coarsest level, `(B, C_last)`."""
        return pyramid[-1].mean(dim=(2, 3))


def create_backbone(name: str, pretrained: bool = False, finest: int = FINEST) -> Backbone:
    """A backbone with random weights, or with timm's own (`pretrained`, which needs the model hub or its cache).

    `finest` is the stride of the pyramid's first level; a model without it begins with its next coarser one.

    Raises:
        UserError: timm has no such model, it offers no pyramid, or its weights cannot be had.
    """
    if not name.startswith("local-dir:") and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise UserError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else "; see timm.list_models()"))
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        remedy = "drop imagenet from compare.inits" if pretrained else "choose another student.backbone"
        raise UserError(f"cannot load {name!r} ({_first_line(error)}); {remedy}") from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name!r} offers no feature pyramid (forward_intermediates); choose another student.backbone")
    try:
        backbone = Backbone(model, name, finest)
    except (AssertionError, RuntimeError, ValueError) as error:  # vision transformers and window attention, mostly
        raise UserError(
            f"{name!r} does not take pictures of any size ({_first_line(error)}); choose a convolutional model as student.backbone"
        ) from error
    if len(backbone.strides) < 2:
        raise UserError(f"{name!r} has one resolution only (stride {backbone.strides[0]}); a convolutional or hierarchical model is needed")
    return backbone


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a timm local folder: `config.json` and `model.safetensors`, read by `timm.create_model("local-dir:PATH")`."""
    config = {"num_classes": 0, "num_features": backbone.model.num_features, FINEST_KEY: backbone.finest}
    save_for_hf(backbone.model, str(folder), model_config=config, safe_serialization=True)


def load_backbone(folder: Path) -> Backbone:
    """The backbone of a folder written by `save_backbone`, in eval mode."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a backbone (no config.json); run `dreamteacher distill-features` first")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    config = json.loads(path.read_text())
    return cast(Backbone, Backbone(model, config["architecture"], config.get(FINEST_KEY, FINEST)).eval())
