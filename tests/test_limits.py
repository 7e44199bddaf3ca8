"""CPU and memory limits of a container."""

import math
from pathlib import Path

import pytest

from dreamteacher import limits


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for version in ("cpu", "memory"):
        (tmp_path / version).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_cores_are_those_of_the_quota(cgroup: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (cgroup / name).write_text(f"{text}\n")
    assert limits.cores() == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [({}, math.inf), ({"memory.max": "max"}, math.inf), ({"memory.max": "4096"}, 4096), ({"memory/memory.limit_in_bytes": "8192"}, 8192)],
)
def test_memory_is_that_of_the_container(cgroup: Path, files: dict[str, str], limit: float) -> None:
    for name, text in files.items():
        (cgroup / name).write_text(f"{text}\n")
    assert limits.memory_limit() == limit
