"""A fake GPU that detects host synchronisation. Needs no GPU.

Tensors on it have a shape but no values (torch's FakeTensorMode), so that whatever needs values, such as `item()`, a condition or indexing
by a mask, cannot be computed; those on the host are real. Copies that a real GPU makes the host wait for are refused. Gradients are not
computed: torch's engine asks for a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from dreamteacher.training.randomness import StepRandom

GPU = torch.device("cuda", 0)
SLIM = {
    "widths": (8, 8, 8, 8),
    "depth": 1,
    "attention": (8,),
    "head_dim": 8,
    "groups": 4,
    "dropout": 0.1,
}  # each operation takes 1 ms there
REAL_GENERATOR = torch.Generator
aten = torch.ops.aten


class HostWaits(AssertionError):
    """The host would wait for the GPU."""


class Traffic(TorchDispatchMode):
    """What lies on the host alone is computed there. With `strict` copies that make the host wait are refused: all from the GPU, and those
    to it that are not `non_blocking`."""

    strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        on_gpu = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if not on_gpu and torch.device(kwargs.get("device") or "cpu") != GPU:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.strict and func in (aten._to_copy.default, aten.copy_.default):
            target, source = args[:2] if func is aten.copy_.default else (result, args[0])
            queued = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if source.device != target.device and not (queued and target.device == GPU):
                raise HostWaits(f"for a copy of {tuple(source.shape)} from {source.device} to {target.device}")
        return result


@contextmanager
def pretended_gpu() -> Iterator[Traffic]:
    """In the block tensors may be on GPU, and `module.to(GPU)` brings its parameters and buffers there."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), Traffic() as traffic:
        # Generators and pinned memory exist on real GPUs alone; neither makes the host wait.
        patch.setattr(torch, "Generator", _generator)
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        patch.setattr(nn.Module, "to", lambda self, *args, **options: _on_gpu(self))  # torch's own cannot change fake parameters
        yield traffic


def _generator(device: torch.device | str = "cpu") -> Any:
    on_gpu = torch.device(device).type == GPU.type
    return SimpleNamespace(manual_seed=lambda seed: None) if on_gpu else REAL_GENERATOR(device)


def _on_gpu(module: nn.Module) -> nn.Module:
    for each in module.modules():
        for name, value in each._parameters.items():
            if value is not None:
                each._parameters[name] = nn.Parameter(torch.empty_like(value, device=GPU), value.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = torch.empty_like(buffer, device=GPU)
    return module


def pictures(count: int = 4, side: int = 64) -> Tensor:
    """A batch `(count, 3, side, side)` on GPU."""
    return torch.empty(count, 3, side, side, device=GPU)


def never_waits(step: Callable[[StepRandom], Any]) -> None:
    """Take two steps on a pretended GPU; only in the first may copies wait, which bring constants there.

    Raises:
        HostWaits: the host would wait, at the last line of the traceback that is ours.
    """
    traffic = next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Traffic))
    for number in (1, 2):
        traffic.strict = number > 1
        try:
            step(StepRandom(0, number, 0, 1, GPU))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWaits(f"for the values that {error.func} needs") from error
