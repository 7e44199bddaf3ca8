"""Resource limits of this process, which in a container are below those of the host."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores, by affinity and the container's quota (of which a started core counts as one)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _numbers("cpu.max") or _numbers("cpu/cpu.cfs_quota_us") + _numbers("cpu/cpu.cfs_period_us")
    if len(quota) == 2 and 0 < quota[0] < math.inf and quota[1] > 0:  # cgroup 1 says -1 where there is none
        allowed = min(allowed, math.ceil(quota[0] / quota[1]))
    return allowed


def memory_limit() -> float:
    """Memory limit of the container, bytes; infinity if it has none."""
    limit = _numbers("memory.max") or _numbers("memory/memory.limit_in_bytes")  # cgroup 2, 1
    return limit[0] if limit else math.inf


def _numbers(name: str) -> list[float]:
    """The numbers in a cgroup file, `max` as infinity; empty if it does not exist."""
    try:
        return [math.inf if word == "max" else float(word) for word in (CGROUP / name).read_text().split()]
    except (OSError, ValueError):
        return []
