"""A DDPM (Ho et al. 2020) in pixels, trained here: kind `ddpm`. Its folder is a pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import damaged, read_facts, write_facts
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from dreamteacher.params import Teacher as Settings

# Widths of the levels (stride 1, 2, 4, ...), residual blocks a level, and the strides that carry self-attention.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (16, 32, 48, 64, 96), "depth": 1, "attention": (8, 16), "head_dim": 32, "groups": 8, "dropout": 0.0},
    "small": {"widths": (128, 256, 256, 256), "depth": 2, "attention": (4,), "head_dim": 64, "groups": 32, "dropout": 0.1},
    # Tab 16: 256 channels x (1, 1, 2, 2, 4, 4), attention at 32, 16 and 8 px of 256, up- and down-sampling by residual blocks.
    "adm-256": {
        "widths": (256, 256, 512, 512, 1024, 1024),
        "depth": 2,
        "attention": (8, 16, 32),
        "head_dim": 64,
        "groups": 32,
        "dropout": 0.1,
    },
}


def build_unet(size: str, resolution: int) -> UNet2DModel:
    """The U-Net of a preset, for RGB crops of side `resolution`.

    Raises:
        UserError: `resolution` cannot be halved as often as the preset does.
    """
    from diffusers import UNet2DModel

    preset = SIZES[size]
    widths = preset["widths"]
    coarsest = 2 ** (len(widths) - 1)
    if resolution % coarsest:
        raise UserError(f"teacher.resolution = {resolution} does not fit the {size!r} U-Net: take a multiple of {coarsest}")
    attends = [2**level in preset["attention"] for level in range(len(widths))]
    residual = size == "adm-256"
    plain_down, plain_up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    return UNet2DModel(
        sample_size=resolution,
        block_out_channels=widths,
        layers_per_block=preset["depth"],
        down_block_types=tuple("AttnDownBlock2D" if a else plain_down for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else plain_up for a in reversed(attends)),
        downsample_type="resnet" if residual else "conv",
        upsample_type="resnet" if residual else "conv",
        resnet_time_scale_shift="scale_shift" if residual else "default",
        attention_head_dim=preset["head_dim"],
        norm_num_groups=preset["groups"],
        dropout=preset["dropout"],
    )


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


def load_unet(unet: nn.Module, scheduler: DDPMScheduler, folder: Path) -> None:
    """Give `unet` the weights of the teacher in `folder`, in float32 whatever they are stored in.

    Raises:
        UserError: `folder` holds no teacher, a damaged one, or one of another size or noise schedule.
    """
    from diffusers import DDPMScheduler

    read_facts(folder)
    try:
        weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        config = DDPMScheduler.load_config(folder / "scheduler")
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        if config[name] != scheduler.config[name]:
            setting = {"num_train_timesteps": "teacher.T_train", "prediction_type": "teacher.prediction"}.get(name, "the schedule")
            raise UserError(f"{folder} was trained with {name} = {config[name]}, not {scheduler.config[name]}; set {setting} alike")
    try:
        unet.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} is a teacher of another size than teacher.size; start from one of that size, or without") from error


class Generator:
    """How a DDPM is trained: `settings.size`, `resolution`, `T_train` and `prediction` say which one."""

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
        """See `load_unet`."""
        load_unet(network, self.scheduler, folder)

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write a diffusers pipeline folder, and `teacher.json` with the taps and `facts`."""
        from diffusers import DDPMPipeline

        unet = cast("UNet2DModel", network)
        DDPMPipeline(unet=unet, scheduler=self.scheduler).save_pretrained(folder, safe_serialization=True)
        write_facts(folder, "ddpm", decoder_taps(unet), facts)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> DiffusionTeacher:
    """The frozen teacher of a folder that `Generator.save` wrote. See `folder.open_teacher`."""
    from diffusers import DDPMScheduler, UNet2DModel

    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except OSError as error:  # diffusers' word for all that cannot be read
        raise damaged(folder, error) from error
    return DiffusionTeacher(cast("UNet2DModel", unet), cast("DDPMScheduler", scheduler), encoding, strides)
