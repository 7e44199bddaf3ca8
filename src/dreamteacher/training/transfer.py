"""What brings numbers of the host to the device without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values, device=device)`, for what is computed in every step.

    From ordinary memory a GPU is only fed once it has done all that was queued before, and the host waits for that; from pinned memory it
    takes the values in their turn.
    """
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
