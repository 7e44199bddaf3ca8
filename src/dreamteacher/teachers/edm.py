"""A diffusion model with the design of Karras et al. 2022 ("EDM"), with augmentation conditioning, trained here: kind `edm`.

Noise steps are those of the DDPM: step T has the same signal-to-noise ratio for both kinds.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.augmentation import PARAMETERS, draw_parameters, transform
from dreamteacher.teachers.conditioning import beside, each_in_turn, half_of_the_time, is_self_conditioned, no_class, some_without
from dreamteacher.teachers.ddpm import build_scheduler, check_schedule
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import damaged, write_facts
from dreamteacher.teachers.unet import build_unet, load_weights, read_scheduler, read_unet
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from dreamteacher.settings.pretraining import Teacher as Settings

SIGMA_DATA = 0.5  # std of pictures in [-1, 1]
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2  # of the noise levels in training (Tab 1)
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # of the noise levels in sampling (Eq 5)
WEIGHTS, CONDITIONING, CLASSES = "unet/diffusion_pytorch_model.safetensors", "augmentation.safetensors", "classes.safetensors"


class Denoiser(nn.Module):
    """D of Eq 7: the U-Net with its inputs and outputs scaled, so that both have unit variance at every noise level.

    A U-Net of 6 channels is self-conditioned: the last 3 are an earlier estimate of the picture, or zeros.

    Attributes:
        classes: embeddings `(K + 1, C)` of the classes and the null class; None: unconditional.
    """

    def __init__(self, unet: UNet2DModel, classes: int = 0):
        super().__init__()
        self.unet = unet
        self.conditioning = nn.Linear(PARAMETERS, _embedding_width(unet), bias=False)
        self.classes = nn.Embedding(classes + 1, _embedding_width(unet)) if classes else None

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        parameters: Tensor | None = None,
        estimate: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Denoise pictures.

        Args:
            noisy: `(B, 3, H, W)`, pictures in [-1, 1] plus noise.
            sigma: `(B,)`, standard deviation of the noise.
            parameters: `(B, 9)`, of the augmentation; None: none.
            estimate: `(B, 3, H, W)`, output of an earlier forward pass; None: zeros. Ignored without self-conditioning.
            classes: `(B,)`, class ids; None: the null class.

        Returns:
            float32 `(B, 3, H, W)`.
        """
        if parameters is None:
            parameters = noisy.new_zeros(len(noisy), PARAMETERS)
        conditioning = self.conditioning(parameters)
        if self.classes is not None:
            none = self.classes.num_embeddings - 1
            conditioning = conditioning + self.classes(no_class(len(noisy), none, noisy.device) if classes is None else classes)
        return denoise(self.unet, noisy, sigma, conditioning, estimate)


def denoise(unet: UNet2DModel, noisy: Tensor, sigma: Tensor, conditioning: Tensor, estimate: Tensor | None = None) -> Tensor:
    """D of Eq 7 for the embedding `(B, C)` of augmentation and class; other arguments as `forward`."""
    level = sigma[:, None, None, None]
    total = level.square() + SIGMA_DATA**2
    output = unet(*unet_input(unet, noisy, sigma, estimate), class_labels=conditioning).sample.float()
    return SIGMA_DATA**2 / total * noisy + level * SIGMA_DATA / total.sqrt() * output


