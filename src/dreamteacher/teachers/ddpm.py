"""A DDPM (Ho et al. 2020) in pixels, trained here: kind `ddpm`. Its folder is a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.conditioning import beside, each_in_turn, half_of_the_time, is_self_conditioned, no_class, some_without
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


def denoising_loss(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    images: Tensor,
    random: StepRandom,
    *,
    self_conditioning: bool = False,
    **classes: Tensor,
) -> Tensor:
    """Mean squared error of the prediction at random steps; images `(B, 3, H, W)` in [0, 1].

    epsilon: the noise (DDPM, Ho et al. 2020, Eq 14). v_prediction: sqrt(a_t) noise - sqrt(1 - a_t) picture (Salimans & Ho 2022, App D).

    self_conditioning: for half of the pictures, the U-Net gets its own estimate. classes: `class_labels` `(B,)` of a conditional U-Net.
    """
    pictures, noise = images * 2 - 1, random.normal(images.shape)
    steps = random.integers(0, scheduler.config.num_train_timesteps, len(images))
    noisy = scheduler.add_noise(pictures, noise, steps)
    target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(pictures, noise, steps)
    if self_conditioning:

        def predict() -> Tensor:
            output = unet(beside(noisy, None), steps, **classes).sample.float()
            return estimate_picture(output, noisy, scheduler.alphas_cumprod[steps], scheduler.config.prediction_type)

        noisy_and_estimate = beside(noisy, half_of_the_time(predict, len(images), random))
        return nn.functional.mse_loss(unet(noisy_and_estimate, steps, **classes).sample.float(), target)
    return nn.functional.mse_loss(unet(noisy, steps, **classes).sample.float(), target)


def estimate_picture(output: Tensor, noisy: Tensor, kept: Tensor, prediction: str) -> Tensor:
    """The estimate of the picture `(B, 3, H, W)` in [-1, 1] from an output (epsilon or v) at inputs `noisy`; kept: `(B,)`, alpha_bar."""
    kept = kept[:, None, None, None]
    if prediction == "epsilon":
        return ((noisy - (1 - kept).sqrt() * output) / kept.sqrt()).clamp(-1, 1)
    return (kept.sqrt() * noisy - (1 - kept).sqrt() * output).clamp(-1, 1)


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
    """Training of a DDPM, as set by `settings.size`, `resolution`, `T_train`, `prediction` and `self_conditioning`.

    Attributes:
        classes: number of classes that it is conditioned on; 0: unconditional.
    """

    kind, trains, classes = "ddpm", True, 0

    def __init__(self, settings: Settings):
        self.settings = settings
        self.scheduler = build_scheduler(settings.T_train, settings.prediction)

    def build(self) -> UNet2DModel:
        """The U-Net with random weights.

        Raises:
            UserError: the resolution does not fit the size.
        """
        options = {"in_channels": 6} if self.settings.self_conditioning else {}
        options |= {"num_class_embeds": self.classes + 1} if self.classes else {}
        return build_unet(self.settings.size, self.settings.resolution, **options)

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom, classes: Tensor | None = None) -> dict[str, Tensor]:
        """See `denoising_loss`. classes: `(B,)` ids, `self.classes` is the null class; None: all null."""
        self_conditioning, labels = self.settings.self_conditioning, self._labels(len(images), images.device)
        if classes is not None:
            labels = {"class_labels": some_without(classes, self.classes, random)}
        return {"loss": denoising_loss(network, self.scheduler, images, random, self_conditioning=self_conditioning, **labels)}

    def _labels(self, count: int, device: Any) -> dict[str, Tensor]:
        """The null class for a conditional U-Net without given classes."""
        return {"class_labels": no_class(count, self.classes, device)} if self.classes else {}

    @torch.no_grad()
    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Samples `(count, 3, side, side)` in [0, 1], of each class in turn, by DDIM (Song et al. 2021) in `sample_steps` steps."""
        from diffusers import DDIMScheduler

        settings = self.settings
        scheduler = DDIMScheduler.from_config(self.scheduler.config, clip_sample=True, timestep_spacing="trailing")
        scheduler.set_timesteps(min(settings.sample_steps, settings.T_train))
        device, shape = next(network.parameters()).device, (count, 3, settings.resolution, settings.resolution)
        pictures = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
        labels = {"class_labels": each_in_turn(count, self.classes, device)} if self.classes else {}
        estimate: Tensor | None = None
        for t in scheduler.timesteps:
            inputs = beside(pictures, estimate) if settings.self_conditioning else pictures
            step = scheduler.step(network(inputs, t, **labels).sample, t, pictures)
            pictures, estimate = step.prev_sample, step.pred_original_sample
        return (pictures.cpu() / 2 + 0.5).clamp(0, 1)

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """Load weights as float32, whatever their stored dtype.

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


class DDPMTeacher(DiffusionTeacher):
    """A DiffusionTeacher with self-conditioning if it was trained so, and the null class if it is class-conditional."""

    def forward_pass(self, unet: Any, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `DiffusionTeacher`."""
        embedded = unet.config.num_class_embeds
        labels = {"class_labels": no_class(len(noisy), embedded - 1, noisy.device)} if embedded else {}
        if not is_self_conditioned(unet):
            return cast(Tensor, unet(noisy, steps, **labels).sample)
        output = self.whole(beside(noisy, None), steps, **labels).sample.float()
        estimate = estimate_picture(output, noisy, self.kept(steps), self.scheduler.config.prediction_type)
        return cast(Tensor, unet(beside(noisy, estimate), steps, **labels).sample)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> DDPMTeacher:
    """The frozen teacher of a folder that `Generator.save` wrote. See `folder.open_teacher`."""
    return DDPMTeacher(read_unet(folder), read_scheduler(folder), encoding, strides)
