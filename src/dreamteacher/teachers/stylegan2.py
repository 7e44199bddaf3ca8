"""StyleGAN2 (Karras et al. 2020) with adaptive discriminator augmentation, trained here or imported: kind `stylegan2`.

Generator and discriminator are updated simultaneously: the loss is the sum of theirs, each with the other's weights fixed. So the GAN uses
the training loop, optimiser and checkpoints of all other kinds. As in the paper's GAN (App F.1), there is no path length regularisation
and no style mixing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dreamteacher.errors import UserError
from dreamteacher.teachers.ada import Adaptation, augment
from dreamteacher.teachers.base import Tap
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import read_facts, write_facts
from dreamteacher.teachers.stylegan2_network import Discriminator, Synthesizer
from dreamteacher.teachers.synthesis import COARSEST, WEIGHTS, SynthesisTeacher, fill, read_weights
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from dreamteacher.settings.pretraining import Teacher as Settings

# Length of z, layers of the mapping, channels x resolution, maximum channels. small and adm-256: the two networks of StyleGAN2-ADA.
SIZES = {"tiny": (64, 2, 1024, 64), "mini": (256, 2, 8192, 256), "small": (512, 2, 16384, 512), "adm-256": (512, 8, 32768, 512)}
DISCRIMINATOR = "discriminator.safetensors"
LAZY = 16  # steps between regularisations of the discriminator


class Players(nn.Module):
    """Generator and discriminator; `forward` returns their losses."""

    def __init__(self, generator: Synthesizer, discriminator: Discriminator, gamma: float | None, target: float | None):
        """`gamma`: weight of R1, None: by the size of the pictures and the batch; `target`: as of `Adaptation`."""
        super().__init__()
        self.generator, self.discriminator, self.gamma = generator, discriminator, gamma
        self.adaptation = Adaptation(target)

    def forward(self, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """The losses on real pictures `(B, 3, S, S)` in [0, 1] and equally many generated ones."""
        real = images * 2 - 1
        fake, _ = self.generator.draw(len(images), random)
        p = self.adaptation.p.clone()  # which `update` changes in place
        shown = augment(fake, p, random)
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        generator = F.softplus(-functional_call(self.discriminator, fixed, (shown,))).mean()  # non-saturating (Goodfellow et al. 2014)
        seen = augment(real, p, random)
        logits = self.discriminator(seen)
        discriminator = F.softplus(-logits).mean() + F.softplus(self.discriminator(shown.detach())).mean()
        penalty = torch.zeros_like(discriminator)
        if self.training:
            self.adaptation.update(logits, random)
            if random.step % LAZY == 0:
                gamma = default_gamma(real.shape[-1], len(real) * random.parts) if self.gamma is None else self.gamma
                penalty = LAZY * gamma / 2 * gradient_penalty(self.discriminator, seen)
        parts = {"generator": generator, "discriminator": discriminator, "r1": penalty, "p": p}
        return {"loss": generator + discriminator + penalty, **parts}


def default_gamma(side: int, batch: int) -> float:
    """Of Karras et al. 2020 (ADA), App C: 0.0002 x pixels / pictures of a step."""
    return 0.0002 * side**2 / batch


def gradient_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): mean squared norm of the gradient at real pictures, as the discriminator sees them; in float32."""
    images = images.detach().float().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def taps(network: Synthesizer) -> list[Tap]:
    """The output of the last convolution of each resolution, fine to coarse."""
    finest = network.resolutions[-1]
    pairs = zip(network.resolutions, network.config["channels"], strict=True)
    return [Tap(f"b{side}", finest // side, channels) for side, channels in pairs if finest // side <= COARSEST][::-1]


class Generator:
    """Training of a StyleGAN2, as set by `settings.size`, `resolution`, `r1_gamma` and `ada_target`."""

    trains = True

    def __init__(self, settings: Settings):
        self.settings = settings

    def build(self) -> Players:
        """Both networks with random weights.

        Raises:
            UserError: the resolution is no power of two.
        """
        side = self.settings.resolution
        if side < 8 or side & (side - 1):
            raise UserError(
                f"teacher.resolution = {side} does not fit a stylegan2: take a power of two, such as {1 << side.bit_length() - 1}"
            )
        latent, depth, base, most = SIZES[self.settings.size]
        channels = [min(base >> level, most) for level in range(2, side.bit_length())]
        return Players(Synthesizer(latent, depth, channels), Discriminator(channels), self.settings.r1_gamma, self.settings.ada_target)

    def loss(self, network: nn.Module, images: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """See `Players`."""
        return network(images, random)

    @torch.no_grad()
    def sample(self, network: nn.Module, count: int, seed: int) -> Tensor:
        """Pictures `(count, 3, side, side)` in [0, 1]."""
        generator = cast(Players, network).generator
        pictures, _ = generator.dream(count, StepRandom(seed, 0, 0, 1, generator.const.device))
        return pictures.cpu()

    def load_weights(self, network: nn.Module, folder: Path) -> None:
        """Load the weights of both networks.

        Raises:
            UserError: `folder` holds a damaged teacher, one of another size, or one without a discriminator.
        """
        players = cast(Players, network)
        if not (folder / DISCRIMINATOR).exists():
            raise UserError(f"{folder} has no {DISCRIMINATOR}, so its training cannot go on; train from random weights")
        try:
            players.generator.load_state_dict(read_weights(folder))
            players.discriminator.load_state_dict(read_weights(folder, DISCRIMINATOR))
        except RuntimeError as error:
            raise UserError(f"{folder} is a teacher of another size than teacher.size; start from one of that size, or without") from error

    def save(self, network: nn.Module, folder: Path, facts: dict[str, Any]) -> None:
        """Write the weights of both networks, and `teacher.json` with the taps and `facts`."""
        players = cast(Players, network)
        save_teacher(players.generator, players.discriminator, folder, facts)


def save_teacher(generator: Synthesizer, discriminator: Discriminator | None, folder: Path, facts: dict[str, Any]) -> None:
    """Write a folder for `open_folder`."""
    save_file({name: value.contiguous() for name, value in generator.state_dict().items()}, folder / WEIGHTS)
    if discriminator:
        save_file({name: value.contiguous() for name, value in discriminator.state_dict().items()}, folder / DISCRIMINATOR)
    write_facts(folder, "stylegan2", taps(generator), {**facts, "network": generator.config})


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> SynthesisTeacher:
    """The frozen teacher of a folder that `save_teacher` wrote. See `folder.open_teacher`."""
    network = fill(Synthesizer(**read_facts(folder)["network"]), read_weights(folder), folder)
    return SynthesisTeacher(network, taps(network), strides, encoding)


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """See `stylegan2_import.import_weights`."""
    from dreamteacher.teachers.stylegan2_import import import_weights

    import_weights(source, out, options)
