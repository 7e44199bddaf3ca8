"""Number format and memory layout in which a device is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn


def choose_precision(precision: Literal["auto", "bf16", "fp32"], device: torch.device) -> torch.dtype:
    """The autocast dtype: bfloat16, or float32 for no autocast. Weights, optimiser state and EMA are always float32.

    auto is bfloat16 on CUDA devices with hardware support and on CPUs with AMX or AVX512-BF16. Speed of forward and backward
    on 32 pictures of 64 px against fp32 contiguous, two runs of benchmarks/precision.py on one core with AVX512-BF16, without AMX:

    |                                | fp32 channels_last | bf16 contiguous | bf16 channels_last |
    | ResNet-18 pyramid              | x1.20, x1.02       | x2.35, x1.57    | x2.25, x1.66       |
    | UNet2DModel (32, 64, 64, 128)  | x0.98, x0.95       | x1.50, x1.46    | x1.33, x1.32       |
    """
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def choose_layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Memory format of pictures and convolution weights: channels_last, but contiguous for bfloat16 on a CPU.

    There oneDNN uses its own layout for convolutions anyway, and GroupNorm's backward pass is slow in channels_last;
    measurements in `choose_precision`.
    """
    return torch.contiguous_format if device.type == "cpu" and dtype == torch.bfloat16 else torch.channels_last


def move_frozen(module: Any, device: torch.device) -> Any:
    """A frozen `module` on `device`; on a GPU with convolution weights in the memory format of the pictures.

    Otherwise cuDNN would convert them at each call. On a CPU they are unchanged.
    """
    if device.type == "cuda" and isinstance(module, nn.Module):
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(device)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not _cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"})


def _cpu_flags() -> set[str]:
    """CPU flags that Linux lists for the first core; empty elsewhere. Unlike CPUID, they exclude features the kernel has not enabled."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")), set())
