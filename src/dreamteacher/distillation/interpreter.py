"""The feature interpreter: a small decoder that predicts labels from the frozen generator's features (Sec 3.2, App D.2)."""

from __future__ import annotations

import json
from math import gcd
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import EncodingSettings


class FeatureFuse(nn.Module):
    """One layer of the chain: 1x1 convolution of this level, previous level resized to it, both merged by a depthwise-separable one."""

    def __init__(self, channels: int, width: int, first: bool):
        super().__init__()
        groups = gcd(max(width // 8, 1), width)  # groups of eight channels, as the paper's 32 groups of 256
        merged = width if first else 2 * width
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(groups, width), nn.SiLU())
        self.merge = nn.Sequential(
            nn.Conv2d(merged, merged, 3, padding=1, groups=merged), nn.Conv2d(merged, width, 1), nn.GroupNorm(groups, width), nn.SiLU()
        )

    def forward(self, features: Tensor, previous: Tensor | None) -> Tensor:
        """`(B, C, h, w)` and the coarser `(B, width, h', w')` to `(B, width, h, w)`."""
        entered = self.enter(features)
        if previous is not None:
            entered = torch.cat([entered, F.interpolate(previous, size=entered.shape[2:], mode="bilinear", align_corners=False)], dim=1)
        return self.merge(entered)


class FeatureInterpreter(nn.Module):
    """Fuse layers from the coarsest tap to the finest, dropout, and a 1x1 convolution to the classes."""

    def __init__(self, tap_channels: list[int], classes: int, width: int, dropout: float, dense: bool):
        """`tap_channels` fine to coarse; `dense`: a class for every pixel, else one for the picture (the average of the map)."""
        super().__init__()
        self.facts = {"tap_channels": tap_channels, "classes": classes, "width": width, "dropout": dropout, "dense": dense}
        self.dense = dense
        self.layers = nn.ModuleList(FeatureFuse(c, width, first=i == 0) for i, c in enumerate(reversed(tap_channels)))
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(width, classes, 1))

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Teacher features, fine to coarse, of pictures of `size` (H, W) to logits `(B, K, H, W)`, or `(B, K)` when not dense."""
        fused: Tensor | None = None
        for layer, maps in zip(self.layers, reversed(features), strict=True):
            # Taps differ in scale by orders of magnitude; the chain has no normalisation before its first convolution.
            fused = layer(F.layer_norm(maps, maps.shape[1:]), fused)
        assert fused is not None
        if not self.dense:
            return self.classify(fused.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return F.interpolate(self.classify(fused), size=size, mode="bilinear", align_corners=False)


def save_interpreter(interpreter: FeatureInterpreter, strides: list[int], encoding: EncodingSettings, folder: Path) -> None:
    """Write `interpreter.safetensors` and `interpreter.json`, with the taps' `strides` and the encoding it was trained with."""
    save_file({k: v.contiguous() for k, v in interpreter.state_dict().items()}, folder / "interpreter.safetensors")
    recorded = {name: getattr(encoding, name) for name in EncodingSettings.model_fields}
    facts = {"shape": interpreter.facts, "strides": strides, "encoding": recorded}
    (folder / "interpreter.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def load_interpreter(folder: Path) -> tuple[FeatureInterpreter, dict[str, Any]]:
    """The frozen interpreter of a folder written by `save_interpreter`, and its metadata: `strides` and `encoding`.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / "interpreter.json").exists():
        raise UserError(f"{folder} is not an interpreter (no interpreter.json); run `dreamteacher train-interpreter` first")
    facts = json.loads((folder / "interpreter.json").read_text())
    facts.setdefault("encoding", {"T": facts.get("T")})  # files from when there was only one encoding
    interpreter = FeatureInterpreter(**facts["shape"])
    interpreter.load_state_dict(load_file(folder / "interpreter.safetensors"))
    return cast(FeatureInterpreter, interpreter.eval().requires_grad_(False)), facts
