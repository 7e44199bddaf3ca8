"""The student: any timm model that supports `forward_intermediates`, unmodified, so that timm can load what we save."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError, first_line
from dreamteacher.students.simple_pyramid import SimplePyramid

FINEST = 4  # stride of the pyramid's first level in the paper (Sec 3.1: l = 2, 3, 4, 5)
FINEST_KEY = "finest_stride"  # in config.json; ignored by timm
BACKBONE_FOLDER = "backbone"  # subfolder of the backbone in artifacts with further files
PYRAMID_FILE = "pyramid.safetensors"  # beside timm's files, for a backbone with one resolution; ignored by timm
PROBES = (64, 96), (128, 160)  # picture sizes; a model that accepts both is taken to accept any size; strides are measured on the second
TOLERANCE = 0.25  # tolerance of a map's size, for convolutions without padding


class Backbone(nn.Module):
    """A timm model that returns its feature pyramid, for pictures of any size.

    A model with a fixed input size, or only multiples of one, sees a picture in tiles of that size, the last of a row or column padded.
    A model with one resolution, such as a plain vision transformer, gets a `SimplePyramid` on its last map; if its patch size is no power
    of two, such as 14 px, the picture is downscaled (by 14/16) so that the map's stride is one.

    Attributes:
        name: timm's name of the architecture.
        strides: of the pyramid's levels, fine to coarse: `finest` and coarser, if the model has them.
        finest: the smallest requested stride.
        channels: of the same levels.
        tile: side of the tiles, pixels; None: the model accepts any size.
        pyramid: for a model with one resolution, else None.
        mean, std: of the RGB normalisation that the model expects, per channel, for values in [0, 1].
        frozen: see `freeze`.
    """

    def __init__(self, model: Any, name: str, finest: int = FINEST):
        super().__init__()
        self.model = model
        self.name, self.finest, self.frozen = name, finest, False
        config: dict[str, Any] = self.model.pretrained_cfg
        self.mean, self.std = [float(v) for v in config["mean"]], [float(v) for v in config["std"]]
        # feature_info differs between families, so the pyramid is measured: the last map of each resolution is its level.
        self.tile: int | None = None
        try:
            maps = [_measure(model, *size) for size in PROBES][-1]
            strides = [_stride(PROBES[-1][0], m.shape[2]) for m in maps]
        except Exception:  # each family raises other errors for a wrong size
            maps, self.tile = _measure_tile(model)
            strides = [_stride(self.tile, m.shape[2]) for m in maps]
        self.pyramid: SimplePyramid | None = None
        if len(set(strides)) == 1:
            self._see_one_resolution(strides[0])
            return
        last = {s: i for i, s in enumerate(strides) if s >= finest and not (self.tile and self.tile % s)}
        self._levels = sorted(last.values())
        self.strides = [strides[i] for i in self._levels]
        self.channels = [maps[i].shape[1] for i in self._levels]

    def _see_one_resolution(self, patch: int) -> None:
        """Add a pyramid to the last map, whose stride is `patch`."""
        self._patch, self._stride = patch, 2 ** round(math.log2(patch))
        if self.tile:  # perhaps only because PROBES are not multiples of the patch
            with contextlib.suppress(Exception):
                for height, width in PROBES:
                    _measure(self.model, height * patch // self._stride, width * patch // self._stride)
                self.tile = None
        side = self.tile or PROBES[-1][0] * patch // self._stride
        maps = _measure(self.model, side, side, norm=True)
        self._levels = [len(maps) - 1]
        self._exact = maps[-1].shape[2] * patch == side
        self.pyramid = SimplePyramid(maps[-1].shape[1], self._stride, self.finest)
        self.strides, self.channels = self.pyramid.strides, self.pyramid.channels

    def forward(self, normalized: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)`, normalised by mean and std, to one `(B, C_l, H/s_l, W/s_l)` per level, fine to coarse.

        Convolutions without padding make a map a little smaller.
        """
        if self.pyramid:
            return self._from_one_map(normalized, self.pyramid)
        return self._levels_of(normalized) if self.tile is None else self._by_tiles(normalized, self.tile, self.strides)

    def _levels_of(self, normalized: Tensor) -> list[Tensor]:
        # A transformer's last map is its residual stream, whose scale is set only by the final norm.
        norm = {"norm": True} if self.pyramid else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model.forward_intermediates(normalized, indices=self._levels, intermediates_only=True, **norm)

    def freeze(self, frozen: bool) -> None:
        """Freeze or unfreeze timm's model: frozen, it gets no gradient, and its norms and dropout stay in eval mode."""
        if frozen != self.frozen:
            self.frozen = frozen
            self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in `nn.Module`, but a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def _from_one_map(self, normalized: Tensor, pyramid: SimplePyramid) -> list[Tensor]:
        height, width = normalized.shape[2:]
        whole = pyramid.strides[-1]
        rows, columns = (height + whole - 1) // whole * whole, (width + whole - 1) // whole * whole
        seen = F.pad(normalized, (0, columns - width, 0, rows - height))  # with the mean colour, which is 0 here
        if self._patch != self._stride:
            size = rows * self._patch // self._stride, columns * self._patch // self._stride
            seen = F.interpolate(seen, size=size, mode="bilinear", align_corners=False)
        [maps] = self._levels_of(seen) if self.tile is None else self._by_tiles(seen, self.tile, [self._patch])
        if not self._exact:
            maps = F.interpolate(maps, size=(rows // self._stride, columns // self._stride), mode="bilinear", align_corners=False)
        levels = zip(pyramid(maps), pyramid.strides, strict=True)
        return [level[:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride] for level, stride in levels]

    def _by_tiles(self, normalized: Tensor, tile: int, strides: list[int]) -> list[Tensor]:
        batch, channels, height, width = normalized.shape
        rows, columns = (height + tile - 1) // tile, (width + tile - 1) // tile  # ONNX would round -height // tile to the other side
        filled = F.pad(normalized, (0, columns * tile - width, 0, rows * tile - height))  # with the mean colour, which is 0 here
        tiles = filled.reshape(batch, channels, rows, tile, columns, tile).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        pyramid = []
        for maps, stride in zip(self._levels_of(tiles), strides, strict=True):
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
def _measure(model: Any, height: int, width: int, **options: bool) -> list[Tensor]:
    """All maps of an empty picture; `options` are those of timm's `forward_intermediates`."""
    was_training = model.training
    try:
        return model.eval().forward_intermediates(torch.zeros(1, 3, height, width), intermediates_only=True, **options)
    finally:
        model.train(was_training)


def _measure_tile(model: Any) -> tuple[list[Tensor], int]:
    """The maps of one tile and its side: the model's input size, rounded up to a multiple of 32 if the model accepts that."""
    side = int(model.pretrained_cfg["input_size"][-1])
    rounded = -(-side // 32) * 32
    try:
        return _measure(model, rounded, rounded), rounded
    except Exception:
        return _measure(model, side, side), side


def _stride(side: int, length: int) -> int:
    """The stride of a map of `length` for a picture of `side` pixels: their integer ratio, or the nearest power of two.

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

    `finest` is the stride of the pyramid's first level; a model without it starts at its next coarser one.

    Raises:
        UserError: timm has no such model, it offers no maps, or its weights cannot be loaded.
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
        return Backbone(model, name, finest)
    except Exception as error:
        raise UserError(f"the pyramid of {name!r} cannot be measured ({first_line(error)}); choose another student.backbone") from error


def _create(name: str, pretrained: bool) -> Any:
    """timm's model, with `dynamic_img_size=True` if it refuses other sizes and has this option (ViT, Swin)."""
    import timm

    model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    try:
        _measure(model, *PROBES[-1])
    except Exception:
        with contextlib.suppress(TypeError):  # it has no such option
            return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    return model


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a timm local folder: `config.json` and `model.safetensors`, read by `timm.create_model("local-dir:PATH", pretrained=True)`.

    Also writes `pyramid.safetensors`, which timm ignores, if the backbone has a pyramid.
    """
    from timm.models import save_for_hf

    config = {"num_classes": 0, "num_features": backbone.model.num_features, FINEST_KEY: backbone.finest}
    save_for_hf(backbone.model, str(folder), model_config=config, safe_serialization=True)
    if backbone.pyramid:
        save_file({k: v.contiguous() for k, v in backbone.pyramid.state_dict().items()}, folder / PYRAMID_FILE)


def load_backbone(folder: Path) -> Backbone:
    """The backbone of a folder written by `save_backbone`, in eval mode.

    Raises:
        UserError: the folder holds none, or lacks its pyramid.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a backbone (no config.json); run `dreamteacher distill-features` first")
    config = json.loads(path.read_text())
    backbone = Backbone(_create(f"local-dir:{folder}", pretrained=True), config["architecture"], config.get(FINEST_KEY, FINEST))
    if backbone.pyramid:
        if not (folder / PYRAMID_FILE).exists():
            raise UserError(f"{folder} lacks {PYRAMID_FILE}, which a backbone of one resolution has beside timm's files; copy it again")
        backbone.pyramid.load_state_dict(load_file(folder / PYRAMID_FILE))
    return cast(Backbone, backbone.eval())
