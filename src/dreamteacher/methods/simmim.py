"""Masked prediction for any backbone, after SimMIM (Xie et al. 2022): mask cells, predict their colours with one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.methods.base import Method, normal
from dreamteacher.methods.masking import cells_of, enlarge, hidden_count, random_masks, where_true
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.randomness import StepRandom

MASK_RATIO = 0.6
LARGEST_CELL = 32  # pixels, for pictures of 192 px and more; smaller crops get smaller cells, at least six per row


class Network(nn.Module):
    """Backbone, mask colour, and a 1x1 convolution from the coarsest level to pixels."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        stride = backbone.strides[-1]
        self.hidden = nn.Parameter(torch.zeros(1, 3, 1, 1))  # mask token in normalised colours, applied to the input
        self.predict = nn.Sequential(nn.Conv2d(backbone.channels[-1], 3 * stride**2, 1), nn.PixelShuffle(stride))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] with masks `(B, 1, H, W)` to all pixels in normalised colours `(B, 3, H, W)`."""
        seen = torch.where(masks, self.hidden, normal(images, self.backbone))
        return self.predict(self.backbone(seen)[-1])[:, :, : images.shape[2], : images.shape[3]]


class SimMIM(Method):
    """Mean absolute error of the masked pixels."""

    backbone: Backbone

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """With SimMIM's head of one layer."""
        cells_of(self.settings.resolution, self.cell, "simmim")
        self.backbone = backbone
        return Network(backbone)

    @property
    def cell(self) -> int:
        """Side of the masked cells, pixels."""
        return min(LARGEST_CELL, 2 ** max(0, (self.settings.resolution // 6).bit_length() - 1))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """Eq 1, over masked pixels."""
        images = batch["image"]
        cells = cells_of(images.shape[2], self.cell, "simmim")
        ratio = self.settings.mask_ratio or MASK_RATIO
        masks = enlarge(random_masks(random, len(images), cells, ratio), self.cell)
        error = (model(images, masks).float() - normal(images, self.backbone)).abs().mean(1, keepdim=True)
        hidden = where_true(masks, len(images) * hidden_count(cells, ratio) * self.cell**2)
        return {"loss": error.flatten()[hidden].mean()}
