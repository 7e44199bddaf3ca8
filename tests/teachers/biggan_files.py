"""The networks whose state dicts others publish, small and written from the papers: names and normalisation as in those files."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

# BigGAN-deep, the torch model of the hub.


class HubNorm(nn.Module):
    def __init__(self, channels: int, condition: int | None, statistics: int, eps: float):
        super().__init__()
        self.register_buffer("running_means", torch.randn(statistics, channels))
        self.register_buffer("running_vars", torch.rand(statistics, channels) + 0.5)
        self.eps = eps
        if condition:
            self.scale = spectral_norm(nn.Linear(condition, channels, bias=False), eps=eps)
            self.offset = spectral_norm(nn.Linear(condition, channels, bias=False), eps=eps)
        else:
            self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        share, first = math.modf(truncation / (1 / (len(self.running_means) - 1)))
        mean, var = self.running_means[int(first)], self.running_vars[int(first)]
        if share:
            mean = mean * share + self.running_means[int(first) + 1] * (1 - share)
            var = var * share + self.running_vars[int(first) + 1] * (1 - share)
        x = (x - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()
        if hasattr(self, "scale"):
            return x * (1 + self.scale(condition))[:, :, None, None] + self.offset(condition)[:, :, None, None]
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class HubBlock(nn.Module):
    def __init__(self, up: bool, inputs: int, outputs: int, condition: int, config: dict[str, Any]):
        super().__init__()
        middle, eps = inputs // 4, config["eps"]
        sides = [inputs, middle, middle, middle, outputs]
        for i, kernel in enumerate((1, 3, 3, 1)):
            setattr(self, f"bn_{i}", HubNorm(sides[i], condition, config["n_stats"], eps))
            setattr(self, f"conv_{i}", spectral_norm(nn.Conv2d(sides[i], sides[i + 1], kernel, padding=kernel // 2), eps=eps))
        self.up, self.outputs = up, outputs

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        h = x
        for i in range(4):
            h = getattr(self, f"bn_{i}")(h, truncation, condition).relu()
            if i == 1 and self.up:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = getattr(self, f"conv_{i}")(h)
        x = x[:, : self.outputs]
        return h + (x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else x)


class HubAttention(nn.Module):
    def __init__(self, channels: int, eps: float):
        super().__init__()
        for name, (inputs, outputs) in {
            "theta": (channels, channels // 8),
            "phi": (channels, channels // 8),
            "g": (channels, channels // 2),
            "o_conv": (channels // 2, channels),
        }.items():
            setattr(self, f"snconv1x1_{name}", spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False), eps=eps))
        self.gamma = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * attend(x, self.snconv1x1_theta, self.snconv1x1_phi, self.snconv1x1_g, self.snconv1x1_o_conv)


def attend(x: Tensor, theta: Any, phi: Any, g: Any, o: Any) -> Tensor:
    keys, values = F.max_pool2d(phi(x), 2).flatten(2), F.max_pool2d(g(x), 2).flatten(2)
    weights = torch.einsum("bci,bcj->bij", theta(x).flatten(2), keys).softmax(2)
    return o(torch.einsum("bij,bcj->bci", weights, values).view(len(x), -1, *x.shape[2:]))


class Hub(nn.Module):
    """`embeddings` and `generator` of the published model."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config, width, condition = config, config["channel_width"], 2 * config["z_dim"]
        self.embeddings = nn.Linear(config["num_classes"], config["z_dim"], bias=False)
        self.generator = nn.Module()
        self.generator.gen_z = spectral_norm(nn.Linear(condition, 16 * 16 * width), eps=config["eps"])
        layers: list[nn.Module] = []
        for i, (up, inputs, outputs) in enumerate(config["layers"]):
            if i == config["attention_layer_position"]:
                layers.append(HubAttention(width * inputs, config["eps"]))
            layers.append(HubBlock(up, width * inputs, width * outputs, condition, config))
        self.generator.layers = nn.ModuleList(layers)
        self.generator.bn = HubNorm(width, None, config["n_stats"], config["eps"])
        self.generator.conv_to_rgb = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=config["eps"])

    def forward(self, z: Tensor, label: Tensor, truncation: float) -> Tensor:
        g: Any = self.generator
        condition = torch.cat([z, self.embeddings(label)], 1)
        x = g.gen_z(condition).view(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        for layer in g.layers:
            x = layer(x) if isinstance(layer, HubAttention) else layer(x, condition, truncation)
        return g.conv_to_rgb(g.bn(x, truncation, condition).relu())[:, :3].tanh()


HUB = {
    "z_dim": 6,
    "num_classes": 5,
    "channel_width": 4,
    "eps": 1e-4,
    "n_stats": 51,
    "attention_layer_position": 2,
    "layers": [[False, 16, 16], [True, 16, 16], [False, 16, 8], [True, 8, 1]],
}


# BigGAN-PyTorch, which IC-GAN shares.


class Normalized(nn.Module):
    """A convolution or linear layer divided by its singular value, after one more power iteration."""

    def __init__(self, shape: tuple[int, ...], bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape[0])) if bias else None
        self.register_buffer("u0", torch.randn(1, shape[0]))
        self.register_buffer("sv0", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        v = F.normalize(self.u0 @ matrix)
        u = F.normalize(v @ matrix.T)
        weight = self.weight / (v @ matrix.T @ u.T)[0, 0]
        if weight.ndim == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class PlainNorm(nn.Module):
    """With statistics under the names of one of three implementations: "", "my" (sums over batches) or "cross"."""

    def __init__(self, channels: int, condition: int, kind: str):
        super().__init__()
        self.kind = kind
        if condition:
            self.gain, self.bias = Normalized((channels, condition), False), Normalized((channels, condition), False)
        elif kind != "cross":
            self.gain, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
        holder: nn.Module = self
        if kind == "cross":
            holder = self.bn = nn.BatchNorm2d(channels, affine=not condition)
            if not condition:
                nn.init.normal_(self.bn.weight)
                nn.init.normal_(self.bn.bias)
        elif kind == "my":
            holder = self.bn = nn.Module()
        self.mean, self.var = torch.randn(channels), torch.rand(channels) + 0.5
        self.times = 3 if kind == "my" else 1
        names = ("running_mean", "running_var") if kind == "cross" else ("stored_mean", "stored_var")
        for name, value in zip(names, (self.mean, self.var), strict=True):
            holder.register_buffer(name, value * self.times)
        if kind == "my":
            holder.register_buffer("accumulation_counter", torch.tensor([3.0]))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = (x - self.mean[:, None, None]) / (self.var[:, None, None] + 1e-5).sqrt()
        if condition is not None:
            return x * (1 + self.gain(condition))[:, :, None, None] + self.bias(condition)[:, :, None, None]
        gain, bias = (self.bn.weight, self.bn.bias) if self.kind == "cross" else (self.gain, self.bias)
        return x * gain[:, None, None] + bias[:, None, None]


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int, kind: str):
        super().__init__()
        self.conv1, self.conv2 = Normalized((outputs, inputs, 3, 3)), Normalized((outputs, outputs, 3, 3))
        self.conv_sc = Normalized((outputs, inputs, 1, 1))
        self.bn1, self.bn2 = PlainNorm(inputs, condition, kind), PlainNorm(outputs, condition, kind)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.bn1(x, condition).relu()
        h, x = (m.repeat_interleave(2, 2).repeat_interleave(2, 3) for m in (h, x))
        return self.conv2(self.bn2(self.conv1(h), condition).relu()) + self.conv_sc(x)


class WideAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.theta, self.phi = Normalized((channels // 8, channels, 1, 1), False), Normalized((channels // 8, channels, 1, 1), False)
        self.g, self.o = Normalized((channels // 2, channels, 1, 1), False), Normalized((channels, channels // 2, 1, 1), False)
        self.gamma = nn.Parameter(torch.tensor(0.6))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.gamma * attend(x, self.theta, self.phi, self.g, self.o) + x


class WideGAN(nn.Module):
    """G_ema: `classes` and `instances` (length of features, of which there is an embedding) say what it is conditioned on."""

    def __init__(self, *, by_class: bool, instances: int, hier: bool, kind: str = "", classes: int = 5, latent: int = 9):
        super().__init__()
        self.by_class, self.hier, sides = by_class, hier, [16, 16, 8]
        self.chunk = latent // len(sides) if hier else 0
        condition = (7 if by_class else 0) + (11 if instances else 0) + self.chunk
        self.shared = nn.Embedding(classes, 7)  # also where it is not used
        if instances:
            self.shared_feat = Normalized((11, instances))
        self.linear = Normalized((16 * 16, self.chunk or latent))
        blocks = [[WideBlock(i, o, condition, kind)] for i, o in pairwise(sides)]
        self.blocks = nn.ModuleList(nn.ModuleList([*block, *([WideAttention(16)] if i == 0 else [])]) for i, block in enumerate(blocks))
        self.output_layer = nn.Sequential(PlainNorm(8, 0, kind), nn.ReLU(), Normalized((3, 8, 3, 3)))

    def forward(self, z: Tensor, label: Tensor | None, features: Tensor | None) -> Tensor:
        parts = ([self.shared(label)] if self.by_class else []) + ([self.shared_feat(features)] if features is not None else [])
        y = torch.cat(parts, 1) if parts else z.new_zeros(len(z), 0)
        chunks = z.split(self.chunk, 1) if self.hier else [z]
        x = self.linear(chunks[0]).view(len(z), -1, 4, 4)
        for i, group in enumerate(self.blocks):
            for block in group:
                x = block(x, torch.cat([y, chunks[i + 1]], 1) if self.hier else y)
        return self.output_layer(x).tanh()
