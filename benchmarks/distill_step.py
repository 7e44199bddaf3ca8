"""How fast distillation is beside its parts, and teacher training beside the same U-Net in plain diffusers training.

    python -m benchmarks.distill_step [--unet tiny] [--size 64] [--batch 32] [--steps 20] [--repeats 3]

1. Distillation: the loop's share, see `loop_share`. At least 0.95 is wanted.
2. Teacher training through the loop as it chooses precision and layout, over the same U-Net in fp32, contiguous, as diffusers'
   examples train it (AdamW, clipping, EMAModel), on tensors that are already there. At least 3 is wanted on machines with AMX or a GPU.

Teacher training takes turns, `--repeats` times; medians are printed, and the medians of the ratios of one turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.loop_share import loop_share, words
from benchmarks.timing import WARM, clock, describe_machine, finish, fixed_batch
from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.report.summary import markdown
from dreamteacher.settings.presets import LEVELS
from dreamteacher.settings.schema import Params
from dreamteacher.settings.section import Training
from dreamteacher.stages import ingest
from dreamteacher.teachers.ddpm import build_scheduler, denoising_loss
from dreamteacher.teachers.unet import build_unet
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", default="tiny", choices=tuple(LEVELS), help="U-Net (default: %(default)s)")
    parser.add_argument("--backbone", default="resnet18", help="student (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="of the student's neck (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the crops, pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="counted steps of a turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--source", type=Path, default=Path("samples/nuclei"), help="pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/distill_step.json"), help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {
            "machine": describe_machine(),
            "settings": {k: str(v) for k, v in vars(options).items() if k not in ("out", "repeats")},
        }
        ingest.run(Params(), source=options.source, out=Path(folder) / "data")
        samples = Samples(ImageSet(Path(folder) / "data", "train"), pretrain_crop(options.size))
        results["distillation"] = loop_share(options, samples, Path(folder))
        results["teacher training"] = take_turns(teacher_training(options, samples, Path(folder)), options)
    speeds = results["teacher training"]["img_per_s"]
    results["teacher training"]["ratio"] = median(o / p for o, p in zip(speeds["loop"], speeds["plain diffusers, fp32"], strict=True))
    print_table(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def settings_of(options: argparse.Namespace, **changes: Any) -> Training:
    """A turn's settings: all else as in a real run, and no checkpoint but the last, which is not counted."""
    return Training(steps=WARM + options.steps, batch_size=options.batch, checkpoint_every=10**9, **changes)


def take_turns(sides: dict[str, Callable[[], float]], options: argparse.Namespace) -> dict[str, Any]:
    """Pictures per second of each side in each turn; a first turn of each, which is not counted, pays for what is chosen and compiled."""
    for move in sides.values():
        move()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, move in sides.items():
            speeds[name].append(options.steps * options.batch / move())
    return {"img_per_s": speeds}


def teacher_training(options: argparse.Namespace, samples: Samples, folder: Path) -> dict[str, Callable[[], float]]:
    """Seconds that options.steps steps take: through the loop, and plain."""
    device = this_process().device
    settings = settings_of(options, ema=0.999, weight_decay=0.0, betas=(0.9, 0.999))
    ours, scheduler = build_unet(options.unet, options.size), build_scheduler(1000)
    plain = UNet2DModel.from_config(ours.config).to(device)
    images = fixed_batch(samples, options.batch).to(device) * 2 - 1

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        return {"loss": denoising_loss(model, scheduler, batch["image"], random)}

    def plainly() -> float:
        torch.backends.cudnn.benchmark = False  # the loop turns it on
        model: Any = plain.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
        average = EMAModel(model.parameters(), decay=0.999)
        noises = DDPMScheduler(num_train_timesteps=1000)

        def one(number: int) -> None:
            noise = torch.randn_like(images)
            steps = torch.randint(0, 1000, (len(images),), device=device)
            predicted = model(noises.add_noise(images, noise, steps), steps).sample
            nn.functional.mse_loss(predicted, noise).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(model.parameters())

        return clock(one, options.steps)

    return {"loop": through_the_loop(ours, step, samples, settings, folder), "plain diffusers, fp32": plainly}


def through_the_loop(model: nn.Module, step: Step, samples: Samples, settings: Training, folder: Path) -> Callable[[], float]:
    """A turn of the real loop, which returns the seconds from the start of its first counted step to that of the step after the last."""

    def turn() -> float:
        times: list[float] = []

        def timed(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            if len(times) in (WARM, settings.steps):
                finish(batch["image"].device)
            times.append(time.perf_counter())
            return step(model, batch, random)

        longer = settings.model_copy(update={"steps": settings.steps + 1})
        with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
            place = SimpleNamespace(title="loop", checkpoints=Path(checkpoints), tracker=Tracker())
            train(model, timed, samples, longer, place, seed=0)
        return times[-1] - times[WARM]

    return turn


def print_table(results: dict[str, Any]) -> None:
    machine = results["machine"]
    print(
        f"\n{machine['device']}; CPU features: {machine['cpu_features']}; the loop chose {machine['precision']}; torch {machine['torch']}\n"
    )
    rows = [["", "img/s", "of each turn"]]
    for name, speeds in results["teacher training"]["img_per_s"].items():
        rows.append([f"teacher training: {name}", f"{median(speeds):.1f}", ", ".join(f"{speed:.1f}" for speed in speeds)])
    print(markdown(rows))
    print(f"\n{words(results['distillation'])}")
    print(f"teacher training, loop / plain: {results['teacher training']['ratio']:.2f} (wanted: 3 with AMX or a GPU)")


if __name__ == "__main__":
    main()
