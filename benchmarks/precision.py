"""What bf16 autocast and channels_last gain over fp32 contiguous in training, the grounds of training/precision.py.

    OMP_NUM_THREADS=1 python benchmarks/precision.py [--out FILE.json]

Forward and backward of 32 pictures of 64 px. Variants take turns and the least CPU time of each counts, so that other work on the
machine disturbs little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images, steps = torch.randn(32, 3, 64, 64), torch.arange(32)
    results = {
        "resnet18 pyramid": measure(
            lambda: timm.create_model("resnet18", features_only=True),
            lambda model, x: torch.stack([level.float().square().mean() for level in model(x)]).sum(),
            images,
        ),
        "UNet2DModel (32, 64, 64, 128)": measure(unet, lambda model, x: (model(x, steps).sample - x).square().mean(), images),
    }
    for name, seconds in results.items():
        print(f"{name}, {torch.get_num_threads()} threads")
        for variant, value in seconds.items():
            print(f"  {variant:20s} {value:.3f} s  x{seconds['fp32 contiguous'] / value:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def unet() -> UNet2DModel:
    down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    return UNet2DModel(64, block_out_channels=(32, 64, 64, 128), down_block_types=down, up_block_types=up, norm_num_groups=8)


def measure(build: Callable[[], nn.Module], loss: Callable[[nn.Module, Tensor], Tensor], images: Tensor) -> dict[str, float]:
    """CPU seconds of each variant."""
    moves: dict[str, Callable[[], None]] = {}
    for (name, dtype), layout in itertools.product(
        {"fp32": torch.float32, "bf16": torch.bfloat16}.items(), ("contiguous_format", "channels_last")
    ):
        variant = f"{name} {layout.removesuffix('_format')}"
        moves[variant] = _move(build(), loss, images, dtype, getattr(torch, layout))
        moves[variant]()
    best = dict.fromkeys(moves, float("inf"))
    for _ in range(ROUNDS):
        for variant, move in moves.items():
            started = time.process_time()
            move()
            best[variant] = min(best[variant], time.process_time() - started)
    return best


def _move(
    model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], images: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[], None]:
    model.train().to(memory_format=layout)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=layout)

    def move() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(model, images)
        value.backward()

    return move


if __name__ == "__main__":
    main()
