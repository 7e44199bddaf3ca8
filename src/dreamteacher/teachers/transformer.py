"""Diffusion transformers on latents: DiT (Peebles & Xie 2023), and MMDiT (Esser et al. 2024, "SD3"), which is trained by flow matching.

All blocks have the same resolution, so the concatenated hidden states of some blocks are the only tap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.teachers.base import Tap
from dreamteacher.teachers.diffusion import DenoisingTeacher
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.latent import Latents

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, DiTTransformer2DModel, SD3Transformer2DModel


def token_tap(config: Any, blocks: list[int], stride: int) -> Tap:
    """The tap of these blocks of a transformer with this config, on latents of `stride`."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return Tap(f"transformer_blocks.{'+'.join(map(str, blocks))}", stride * config["patch_size"], width * len(blocks))


class _TransformerTeacher(DenoisingTeacher):
    def __init__(
        self,
        network: Any,
        scheduler: DDPMScheduler,
        encoding: Encoding,
        strides: list[int] | None,
        space: Latents,
        *,
        blocks: list[int],
    ):
        super().__init__([token_tap(network.config, blocks, space.stride)], scheduler, encoding, strides, space)
        self.network, self.blocks = network, blocks
        self.freeze()

    def _to_map(self, states: list[Tensor], noisy: Tensor) -> list[Tensor]:
        """Hidden states, each `(B, N, D)`, row by row, as the one tap."""
        height, width = (side // self.network.config.patch_size for side in noisy.shape[2:])
        return [torch.cat(states, 2).transpose(1, 2).unflatten(2, (height, width))]


class DiTTeacher(_TransformerTeacher):
    """DiT with the same class, or the null class, for every picture."""

    def __init__(self, network: DiTTransformer2DModel, *others: Any, label: int, **more: Any):
        super().__init__(network, *others, **more)
        self.label = label

    def _run(self, noisy: Tensor, steps: Tensor, until: int) -> tuple[list[Tensor], Tensor]:
        """The hidden states after each block up to `until`, and the labels."""
        labels = torch.full_like(steps, self.label)
        states = [self.network.pos_embed(noisy)]
        for block in self.network.transformer_blocks[: until + 1]:
            states.append(block(states[-1], timestep=steps, class_labels=labels))
        return states[1:], labels

    def denoise(self, noisy: Tensor, steps: Tensor) -> list[Tensor]:
        """See `DenoisingTeacher`."""
        states, _ = self._run(noisy, steps, max(self.blocks))
        return self._to_map([states[i] for i in self.blocks], noisy)

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`. diffusers' own forward supports only square pictures."""
        network, patch = self.network, self.network.config.patch_size
        states, labels = self._run(noisy, steps, len(network.transformer_blocks) - 1)
        conditioning = network.transformer_blocks[0].norm1.emb(steps, labels, hidden_dtype=states[-1].dtype)
        shift, scale = network.proj_out_1(F.silu(conditioning)).chunk(2, dim=1)
        patches = network.proj_out_2(network.norm_out(states[-1]) * (1 + scale[:, None]) + shift[:, None])
        height, width = (side // patch for side in noisy.shape[2:])
        patches = patches.view(len(noisy), height, width, patch, patch, -1)
        output = patches.permute(0, 5, 1, 3, 2, 4).reshape(len(noisy), -1, *noisy.shape[2:])
        return self.noise_of(output, noisy, steps)


class FlowTeacher(_TransformerTeacher):
    """MMDiT. Its inputs are (1 - s) x latents + s x noise at level s = T/N at noise step T of N.

    Encodings use `flow_schedule`, the DDPM schedule with the same signal-to-noise ratio at each step.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor

    def __init__(self, network: SD3Transformer2DModel, *others: Any, prompt: dict[str, Tensor], **more: Any):
        super().__init__(network, *others, **more)
        for name, value in prompt.items():
            self.register_buffer(name, value.float())

    def _own_scale(self, noisy: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs in the scale of the network, and their level, `(B, 1, 1, 1)`."""
        level = (steps / self.scheduler.config.num_train_timesteps)[:, None, None, None]
        return noisy * ((1 - level).square() + level.square()).sqrt(), level

    def _conditions(self, level: Tensor) -> dict[str, Tensor]:
        count = len(level)
        return {
            "encoder_hidden_states": self.prompt_embeds.expand(count, -1, -1),
            "pooled_projections": self.pooled_prompt_embeds.expand(count, -1),
            "timestep": level.flatten() * self.scheduler.config.num_train_timesteps,
        }

    def denoise(self, noisy: Tensor, steps: Tensor) -> list[Tensor]:
        """See `DenoisingTeacher`."""
        inputs, level = self._own_scale(noisy, steps)
        network, given = self.network, self._conditions(level)
        hidden, context = network.pos_embed(inputs), network.context_embedder(given["encoder_hidden_states"])
        embedding, states = network.time_text_embed(given["timestep"], given["pooled_projections"]), []
        for block in network.transformer_blocks[: max(self.blocks) + 1]:
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=embedding)
            states.append(hidden)
        return self._to_map([states[i] for i in self.blocks], noisy)

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`. The network predicts noise - latents."""
        inputs, level = self._own_scale(noisy, steps)
        return inputs + (1 - level) * self.network(inputs, **self._conditions(level)).sample.float()


def flow_schedule(steps: int) -> DDPMScheduler:
    """alpha_bar = (1 - s)^2 / ((1 - s)^2 + s^2) at s = 0, 1/N, ... (N - 1)/N, N = `steps`."""
    from diffusers import DDPMScheduler

    level = torch.arange(steps, dtype=torch.float64) / steps
    kept = (1 - level).square() / ((1 - level).square() + level.square())
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return DDPMScheduler(num_train_timesteps=steps, trained_betas=betas.tolist())
