"""Tiny models with random weights in the layouts of common diffusers pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import save_file

STABLE_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def autoencoder(latents: int = 4, **more: Any) -> AutoencoderKL:
    """Latents of 1/4 of the side."""
    blocks: dict[str, Any] = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(latent_channels=latents, sample_size=32, **blocks, **ends, **more)


def text_unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        norm_num_groups=4,
        **more,
    )


def embedding(folder: Path, width: int, pooled: int | None = None) -> str:
    tensors = {"prompt_embeds": torch.randn(1, 7, width)} | ({"pooled_prompt_embeds": torch.randn(1, pooled)} if pooled else {})
    save_file(tensors, folder / "prompt.safetensors")
    return f"prompt_embedding={folder / 'prompt.safetensors'}"


def store(folder: Path, pipeline: str, **parts: Any) -> None:
    """As the pipeline would; those with text encoders need transformers even to be made."""
    index = {"_class_name": pipeline, "_diffusers_version": "0.36.0", "text_encoder": ["transformers", "CLIPTextModel"]}
    for name, part in parts.items():
        part.save_pretrained(folder / "source" / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "source/model_index.json").write_text(json.dumps(index))


def pixels(folder: Path) -> list[str]:
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=200)).save_pretrained(folder / "source")
    return []


def unconditional_latents(folder: Path) -> list[str]:
    unet = UNet2DModel(
        in_channels=3,
        out_channels=3,
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    blocks: dict[str, Any] = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": 3, "num_vq_embeddings": 16}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    LDMPipeline(VQModel(**blocks, **ends), unet, DDIMScheduler(**STABLE_BETAS)).save_pretrained(folder / "source")
    return []


def stable_diffusion_1(folder: Path) -> list[str]:
    scheduler = PNDMScheduler(**STABLE_BETAS, skip_prk_steps=True)
    unet = text_unet(24, attention_head_dim=4)
    store(folder, "StableDiffusionPipeline", vae=autoencoder(), unet=unet, scheduler=scheduler)
    return [embedding(folder, 24)]


def stable_diffusion_2(folder: Path) -> list[str]:
    unet = text_unet(32, attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True)
    scheduler = DDIMScheduler(**STABLE_BETAS, prediction_type="v_prediction")
    store(folder, "StableDiffusionPipeline", vae=autoencoder(), unet=unet, scheduler=scheduler)
    return [embedding(folder, 32)]


def stable_diffusion_xl(folder: Path) -> list[str]:
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 * 6 + 20}
    unet = text_unet(32, attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2), **more)
    scheduler = DDIMScheduler(**STABLE_BETAS)
    store(folder, "StableDiffusionXLPipeline", vae=autoencoder(), unet=unet, scheduler=scheduler)
    return [embedding(folder, 32, 20)]


def dit(folder: Path) -> list[str]:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8, num_embeds_ada_norm=10, norm_num_groups=4, out_channels=8
    )
    _make_every_part_count(transformer)
    DiTPipeline(transformer, autoencoder(), DDIMScheduler(beta_start=1e-4, beta_end=2e-2)).save_pretrained(folder / "source")
    return []


def stable_diffusion_3(folder: Path) -> list[str]:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=16,
    )
    _make_every_part_count(transformer)
    vae = autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    store(folder, "StableDiffusion3Pipeline", transformer=transformer, vae=vae, scheduler=scheduler)
    return [embedding(folder, 32, 20)]


def _make_every_part_count(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)


MODELS: dict[str, Callable[[Path], list[str]]] = {
    function.__name__: function
    for function in (
        pixels,
        unconditional_latents,
        stable_diffusion_1,
        stable_diffusion_2,
        stable_diffusion_xl,
        dit,
        stable_diffusion_3,
    )
}
