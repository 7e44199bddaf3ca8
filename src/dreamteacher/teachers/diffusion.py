"""A diffusion model as teacher: its encoded input, one denoising pass, decoder features (Sec 3.1, "encoded dataset")."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Lesson, Tap
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


def decoder_taps(unet: UNet2DModel) -> list[Tap]:
    """The output of the last block of each decoder level before its up-sampling, fine to coarse.

    The paper's "blocks 3, 6, 9, 12" have its stated resolutions 1/32 ... 1/4 only there (Sec 3.1, E.2).
    """
    levels = len(unet.up_blocks)
    taps = [Tap(f"up_blocks.{i}", 2 ** (levels - 1 - i), block.resnets[-1].out_channels) for i, block in enumerate(unet.up_blocks)]
    return taps[::-1]


class DiffusionTeacher(nn.Module):
    """A frozen U-Net that is cut off after its finest wanted tap, so nothing beyond is computed.

    Attributes:
        unet: the part that features need.
        whole: all of it, with the same parameters, for encodings that need what it predicts.
    """

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler, encoding: Encoding, strides: list[int] | None = None):
        """Take over `unet` (it is frozen); `strides` chooses taps, None all.

        Raises:
            UserError: a stride that the U-Net's decoder does not have, or an encoding that the schedule does not allow.
        """
        super().__init__()
        encoding.check(scheduler)
        offered = decoder_taps(unet)
        self.multiple = offered[-1].stride
        wanted = strides or [tap.stride for tap in offered]
        if missing := sorted(set(wanted) - {tap.stride for tap in offered}):
            raise UserError(f"the teacher has no tap at stride {missing[0]}; it has {[tap.stride for tap in offered]}")
        self.taps = [tap for tap in offered if tap.stride in wanted]
        self.scheduler, self.encoding = scheduler, encoding
        self.whole = unet
        self.unet = _cut_after(unet, int(self.taps[0].name.split(".")[1]))
        self.requires_grad_(False)
        self.eval()
        self._maps: dict[str, Tensor] = {}
        for tap in self.taps:
            block: Any = self.unet.get_submodule(tap.name)
            attended = [a for a in getattr(block, "attentions", None) or [] if a is not None]
            (attended or block.resnets)[-1].register_forward_hook(self._keep(tap.name))

    def with_encoding(self, encoding: Encoding) -> DiffusionTeacher:
        """The same network, not a copy of it, with another encoding.

        Raises:
            UserError: the schedule does not allow it.
        """
        encoding.check(self.scheduler)
        other = copy(self)
        other.encoding = encoding
        return other

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[name] = output

        return hook

    def train(self, mode: bool = True) -> DiffusionTeacher:
        """Stay in eval: a teacher has no dropout, whatever module holds it."""
        return cast(DiffusionTeacher, super().train(False))

    @torch.no_grad()
    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """Encode, then one denoising pass.

        Args:
            images: `(B, 3, H, W)` in [0, 1]; H and W multiples of `self.multiple`, the U-Net's coarsest stride.
            random: source of the noise.

        Raises:
            UserError: pictures do not fit the generator.
        """
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise UserError(f"pictures of {height}x{width} px do not fit the teacher: their sides must be multiples of {self.multiple}")
        inputs = images * 2 - 1
        noisy, steps, clean = self.encoding.encode(self, inputs, random)
        self.denoise(noisy, steps)
        maps = [self._maps[tap.name].float() for tap in self.taps]
        self._maps.clear()
        return Lesson(images if clean is inputs else (clean / 2 + 0.5).clamp(0, 1), maps, steps)

    def denoise(self, noisy: Tensor, steps: Tensor) -> None:
        """One pass of the U-Net over pictures `(B, 3, H, W)` at noise steps `(B,)`, whose taps are kept."""
        self.unet(noisy, cast(Any, steps))

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        """See `encodings.Denoiser`. What a network says of the variance, behind its prediction, is passed over."""
        output = self.whole(noisy, cast(Any, steps)).sample[:, : noisy.shape[1]].float()
        kept = self.scheduler.alphas_cumprod.to(noisy.device)[steps][:, None, None, None]
        return {
            "epsilon": lambda: output,
            "v_prediction": lambda: kept.sqrt() * output + (1 - kept).sqrt() * noisy,
            "sample": lambda: (noisy - kept.sqrt() * output) / (1 - kept).sqrt(),
        }[self.scheduler.config.prediction_type]()


def _cut_after(unet: UNet2DModel, last_block: int) -> UNet2DModel:
    """A view of `unet`, whose modules are the same, without what comes after an up block and before its up-sampling."""
    cut = _shallow(unet)
    cut.up_blocks = nn.ModuleList([*unet.up_blocks[:last_block], _shallow(unet.up_blocks[last_block])])
    cast(Any, cut.up_blocks[-1]).upsamplers = None
    cut.conv_norm_out = cast(Any, nn.Identity())
    cut.conv_act = nn.Identity()
    cut.conv_out = cast(Any, nn.Identity())
    return cut


def _shallow(module: Any) -> Any:
    """A copy whose children can be replaced."""
    other = copy(module)
    other._modules = dict(module._modules)
    return other
