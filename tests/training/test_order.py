"""The sample order: complete, endless, and independent of the start step."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamteacher.training.order import Batches, choose_workers, global_batch

SIZES = {"length": st.integers(1, 30), "batch_size": st.integers(1, 12), "seed": st.integers(0, 100)}


@settings(max_examples=40)
@given(**SIZES)
def test_every_epoch_visits_each_sample_once(length: int, batch_size: int, seed: int) -> None:
    items = [item for step in range(3 * length) for item in global_batch(length, batch_size, seed, step)]
    for epoch in range(len(items) // length):
        assert sorted(index for index, _ in items[epoch * length : (epoch + 1) * length]) == list(range(length))
    assert len({augmentation for _, augmentation in items}) == len(items)


@settings(max_examples=40)
@given(start=st.integers(0, 9), accumulate=st.integers(1, 3), processes=st.integers(1, 3), each=st.integers(1, 3), seed=st.integers(0, 9))
def test_processes_and_parts_share_the_global_batch(start: int, accumulate: int, processes: int, each: int, seed: int) -> None:
    size = each * accumulate * processes
    ranks = [
        Batches(17, size, seed=seed, start=start, steps=10, accumulate=accumulate, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    streams = [list(batches) for batches in ranks]
    assert all(len(stream) == len(batches) == (10 - start) * accumulate for stream, batches in zip(streams, ranks, strict=True))
    for i, step in enumerate(range(start, 10)):
        parts = [streams[rank][i * accumulate + micro] for micro in range(accumulate) for rank in range(processes)]
        assert [item for part in parts for item in part] == global_batch(17, size, seed, step)


def test_seed_changes_order_and_augmentation() -> None:
    one, other = global_batch(100, 50, 0, 0), global_batch(100, 50, 1, 0)
    assert [index for index, _ in one] != [index for index, _ in other]
    assert {seed for _, seed in one}.isdisjoint(seed for _, seed in other)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Data(list):
    in_memory = False


def test_auto_workers_are_this_process_share_of_the_cores_less_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data()
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    assert choose_workers(data, "auto", CPU) == 3
    assert choose_workers(data, 7, CPU) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_workers(data, "auto", CPU) == 1
    data.in_memory = True
    assert choose_workers(data, "auto", CPU) == 0


def test_a_gpu_gets_more_loaders_also_for_data_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would have nothing to do while crops are made for it."""
    data = Data()
    data.in_memory = True
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for count, workers in ((1, 0), (8, 7), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=count: set(range(count)))
        assert choose_workers(data, "auto", GPU) == workers
    assert choose_workers(data, 0, GPU) == 0
