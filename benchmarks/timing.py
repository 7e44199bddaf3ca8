"""What the timings share: the machine in words, a clock, and a batch that is already there."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dreamteacher.data.dataset import Samples
from dreamteacher.training.precision import choose_precision
from dreamteacher.training.processes import this_process

WARM = 3  # steps that are not counted


def describe_machine() -> dict[str, str]:
    """What decides the figures."""
    device = this_process().device
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).exists():
        flags = set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "cpu_features": ", ".join(flag for flag in wanted if flag in flags) or "none known",
        "precision": str(choose_precision("auto", device)).removeprefix("torch."),
        "torch": torch.__version__,
    }


def clock(one: Callable[[int], None], steps: int) -> float:
    """Seconds of `steps` calls, after some that do not count."""
    device = this_process().device
    for number in range(WARM):
        one(number)
    finish(device)
    started = time.perf_counter()
    for number in range(steps):
        one(number)
    finish(device)
    return time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait for what the accelerator still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fixed_batch(samples: Samples, count: int) -> Tensor:
    return torch.stack([samples[(i % len(samples), i)]["image"] for i in range(count)])
