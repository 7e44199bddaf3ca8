"""A training run of a second, in this process or in children that start fast: what the tests of the loop share."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dreamteacher.errors import Interrupted, UserError, resource_errors_in_one_line
from dreamteacher.settings.section import Training
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Step, Trained

# Children are forked from a process that has imported everything, what `train` imports late too, but computed nothing.
FORK = mp.get_context("forkserver")
FORK.set_forkserver_preload(["dreamteacher.training.loop", "dreamteacher.tracking", "timm", "torch._dynamo"])

DEFAULTS: dict[str, Any] = {"steps": 60, "batch_size": 8, "warmup_steps": 5, "checkpoint_every": 7, "log_every": 4, "ema": 0.9}


class Pictures(torch.utils.data.Dataset):
    """20 pictures with an augmentation that depends on the seed."""

    in_memory = True

    def __len__(self) -> int:
        return 20

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        torch.default_generator.manual_seed(seed)
        return {"image": torch.rand(3, 8, 8) + index / 20}


def build(norm: bool = True) -> nn.Module:
    """A small network, with the two things that make resuming hard: running statistics and dropout."""
    torch.manual_seed(0)
    extra = [nn.BatchNorm2d(8), nn.Dropout(0.1)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *extra, nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def denoise(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
    """Predict the noise; its mean is logged."""
    noise = random.normal(batch["image"].shape)
    return {"loss": (model(batch["image"] + noise).float() - noise).square().mean(), "noise": noise.mean()}


def run(
    folder: Path,
    step: Step = denoise,
    *,
    model: nn.Module | None = None,
    data: torch.utils.data.Dataset | None = None,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Trained:
    """Train with checkpoints in `folder`."""
    chosen = Training(**{**DEFAULTS, **(settings or {})})
    more.setdefault("on_eval", lambda model, step: {"bias": float(model[0].bias.sum())})
    arguments = model or build(), step, data or Pictures(), chosen
    place = SimpleNamespace(title="tiny", checkpoints=folder, tracker=Tracker())
    return train(*arguments, place, seed=3, eval_every=10, **more)


def outcome(trained: Trained) -> bytes:
    """Everything that must not depend on interruptions, as bytes."""
    assert trained.ema is not None
    return save(trained.model.state_dict()) + save(trained.ema.state_dict()) + json.dumps(trained.history).encode()


def start(folder: Path, step: Step = denoise, **more: Any) -> mp.process.BaseProcess:
    """The run in a child, which leaves `outcome` or what stopped it beside the checkpoints; see `ended`."""
    child = FORK.Process(target=_child, args=(folder, step, more))
    child.start()
    return child


def _child(folder: Path, step: Step, more: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    mp.set_start_method("fork", force=True)  # as in a process that no server has forked
    result = folder.with_suffix(".result")
    try:
        with resource_errors_in_one_line("train-teacher"):
            result.write_bytes(outcome(run(folder, step, **more)))
    except (Interrupted, UserError) as error:
        result.write_text(f"{type(error).__name__}: {error}")


def ended(folder: Path, child: mp.process.BaseProcess) -> bytes:
    """The outcome of the child, once it has exited."""
    child.join(120)
    assert child.exitcode == 0
    return folder.with_suffix(".result").read_bytes()


def wait_for_records(folder: Path, count: int) -> None:
    """Until the child has written this many records."""
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.002)


def slow(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
    """`denoise` with time to be hit by a signal."""
    time.sleep(0.01)
    return denoise(model, batch, random)


def launch(function: Callable[..., Any], *args: Any) -> dict[int, Any]:
    """Run the function in two processes by torchrun's own launcher; its results by rank."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        start_method="forkserver",
    )
    with own_handlers():
        return elastic_launch(config, function)(*args)


@contextmanager
def own_handlers() -> Iterator[None]:
    """Signals as before afterwards; torchrun's launcher leaves handlers behind."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def in_pair(folder: Path) -> dict[str, Any]:
    """In each of two processes: a whole run; then one in which only the second process is told to stop; then that one resumed."""
    torch.set_num_threads(1)
    settings = {"precision": "fp32"}
    whole = run(folder / "whole", model=build(norm=False), settings=settings)

    def stop_second(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        if random.step == 16 and this_process().process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return denoise(model, batch, random)

    try:
        run(folder / "stopped", stop_second, model=build(norm=False), settings=settings)
        stopped = None
    except Interrupted as error:
        stopped = (error.signum, error.step)
    resumed = run(folder / "stopped", model=build(norm=False), settings=settings)
    return {
        "processes": this_process().num_processes,
        "history": whole.history,
        "weights": {key: value.numpy() for key, value in whole.model.state_dict().items()},
        "stopped": stopped,
        "same": outcome(resumed) == outcome(whole),
    }


def capture(module: nn.Module) -> None:
    """`nn.Module.compile` without kernels of its own, which would round otherwise."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")


def compiled_in_pair(folder: Path) -> dict[str, Any]:
    """In each of two processes: a run of the captured model, and one of the plain model."""
    torch.set_num_threads(1)
    nn.Module.compile = capture  # type: ignore[method-assign]
    settings = {"precision": "fp32", "steps": 12}
    made = [run(folder / str(each), model=build(norm=False), settings={**settings, "compile": each}) for each in (True, False)]
    return {"processes": this_process().num_processes, "same": outcome(made[0]) == outcome(made[1])}
