"""The generators of BigGAN and BigGAN-deep (Brock et al. 2019) and of IC-GAN (Casanova et al. 2021), for inference.

Spectral normalisation is part of the stored weights, and the statistics of batch normalisation are fixed (standing statistics).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.training.randomness import StepRandom

SIDE = 4  # of the coarsest maps
TAIL = 2.0  # standard deviations at which z is cut off by truncation


class ConditionalNorm(nn.Module):
    """Conditional batch normalisation with fixed statistics; gain and bias are linear in the condition."""

    def __init__(self, channels: int, condition: int, eps: float):
        super().__init__()
        self.gain = nn.Linear(condition, channels, bias=False)
        self.bias = nn.Linear(condition, channels, bias=False)
        self.eps = eps
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(B, C, H, W)` and `(B, condition)` to `(B, C, H, W)`."""
        scale = (1 + self.gain(condition)) * (self.var + self.eps).rsqrt()
        shift = self.bias(condition) - self.mean * scale
        return x * scale[:, :, None, None] + shift[:, :, None, None]


class NonLocal(nn.Module):
    """Self-attention of each position over the positions of the maps at half the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape; `condition` has no effect."""
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        return x + self.gamma * self.o(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class Wide(nn.Module):
    """Residual block of BigGAN (Fig 15): two 3x3 convolutions; it always doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, condition: int, eps: float):
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(channels, condition, eps) for channels in (inputs, outputs))
        self.convs = nn.ModuleList(nn.Conv2d(channels, outputs, 3, padding=1) for channels in (inputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(B, I, H, W)` and `(B, condition)` to `(B, O, 2H, 2W)`."""
        h = self.convs[0](F.interpolate(F.relu(self.norms[0](x, condition)), scale_factor=2))
        h = self.convs[1](F.relu(self.norms[1](h, condition)))
        return h + self.skip(F.interpolate(x, scale_factor=2))


class Deep(nn.Module):
    """Bottleneck block of BigGAN-deep (Fig 16); with fewer outputs than inputs, the skip drops channels."""

    def __init__(self, inputs: int, outputs: int, up: bool, condition: int, eps: float):
        super().__init__()
        middle = inputs // 4
        sides = [inputs, middle, middle, middle, outputs]
        self.norms = nn.ModuleList(ConditionalNorm(channels, condition, eps) for channels in sides[:-1])
        kernels = zip(sides, sides[1:], (1, 3, 3, 1), strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, kernel, padding=kernel // 2) for i, o, kernel in kernels)
        self.outputs, self.up = outputs, up

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(B, I, H, W)` and `(B, condition)` to `(B, O, H, W)`, or twice as large."""
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.relu(norm(h, condition))
            if self.up and i == 1:
                h = F.interpolate(h, scale_factor=2)
            h = conv(h)
        x = x[:, : self.outputs]
        return h + (F.interpolate(x, scale_factor=2) if self.up else x)


class BigGAN(nn.Module):
    """A generator with its conditioning.

    Args:
        layers: coarse to fine, each ["wide", inputs, outputs], ["deep", inputs, outputs, up] or ["attention", channels].
        latent: length of z.
        chunk: length of the part of z that the first layer and, as a part of its condition, each wide block get; 0: all get all of it in
            BigGAN-deep, and only the first layer in BigGAN.
        classes: number of classes; 0: not class-conditional.
        class_width: length of a class's embedding.
        instances: number of stored feature vectors, one of which is drawn for each picture; 0: not conditioned on instances.
        instance_size: their length.
        instance_width: length of a feature vector's embedding; 0: it is not embedded.
        eps: of conditional normalisation.
        out_eps: of that before the last convolution.
        truncation: z is drawn from the normal distribution within 2 standard deviations, times this; 1 is no limit but in BigGAN-deep.
    """

    def __init__(
        self,
        layers: list[list[Any]],
        latent: int,
        *,
        chunk: int = 0,
        classes: int = 0,
        class_width: int = 0,
        instances: int = 0,
        instance_size: int = 0,
        instance_width: int = 0,
        eps: float = 1e-5,
        out_eps: float = 1e-5,
        truncation: float = 1.0,
    ):
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.latent, self.chunk, self.truncation = latent, chunk, truncation
        self.deep = any(layer[0] == "deep" for layer in layers)
        condition = (class_width if classes else 0) + (instance_width or instance_size) + (latent if self.deep else chunk)
        self.embed = nn.Embedding(classes, class_width) if classes else None
        self.embed_instance = nn.Linear(instance_size, instance_width) if instance_width else None
        self.features: Tensor
        self.labels: Tensor
        self.register_buffer("features", torch.zeros(instances, instance_size))
        self.register_buffer("labels", torch.zeros(instances if classes else 0, dtype=torch.long))
        self.start = nn.Linear(condition if self.deep else chunk or latent, layers[0][1] * SIDE**2)
        self.layers = nn.ModuleList(_layer(layer, condition, eps) for layer in layers)
        last = next(layer for layer in reversed(layers) if layer[0] != "attention")[2]
        self.norm = nn.BatchNorm2d(last, eps=out_eps)
        self.out = nn.Conv2d(last, 3, 3, padding=1)
        self.channels: dict[int, int] = {}  # of the maps, by their side
        side = SIDE
        for layer in layers:
            side *= 2 if layer[0] == "wide" or (layer[0] == "deep" and layer[3]) else 1
            self.channels[side] = layer[1] if layer[0] == "attention" else layer[2]

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The picture, `(B, 3, S, S)` in [-1, 1], and the maps by their side.

        Args:
            z: `(B, latent)`.
            condition: `(B, C)`, the embeddings of class and instance together.
        """
        parts = list(z.split(self.chunk, 1)) if self.chunk else [z]
        whole = torch.cat([z, condition], 1)
        x = self.start(whole if self.deep else parts[0]).unflatten(1, (-1, SIDE, SIDE))
        maps, block = {}, 0
        for layer in self.layers:
            if not isinstance(layer, NonLocal):
                block += 1
            x = layer(x, whole if self.deep else torch.cat([condition, parts[block]], 1) if self.chunk else condition)
            maps[x.shape[-1]] = x
        return self.out(F.relu(self.norm(x))).tanh(), maps

    def draw_z(self, count: int, random: StepRandom) -> Tensor:
        """`(count, latent)`."""
        if self.truncation == 1 and not self.deep:
            return random.normal((count, self.latent))
        uniform = torch.stack([(random.integers(0, 1 << 24, count) + 0.5) / (1 << 24) for _ in range(self.latent)], 1)
        inside = math.erf(TAIL / math.sqrt(2))
        return self.truncation * math.sqrt(2) * torch.erfinv((2 * uniform - 1) * inside)

    def draw_condition(self, count: int, random: StepRandom) -> Tensor:
        """`(count, C)` of random classes, or of random instances with their classes."""
        parts, labels = [], None
        if len(self.features):
            drawn = random.integers(0, len(self.features), count).to(self.features.device)
            features = self.features[drawn]
            parts.append(features if self.embed_instance is None else self.embed_instance(features))
            labels = self.labels[drawn] if self.embed is not None else None
        if self.embed is not None:
            labels = random.integers(0, self.embed.num_embeddings, count) if labels is None else labels
            parts.insert(0, self.embed(labels))
        return torch.cat(parts, 1) if parts else self.out.weight.new_zeros(count, 0)

    def dream(self, count: int, random: StepRandom) -> tuple[Tensor, dict[int, Tensor]]:
        """Pictures `(count, 3, S, S)` in [0, 1], and their maps by stride."""
        picture, maps = self(self.draw_z(count, random), self.draw_condition(count, random))
        return picture / 2 + 0.5, {picture.shape[-1] // side: m for side, m in maps.items()}


def _layer(layer: list[Any], condition: int, eps: float) -> nn.Module:
    kind, *sizes = layer
    if kind == "attention":
        return NonLocal(*sizes)
    return cast(nn.Module, {"wide": Wide, "deep": Deep}[kind](*sizes, condition, eps))
