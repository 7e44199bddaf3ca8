"""Train the generator: a DDPM on the unlabelled pictures, saved as a diffusers pipeline with its taps and feature statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.params import Params
from dreamteacher.report.tables import write_table
from dreamteacher.stage import open_stage
from dreamteacher.teachers.diffusion import (
    DiffusionTeacher,
    build_scheduler,
    build_unet,
    denoising_loss,
    find_pretrained,
    load_unet,
    read_facts,
    save_teacher,
)
from dreamteacher.training.loop import train
from dreamteacher.training.order import global_batch
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom, derive_seed

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


def run(params: Params, *, data: Path, out: Path, start: Path | None = None, overwrite: bool = False) -> dict[str, float]:
    """Train on the train split of `data`; `out` gets the pipeline folder, `teacher.json`, `samples.png`, `curves.csv`.

    `start` is an earlier teacher of the same size, whose weights it goes on from instead of random ones. With teacher.pretrained that
    teacher is taken as it is, and only its samples, feature statistics and loss on `data` are made.

    Returns:
        `loss`: mean squared error of the prediction, over the last records or, of a pretrained teacher, over drawn pictures.
    """
    settings = params.teacher
    start = find_pretrained(settings.pretrained) if settings.pretrained else start
    inputs = {"data": data} | ({"start": start} if start else {})
    with open_stage("train-teacher", params=params.section("seed", "teacher"), inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        torch.manual_seed(params.seed)
        unet, scheduler = build_unet(settings.size, settings.resolution), build_scheduler(settings.T_train, settings.prediction)
        if start:
            load_unet(unet, scheduler, start)
        images = ImageSet(data, "train")
        samples = Samples(images, pretrain_crop(settings.resolution))
        drawn = _draw(samples, params)

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            return {"loss": denoising_loss(model, scheduler, batch["image"], random)}

        def draw(model: nn.Module, step: int) -> dict[str, float]:
            if settings.samples and step < settings.steps:
                path = stage.checkpoints / f"samples_{step:06}.png"
                _save_grid(model, params, path)
                stage.tracker.artifact(path, "samples")
            return {}

        if settings.pretrained:
            teacher = unet.to(this_process().device).eval()
            loss = _mean_loss(teacher, scheduler, drawn, params.seed)
            history = [{"step": 0, "loss": loss}]
        else:
            trained = train(
                unet,
                step,
                samples,
                settings,
                stage,
                seed=params.seed,
                on_eval=draw,
                eval_every=settings.sample_every,
            )
            teacher, loss, history = cast("UNet2DModel", trained.ema or trained.model), trained.last_loss(), trained.history
        if this_process().is_main_process:
            write_table(history, stage.tmp / "curves.csv")
            if settings.samples:
                _save_grid(teacher.to(this_process().device), params, stage.tmp / "samples.png")
                stage.tracker.artifact(stage.tmp / "samples.png")
            here = {"pictures": len(images), "digest": images.digest()}
            facts = {
                "T": settings.stats_T,
                "resolution": settings.resolution,
                "trained_on": read_facts(start).get("trained_on") if start and settings.pretrained else here,
                "statistics": _feature_statistics(teacher, drawn, params),
            }
            save_teacher(stage.tmp, teacher.cpu(), scheduler, facts)
        stage.metrics["loss"] = loss
    return stage.metrics


def _draw(samples: Samples, params: Params) -> list[Tensor]:
    """Batches of up to 16 train crops, teacher.stats_images in all: drawn by the seed, since pictures lie sorted by class folder."""
    items = global_batch(len(samples), min(params.teacher.stats_images, len(samples)), derive_seed(params.seed, "statistics"), step=0)
    return [torch.stack([samples[item]["image"] for item in items[i : i + 16]]) for i in range(0, len(items), 16)]


@torch.no_grad()
def _mean_loss(unet: nn.Module, scheduler: DDPMScheduler, batches: list[Tensor], seed: int) -> float:
    device = next(unet.parameters()).device
    losses = [denoising_loss(unet, scheduler, images.to(device), StepRandom(seed, i, 0, 1, device)) for i, images in enumerate(batches)]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def _save_grid(unet: nn.Module, params: Params, path: Path) -> None:
    """Pictures that the generator dreams, by DDIM (Song et al. 2021) from fixed noise."""
    from diffusers import DDIMScheduler
    from torchvision.utils import make_grid, save_image

    settings = params.teacher
    scheduler = DDIMScheduler.from_config(
        build_scheduler(settings.T_train, settings.prediction).config, clip_sample=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(min(settings.sample_steps, settings.T_train))
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(params.seed)
    shape = (settings.samples, 3, settings.resolution, settings.resolution)
    pictures = torch.randn(shape, generator=generator).to(device)
    for t in scheduler.timesteps:
        pictures = scheduler.step(unet(pictures, t).sample, t, pictures).prev_sample
    save_image(make_grid((pictures.cpu() / 2 + 0.5).clamp(0, 1), nrow=8), path)


def _feature_statistics(unet: UNet2DModel, batches: list[Tensor], params: Params) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of each tap's channels at step `stats_T`, for whitening by `standardize`."""
    settings = params.teacher
    copy = build_unet(settings.size, settings.resolution)
    copy.load_state_dict(unet.state_dict())
    teacher = DiffusionTeacher(copy, build_scheduler(settings.T_train, settings.prediction)).to(this_process().device)
    sums = {tap.name: torch.zeros(3, tap.channels, dtype=torch.float64) for tap in teacher.taps}
    for i, images in enumerate(batches):
        pictures = images.to(this_process().device)
        random = StepRandom(params.seed, i, 0, 1, pictures.device)
        for tap, maps in zip(teacher.taps, teacher.features(pictures, settings.stats_T, random), strict=True):
            flat = maps.double().movedim(1, 0).flatten(1).cpu()
            sums[tap.name] += torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])
    statistics = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        statistics[name] = {"mean": mean.tolist(), "std": (squares / n - mean.square()).clamp(min=1e-8).sqrt().tolist()}
    return statistics
