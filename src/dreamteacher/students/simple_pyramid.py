"""A pyramid from the one resolution of a plain vision transformer (simple feature pyramid of ViTDet, Li et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

COARSEST = 32  # stride of the pyramid's last level


class SimplePyramid(nn.Module):
    """Levels at powers of two up to stride 32, each from the same map by a branch of its own.

    Finer levels by 2x2 transposed convolutions of stride 2, which halve the channels, with a norm and GELU between two; coarser ones by
    pooling; the map's own level is the map. ViTDet pools the maximum; here it is the average, so that the mean of the coarsest level, which
    classification reads, is the mean of the map. What ViTDet adds to each level, a 1x1 and a 3x3 convolution to one width, is the neck.

    Attributes:
        strides: of its levels, fine to coarse: `finest` (2 or 4), up to COARSEST or the map's own where that is coarser.
        channels: of the same levels.
    """

    def __init__(self, channels: int, stride: int, finest: int):
        """`channels` and `stride` (a power of two) of the map."""
        super().__init__()
        self.strides = [finest * 2**i for i in range((max(stride, COARSEST) // finest).bit_length())]
        branches = [_branch(channels, stride, wanted) for wanted in self.strides]
        self.branches = nn.ModuleList(branch for branch, _ in branches)
        self.channels = [width for _, width in branches]

    def forward(self, maps: Tensor) -> list[Tensor]:
        """`(B, C, h, w)`, with h and w multiples of the coarsest level's cells, to a map a level, fine to coarse."""
        return [branch(maps) for branch in self.branches]


def _branch(channels: int, stride: int, wanted: int) -> tuple[nn.Module, int]:
    """What makes a map at stride `wanted` from one at `stride`, and its channels."""
    from timm.layers import LayerNorm2d

    if wanted >= stride:
        return (nn.AvgPool2d(wanted // stride) if wanted > stride else nn.Identity()), channels
    layers: list[nn.Module] = []
    while stride > wanted:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, max(1, channels // 2), 2, stride=2))
        channels, stride = max(1, channels // 2), stride // 2
    return nn.Sequential(*layers), channels
