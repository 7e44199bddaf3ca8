"""The sample order: endless, and can start at any step."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dreamteacher.errors import UserError
from dreamteacher.limits import cores
from dreamteacher.training.randomness import derive_seed


def global_batch(length: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """(index, augmentation seed) of every position in the global batch of `step`.

    The stream of indices is a sequence of permutations of range(length); batch `step` takes `batch_size` of them from position
    step * batch_size on. So each sample comes once per epoch, for any batch size.
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
    """Batch sampler of one process: for every step from `start` to `steps`, one batch per accumulation part.

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


def draw_batches(data: Dataset, count: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """The pictures of `count` items (or all) drawn by `seed`, because items are sorted by class folder.

    Yields:
        Up to 16 `(B, 3, H, W)` at a time, on `device`.
    """
    length = len(data)  # type: ignore[arg-type]
    items = global_batch(length, min(count, length), derive_seed(seed, "statistics"), step=0)
    for start in range(0, len(items), 16):
        yield torch.stack([data[item]["image"] for item in items[start : start + 16]]).to(device)


def choose_workers(data: Dataset, workers: int | Literal["auto"], device: torch.device) -> int:
    """Number of loader processes; auto: this process' share of the cores less one, at most 16 for a GPU, else 4.

    On a CPU, data with `in_memory` True needs none. A GPU would idle while this process makes crops.
    """
    if workers != "auto":
        return workers
    gpu = device.type == "cuda"
    if getattr(data, "in_memory", False) and not gpu:
        return 0
    return max(0, min(16 if gpu else 4, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@contextlib.contextmanager
def open_loader(data: Dataset, batches: Batches, workers: int, device: torch.device) -> Iterator[Iterator[dict[str, Tensor]]]:
    """The batches of `data`, whose items are addressed by (index, seed); no loader process outlives the block.

    A UserError raised by `data` is passed on unchanged, also from a loader process.
    """
    others = set(multiprocessing.active_children())
    loader: Any = None
    try:
        loader = iter(
            DataLoader(
                _Batched(data),
                batch_size=None,
                sampler=batches,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=_ignore_signals,
            )
        )
        yield map(_raise_user_error, loader)
    finally:
        # At interpreter exit, Python would send SIGTERM, which they ignore, and wait forever.
        try:
            if workers and loader is not None:
                loader._shutdown_workers()  # waits a few seconds for each; torch then no longer reports their end as an error
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()


class _Batched(Dataset):
    """Dataset of whole batches of `data`, collated by its `collate` if it has one.

    A UserError is returned, not raised, because torch would rewrite its text when passing it between processes."""

    def __init__(self, data: Dataset):
        self.data = data
        self.collate = getattr(data, "collate", default_collate)

    def __getitem__(self, items: list[tuple[int, int]]) -> dict[str, Tensor] | UserError:
        try:
            return self.collate([self.data[item] for item in items])
        except UserError as error:
            return error


def _raise_user_error(batch: dict[str, Tensor] | UserError) -> dict[str, Tensor]:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore signals to the process group (Ctrl-C, `timeout`): the loop handles them, and needs its workers until the last step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
