"""A diffusion model as teacher: its encoded input, one denoising pass, decoder features (Sec 3.1, "encoded dataset")."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from dreamteacher.teachers.base import FrozenTeacher, Lesson, Tap, check_sides
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel


def decoder_taps(unet: UNet2DModel | UNet2DConditionModel, stride: int = 1) -> list[Tap]:
    """The output of the last block of each decoder level before its up-sampling, fine to coarse; `stride`: of the U-Net's input.

    The paper's "blocks 3, 6, 9, 12" have its stated resolutions 1/32 ... 1/4 only there (Sec 3.1, E.2).
    """
    levels = len(unet.up_blocks)
    taps = [Tap(f"up_blocks.{i}", stride * 2 ** (levels - 1 - i), block.resnets[-1].out_channels) for i, block in enumerate(unet.up_blocks)]
    return taps[::-1]


class Space(Protocol):
    """The space of a diffusion model: pixels or latents.

    Attributes:
        stride: side of a position, pixels.
    """

    stride: int

    def encode(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] to inputs `(B, C, H/stride, W/stride)` of about unit variance."""
        ...

    def decode(self, inputs: Tensor) -> Tensor:
        """The inverse."""
        ...


class Pixels:
    """The pictures themselves, in [-1, 1]."""

    stride = 1

    def encode(self, images: Tensor) -> Tensor:
        """See `Space`."""
        return images * 2 - 1

    def decode(self, inputs: Tensor) -> Tensor:
        """See `Space`."""
        return (inputs / 2 + 0.5).clamp(0, 1)


class DenoisingTeacher(FrozenTeacher):
    """A frozen diffusion model with any network: encoded inputs, one denoising pass, the maps at its taps."""

    def __init__(
        self,
        offered: list[Tap],
        scheduler: DDPMScheduler,
        encoding: Encoding,
        strides: list[int] | None,
        space: Space | None = None,
    ):
        """`offered`: all taps, fine to coarse; `strides` selects some, None all. `space`: None: pixels.

        Raises:
            UserError: a stride is not among `offered`, or the schedule does not allow the encoding.
        """
        encoding.check(scheduler)
        super().__init__(offered, strides, encoding)
        self.multiple = offered[-1].stride
        self.scheduler, self.space = scheduler, space or Pixels()

    def with_encoding(self, encoding: Encoding) -> Self:
        """The same network, not a copy of it, with another encoding.

        Raises:
            UserError: the schedule does not allow it.
        """
        encoding.check(self.scheduler)
        return super().with_encoding(encoding)

    @torch.no_grad()
    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """Encode, then one denoising pass.

        Args:
            images: `(B, 3, H, W)` in [0, 1]; H and W multiples of `self.multiple`, the network's coarsest stride.
            random: source of the noise.

        Raises:
            UserError: pictures do not fit the generator.
        """
        check_sides(images, self.multiple)
        inputs = self.space.encode(images)
        noisy, steps, clean = self.encoding.encode(self, inputs, random)
        maps = [of_tap.float() for of_tap in self.denoise(noisy, steps)]
        return Lesson(images if clean is inputs else self.space.decode(clean), maps, steps)

    def denoise(self, noisy: Tensor, steps: Tensor) -> list[Tensor]:
        """The maps at the taps of one pass over inputs `(B, C, h, w)` at noise steps `(B,)`."""
        raise NotImplementedError

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`."""
        raise NotImplementedError

    def kept(self, steps: Tensor) -> Tensor:
        """alpha_bar at noise steps `(B,)`, the share of the picture's variance that is left: `(B,)`."""
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(steps.device)  # stays on the device, as with its own `add_noise`
        return self.scheduler.alphas_cumprod[steps]

    def noise_of(self, output: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """The noise predicted by the network's output; a predicted variance in further channels is ignored."""
        output = output[:, : noisy.shape[1]].float()
        kept = self.kept(steps)[:, None, None, None]
        return {
            "epsilon": lambda: output,
            "v_prediction": lambda: kept.sqrt() * output + (1 - kept).sqrt() * noisy,
            "sample": lambda: (noisy - kept.sqrt() * output) / (1 - kept).sqrt(),
        }[self.scheduler.config.prediction_type]()


class DiffusionTeacher(DenoisingTeacher):
    """A frozen U-Net, truncated after its finest requested tap to save compute.

    Attributes:
        unet: the truncated U-Net, for features.
        whole: the full U-Net, sharing parameters, for encodings that need its prediction.
    """

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel,
        scheduler: DDPMScheduler,
        encoding: Encoding,
        strides: list[int] | None = None,
        space: Space | None = None,
    ):
        """Freezes `unet`. See `DenoisingTeacher`."""
        super().__init__(decoder_taps(unet, space.stride if space else 1), scheduler, encoding, strides, space)
        self.whole = unet
        self.unet = _cut_after(unet, int(self.taps[0].name.split(".")[1]))
        self.freeze()
        self._maps: dict[str, Tensor] = {}
        for tap in self.taps:
            block: Any = self.unet.get_submodule(tap.name)
            attended = [a for a in getattr(block, "attentions", None) or [] if a is not None]
            (attended or block.resnets)[-1].register_forward_hook(self._keep(tap.name))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor]) -> None:
            self._maps[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    def denoise(self, noisy: Tensor, steps: Tensor) -> list[Tensor]:
        """See `DenoisingTeacher`."""
        self.forward_pass(self.unet, noisy, steps)
        maps = [self._maps[tap.name] for tap in self.taps]
        self._maps.clear()
        return maps

    def forward_pass(self, unet: Any, noisy: Tensor, steps: Tensor) -> Tensor:
        """Output of `unet`, full or truncated, for inputs at noise steps `(B,)`."""
        return cast(Tensor, unet(noisy, steps).sample)

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`."""
        return self.noise_of(self.forward_pass(self.whole, noisy, steps), noisy, steps)


def _cut_after(unet: Any, last_block: int) -> Any:
    """A copy of `unet` that shares its modules, truncated after an up block, before its up-sampling."""
    cut = _shallow(unet)
    cut.up_blocks = nn.ModuleList([*unet.up_blocks[:last_block], _shallow(unet.up_blocks[last_block])])
    cast(Any, cut.up_blocks[-1]).upsamplers = None
    cut.conv_norm_out = cast(Any, nn.Identity())
    cut.conv_act = nn.Identity()
    cut.conv_out = cast(Any, nn.Identity())
    return cut


def _shallow(module: Any) -> Any:
    """A shallow copy whose children can be replaced."""
    other = copy(module)
    other._modules = dict(module._modules)
    return other
