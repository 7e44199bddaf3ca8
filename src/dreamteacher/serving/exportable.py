"""Replacements for operators of vision transformers that torch's ONNX exporter cannot export, or exports wrongly."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

_repeat_interleave = Tensor.repeat_interleave


def _cubic_matrix(length: int, wanted: int) -> Tensor:
    """`(wanted, length)`: row i holds the weights of torch's antialiased bicubic interpolation (a = -0.5) for the output at i."""
    scale = torch.as_tensor(length) / torch.as_tensor(wanted).float()
    center = (torch.arange(wanted)[:, None] + 0.5) * scale
    x = ((torch.arange(length) + 0.5 - center) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


def resize_positions(
    positions: Tensor, new_size: Sequence[int], old_size: Sequence[int] | None = None, num_prefix_tokens: int = 1
) -> Tensor:
    """What timm's `resample_abs_pos_embed` returns: position embeddings `(1, prefix + h * w, C)` for the `new_size` (h, w).

    timm's version uses an interpolation that cannot be exported, and skips it if the example picture has the model's default size, which
    would fix the file to that size.
    """
    prefix, places = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    height, width = old_size or 2 * [int(places.shape[1] ** 0.5)]
    grid = places.reshape(int(height), int(width), places.shape[2]).permute(2, 0, 1)
    resized = _cubic_matrix(int(height), new_size[0]) @ grid @ _cubic_matrix(int(width), new_size[1]).T
    return torch.cat([prefix, resized.flatten(1).T[None]], dim=1)


def repeat_interleave(values: Tensor, repeats: int | Tensor, dim: int | None = None, **options: Any) -> Tensor:
    """For rotary embeddings; the exporter's version makes a wrong reshape elsewhere in the graph (torch 2.11 to 2.15)."""
    if not isinstance(repeats, int) or dim is None:
        return _repeat_interleave(values, repeats, dim, **options)
    dim %= values.ndim
    return torch.stack([values] * repeats, dim + 1).flatten(dim, dim + 1)


def rms_norm(values: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Missing in opset 17 and 18."""
    square = values.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    normed = values * torch.rsqrt(square + (torch.finfo(values.dtype).eps if eps is None else eps))
    return normed if weight is None else normed * weight


@contextmanager
def exportable_operators() -> Iterator[None]:
    """Context in which torch and timm use the functions above."""
    from timm.layers import resample_abs_pos_embed

    name = resample_abs_pos_embed.__name__
    users = [module for key, module in sys.modules.items() if key.startswith("timm.models.") and hasattr(module, name)]
    with ExitStack() as stack:
        for module in users:
            stack.enter_context(mock.patch.object(module, name, resize_positions))
        stack.enter_context(mock.patch.object(Tensor, "repeat_interleave", repeat_interleave))
        stack.enter_context(mock.patch.object(torch, "rms_norm", rms_norm))
        yield
