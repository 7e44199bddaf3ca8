"""The two networks of StyleGAN2 (Karras et al. 2020), in plain torch, so that they can be differentiated twice on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.transfer import constant

FILTER = (1, 3, 3, 1)  # of all resampling (App B), before normalisation
GROUP = 4  # pictures of which the discriminator compares the standard deviation
AVERAGE_DECAY = 0.995  # of the running mean of w, to which truncation pulls


def _kernel(channels: int, like: Tensor) -> Tensor:
    taps = constant(FILTER, like.device, like.dtype)
    return (taps[:, None] * taps / taps.sum() ** 2).expand(channels, 1, -1, -1)


def blur(x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
    """Low-pass filter of maps `(B, C, H, W)`, which become `2 pad - 3` longer on each axis."""
    return F.conv2d(x, _kernel(x.shape[1], x) * gain, padding=pad, groups=x.shape[1])


def upsample(x: Tensor) -> Tensor:
    """Maps `(B, C, H, W)` to `(B, C, 2H, 2W)`: zeros between the values, then the filter."""
    return F.conv_transpose2d(x, _kernel(x.shape[1], x) * 4, stride=2, padding=1, groups=x.shape[1])


def activate(x: Tensor, bias: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU (0.2) of maps plus bias, scaled to keep the variance."""
    x = F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)).to(x.dtype), 0.2) * math.sqrt(2)
    return x if clamp is None else x.clamp(-clamp, clamp)


