"""The student: any timm model with a feature pyramid, kept whole so that timm loads what we save."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError, first_line

FINEST = 4  # stride of the pyramid's first level in the paper (Sec 3.1: l = 2, 3, 4, 5)
FINEST_KEY = "finest_stride"  # in config.json; timm passes over it
BACKBONE_FOLDER = "backbone"  # where an artifact with more in it keeps its backbone
PROBES = (64, 96), (128, 160)  # pictures; who takes both takes any size; by the second the pyramid is measured
TOLERANCE = 0.25  # by which a map may differ from its share of the picture, for convolutions without padding


class Backbone(nn.Module):
    """A timm model that returns its pyramid, of pictures of any size.

    A model that was made for one size, or for multiples of it, sees a picture in tiles of that size, the last of a row or column filled up.

    Attributes:
        name: timm's name of the architecture.
        strides: of the pyramid's levels, fine to coarse: `finest` and coarser, as far as the model has them.
        finest: the smallest stride that was asked for.
        channels: of the same levels.
        tile: side of the tiles, pixels; None: the model takes any size.
        mean, std: of the RGB normalisation that the model expects, per channel, for values in [0, 1].
    """

    def __init__(self, model: Any, name: str, finest: int = FINEST):
        super().__init__()
        self.model = model
        self.name, self.finest = name, finest
        config: dict[str, Any] = self.model.pretrained_cfg
        self.mean, self.std = [float(v) for v in config["mean"]], [float(v) for v in config["std"]]
        # feature_info differs between families, so the pyramid is measured: the last map of each resolution is its level.
        self.tile: int | None = None
        try:
            maps = [_measure(model, *size) for size in PROBES][-1]
            strides = [_stride(PROBES[-1][0], m.shape[2]) for m in maps]
        except Exception:  # each family has its own way to refuse a size
            maps, self.tile = _measure_tile(model)
            strides = [_stride(self.tile, m.shape[2]) for m in maps]
        last = {s: i for i, s in enumerate(strides) if s >= finest and not (self.tile and self.tile % s)}
        self._levels = sorted(last.values())
        self.strides = [strides[i] for i in self._levels]
        self.channels = [maps[i].shape[1] for i in self._levels]

    def forward(self, normalized: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)`, normalised by mean and std, to one `(B, C_l, H/s_l, W/s_l)` a level, fine to coarse.

        Convolutions without padding make a map a little smaller.
        """
        return self._levels_of(normalized) if self.tile is None else self._by_tiles(normalized, self.tile)

    def _levels_of(self, normalized: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(normalized, indices=self._levels, intermediates_only=True)

    def _by_tiles(self, normalized: Tensor, tile: int) -> list[Tensor]:
        batch, channels, height, width = normalized.shape
        rows, columns = (height + tile - 1) // tile, (width + tile - 1) // tile  # ONNX would round -height // tile to the other side
        filled = F.pad(normalized, (0, columns * tile - width, 0, rows * tile - height))  # by the mean colour, which is 0 here
        tiles = filled.reshape(batch, channels, rows, tile, columns, tile).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        pyramid = []
        for maps, stride in zip(self._levels_of(tiles), self.strides, strict=True):
            side = tile // stride
            if maps.shape[2] != side:
                maps = F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)  # noqa: PLW2901
            joined = maps.reshape(batch, rows, columns, -1, side, side).permute(0, 3, 1, 4, 2, 5)
            joined = joined.reshape(batch, -1, rows * side, columns * side)
            pyramid.append(joined[:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride])
        return pyramid

    @staticmethod
    def embed(pyramid: list[Tensor]) -> Tensor:
        """Global average of the coarsest level, `(B, C_last)`."""
        return pyramid[-1].mean(dim=(2, 3))


@torch.no_grad()
def _measure(model: Any, height: int, width: int) -> list[Tensor]:
    """All maps of an empty picture."""
    was_training = model.training
    try:
        return model.eval().forward_intermediates(torch.zeros(1, 3, height, width), intermediates_only=True)
    finally:
        model.train(was_training)


def _measure_tile(model: Any) -> tuple[list[Tensor], int]:
    """The maps of one tile and its side: that of the pictures that the model was made for, rounded up to 32 where it takes that."""
    side = int(model.pretrained_cfg["input_size"][-1])
    rounded = -(-side // 32) * 32
    try:
        return _measure(model, rounded, rounded), rounded
    except Exception:
        return _measure(model, side, side), side


def _stride(side: int, length: int) -> int:
    """Of a map of `length` that a picture of `side` pixels becomes: a whole fraction, or the nearest power of two.

    Raises:
        ValueError: it is neither.
    """
    if side % length == 0:
        return side // length
    stride = 2 ** round(math.log2(side / length))
    if abs(length * stride / side - 1) > TOLERANCE:
        raise ValueError(f"{side} px become {length}")
    return stride


def create_backbone(name: str, pretrained: bool = False, finest: int = FINEST) -> Backbone:
    """A backbone with random weights, or with timm's own (`pretrained`, which needs the model hub or its cache).

    `finest` is the stride of the pyramid's first level; a model without it begins with its next coarser one.

    Raises:
        UserError: timm has no such model, it offers no pyramid, or its weights cannot be had.
    """
    import timm

    if not name.startswith("local-dir:") and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise UserError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else "; see timm.list_models()"))
    try:
        model = _create(name, pretrained)
    except (OSError, RuntimeError) as error:
        remedy = "drop imagenet from compare.inits" if pretrained else "choose another student.backbone"
        raise UserError(f"cannot load {name!r} ({first_line(error)}); {remedy}") from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm's {name!r} offers no feature pyramid (forward_intermediates); choose another student.backbone")
    try:
        backbone = Backbone(model, name, finest)
    except Exception as error:
        raise UserError(f"the pyramid of {name!r} cannot be measured ({first_line(error)}); choose another student.backbone") from error
    if len(backbone.strides) < 2:
        raise UserError(
            f"{name!r} has one resolution only (stride {', '.join(map(str, backbone.strides))}), which is no pyramid: "
            "choose a convolutional or hierarchical model as student.backbone"
        )
    return backbone


def _create(name: str, pretrained: bool) -> Any:
    """timm's model, told to take pictures of any size where it has to be told (Swin)."""
    import timm

    model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    try:
        _measure(model, *PROBES[-1])
    except Exception:
        with contextlib.suppress(TypeError):  # it has no such option
            return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    return model


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a timm local folder: `config.json` and `model.safetensors`, read by `timm.create_model("local-dir:PATH", pretrained=True)`."""
    from timm.models import save_for_hf

    config = {"num_classes": 0, "num_features": backbone.model.num_features, FINEST_KEY: backbone.finest}
    save_for_hf(backbone.model, str(folder), model_config=config, safe_serialization=True)


def load_backbone(folder: Path) -> Backbone:
    """The backbone of a folder written by `save_backbone`, in eval mode."""
    import timm

    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a backbone (no config.json); run `dreamteacher distill-features` first")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    config = json.loads(path.read_text())
    return cast(Backbone, Backbone(model, config["architecture"], config.get(FINEST_KEY, FINEST)).eval())
