"""Random numbers that do not depend on resuming, the number of processes or gradient accumulation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2^63) for this sequence of keys; unlike sums of keys, related sequences give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed the default generators (for dropout and the like) on `device`.

    Unlike torch.manual_seed, which records a stack trace for every unused kind of accelerator: half a millisecond, too slow for every
    step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


class StepRandom:
    """The noise of one optimiser step, as a function of only (seed, step, position in the global batch).

    Every call draws for the global batch, with its own stream, and returns this part's slice. So one process with a batch of 8, two with 4
    each, and two accumulated parts of 4 get the same noise for the same picture.
    """

    def __init__(self, seed: int, step: int, part: int, parts: int, device: torch.device | str = "cpu"):
        """Slice `part` (from 0) of `parts` equal slices of the global batch of `step`; draws are made and returned on `device`."""
        if not 0 <= part < parts:
            raise ValueError(f"part {part} is not one of {parts}")
        self.seed = seed
        self.step = step
        self.part = part
        self.parts = parts
        self.device = torch.device(device)
        self._calls = 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal values of `shape`, whose first dimension counts the pictures of this part."""
        return self._slice(torch.randn((shape[0] * self.parts, *shape[1:]), generator=self._generator(), device=self.device, dtype=dtype))

    def integers(self, low: int, high: int, n: int) -> Tensor:
        """`n` integers from [low, high), one for each picture of this part: int64 (n,)."""
        return self._slice(torch.randint(low, high, (n * self.parts,), generator=self._generator(), device=self.device))

    def positions(self, n: int) -> Tensor:
        """The positions of this part's `n` pictures in the global batch: int64 (n,)."""
        return torch.arange(self.part * n, (self.part + 1) * n, device=self.device)

    def _generator(self) -> torch.Generator:
        self._calls += 1
        return torch.Generator(self.device).manual_seed(derive_seed(self.seed, self.step, self._calls))

    def _slice(self, values: Tensor) -> Tensor:
        n = len(values) // self.parts
        return values[self.part * n : (self.part + 1) * n]
