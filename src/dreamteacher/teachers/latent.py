"""Latent diffusion (Rombach et al. 2022): a U-Net that denoises an autoencoder's latents, with or without a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.training.transfer import constant

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, UNet2DModel, VQModel


class Latents(nn.Module):
    """Pictures as the latents of a frozen autoencoder. See `diffusion.Space`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, autoencoder: AutoencoderKL | VQModel):
        super().__init__()
        self.autoencoder = autoencoder
        config = cast(Any, autoencoder.config)
        self.stride = latent_stride(config)
        channels = int(config.latent_channels)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = torch.tensor(mean or [config.get("shift_factor") or 0.0] * channels)
        scale = torch.full((channels,), float(config.scaling_factor)) / torch.tensor(std or [1.0] * channels)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """The means of the latents, not samples: the only randomness is the encoding's noise."""
        encoded = cast(Any, self.autoencoder.encode(images * 2 - 1))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents.float() - self.shift) * self.scale

    def decode(self, inputs: Tensor) -> Tensor:
        """See `diffusion.Space`."""
        decoded = cast(Any, self.autoencoder.decode(inputs / self.scale + self.shift)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def latent_stride(config: Any) -> int:
    """Pixels a side of a latent of the autoencoder with this config."""
    return 2 ** (len(config["block_out_channels"]) - 1)


class LatentTeacher(DiffusionTeacher):
    """A DiffusionTeacher whose U-Net works on latents, with the same prompt for every picture."""

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel,
        scheduler: DDPMScheduler,
        encoding: Encoding,
        strides: list[int] | None,
        space: Latents,
        *,
        prompt: dict[str, Tensor],
    ):
        """`prompt`: `prompt_embeds` `(1, L, D)` and, if needed, `pooled_prompt_embeds` `(1, P)`; {}: the U-Net takes no prompt."""
        super().__init__(unet, scheduler, encoding, strides, space)
        for name, value in prompt.items():
            self.register_buffer(name, value.float())

    def forward_pass(self, unet: Any, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `DiffusionTeacher`."""
        count, more = len(noisy), dict[str, Any]()
        if hasattr(self, "prompt_embeds"):
            more["encoder_hidden_states"] = self.prompt_embeds.expand(count, -1, -1)
        if hasattr(self, "pooled_prompt_embeds"):  # SDXL also gets the pictures' sizes, here those of pictures that were not cropped
            height, width = (side * self.space.stride for side in noisy.shape[2:])
            sizes = constant([[height, width, 0, 0, height, width]], noisy.device, noisy.dtype)
            pooled = self.pooled_prompt_embeds.expand(count, -1)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.expand(count, -1)}
        return cast(Tensor, unet(noisy, steps, **more).sample)
