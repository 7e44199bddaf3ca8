"""The training processes, one or many."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import Tensor, nn

T = TypeVar("T")


def this_process() -> PartialState:
    """This process among the training processes: `device`, `is_main_process`. The first call initialises the process group.

    accelerate initialises CPU process groups only if configured before its device is first used.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if state.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError("accelerate was asked for the device before this_process() was; ask this_process() instead")
    return state


class Processes:
    """The process group: `rank` of `count` processes, each on `device`.

    Communication other than gradients uses the CPU, so that no step synchronises with its accelerator.
    """

    def __init__(self) -> None:
        this_process()
        # Which stages of a backbone are used depends on the requested pyramid levels, so some parameters may get no gradient.
        wrapping = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[wrapping])
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.is_first = self.rank == 0
        self.device = self.accelerator.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on this process' device, wrapped in DDP if there are several processes."""
        return self.accelerator.prepare_model(model)

    def reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """All-reduce of CPU tensors of one shape, in place: their sum, or `operation`."""
        if self.count > 1:
            dist.all_reduce(values, operation, group=_hosts())
        return values

    def from_first(self, value: T) -> T:
        """Broadcast from the first process; the others wait for it."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_hosts())
        return values[0]


def gather(values: Tensor) -> Tensor:
    """All-gather `(n, ...)` by rank to `(count * n, ...)`, with gradients to all processes.

    If each process takes a mean over its own share, the gradients averaged by DDP are those of the mean over all.
    """
    return _Gather.apply(values) if dist.is_initialized() and dist.get_world_size() > 1 else values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


@cache
def _hosts() -> dist.ProcessGroup:
    # The others may wait while the first process measures or writes a large checkpoint.
    group = dist.new_group(backend="gloo", timeout=timedelta(hours=2))
    assert isinstance(group, dist.ProcessGroup)
    return group