def modulated_convolution(x: Tensor, weight: Tensor, style: Tensor, up: bool = False, demodulate: bool = True) -> Tensor:
    """Convolution with a kernel of its own for each picture (Eq 1 and 3): w' = s w, divided by its norm.

    Scaling the inputs by s and the outputs by the norm gives the same as scaling the kernels, with one kernel for all pictures.

    Args:
        x: `(B, I, H, W)`.
        weight: `(O, I, k, k)`, odd k; with `up` as of a transposed convolution, that is mirrored.
        style: `(B, I)`, the scale of each input channel.
        up: double the resolution.
        demodulate: divide by the norm.

    Returns:
        `(B, O, H, W)`, or twice as large.
    """
    out = x * style[:, :, None, None]
    if up:
        out = blur(F.conv_transpose2d(out, weight.transpose(0, 1), stride=2), pad=1, gain=4)
    else:
        out = F.conv2d(out, weight, padding=weight.shape[-1] // 2)
    if demodulate:
        norm = (style.float().square() @ weight.float().square().sum((2, 3)).T + 1e-8).rsqrt()
        out = out * norm[:, :, None, None].to(out.dtype)
    return out


class Dense(nn.Module):
    """Linear layer whose weights all have unit variance and are scaled at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0, active: bool = False):
        """`rate`: of learning, relative to other layers; `bias`: initial value."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate, self.active = rate / math.sqrt(inputs), rate, active

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs)` to `(B, outputs)`."""
        if self.active:
            return activate(F.linear(x, self.weight * self.scale), self.bias * self.rate)
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class StyledConv(nn.Module):
    """Modulated convolution, noise and activation."""

    def __init__(self, inputs: int, outputs: int, latent: int, up: bool, clamp: float | None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.style = Dense(latent, inputs, bias=1.0)
        self.noise = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.up, self.clamp = 1 / math.sqrt(inputs * 9), up, clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """`(B, I, H, W)`, `(B, latent)` and `(B, 1, H', W')` to `(B, O, H', W')`, of which the sides are doubled with `up`."""
        x = modulated_convolution(x, self.weight * self.scale, self.style(w), self.up)
        return activate(x + self.noise * noise, self.bias, self.clamp)


class ToRGB(nn.Module):
    """The part of the picture that one resolution adds."""

    def __init__(self, inputs: int, latent: int, clamp: float | None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.style = Dense(latent, inputs, bias=1.0)
        self.bias = nn.Parameter(torch.zeros(3))
        self.scale, self.clamp = 1 / math.sqrt(inputs), clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`(B, I, H, W)` and `(B, latent)` to float32 `(B, 3, H, W)`."""
        x = modulated_convolution(x, self.weight * self.scale, self.style(w), demodulate=False).float() + self.bias.view(1, 3, 1, 1)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class Mapping(nn.Module):
    """z, and a class where there are any, to w."""

    def __init__(self, latent: int, depth: int, classes: int, width: int):
        super().__init__()
        self.embed = Dense(classes, width) if classes else None
        sides = [latent + (width if classes else 0), *[width] * depth]
        self.layers = nn.ModuleList(Dense(i, o, rate=0.01, active=True) for i, o in pairwise(sides))
        self.average: Tensor
        self.register_buffer("average", torch.zeros(width))

    def forward(self, z: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """`(B, latent)` and one-hot `(B, classes)` to `(B, width)`."""
        x = _unit(z)
        if self.embed is not None:
            assert labels is not None
            x = torch.cat([x, _unit(self.embed(labels))], 1)
        for layer in self.layers:
            x = layer(x)
        if self.training:
            with torch.no_grad():
                self.average.lerp_(x.float().mean(0), 1 - AVERAGE_DECAY)
        return x if truncation == 1 else self.average.lerp(x.float(), truncation)


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Block(nn.Module):
    """One resolution: two convolutions, of which the first doubles it (the coarsest has but the second), and the part of the picture."""

    def __init__(self, inputs: int, outputs: int, latent: int, clamp: float | None, coarsest: bool):
        super().__init__()
        self.up = None if coarsest else StyledConv(inputs, outputs, latent, True, clamp)
        self.conv = StyledConv(outputs, outputs, latent, False, clamp)
        self.rgb = ToRGB(outputs, latent, clamp)


class Synthesizer(nn.Module):
    """The generator: mapping and synthesis with skip connections (Fig 7).

    Args:
        latent: length of z.
        depth: layers of the mapping.
        channels: of each resolution from 4 px on, each twice the one before.
        classes: 0 where it is not conditional.
        width: length of w; None: as z.
        clamp: largest value of any map; None: no limit.
        truncation: psi of dreams.
    """

    def __init__(
        self,
        latent: int,
        depth: int,
        channels: Sequence[int],
        *,
        classes: int = 0,
        width: int | None = None,
        clamp: float | None = None,
        truncation: float = 1.0,
    ):
        super().__init__()
        width = width or latent
        self.latent, self.classes, self.truncation = latent, classes, truncation
        self.config: dict[str, Any] = {
            "latent": latent,
            "depth": depth,
            "channels": list(channels),
            "classes": classes,
            "width": width,
            "clamp": clamp,
            "truncation": truncation,
        }
        self.resolutions = [4 * 2**level for level in range(len(channels))]
        self.mapping = Mapping(latent, depth, classes, width)
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        pairs = zip([channels[0], *channels], channels, strict=False)
        self.blocks = nn.ModuleList(Block(i, o, width, clamp, coarsest=level == 0) for level, (i, o) in enumerate(pairs))

    def draw_noises(self, count: int, random: StepRandom) -> list[list[Tensor]]:
        """Noise of each convolution of each resolution, `(count, 1, H, W)`."""
        shapes = [(count, 1, side, side) for side in self.resolutions]
        return [[random.normal(shape) for _ in range(1 if level == 0 else 2)] for level, shape in enumerate(shapes)]

    def forward(self, w: Tensor, noises: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """The picture `(B, 3, H, W)`, about in [-1, 1], and the maps of each resolution, coarse to fine."""
        x = self.const.expand(len(w), -1, -1, -1)
        picture, maps = None, []
        for module, noise in zip(self.blocks, noises, strict=True):
            block = cast(Block, module)
            if block.up is not None:
                x = block.up(x, w, noise[0])
            x = block.conv(x, w, noise[-1])
            part = block.rgb(x, w)
            picture = part if picture is None else upsample(picture) + part
            maps.append(x)
        assert picture is not None
        return picture, maps

    def draw(self, count: int, random: StepRandom, truncation: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """`forward` of random z, classes and noise."""
        z = random.normal((count, self.latent))
        labels = F.one_hot(random.integers(0, self.classes, count), self.classes).float() if self.classes else None
        return self(self.mapping(z, labels, truncation), self.draw_noises(count, random))

    def dream(self, count: int, random: StepRandom) -> tuple[Tensor, dict[int, Tensor]]:
        """Pictures `(count, 3, H, W)` in [0, 1], and their maps by stride."""
        picture, maps = self.draw(count, random, self.truncation)
        finest = self.resolutions[-1]
        return (picture / 2 + 0.5).clamp(0, 1), {finest // side: m for side, m in zip(self.resolutions, maps, strict=True)}


class Down(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, inputs: int, outputs: int, clamp: float | None):
        super().__init__()
        self.conv = nn.Parameter(torch.randn(inputs, inputs, 3, 3))
        self.conv_bias = nn.Parameter(torch.zeros(inputs))
        self.down = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.down_bias = nn.Parameter(torch.zeros(outputs))
        self.skip = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.scale, self.skip_scale, self.clamp = 1 / math.sqrt(inputs * 9), 1 / math.sqrt(inputs), clamp

    def forward(self, x: Tensor) -> Tensor:
        """`(B, I, H, W)` to `(B, O, H/2, W/2)`."""
        skip = F.conv2d(blur(x, 1)[:, :, ::2, ::2], self.skip * self.skip_scale)
        x = activate(F.conv2d(x, self.conv * self.scale, padding=1), self.conv_bias, self.clamp)
        x = activate(F.conv2d(blur(x, 2), self.down * self.scale, stride=2), self.down_bias, self.clamp)
        return (x + skip) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Residual blocks down to 4 px, the standard deviation over a group of pictures, and one value a picture.

    Args:
        channels: as of `Synthesizer`.
        clamp: as of `Synthesizer`.
    """

    def __init__(self, channels: Sequence[int], clamp: float | None = None):
        super().__init__()
        fine_to_coarse = list(channels)[::-1]
        self.clamp = clamp
        self.rgb = nn.Parameter(torch.randn(fine_to_coarse[0], 3, 1, 1))
        self.rgb_bias = nn.Parameter(torch.zeros(fine_to_coarse[0]))
        self.blocks = nn.ModuleList(Down(i, o, clamp) for i, o in pairwise(fine_to_coarse))
        self.conv = nn.Parameter(torch.randn(channels[0], channels[0] + 1, 3, 3))
        self.conv_bias = nn.Parameter(torch.zeros(channels[0]))
        self.dense = Dense(channels[0] * 16, channels[0], active=True)
        self.out = Dense(channels[0], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [-1, 1] to float32 logits `(B,)`: positive for what looks real."""
        x = activate(F.conv2d(images, self.rgb / math.sqrt(3)), self.rgb_bias, self.clamp)
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, deviation(x)], 1)
        x = activate(F.conv2d(x, self.conv / math.sqrt(x.shape[1] * 9), padding=1), self.conv_bias, self.clamp)
        return self.out(self.dense(x.flatten(1))).float().squeeze(1)


def deviation(x: Tensor) -> Tensor:
    """Mean standard deviation over groups of pictures, as one more map: `(B, C, H, W)` to `(B, 1, H, W)`."""
    count, _, height, width = x.shape
    group = max(size for size in range(1, GROUP + 1) if count % size == 0)
    deviations = (x.float().reshape(group, -1, *x.shape[1:]).var(0, unbiased=False) + 1e-8).sqrt()
    return deviations.mean((1, 2, 3)).repeat(group)[:, None, None, None].expand(-1, 1, height, width).to(x.dtype)
