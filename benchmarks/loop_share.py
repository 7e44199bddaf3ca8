"""How much of distillation through the training loop is the teacher and the student, and how much the loop's own.

One training is measured. Between two of its steps, the teacher up to its last tap and the step of a student like the loop's are run alone,
on tensors that are already there. A step of the loop (decoding, crops, teacher, student, optimiser, records) and the parts beside it are
thus a pair that the load of the machine meets alike; `ratio` is the median of parts / loop over the pairs, `quartiles` its spread. On a
CPU with one thread seconds of the processor are counted, so that other programs count even less; else those of the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import WARM, finish, fixed_batch
from dreamteacher.data.dataset import Samples
from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.settings.section import Training
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.unet import build_unet
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.optim import create_optimizer
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

WANTED = 0.95


def loop_share(options: argparse.Namespace, samples: Samples, folder: Path) -> dict[str, Any]:
    """See above. options: preset (of the U-Net), size, batch, backbone, width, and steps x repeats pairs."""
    device = this_process().device
    pairs = options.steps * options.repeats
    # All else as in a real run, and no checkpoint but the last, which is not counted.
    settings = Training(steps=WARM + pairs + 1, batch_size=options.batch, checkpoint_every=10**9)
    dtype = choose_precision(settings.precision, device)
    layout = choose_layout(device, dtype)
    unet = build_unet(options.preset, options.size)
    strides = [tap.stride for tap in decoder_taps(unet) if tap.stride > 1]
    teacher = DiffusionTeacher(unet, build_scheduler(1000), Stochastic(50), strides).to(device, memory_format=layout)
    channels = [tap.channels for tap in teacher.taps]
    students = [FeatureRegressor(create_backbone(options.backbone), channels, strides, options.width) for _ in range(2)]
    mean, std = students[0].backbone.mean, students[0].backbone.std
    objective = FeatureObjective(layernorm, strides, {"mse": 1.0, "at": 10.0})
    images = fixed_batch(samples, options.batch).to(device, memory_format=layout)
    alone = students[1].train().to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = create_optimizer(alone, settings)
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {"loop": [], "teacher alone": [], "student alone": []}
    target: list[Tensor] = []
    begun = 0.0

    def learn(model: nn.Module, pictures: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        return objective(model(normalize(pictures, mean, std)), features)

    def timed(part: Callable[[], None]) -> float:
        start = now()
        part()
        finish(device)
        return now() - start

    def teach_alone() -> None:
        target[:] = teacher.teach(images, StepRandom(0, len(seconds["loop"]), 0, 1, device)).features

    def learn_alone() -> None:
        loss = learn(alone, images, target)["loss"]
        with torch.autocast(device.type, enabled=False):
            loss.backward()
            nn.utils.clip_grad_norm_(alone.parameters(), settings.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        nonlocal begun
        finish(device)
        if begun:
            seconds["loop"].append(now() - begun)
        seconds["teacher alone"].append(timed(teach_alone))
        seconds["student alone"].append(timed(learn_alone))
        begun = now()
        return learn(model, batch["image"], teacher.teach(batch["image"], random).features)

    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        place = SimpleNamespace(title="loop", checkpoints=Path(checkpoints), tracker=Tracker())
        train(students[0], step, samples, settings, place, seed=0)
    counted = {name: values[WARM : WARM + pairs] for name, values in seconds.items()}
    ratios = [(teach + learn) / loop for loop, teach, learn in zip(*counted.values(), strict=True)]
    return {
        "ms": {name: 1000 * median(values) / options.batch for name, values in counted.items()},
        "ratio": median(ratios),
        "quartiles": [ratios[0], ratios[0]] if pairs == 1 else quantiles(ratios, n=4, method="inclusive")[::2],
        "pairs": pairs,
        "clock": now.__name__,
        "wanted": WANTED,
    }


def words(share: dict[str, Any]) -> str:
    """In a line."""
    of = ", ".join(f"{name} {value:.2f}" for name, value in share["ms"].items())
    low, high = share["quartiles"]
    return (
        f"distillation, (teacher + student step alone) / loop: {share['ratio']:.3f} (quartiles {low:.3f} to {high:.3f} of {share['pairs']} "
        f"pairs; wanted: {share['wanted']}); ms a picture: {of}"
    )
