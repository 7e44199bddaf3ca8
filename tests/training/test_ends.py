"""After any end of training, the process exits within seconds without leaving loader processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_run import Pictures, build, denoise, launch, run, slow, start, wait_for_records
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dreamteacher.errors import UserError, resource_errors_in_one_line
from dreamteacher.training.checkpoint import list_checkpoints
from dreamteacher.training.processes import this_process

SECONDS = 60  # on a busy machine; what hangs does so for ever
WITH_WORKERS: dict[str, Any] = {"settings": {"workers": 2, "steps": 100_000, "log_every": 1}}


def workers() -> list[int]:
    """Process ids of the loader processes of this process."""
    return [child.pid for child in torch.multiprocessing.active_children() if child.pid]


def raises(model, batch, random):
    if random.step == 4:
        raise ZeroDivisionError
    return slow(model, batch, random)


def exits(model, batch, random):
    if random.step == 4:
        sys.exit(3)
    return slow(model, batch, random)


def is_interrupted_twice(model, batch, random):
    if random.step == 4:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    return slow(model, batch, random)


def loses_a_worker(model, batch, random):
    if random.step == 4:
        os.kill(workers()[0], signal.SIGKILL)
        time.sleep(60)  # torch raises as soon as it is told of the death
    return slow(model, batch, random)


def fails_to_evaluate(model, step):
    raise ZeroDivisionError


class Damaged(Pictures):
    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        if item[0] == 7:
            time.sleep(0.1)  # so that `watch` sees both workers
            raise UserError("shard 3: picture 7 is damaged; ingest again")
        return super().__getitem__(item)


class Defective(Pictures):
    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        time.sleep(0.1)
        return {"image": torch.ones(2)[item[0] + 9]}


class Stuck(Pictures):
    """What a loader process meets on a network folder that no longer answers: later pictures never come."""

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        if torch.utils.data.get_worker_info().id == 1:
            time.sleep(1000)
        return super().__getitem__(item)


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; a zombie only waits for the container's first process to read its exit code."""
    with_status = [(process, process.status()) for process in processes if process.is_running()]
    return [process for process, status in with_status if status != psutil.STATUS_ZOMBIE]


def watch(child: BaseProcess) -> tuple[int | None, int]:
    """Wait for the end of `child`: its exit code, None if it does not end; and how many loader processes it had and left behind."""
    had: set[psutil.Process] = set()
    deadline = time.monotonic() + SECONDS
    while child.exitcode is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            had |= set(psutil.Process(child.pid).children())
        time.sleep(0.01)
    code, left = child.exitcode, alive(had)
    for process in [*left, child]:
        process.kill()
    assert len(had) == 2
    return code, len(left)


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ({"step": raises}, 1, None),
        ({"step": exits}, 3, None),
        ({"step": is_interrupted_twice}, 1, None),
        ({"on_eval": fails_to_evaluate}, 1, None),
        ({"data": Defective()}, 1, None),
        ({"data": Damaged()}, 0, "UserError: shard 3: picture 7 is damaged; ingest again"),
        (
            {"step": loses_a_worker},
            0,
            "UserError: a loader process was killed (Killed), most likely because memory",
        ),
    ],
    ids=["exception", "exit", "second Ctrl-C", "on_eval", "defect in a worker", "bad picture in a worker", "killed worker"],
)
def test_the_process_ends_with_its_workers(tmp_path: Path, how: dict[str, Any], code: int, message: str | None) -> None:
    folder = tmp_path / "run"
    assert watch(start(folder, **{"step": slow, **WITH_WORKERS, **how})) == (code, 0)
    if message:
        assert folder.with_suffix(".result").read_text().startswith(message)


def test_a_stuck_worker_is_ended_too(tmp_path: Path) -> None:
    assert watch(start(tmp_path / "run", raises_at_once, data=Stuck(), **WITH_WORKERS)) == (1, 0)


def hurries(model, batch, random):
    """The loader gives a process a second to end by itself, and not five."""
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1.0
    return denoise(model, batch, random)


def raises_at_once(model, batch, random):
    hurries(model, batch, random)
    time.sleep(0.1)
    raise ZeroDivisionError


def test_a_signal_ends_the_wait_for_a_stuck_worker(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = start(folder, hurries, data=Stuck(), **WITH_WORKERS)
    wait_for_records(folder, 1)
    assert child.pid
    os.kill(child.pid, signal.SIGTERM)
    assert watch(child) == (0, 0)
    assert folder.with_suffix(".result").read_text().startswith("Interrupted: stopped by signal 15 at step 1;")
    assert [path.name.split("-")[1] for path in list_checkpoints(folder)] == ["00000001"]


def test_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = start(folder, slow, **WITH_WORKERS)
    wait_for_records(folder, 3)
    workers = set(psutil.Process(child.pid).children())
    assert len(workers) == 2
    child.kill()
    deadline = time.monotonic() + SECONDS
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = alive(workers)
    for process in left:
        process.kill()
    assert left == []


@pytest.mark.parametrize("how", ["raises", "is killed", "loses a worker"])
def test_one_of_two_processes_that_fails_ends_both(tmp_path: Path, how: str) -> None:
    """By torchrun's launcher, which sends SIGTERM to the other, while that waits inside a step."""
    begin = time.monotonic()
    with pytest.raises(ChildFailedError):
        launch(fail_second, tmp_path, how)
    assert time.monotonic() - begin < SECONDS
    pids = [int(pid) for file in tmp_path.glob("*.pids") for pid in file.read_text().split()]
    assert len(pids) == 6
    assert alive({psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)}) == []


def fail_second(folder: Path, how: str) -> None:
    """In each of two processes: training, in which the second fails at step 4."""
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("fork", force=True)
    rank = this_process().process_index

    def step(model, batch, random):
        if random.step == 3:
            (folder / f"{rank}.pids").write_text(f"{os.getpid()} {' '.join(map(str, workers()))}")
        if random.step == 4 and rank == 1:
            if how == "raises":
                raise ZeroDivisionError
            os.kill(os.getpid() if how == "is killed" else workers()[0], signal.SIGKILL)
            time.sleep(60)
        return denoise(model, batch, random)

    with resource_errors_in_one_line("train-teacher"):
        run(folder / "run", step, model=build(norm=False), **WITH_WORKERS)
