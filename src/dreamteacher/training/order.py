"""Which picture stands where: an endless order of the samples that any step can be entered at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dreamteacher.training.randomness import derive_seed


def global_batch(length: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """(index, seed of its augmentation) of every position in the global batch of `step`.

    The stream of indices is one permutation of range(length) after another; batch `step` takes `batch_size` of them from
    position step * batch_size on. So in every epoch each sample comes once, whatever the batch size.
    """
    items = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, length)
        items.append((int(_permutation(length, seed, epoch)[place]), derive_seed("sample", seed, position)))
    return items


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(derive_seed("order", seed, epoch)).permutation(length)


class Batches(Sampler[list[tuple[int, int]]]):
    """The batches of one process: for every step from `start` to `steps`, one for each of its `accumulate` parts.

    Part `micro * processes + rank` of the global batch goes to process `rank` as its `micro`-th.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, start: int, steps: int, accumulate: int, rank: int, processes: int):
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.steps = range(start, steps)
        self.parts = range(rank, accumulate * processes, processes)
        self.size = batch_size // (accumulate * processes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            items = global_batch(self.length, self.batch_size, self.seed, step)
            for part in self.parts:
                yield items[part * self.size : (part + 1) * self.size]

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


def choose_workers(data: Dataset, workers: int | Literal["auto"]) -> int:
    """Loader processes; auto: none for data with `in_memory` True, else up to 4, as this process' share of the cores allows."""
    if workers != "auto":
        return workers
    if getattr(data, "in_memory", False):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def open_loader(data: Dataset, batches: Batches, workers: int, device: torch.device) -> DataLoader:
    """A loader over `data`, whose items are addressed by (index, seed)."""
    return DataLoader(data, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda", worker_init_fn=_ignore_signals)


def _ignore_signals(worker: int) -> None:
    """A signal to the whole group (Ctrl-C, `timeout`) is the loop's to answer; its workers must live until the last step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
