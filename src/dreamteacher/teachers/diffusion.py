"""A diffusion model as teacher: forward diffusion to step T, one denoising pass, decoder features (Sec 3.1, "encoded dataset")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamteacher.errors import UserError, first_line
from dreamteacher.presets import auto_taps
from dreamteacher.teachers.base import Tap
from dreamteacher.training.randomness import StepRandom

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

TAPS_FILE = "teacher.json"
PRETRAINED = Path(__file__).parent / "pretrained"

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


def decoder_taps(unet: UNet2DModel) -> list[Tap]:
    """The output of the last block of each decoder level before its up-sampling, fine to coarse.

    The paper's "blocks 3, 6, 9, 12" have its stated resolutions 1/32 ... 1/4 only there (Sec 3.1, E.2).
    """
    levels = len(unet.up_blocks)
    taps = [Tap(f"up_blocks.{i}", 2 ** (levels - 1 - i), block.resnets[-1].out_channels) for i, block in enumerate(unet.up_blocks)]
    return taps[::-1]


class DiffusionTeacher(nn.Module):
    """A frozen U-Net that is cut off after its finest wanted tap, so nothing beyond is computed."""

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler, strides: list[int] | None = None):
        """Take over `unet` (it is modified); `strides` chooses taps, None all.

        Raises:
            UserError: a stride that the U-Net's decoder does not have.
        """
        super().__init__()
        offered = decoder_taps(unet)
        self.multiple = offered[-1].stride
        wanted = strides or [tap.stride for tap in offered]
        if missing := sorted(set(wanted) - {tap.stride for tap in offered}):
            raise UserError(f"the teacher has no tap at stride {missing[0]}; it has {[tap.stride for tap in offered]}")
        self.taps = [tap for tap in offered if tap.stride in wanted]
        self.scheduler = scheduler
        self.unet = _cut_after(unet, int(self.taps[0].name.split(".")[1]))
        self.requires_grad_(False)
        self.eval()
        self._maps: dict[str, Tensor] = {}
        for tap in self.taps:
            block: Any = self.unet.get_submodule(tap.name)
            attended = [a for a in getattr(block, "attentions", None) or [] if a is not None]
            (attended or block.resnets)[-1].register_forward_hook(self._keep(tap.name))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[name] = output

        return hook

    def train(self, mode: bool = True) -> DiffusionTeacher:
        """Stay in eval: a teacher has no dropout, whatever module holds it."""
        return cast(DiffusionTeacher, super().train(False))

    @torch.no_grad()
    def features(self, images: Tensor, T: int, random: StepRandom) -> list[Tensor]:
        """Stochastic encoding (Tab 10): q-sample to step `T`, then one denoising pass.

        Args:
            images: `(B, 3, H, W)` in [0, 1]; H and W multiples of `self.multiple`, the U-Net's coarsest stride.
            T: noise step, 0 <= T < steps of the schedule.
            random: source of the noise.

        Returns:
            One float32 `(B, C_l, H/s_l, W/s_l)` a tap, fine to coarse.

        Raises:
            UserError: pictures or noise step do not fit the generator.
        """
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise UserError(f"pictures of {height}x{width} px do not fit the teacher: their sides must be multiples of {self.multiple}")
        if not 0 <= T < self.scheduler.config.num_train_timesteps:
            raise UserError(f"noise step T = {T} does not fit the teacher, which has {self.scheduler.config.num_train_timesteps} of them")
        steps = torch.full((len(images),), T, device=images.device, dtype=torch.long)
        noisy = self.scheduler.add_noise(images * 2 - 1, random.normal(images.shape), cast(Any, steps))
        self.unet(noisy, steps)
        maps = [self._maps[tap.name].float() for tap in self.taps]
        self._maps.clear()
        return maps


def _cut_after(unet: UNet2DModel, last_block: int) -> UNet2DModel:
    unet.up_blocks = unet.up_blocks[: last_block + 1]
    cast(Any, unet.up_blocks[-1]).upsamplers = None
    unet.conv_norm_out = cast(Any, nn.Identity())
    unet.conv_act = nn.Identity()
    unet.conv_out = cast(Any, nn.Identity())
    return unet


def save_teacher(folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler, facts: dict[str, Any]) -> None:
    """Write a diffusers pipeline folder and `teacher.json` with the taps and `facts` (noise step, feature statistics)."""
    from diffusers import DDPMPipeline

    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
    taps = [{"name": tap.name, "stride": tap.stride, "channels": tap.channels} for tap in decoder_taps(unet)]
    (folder / TAPS_FILE).write_text(json.dumps({"taps": taps, **facts}, indent=1, sort_keys=True) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """`teacher.json` of a teacher folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / TAPS_FILE
    if not path.exists():
        raise UserError(f"{folder} is not a teacher (no {TAPS_FILE}); run `dreamteacher train-teacher` first")
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # no JSON, no text
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    why = first_line(error).replace(f"{folder}/", "")
    return UserError(f"{folder} is damaged ({why}); fetch it again (`dvc checkout`), or remove it and run `dreamteacher train-teacher`")


def choose_strides(folder: Path, taps: list[int] | Literal["auto"]) -> list[int]:
    """The tap strides that `taps` means for this teacher, fine to coarse; auto: see `presets.auto_taps`."""
    return sorted(taps) if taps != "auto" else auto_taps([int(tap["stride"]) for tap in read_facts(folder)["taps"]])


def load_unet(unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> None:
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
        raise _damaged(folder, error) from error
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        if config[name] != scheduler.config[name]:
            setting = {"num_train_timesteps": "teacher.T_train", "prediction_type": "teacher.prediction"}.get(name, "the schedule")
            raise UserError(f"{folder} was trained with {name} = {config[name]}, not {scheduler.config[name]}; set {setting} alike")
    try:
        unet.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} is a teacher of another size than teacher.size; start from one of that size, or without") from error


def find_pretrained(name: str) -> Path:
    """The folder of a teacher that comes with the package, or any teacher's folder.

    Raises:
        UserError: `name` is neither.
    """
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{TAPS_FILE}"))
    if name in shipped:
        return PRETRAINED / name
    if not (Path(name) / TAPS_FILE).is_file():
        raise UserError(f"teacher.pretrained = {name!r} is neither a teacher's folder nor one of {shipped}, which come with the package")
    return Path(name)


def load_teacher(folder: Path, strides: list[int] | None = None) -> DiffusionTeacher:
    """The frozen teacher of a folder written by `save_teacher`, with taps at `strides` (None: all).

    Raises:
        UserError: the folder holds no teacher, a damaged one, or one without these taps.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    read_facts(folder)
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except OSError as error:  # diffusers' word for all that cannot be read
        raise _damaged(folder, error) from error
    return DiffusionTeacher(cast(UNet2DModel, unet), cast(DDPMScheduler, scheduler), strides)
