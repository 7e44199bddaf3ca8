"""Necks: fuse a backbone's levels at a common width, for the heads of the taps (Sec 3.1) and of tasks (App G.4).

The paper compares four (Tab 8). All convolutions are followed by batch normalisation and ReLU (App D.1).
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError

DEFAULT = "fpn-ppm"  # also for older files, which do not name the neck


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
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
    """Adaptive average pooling of `(B, C, h, w)` to `(B, C, bins, bins)`, as one matrix product.

    torch's own operator cannot be exported to ONNX for pictures of any size. Separate products for rows and columns would be a batch of
    B * C tiny matrices, which takes a CPU ten times as long on small maps.
    """
    rows, columns = _pool_matrix(maps.shape[2], bins, maps), _pool_matrix(maps.shape[3], bins, maps)
    both = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(bins * bins, -1)
    return (maps.flatten(2) @ both.T).unflatten(2, (bins, bins))


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


class GlobalAttention(nn.Module):
    """A 1x1 convolution plus self-attention over all positions of the coarsest level (non-local block, Wang et al. 2018).

    Time and memory are quadratic in the number of positions. The last projection is initialised to 0, so that training starts as with a
    plain FPN.
    """

    HEAD = 64  # channels per attention head

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.heads = next(count for count in range(max(1, width // self.HEAD), 0, -1) if width % count == 0)
        self.enter = _conv(channels, width, 1)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, width, h, w)`."""
        entered = self.enter(maps)
        batch, width, height, columns = entered.shape
        places = entered.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(places)).reshape(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)
        return entered + self.project(mixed).transpose(1, 2).reshape(batch, width, height, columns)


class Neck(nn.Module, ABC):
    """Maps of one width from the levels of a pyramid."""

    width: int

    @abstractmethod
    def forward(self, pyramid: list[Tensor], finest: int = 0) -> list[Tensor]:
        """One `(B, C_l, H/s_l, W/s_l)` per level to one `(B, width, H/s_l, W/s_l)` per level, fine to coarse.

        Levels before `finest` are not returned, nor computed if the others do not need them, since they cost most.
        """


class PyramidNeck(Neck):
    """Top-down FPN over the backbone's levels, pyramid pooling on the last: UPerNet's neck (Xiao et al. 2018)."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.width = width
        self.pooling = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList(_conv(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in channels[:-1])

    def forward(self, pyramid: list[Tensor], finest: int = 0) -> list[Tensor]:
        """See `Neck`."""
        top = self.pooling(pyramid[-1])
        outputs = [top]
        for level in range(len(pyramid) - 2, finest - 1, -1):
            top = self.lateral[level](pyramid[level]) + resize(top, pyramid[level].shape[2:])
            outputs.append(self.smooth[level](top))
        return outputs[::-1]


class FeaturePyramid(Neck):
    """FPN (Lin et al. 2017): from the coarsest level down, each 1x1 convolution plus the resized level above, smoothed by a 3x3.

    `attention`: with `GlobalAttention` instead of the coarsest level's 1x1 convolution. The paper's ablation names "attention" without
    details; here it replaces pyramid pooling, which has the same purpose: global context.
    """

    def __init__(self, channels: list[int], width: int, attention: bool = False):
        super().__init__()
        self.width = width
        top = GlobalAttention(channels[-1], width) if attention else _conv(channels[-1], width, 1)
        self.lateral = nn.ModuleList([*(_conv(c, width, 1) for c in channels[:-1]), top])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in channels)

    def forward(self, pyramid: list[Tensor], finest: int = 0) -> list[Tensor]:
        """See `Neck`."""
        top: Tensor | None = None
        outputs = []
        for level in range(len(pyramid) - 1, finest - 1, -1):
            entered = self.lateral[level](pyramid[level])
            top = entered if top is None else entered + resize(top, entered.shape[2:])
            outputs.append(self.smooth[level](top))
        return outputs[::-1]


class PathAggregation(Neck):
    """PAFPN (Liu et al. 2018): an FPN followed by a bottom-up path.

    The finest output is the FPN's. Each coarser output is the FPN's output of its level plus the next finer output, halved by a strided 3x3
    convolution, smoothed by another 3x3.
    """

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.width = width
        self.down_path = FeaturePyramid(channels, width)
        self.halve = nn.ModuleList(_conv(width, width, 3, stride=2) for _ in channels[1:])
        self.merge = nn.ModuleList(_conv(width, width, 3) for _ in channels[1:])

    def forward(self, pyramid: list[Tensor], finest: int = 0) -> list[Tensor]:
        """See `Neck`. Every level is computed, since all depend on the finest one."""
        levels = self.down_path(pyramid)
        outputs = [levels[0]]
        for level, halve, merge in zip(levels[1:], self.halve, self.merge, strict=True):
            # Resized, since some backbones' levels do not halve exactly; otherwise a no-op.
            outputs.append(merge(level + resize(halve(outputs[-1]), level.shape[2:])))
        return outputs[finest:]


NECKS: dict[str, Callable[[list[int], int], Neck]] = {
    DEFAULT: PyramidNeck,
    "fpn": FeaturePyramid,
    "fpn-attention": lambda channels, width: FeaturePyramid(channels, width, attention=True),
    "pafpn": PathAggregation,
}


def create_neck(name: str, channels: list[int], width: int) -> Neck:
    """A neck with random weights.

    Args:
        name: of NECKS, as `student.neck`.
        channels: of the backbone's levels, fine to coarse.
        width: channels of each of its outputs.

    Raises:
        UserError: there is none of this name, for example in a file of a later version.
    """
    if name not in NECKS:
        near = difflib.get_close_matches(name, NECKS, 1) or list(NECKS)
        raise UserError(f"there is no neck {name!r}; name {' or '.join(near)}, or update dreamteacher")
    return NECKS[name](channels, width)
