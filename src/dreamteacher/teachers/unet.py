"""The U-Net of the diffusion kinds: sizes, loading and saving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.folder import damaged

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

# Widths of the levels (stride 1, 2, 4, ...), residual blocks per level, and the strides with self-attention.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (16, 32, 48, 64, 96), "depth": 1, "attention": (8, 16), "head_dim": 32, "groups": 8, "dropout": 0.0},
    "mini": {"widths": (64, 128, 192, 256), "depth": 1, "attention": (4, 8), "head_dim": 64, "groups": 32, "dropout": 0.1},
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


def build_unet(size: str, resolution: int, **options: Any) -> UNet2DModel:
    """The U-Net of a preset, for RGB crops of side `resolution`. `options`: further arguments of diffusers' UNet2DModel.

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
        attn_norm_num_groups=preset["groups"] if residual else None,  # with scale_shift, diffusers would leave that norm out
        dropout=preset["dropout"],
        **options,
    )


def load_weights(module: nn.Module, folder: Path, file: str) -> None:
    """Load `file` of the teacher in `folder` into `module`, as float32, whatever the stored dtype.

    Raises:
        UserError: the file is missing or damaged, or of a network of another size.
    """
    try:
        weights = load_file(folder / file)
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{folder} is a teacher of another size than teacher.size (or of another teacher.self_conditioning or number of classes); "
            "start from one of that size, or without"
        ) from error


def class_embedding(table: Tensor, choice: str) -> Tensor:
    """Constant to add to the time embedding, `(E,)`, to make a class-conditional network unconditional.

    Args:
        table: embeddings of the classes, `(K, E)`.
        choice: "mean": their mean; "none": zeros; or the number of a class.

    Raises:
        UserError: there is no such class.
    """
    if choice == "mean":
        return table.mean(0)
    if choice == "none":
        return torch.zeros_like(table[0])
    if not choice.isdecimal() or int(choice) >= len(table):
        raise UserError(f"--option class={choice} is none of mean, none, and 0 to {len(table) - 1}")
    return table[int(choice)]


def read_unet(folder: Path) -> UNet2DModel:
    """The U-Net of the teacher in `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    from diffusers import UNet2DModel

    try:
        return cast("UNet2DModel", UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True))
    except OSError as error:  # diffusers' error for anything that cannot be read
        raise damaged(folder, error) from error


def read_scheduler(folder: Path) -> DDPMScheduler:
    """The noise schedule of the teacher in `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    from diffusers import DDPMScheduler

    try:
        return cast("DDPMScheduler", DDPMScheduler.from_pretrained(folder / "scheduler"))
    except OSError as error:
        raise damaged(folder, error) from error
