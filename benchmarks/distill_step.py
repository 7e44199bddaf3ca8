"""How fast distillation is beside its parts, and teacher training beside the same U-Net in plain diffusers training.

    python benchmarks/distill_step.py [--preset tiny] [--size 64] [--batch 32] [--steps 20] [--repeats 3]

1. Distillation: pictures per second through the training loop (decoding, crops, teacher, student, optimiser, records), over those of
   the teacher up to its last tap and the student's step alone, on tensors that are already there. At least 0.9 is wanted.
2. Teacher training through the loop as it chooses precision and layout, over the same U-Net in fp32, contiguous, as diffusers'
   examples train it (AdamW, clipping, EMAModel), on tensors that are already there. At least 3 is wanted on machines with AMX or a GPU.

Everything takes turns, `--repeats` times; medians are printed, and the medians of the ratios of one turn.
"""

from __future__ import annotations

import argparse
import json
import platform
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

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.report.summary import markdown
from dreamteacher.settings.presets import LEVELS
from dreamteacher.settings.schema import Params
from dreamteacher.settings.section import Training
from dreamteacher.stages import ingest
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.neck import FeatureRegressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.ddpm import build_scheduler, denoising_loss
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.unet import build_unet
from dreamteacher.tracking import Tracker
from dreamteacher.training.loop import train
from dreamteacher.training.optim import create_optimizer
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Step

WARM = 3  # steps of each turn that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=tuple(LEVELS), help="U-Net (default: %(default)s)")
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
        results["distillation"] = take_turns(distillation(options, samples, Path(folder)), options)
        results["teacher training"] = take_turns(teacher_training(options, samples, Path(folder)), options)
    speeds = results["distillation"]["img_per_s"]
    parts = [1 / (1 / t + 1 / s) for t, s in zip(speeds["teacher alone"], speeds["student alone"], strict=True)]
    speeds["teacher, then student"] = parts
    results["distillation"]["ratio"] = median(loop / part for loop, part in zip(speeds["loop"], parts, strict=True))
    speeds = results["teacher training"]["img_per_s"]
    results["teacher training"]["ratio"] = median(o / p for o, p in zip(speeds["loop"], speeds["plain diffusers, fp32"], strict=True))
    print_table(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def describe_machine() -> dict[str, str]:
    """What decides the figures."""
    device = this_process().device
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).exists():
        flags = set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "cpu_features": ", ".join(flag for flag in wanted if flag in flags) or "none known",
        "precision": str(choose_precision("auto", device)).removeprefix("torch."),
        "torch": torch.__version__,
    }


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


def distillation(options: argparse.Namespace, samples: Samples, folder: Path) -> dict[str, Callable[[], float]]:
    """Seconds that options.steps steps take: through the loop, and of its two parts."""
    device = this_process().device
    settings = settings_of(options)
    dtype = choose_precision(settings.precision, device)
    layout = choose_layout(device, dtype)
    unet = build_unet(options.preset, options.size)
    strides = [tap.stride for tap in decoder_taps(unet) if tap.stride > 1]
    teacher = DiffusionTeacher(unet, build_scheduler(1000), Stochastic(50), strides).to(device, memory_format=layout)
    channels = [tap.channels for tap in teacher.taps]
    student = FeatureRegressor(create_backbone(options.backbone), channels, strides, options.width)
    mean, std = student.backbone.mean, student.backbone.std
    objective = FeatureObjective(layernorm, strides, {"mse": 1.0, "at": 10.0})
    images = fixed_batch(samples, options.batch).to(device, memory_format=layout)

    def encode(pictures: Tensor, random: StepRandom) -> list[Tensor]:
        return teacher.teach(pictures, random).features

    def learn(model: nn.Module, pictures: Tensor, target: list[Tensor]) -> dict[str, Tensor]:
        return objective(model(normalize(pictures, mean, std)), target)

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        return learn(model, batch["image"], encode(batch["image"], random))

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def teacher_alone() -> float:
        def one(number: int) -> None:
            with autocast():
                encode(images, StepRandom(0, number, 0, 1, device))

        return clock(one, options.steps)

    def student_alone() -> float:
        model = student.train().to(device, memory_format=layout)
        optimizer = create_optimizer(model, settings)
        with autocast():
            target = encode(images, StepRandom(0, 0, 0, 1, device))

        def one(number: int) -> None:
            with autocast():
                losses = learn(model, images, target)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()

        return clock(one, options.steps)

    loop = through_the_loop(student, step, samples, settings, folder)
    return {"loop": loop, "teacher alone": teacher_alone, "student alone": student_alone}


def teacher_training(options: argparse.Namespace, samples: Samples, folder: Path) -> dict[str, Callable[[], float]]:
    """Seconds that options.steps steps take: through the loop, and plain."""
    device = this_process().device
    settings = settings_of(options, ema=0.999, weight_decay=0.0, betas=(0.9, 0.999))
    ours, scheduler = build_unet(options.preset, options.size), build_scheduler(1000)
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


def clock(one: Callable[[int], None], steps: int) -> float:
    """Seconds of `steps` calls, after some that do not count."""
    device = this_process().device
    for number in range(WARM):
        one(number)
    finish(device)
    started = time.perf_counter()
    for number in range(steps):
        one(number)
    finish(device)
    return time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait for what the accelerator still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fixed_batch(samples: Samples, count: int) -> Tensor:
    return torch.stack([samples[(i % len(samples), i)]["image"] for i in range(count)])


def print_table(results: dict[str, Any]) -> None:
    machine = results["machine"]
    print(
        f"\n{machine['device']}; CPU features: {machine['cpu_features']}; the loop chose {machine['precision']}; torch {machine['torch']}\n"
    )
    rows = [["", "img/s", "of each turn"]]
    for part in ("distillation", "teacher training"):
        for name, speeds in results[part]["img_per_s"].items():
            rows.append([f"{part}: {name}", f"{median(speeds):.1f}", ", ".join(f"{speed:.1f}" for speed in speeds)])
    print(markdown(rows))
    print(f"\ndistillation, loop / parts: {results['distillation']['ratio']:.2f} (wanted: 0.9)")
    print(f"teacher training, loop / plain: {results['teacher training']['ratio']:.2f} (wanted: 3 with AMX or a GPU)")


if __name__ == "__main__":
    main()
