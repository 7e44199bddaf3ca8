"""A whole step of the loop, with each optimiser, never makes the host wait for the GPU; records do, every `log_every` steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import build, denoise, run
from torch import Tensor

from dreamteacher.settings.section import Training
from dreamteacher.tracking import Tracker
from dreamteacher.training import progress
from dreamteacher.training.run import Run
from host_waits import GPU, never_waits, pretended_gpu


class Event:
    """As torch's, of a GPU on which every step takes a second and the next one follows half a second later."""

    clock = 0.0

    def __init__(self, enable_timing: bool):
        self.at = 0.0

    def record(self) -> None:
        Event.clock += 0.5
        self.at = Event.clock

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
def test_no_step_makes_the_host_wait(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Training(optimizer=optimizer, ema=0.9, precision="fp32", batch_size=8, accumulate=2)  # type: ignore[arg-type]
    processes = SimpleNamespace(count=1, rank=0, is_first=True, device=GPU, wrap=lambda model: model, reduce=lambda values: values)
    processes.accelerator = SimpleNamespace(no_sync=lambda model: torch.no_grad())
    place = SimpleNamespace(title="tiny", checkpoints=tmp_path, tracker=Tracker())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    with pretended_gpu():
        loop = Run(
            build().to(GPU),
            denoise,
            settings,
            place,
            processes,  # type: ignore[arg-type]
            seed=0,
            count=lambda part: 4,
            rates=None,
            after_step=None,
            kept=lambda model: model,
        )

        def backward(loss: Tensor) -> None:
            for parameter in loop.trainable:
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        never_waits(lambda random: loop.take_step([{"image": torch.rand(4, 3, 8, 8)} for _ in range(2)]))
        assert loop.done == 2 and all(row.device == GPU for row in loop.window)


def test_losses_are_read_at_records_and_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    window = Run.read_window
    monkeypatch.setattr(Run, "read_window", lambda self: read.append(self.done) or window(self))
    run(tmp_path, settings={"steps": 24, "log_every": 10, "checkpoint_every": 12, "precision": "fp32"})
    assert sorted(set(read)) == [10, 12, 20, 24]


def test_data_wait_on_a_gpu_is_the_time_in_which_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps; neither before the first nor while the host measures or writes a checkpoint."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    idle = progress.Idle(GPU)
    for _ in range(3):
        idle.ends(), idle.begins()
    assert idle.read() == 2 * 0.5
    idle.ends(), idle.begins(), idle.pauses(), idle.ends()
    assert idle.read() == 0
    cpu = progress.Idle(torch.device("cpu"))
    cpu.begins(), cpu.ends()
    assert cpu.read() == 0