def unet_input(unet: UNet2DModel, noisy: Tensor, sigma: Tensor, estimate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inputs of the U-Net (Tab 1): c_in x noisy, with a unit-variance estimate if self-conditioned; c_noise = ln(sigma) / 4, `(B,)`."""
    scaled = noisy / (sigma.square() + SIGMA_DATA**2).sqrt()[:, None, None, None]
    if is_self_conditioned(unet):
        scaled = beside(scaled, None if estimate is None else estimate / SIGMA_DATA)
    return scaled, sigma.log() / 4


class Generator:
    """Training of an EDM, as set by `settings.size`, `resolution`, `T_train` and `self_conditioning`.

    Attributes:
        classes: number of classes that it is conditioned on; 0: unconditional.
    """

    trains, classes = True, 0

    def __init__(self, settings: Settings):
        self.settings = settings
        self.scheduler = build_scheduler(settings.T_train)

    def build(self) -> Denoiser:
        """The denoiser with random weights.

        Raises:
            UserError: the resolution does not fit the size.
        """
        channels = {"in_channels": 6} if self.settings.self_conditioning else {}
        return Denoiser(build_unet(self.settings.size, self.settings.resolution, class_embed_type="identity", **channels), self.classes)

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom, classes: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted squared error of the denoised pictures at random noise levels (Eq 8), on randomly augmented pictures (App F.2).

        classes: `(B,)` ids, `self.classes` is the null class; None: all null.
        """
        parameters = draw_parameters(len(images), random)
        pictures = transform(images, parameters) * 2 - 1
        sigma = (random.normal((len(images),)) * LOG_SIGMA_STD + LOG_SIGMA_MEAN).exp()
        level = sigma[:, None, None, None]
        noisy = pictures + level * random.normal(images.shape)
        more = {} if classes is None else {"classes": some_without(classes, self.classes, random)}
        if self.settings.self_conditioning:
            more["estimate"] = half_of_the_time(partial(network, noisy, sigma, parameters, **more), len(images), random)
        denoised = network(noisy, sigma, parameters, **more)
        weight = (level.square() + SIGMA_DATA**2) / (level * SIGMA_DATA).square()
        return {"loss": (weight * (denoised - pictures).square()).mean()}

    @torch.no_grad()
    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Samples `(count, 3, side, side)` in [0, 1], of each class in turn, by Heun's method in `sample_steps` steps (Algorithm 1)."""
        steps, side, device = self.settings.sample_steps, self.settings.resolution, next(network.parameters()).device
        ramp = torch.linspace(0, 1, steps, device=device)
        levels = (SIGMA_MAX ** (1 / RHO) + ramp * (SIGMA_MIN ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
        levels = torch.cat([levels, levels.new_zeros(1)])
        x = torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(device) * levels[0]
        more = {"classes": each_in_turn(count, self.classes, device)} if self.classes else {}
        for now, after in pairwise(levels):
            denoised = network(x, now.expand(count), **more)
            slope = (x - denoised) / now
            if self.settings.self_conditioning:
                more["estimate"] = denoised
            euler = x + (after - now) * slope
            if after > 0:
                slope = (slope + (euler - network(euler, after.expand(count), **more)) / after) / 2
            x = x + (after - now) * slope
        return (x.cpu() / 2 + 0.5).clamp(0, 1)

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """Load weights as float32, whatever their stored dtype.

        Raises:
            UserError: `folder` holds a damaged teacher, or one of another size, noise schedule or other classes.
        """
        denoiser = cast(Denoiser, network)
        if (folder / CLASSES).exists() != bool(self.classes):
            raise UserError(
                f"{folder} was trained with{'out' if self.classes else ''} classes; set teacher.conditional alike, or start anew"
            )
        load_weights(denoiser.unet, folder, WEIGHTS)
        load_weights(denoiser.conditioning, folder, CONDITIONING)
        if denoiser.classes is not None:
            load_weights(denoiser.classes, folder, CLASSES)
        check_schedule(self.scheduler, folder)

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write `unet/` and `scheduler/` in diffusers format, the conditioning, and `teacher.json` with the taps and `facts`."""
        denoiser = cast(Denoiser, network)
        denoiser.unet.save_pretrained(folder / "unet", safe_serialization=True)
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file(denoiser.conditioning.state_dict(), folder / CONDITIONING)
        if denoiser.classes is not None:
            save_file(denoiser.classes.state_dict(), folder / CLASSES)
        write_facts(folder, "edm", decoder_taps(denoiser.unet), facts)


class EDMTeacher(DiffusionTeacher):
    """A DiffusionTeacher with the U-Net of a Denoiser.

    Attributes:
        no_class: `(C,)`, the embedding of the null class; zeros for an unconditional Denoiser.
    """

    no_class: Tensor

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler, encoding: Encoding, strides: list[int] | None = None):
        """See `DiffusionTeacher`."""
        super().__init__(unet, scheduler, encoding, strides)
        self.register_buffer("no_class", torch.zeros(_embedding_width(unet)))

    def forward_pass(self, unet: Any, noisy: Tensor, steps: Tensor) -> Tensor:
        """Inputs are sqrt(a) x picture + sqrt(1 - a) x noise; a self-conditioned U-Net gets its own estimate. See `DiffusionTeacher`."""
        pictures, sigma, nothing = self._own_scale(noisy, steps)
        estimate = denoise(self.whole, pictures, sigma, nothing) if is_self_conditioned(unet) else None
        return cast(Tensor, unet(*unet_input(unet, pictures, sigma, estimate), class_labels=nothing).sample)

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`: (input - denoised picture) / sigma."""
        pictures, sigma, nothing = self._own_scale(noisy, steps)
        return (pictures - denoise(self.whole, pictures, sigma, nothing)) / sigma[:, None, None, None]

    def _own_scale(self, noisy: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures plus noise, sigma `(B,)`, and the embedding of no augmentation and the null class."""
        kept = self.kept(steps)
        nothing = self.no_class.to(noisy).expand(len(noisy), -1)
        return noisy / kept.sqrt()[:, None, None, None], ((1 - kept) / kept).sqrt(), nothing


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> EDMTeacher:
    """The frozen teacher of a folder that `Generator.save` wrote. See `folder.open_teacher`."""
    teacher = EDMTeacher(read_unet(folder), read_scheduler(folder), encoding, strides)
    if (folder / CLASSES).exists():
        try:
            teacher.no_class.copy_(load_file(folder / CLASSES)["weight"][-1])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise damaged(folder, error) from error
    return teacher


def _embedding_width(unet: UNet2DModel) -> int:
    return int(unet.time_embedding.linear_2.out_features)
