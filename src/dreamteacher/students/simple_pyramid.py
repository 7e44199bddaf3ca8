"""A pyramid from the one resolution of a plain vision transformer (simple feature pyramid of ViTDet, Li et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

COARSEST = 32  # stride of the pyramid's last level


class SimplePyramid(nn.Module):
    """Levels at powers of two up to stride 32, each from the same map by its own branch.

    Finer levels use 2x2 transposed convolutions of stride 2, which halve the channels, with norm and GELU between two; coarser levels use
    average pooling; the map's own level is the map. ViTDet uses max pooling; with the average, the mean of the coarsest level, which
    classification uses, equals the mean of the map. ViTDet's 1x1 and 3x3 convolutions on each level are the neck here.

    Attributes:
        strides: of its levels, fine to coarse: `finest` (2 or 4), up to COARSEST, or the map's own if that is coarser.
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
        """`(B, C, h, w)`, with h and w multiples of the coarsest level's cells, to one map per level, fine to coarse."""
        return [branch(maps) for branch in self.branches]


def _branch(channels: int, stride: int, wanted: int) -> tuple[nn.Module, int]:
    """The branch from a map at `stride` to one at stride `wanted`, and its output channels."""
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
