"""The U-Net of ADM (Dhariwal & Nichol 2021, App A; Nichol & Dhariwal 2021, App A) in plain torch, from its description.

Modules bear the names that published state dicts have; nothing of it is shared with what is tested. `taps` holds, fine to coarse, what
the last block of each level of the decoder makes before it is up-sampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


class Residual(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; the time embedding is scale and shift after the second norm, or is added before it."""

    def __init__(self, inputs: int, outputs: int, embedded: int, scale_shift: bool, resample: str = ""):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, outputs * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(norm(outputs), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.in_layers[0](x))
        if self.resample == "up":
            h, x = (m.repeat_interleave(2, 2).repeat_interleave(2, 3) for m in (h, x))
        if self.resample == "down":
            h, x = (m.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) for m in (h, x))
        h, e = self.in_layers[2](h), self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e[:, : h.shape[1]], e[:, h.shape[1] :]
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + e)
        return self.skip_connection(x) + self.out_layers[3](F.silu(h))


class SelfAttention(nn.Module):
    """Softmax of q k^T / sqrt(c) over all places, head by head; the rows of qkv are (heads, 3, c), or in the new order (3, heads, c)."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv, self.proj_out = norm(channels), nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows, c = self.qkv(self.norm(x).flatten(2)), channels // self.heads
        attended = []
        for head in range(self.heads):
            first = [part * channels + head * c if self.new_order else (3 * head + part) * c for part in range(3)]
            q, k, v = (rows[:, start : start + c] for start in first)
            weights = torch.einsum("bci,bcj->bij", q, k).div(math.sqrt(c)).softmax(2)
            attended.append(torch.einsum("bij,bcj->bci", weights, v))
        return x + self.proj_out(torch.cat(attended, 1)).reshape(batch, channels, height, width)


class Down(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class ADM(nn.Module):
    def __init__(
        self,
        channels: int,
        mult: tuple[float, ...],
        depth: int,
        attention: tuple[int, ...],
        *,
        head_channels: int = 16,
        heads: int = 0,
        new_order: bool = False,
        classes: int = 0,
        learn_sigma: bool = True,
        scale_shift: bool = True,
        residual: bool = True,
    ):
        super().__init__()
        embedded, widths, strides = 4 * channels, [int(m * channels) for m in mult], [2**level for level in range(len(mult))]
        self.channels = channels
        self.time_embed = nn.Sequential(nn.Linear(channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.label_emb = nn.Embedding(classes, embedded) if classes else None

        def block(inputs: int, outputs: int, resample: str = "") -> Residual:
            return Residual(inputs, outputs, embedded, scale_shift, resample)

        def attend(width: int) -> SelfAttention:
            return SelfAttention(width, heads or width // head_channels, new_order)

        last, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1)])])
        for width, stride in zip(widths, strides, strict=True):
            for _ in range(depth):
                self.input_blocks.append(nn.ModuleList([block(last, width), *([attend(width)] if stride in attention else [])]))
                last = width
                skips.append(last)
            if stride < strides[-1]:
                self.input_blocks.append(nn.ModuleList([block(last, last, "down") if residual else Down(last)]))
                skips.append(last)
        self.middle_block = nn.ModuleList([block(last, last), attend(last), block(last, last)])
        self.output_blocks = nn.ModuleList()
        self.ends = []  # of the levels: (block, modules before its up-sampler)
        for width, stride in zip(widths[::-1], strides[::-1], strict=True):
            for i in range(depth + 1):
                modules: list[nn.Module] = [block(last + skips.pop(), width), *([attend(width)] if stride in attention else [])]
                last = width
                if i == depth:
                    self.ends.append((len(self.output_blocks), len(modules)))
                    if stride > 1:
                        modules.append(block(last, last, "up") if residual else Up(last))
                self.output_blocks.append(nn.ModuleList(modules))
        self.out = nn.Sequential(norm(last), nn.SiLU(), nn.Conv2d(last, 6 if learn_sigma else 3, 3, padding=1))
        self.taps: list[Tensor] = []

    def embed(self, steps: Tensor) -> Tensor:
        """Cosines, then sines, of the step times 10000^(-i / half)."""
        half = self.channels // 2
        angles = steps.float()[:, None] * torch.tensor([10000 ** (-i / half) for i in range(half)])
        return self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))

    @torch.no_grad()
    def forward(self, noisy: Tensor, steps: Tensor, classes: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` at steps `(B,)`; classes `(B, K)`, shares of each."""
        embedding = self.embed(steps)
        if self.label_emb is not None and classes is not None:
            embedding = embedding + classes @ self.label_emb.weight

        def run(module: nn.Module, h: Tensor) -> Tensor:
            return module(h, embedding) if isinstance(module, Residual) else module(h)

        h, skips, taps = noisy, [], []
        for modules in self.input_blocks:
            for module in modules:
                h = run(module, h)
            skips.append(h)
        for module in self.middle_block:
            h = run(module, h)
        for number, modules in enumerate(self.output_blocks):
            h = torch.cat([h, skips.pop()], 1)
            for place, module in enumerate(modules, 1):
                h = run(module, h)
                if (number, place) in self.ends:
                    taps.append(h)
        self.taps = taps[::-1]
        return self.out(h)
