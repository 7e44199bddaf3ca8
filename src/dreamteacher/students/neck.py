"""The feature regressor: FPN with pyramid pooling (Sec 3.1, App D.1), which is also UPerNet's neck downstream (App G.4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError
from dreamteacher.students.backbone import BACKBONE_FOLDER, Backbone, load_backbone, save_backbone

REGRESSOR_FILE = "regressor.json"


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def resize(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resize of `(B, C, h, w)` to `size`, corners not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _pool_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """`(bins, length)`: row i averages positions floor(i*length/bins) up to ceil((i+1)*length/bins)."""
    position = torch.arange(length, device=like.device)
    i = torch.arange(bins, device=like.device)[:, None]
    inside = (position >= i * length // bins) & (position < ((i + 1) * length + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def adaptive_pool(maps: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling of `(B, C, h, w)` to `(B, C, bins, bins)`, as two matrix products.

    torch's own operator cannot be exported to ONNX for pictures of any size.
    """
    rows, columns = _pool_matrix(maps.shape[2], bins, maps), _pool_matrix(maps.shape[3], bins, maps)
    return rows @ maps @ columns.T


class PyramidPooling(nn.Module):
    """PPM with pool scales 1, 2, 3, 6 on the coarsest level (App D.1)."""

    SCALES = (1, 2, 3, 6)

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.reduce = nn.ModuleList(_conv(channels, width, 1) for _ in self.SCALES)
        self.merge = _conv(channels + width * len(self.SCALES), width, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, width, h, w)`."""
        pooled = [resize(reduce(adaptive_pool(maps, bins)), maps.shape[2:]) for bins, reduce in zip(self.SCALES, self.reduce, strict=True)]
        return self.merge(torch.cat([maps, *pooled], dim=1))


class PyramidNeck(nn.Module):
    """Top-down FPN over the backbone's levels, pyramid pooling on the last; every output has `width` channels."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.width = width
        self.pooling = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList(_conv(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in channels[:-1])

    def forward(self, pyramid: list[Tensor], finest: int = 0) -> list[Tensor]:
        """One `(B, C_l, H/s_l, W/s_l)` a level to one `(B, width, H/s_l, W/s_l)` a level, fine to coarse.

        Levels before `finest` are not computed and not among the outputs: they cost most.
        """
        top = self.pooling(pyramid[-1])
        outputs = [top]
        for level in range(len(pyramid) - 2, finest - 1, -1):
            top = self.lateral[level](pyramid[level]) + resize(top, pyramid[level].shape[2:])
            outputs.append(self.smooth[level](top))
        return outputs[::-1]


class TapHeads(nn.Module):
    """One 1x1 convolution a tap, on the neck's level that is nearest in resolution."""

    def __init__(self, level_strides: list[int], tap_channels: list[int], tap_strides: list[int], width: int):
        super().__init__()
        self.strides = tap_strides
        nearest = [min(range(len(level_strides)), key=lambda i: abs(level_strides[i] - s)) for s in tap_strides]
        self.finest = min(nearest)  # the first level that is needed
        self.sources = [i - len(level_strides) for i in nearest]  # from the coarse end, so that finer levels may be missing
        self.convolutions = nn.ModuleList(nn.Conv2d(width, c, 1) for c in tap_channels)

    def forward(self, levels: list[Tensor], size: torch.Size | tuple[int, int]) -> list[Tensor]:
        """The neck's outputs of pictures of `size` (H, W) to the regressed maps, one `(B, C_l, H/s_l, W/s_l)` a tap."""
        regressed = []
        for source, stride, convolution in zip(self.sources, self.strides, self.convolutions, strict=True):
            maps, wanted = convolution(levels[source]), (size[0] // stride, size[1] // stride)
            regressed.append(maps if tuple(maps.shape[2:]) == wanted else resize(maps, wanted))
        return regressed


class FeatureRegressor(nn.Module):
    """Backbone, neck and the heads of the taps."""

    def __init__(self, backbone: Backbone, tap_channels: list[int], tap_strides: list[int], width: int):
        super().__init__()
        self.facts: dict[str, Any] = {"tap_channels": tap_channels, "tap_strides": tap_strides, "width": width}
        self.backbone = backbone
        self.neck = PyramidNeck(backbone.channels, width)
        self.heads = TapHeads(backbone.strides, tap_channels, tap_strides, width)

    def forward(self, normalized: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` to the regressed maps, one `(B, C_l, H/s_l, W/s_l)` a tap."""
        return self.regress(self.backbone(normalized), normalized.shape[2:])

    def regress(self, pyramid: list[Tensor], size: torch.Size | tuple[int, int]) -> list[Tensor]:
        """The backbone's pyramid of pictures of `size` (H, W) to the regressed maps."""
        return self.heads(self.neck(pyramid, self.heads.finest), size)


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
