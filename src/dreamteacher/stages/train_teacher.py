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
from dreamteacher.teachers.diffusion import DiffusionTeacher, build_scheduler, build_unet, denoising_loss, load_unet, save_teacher
from dreamteacher.training.loop import train
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def run(params: Params, *, data: Path, out: Path, start: Path | None = None, overwrite: bool = False) -> dict[str, float]:
    """Train on the train split of `data`; `out` gets the pipeline folder, `teacher.json`, `samples.png`, `curves.csv`.

    `start` is an earlier teacher of the same size, whose weights it goes on from instead of random ones.

    Returns:
        `loss`: mean squared error of the predicted noise over the last records.
    """
    settings = params.teacher
    inputs = {"data": data} | ({"start": start} if start else {})
    with open_stage("train-teacher", params=params.section("seed", "teacher"), inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        torch.manual_seed(params.seed)
        unet, scheduler = build_unet(settings.size, settings.resolution), build_scheduler(settings.T_train)
        if start:
            load_unet(unet, start)
        samples = Samples(ImageSet(data, "train"), pretrain_crop(settings.resolution))

        def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
            return {"loss": denoising_loss(model, scheduler, batch["image"], random)}

        def draw(model: nn.Module, step: int) -> dict[str, float]:
            if settings.samples and step < settings.steps:
                path = stage.checkpoints / f"samples_{step:06}.png"
                _save_grid(model, params, path)
                stage.tracker.artifact(path, "samples")
            return {}

        trained = train(
            unet,
            step,
            samples,
            settings,
            seed=params.seed,
            checkpoints=stage.checkpoints,
            tracker=stage.tracker,
            name=stage.name,
            on_eval=draw,
            eval_every=settings.sample_every,
        )
        teacher = cast("UNet2DModel", trained.ema or trained.model)
        if this_process().is_main_process:
            write_table(trained.history, stage.tmp / "curves.csv")
            if settings.samples:
                _save_grid(teacher.to(this_process().device), params, stage.tmp / "samples.png")
                teacher.cpu()
                stage.tracker.artifact(stage.tmp / "samples.png")
            facts = {"T": settings.stats_T, "resolution": settings.resolution, **_feature_statistics(teacher, samples, params)}
            save_teacher(stage.tmp, teacher, scheduler, facts)
        stage.metrics["loss"] = trained.last_loss()
    return stage.metrics


@torch.no_grad()
def _save_grid(unet: nn.Module, params: Params, path: Path) -> None:
    """Pictures that the generator dreams, by DDIM (Song et al. 2021) from fixed noise."""
    from diffusers import DDIMScheduler
    from torchvision.utils import make_grid, save_image

    settings = params.teacher
    scheduler = DDIMScheduler.from_config(build_scheduler(settings.T_train).config, clip_sample=True)
    scheduler.set_timesteps(min(settings.sample_steps, settings.T_train))
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(params.seed)
    shape = (settings.samples, 3, settings.resolution, settings.resolution)
    pictures = torch.randn(shape, generator=generator).to(device)
    for t in scheduler.timesteps:
        pictures = scheduler.step(unet(pictures, t).sample, t, pictures).prev_sample
    save_image(make_grid((pictures.cpu() / 2 + 0.5).clamp(0, 1), nrow=8), path)


def _feature_statistics(unet: UNet2DModel, samples: Samples, params: Params) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean and standard deviation of each tap's channels at step `stats_T`, for whitening by `standardize`."""
    settings = params.teacher
    copy = build_unet(settings.size, settings.resolution)
    copy.load_state_dict(unet.state_dict())
    teacher = DiffusionTeacher(copy, build_scheduler(settings.T_train)).to(this_process().device)
    sums = {tap.name: torch.zeros(3, tap.channels, dtype=torch.float64) for tap in teacher.taps}
    count = min(settings.stats_images, len(samples))
    for start in range(0, count, 16):
        images = torch.stack([samples[(i, i)]["image"] for i in range(start, min(start + 16, count))]).to(this_process().device)
        random = StepRandom(params.seed, start, 0, 1, images.device)
        for tap, maps in zip(teacher.taps, teacher.features(images, settings.stats_T, random), strict=True):
            flat = maps.double().movedim(1, 0).flatten(1).cpu()
            sums[tap.name] += torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])
    statistics = {}
    for name, (n, total, squares) in sums.items():
        mean = total / n
        statistics[name] = {"mean": mean.tolist(), "std": (squares / n - mean.square()).clamp(min=1e-8).sqrt().tolist()}
    return {"statistics": statistics}
