"""The feature regressor: backbone, neck and a head for each tap (Sec 3.1, App D.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.students.backbone import BACKBONE_FOLDER, Backbone, load_backbone, save_backbone
from dreamteacher.students.conditioning import StepCondition
from dreamteacher.students.necks import DEFAULT, create_neck, resize

REGRESSOR_FILE = "regressor.json"


class TapHeads(nn.Module):
    """One 1x1 convolution per tap, on the neck's level nearest in resolution."""

    def __init__(self, level_strides: list[int], tap_channels: list[int], tap_strides: list[int], width: int):
        super().__init__()
        self.strides = tap_strides
        nearest = [min(range(len(level_strides)), key=lambda i: abs(level_strides[i] - s)) for s in tap_strides]
        self.finest = min(nearest)  # the finest level that is needed
        self.sources = [i - len(level_strides) for i in nearest]  # from the coarse end, so that finer levels may be missing
        self.convolutions = nn.ModuleList(nn.Conv2d(width, c, 1) for c in tap_channels)

    def forward(self, levels: list[Tensor], size: torch.Size | tuple[int, int]) -> list[Tensor]:
        """The neck's outputs for pictures of `size` (H, W) to the regressed maps, one `(B, C_l, H/s_l, W/s_l)` per tap."""
        regressed = []
        for source, stride, convolution in zip(self.sources, self.strides, self.convolutions, strict=True):
            maps, wanted = convolution(levels[source]), (size[0] // stride, size[1] // stride)
            regressed.append(maps if tuple(maps.shape[2:]) == wanted else resize(maps, wanted))
        return regressed


class FeatureRegressor(nn.Module):
    """Backbone, neck and the heads of the taps."""

    def __init__(
        self,
        backbone: Backbone,
        tap_channels: list[int],
        tap_strides: list[int],
        width: int,
        neck: str = DEFAULT,
        *,
        pooled: bool = False,
        conditioned: bool = False,
    ):
        """`pooled`: also regress the coarsest tap's channels from the embedding; `conditioned`: condition the heads on the noise step."""
        super().__init__()
        self.facts: dict[str, Any] = {"tap_channels": tap_channels, "tap_strides": tap_strides, "width": width, "neck": neck}
        self.facts |= {name: True for name, value in (("pooled", pooled), ("conditioned", conditioned)) if value}
        self.backbone = backbone
        self.neck = create_neck(neck, backbone.channels, width)
        self.heads = TapHeads(backbone.strides, tap_channels, tap_strides, width)
        self.pooled = nn.Linear(backbone.channels[-1], tap_channels[-1]) if pooled else None
        self.condition = StepCondition(width, len(backbone.strides)) if conditioned else None

    def forward(self, normalized: Tensor, step: Tensor | None = None) -> list[Tensor]:
        """`(B, 3, H, W)` to the regressed maps, one `(B, C_l, H/s_l, W/s_l)` per tap; with `pooled` also `(B, C_last)` from the embedding.

        `step`, `(B,)`: noise steps of the regressed features, for conditioned heads.
        """
        pyramid = self.backbone(normalized)
        maps = self.regress(pyramid, normalized.shape[2:], step)
        return maps if self.pooled is None else [*maps, self.pooled(self.backbone.embed(pyramid))]

    def regress(self, pyramid: list[Tensor], size: torch.Size | tuple[int, int], step: Tensor | None = None) -> list[Tensor]:
        """The backbone's pyramid for pictures of `size` (H, W) to the regressed maps."""
        levels = self.neck(pyramid, self.heads.finest)
        if self.condition is not None and step is not None:
            levels = self.condition(levels, step)
        return self.heads(levels, size)


def save_regressor(regressor: FeatureRegressor, folder: Path) -> None:
    """Write `backbone/` (timm local folder), `regressor.safetensors` and `regressor.json` into `folder`."""
    save_backbone(regressor.backbone, folder / BACKBONE_FOLDER)
    rest = {k: v.contiguous() for k, v in regressor.state_dict().items() if not k.startswith("backbone.")}
    save_file(rest, folder / "regressor.safetensors")
    (folder / REGRESSOR_FILE).write_text(json.dumps(regressor.facts, indent=1, sort_keys=True) + "\n")


def load_regressor(folder: Path) -> FeatureRegressor:
    """The regressor, with its backbone, of a folder written by `save_regressor`.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / REGRESSOR_FILE).exists():
        raise UserError(
            f"{folder} holds no feature regressor (no {REGRESSOR_FILE}); "
            "run `dreamteacher distill-features` with distill.method = 'features'"
        )
    facts = json.loads((folder / REGRESSOR_FILE).read_text())
    regressor = FeatureRegressor(load_backbone(folder / BACKBONE_FOLDER), **facts)
    missing = regressor.load_state_dict(load_file(folder / "regressor.safetensors"), strict=False).missing_keys
    assert all(key.startswith("backbone.") for key in missing), missing
    return regressor
