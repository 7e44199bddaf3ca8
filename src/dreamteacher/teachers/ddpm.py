"""A DDPM (Ho et al. 2020) in pixels, trained here: kind `ddpm`. Its folder is a pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import damaged, write_facts
from dreamteacher.teachers.unet import build_unet, load_weights, read_scheduler, read_unet
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from dreamteacher.settings.pretraining import Teacher as Settings


def build_scheduler(steps: int, prediction: str = "epsilon") -> DDPMScheduler:
    """Linear betas 1e-4 to 2e-2 over `steps` (Tab 16). `prediction`: what the U-Net predicts, "epsilon" or "v_prediction"."""
    from diffusers import DDPMScheduler

    betas = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
    return DDPMScheduler(num_train_timesteps=steps, prediction_type=prediction, **betas)


def denoising_loss(unet: nn.Module, scheduler: DDPMScheduler, images: Tensor, random: StepRandom) -> Tensor:
    """Mean squared error of the prediction at random steps; images `(B, 3, H, W)` in [0, 1].

    epsilon: the noise (DDPM, Ho et al. 2020, Eq 14). v_prediction: sqrt(a_t) noise - sqrt(1 - a_t) picture (Salimans & Ho 2022, App D).
    """
    pictures, noise = images * 2 - 1, random.normal(images.shape)
    steps = random.integers(0, scheduler.config.num_train_timesteps, len(images))
    noisy = scheduler.add_noise(pictures, noise, steps)
    target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(pictures, noise, steps)
    return nn.functional.mse_loss(unet(noisy, steps).sample.float(), target)


def check_schedule(scheduler: DDPMScheduler, folder: Path) -> None:
    """Whether the teacher in `folder` was trained with the schedule of `scheduler`.

    Raises:
        UserError: it was not, or it is damaged.
    """
    from diffusers import DDPMScheduler

    try:
        config = DDPMScheduler.load_config(folder / "scheduler")
    except OSError as error:
        raise damaged(folder, error) from error
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        if config[name] != scheduler.config[name]:
            setting = {"num_train_timesteps": "teacher.T_train", "prediction_type": "teacher.prediction"}.get(name, "the schedule")
            raise UserError(f"{folder} was trained with {name} = {config[name]}, not {scheduler.config[name]}; set {setting} alike")


class Generator:
    """How a DDPM is trained: `settings.size`, `resolution`, `T_train` and `prediction` say which one."""

    kind, trains = "ddpm", True

    def __init__(self, settings: Settings):
        self.settings = settings
        self.scheduler = build_scheduler(settings.T_train, settings.prediction)

    def build(self) -> UNet2DModel:
        """The U-Net with random weights.

        Raises:
            UserError: the resolution does not fit the size.
        """
        return build_unet(self.settings.size, self.settings.resolution)

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """See `denoising_loss`."""
        return {"loss": denoising_loss(network, self.scheduler, images, random)}

    @torch.no_grad()
    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Pictures `(count, 3, side, side)` in [0, 1], by DDIM (Song et al. 2021) in `sample_steps` steps."""
        from diffusers import DDIMScheduler

        settings = self.settings
        scheduler = DDIMScheduler.from_config(self.scheduler.config, clip_sample=True, timestep_spacing="trailing")
        scheduler.set_timesteps(min(settings.sample_steps, settings.T_train))
        device, shape = next(network.parameters()).device, (count, 3, settings.resolution, settings.resolution)
        pictures = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
        for t in scheduler.timesteps:
            pictures = scheduler.step(network(pictures, t).sample, t, pictures).prev_sample
        return (pictures.cpu() / 2 + 0.5).clamp(0, 1)

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """In float32 whatever they are stored in.

        Raises:
            UserError: `folder` holds a damaged teacher, or one of another size or noise schedule.
        """
        load_weights(network, folder, "unet/diffusion_pytorch_model.safetensors")
        check_schedule(self.scheduler, folder)

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write a diffusers pipeline folder, and `teacher.json` with the taps and `facts`."""
        from diffusers import DDPMPipeline

        unet = cast("UNet2DModel", network)
        DDPMPipeline(unet=unet, scheduler=self.scheduler).save_pretrained(folder, safe_serialization=True)
        write_facts(folder, self.kind, decoder_taps(unet), facts)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> DiffusionTeacher:
    """The frozen teacher of a folder that `Generator.save` wrote. See `folder.open_teacher`."""
    return DiffusionTeacher(read_unet(folder), read_scheduler(folder), encoding, strides)
