"""MAE (He et al. 2022): a plain vision transformer sees a quarter of the patches, a small decoder predicts the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, normal
from dreamteacher.methods.masking import cells_of, hidden_count, hidden_error, random_masks
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.randomness import StepRandom

MASK_RATIO = 0.75
WIDTH, DEPTH, HEAD = 512, 4, 32  # of the decoder, at most the backbone's width; 1 to 8 blocks fine-tune equally well (Tab 1a)


class Network(nn.Module):
    """Encoder and decoder."""

    def __init__(self, backbone: Backbone):
        from timm.models.vision_transformer import Block

        super().__init__()
        self.backbone = backbone
        channels = backbone.model.embed_dim
        self.side = backbone.model.patch_embed.patch_size[0]
        width = max(HEAD, min(WIDTH, channels) // HEAD * HEAD)
        self.enter = nn.Linear(channels, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, width // HEAD, qkv_bias=True) for _ in range(DEPTH)))
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.side**2))

    def forward(self, images: Tensor, masks: Tensor, hidden: int) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] with masks `(B, h, w)`, True for the `hidden` masked patches, to patches `(B, h * w, P)`."""
        from timm.layers import build_sincos2d_pos_embed

        vit: Any = self.backbone.model
        tokens = vit._pos_embed(vit.patch_embed(normal(images, self.backbone)))
        prefix, all_patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        # False sorts before True, so visible patches come first.
        seen = masks.flatten(1).int().argsort(dim=1, stable=True)[:, : all_patches.shape[1] - hidden, None]
        tokens = torch.cat([prefix, all_patches.gather(1, seen.expand(-1, -1, all_patches.shape[2]))], dim=1)
        tokens = self.enter(vit.norm(vit.blocks(vit.norm_pre(tokens))))
        prefix, encoded = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        width = encoded.shape[2]
        filled = self.hidden.to(encoded).repeat(len(images), all_patches.shape[1], 1).scatter(1, seen.expand(-1, -1, width), encoded)
        filled = filled + build_sincos2d_pos_embed(list(masks.shape[1:]), width, device=filled.device)
        return self.predict(self.blocks(torch.cat([prefix, filled], dim=1))[:, vit.num_prefix_tokens :])


class MAE(Method):
    """Squared error of the masked patches' standardised pixels."""

    side: int

    def build(self, backbone: Backbone, samples: Samples) -> nn.Module:
        """Encoder and decoder.

        Raises:
            UserError: the backbone is no plain vision transformer, or distill.resolution does not fit its patches.
        """
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(backbone.model, VisionTransformer):
            raise UserError(
                f"distill.method = 'mae' needs a plain vision transformer, such as vit_small_patch16_224, which {backbone.name!r} is not; "
                "take simmim, spark, or another student.backbone"
            )
        network = Network(backbone)
        self.side = network.side
        cells_of(self.settings.resolution, self.side, "mae")
        return network

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """The loss of the masked patches only."""
        images, ratio = batch["image"], self.settings.mask_ratio or MASK_RATIO
        cells = cells_of(images.shape[2], self.side, "mae")
        masks = random_masks(random, len(images), cells, ratio)
        hidden = hidden_count(cells, ratio)
        return {"loss": hidden_error(model(images, masks, hidden), images, masks, hidden, self.side)}
