"""ADM (Dhariwal & Nichol 2021), the paper's teacher: checkpoints of guided-diffusion and its derivatives: kind `adm`.

Its U-Net is diffusers' UNet2DModel with other names, so the folder is a diffusers pipeline. Properties that a state dict does not show, and
that would silently change the features, are options: the order of the rows of `qkv`, the heads, the noise schedule.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreamteacher.errors import UserError
from dreamteacher.files import sha256_of
from dreamteacher.teachers.adm_weights import READABLE, check_shapes, read_flags, to_diffusers, without_prefix
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import read_facts, write_facts
from dreamteacher.teachers.importing import check_options, read_state_dict
from dreamteacher.teachers.unet import class_embedding, read_scheduler, read_unet

if TYPE_CHECKING:
    from diffusers import UNet2DModel

KNOWN = {  # sha256 of a published checkpoint -> options that its state dict does not show
    # 256x256_diffusion_uncond.pt of guided-diffusion's release, the paper's teacher for ImageNet
    "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1": {
        "image_size": "256",
        "num_head_channels": "64",
        "use_new_attention_order": "False",
        "noise_schedule": "linear",
        "diffusion_steps": "1000",
    }
}
NEEDED = ("use_new_attention_order", "num_head_channels", "noise_schedule")
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
WITHOUT_EFFECT = ("dropout", "use_fp16", "use_checkpoint", "num_heads_upsample")  # none on a frozen network in float32
OPTIONS = (*READABLE, *NEEDED, "image_size", "num_heads", "diffusion_steps", "class", *WITHOUT_EFFECT)


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write the pipeline of a checkpoint.

    Args:
        source: .pt or .safetensors file of a state dict.
        out: an empty folder.
        options: guided-diffusion's flags by their names, and `class`: the class of a class-conditional checkpoint whose embedding every
            picture gets ("mean", the default: the mean of all; "none": zeros; or a number). ADM has no null class.

    Raises:
        UserError: a flag does not fit the state dict, or is needed and missing.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    check_options(options, OPTIONS)
    state, digest = without_prefix(read_state_dict(Path(source))), sha256_of(source).hex()
    found = read_flags(state, source)
    flags = KNOWN.get(digest, {}) | options
    _compare(found, flags, source)
    chosen = _choose(flags, source)
    with torch.device("meta"):
        unet = build(found, chosen)
    weights = to_diffusers(state, found, chosen)
    if "label_emb.weight" in state:
        weights["time_embedding.linear_2.bias"] += class_embedding(state["label_emb.weight"].float(), flags.get("class", "mean"))
    check_shapes(weights, unet.state_dict(), source)
    unet.load_state_dict(weights, assign=True)
    scheduler = DDPMScheduler(
        num_train_timesteps=int(chosen["diffusion_steps"]),
        variance_type="learned_range" if found["learn_sigma"] else "fixed_small",
        **SCHEDULES[chosen["noise_schedule"]],
    )
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(out, safe_serialization=True)
    taps = decoder_taps(unet)
    facts = {"sha256": digest, "flags": found | chosen, "resolution": chosen["image_size"], "trained_on": None}
    facts |= {"multiple": taps[-1].stride, "steps": chosen["diffusion_steps"], "class": flags.get("class", "mean")}
    write_facts(out, "adm", taps, facts)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> DiffusionTeacher:
    """See `folder.open_teacher`."""
    unet = read_unet(folder)
    set_heads(unet, read_facts(folder)["flags"].get("num_heads"))
    return DiffusionTeacher(unet, read_scheduler(folder), encoding, strides)


def set_heads(unet: UNet2DModel, heads: int | None) -> None:
    """Set the number of heads of each attention of `unet`; None: unchanged. diffusers' UNet2DModel supports only heads of fixed width."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if heads and isinstance(module, Attention):
            module.heads = heads


def _compare(found: dict[str, Any], flags: dict[str, str], source: str) -> None:
    """Raises UserError if an option contradicts the state dict."""
    size = _number("image_size", flags["image_size"]) if flags.get("image_size") else None
    for flag in READABLE:
        text, actual = flags.get(flag, ""), found[flag]
        stated: Any
        if not text:  # guided-diffusion's default of channel_mult, which follows image_size
            continue
        if flag == "attention_resolutions":
            if not size:
                raise UserError("--option attention_resolutions counts in pixels; give --option image_size as well")
            stated = sorted(_number(flag, part) for part in text.split(","))
            actual = sorted(size // stride for stride in actual)
        elif flag == "channel_mult":
            stated, actual = [_share(flag, m) for m in text.split(",")], [width / found["num_channels"] for width in actual]
        elif isinstance(actual, bool):
            stated = _truth(flag, text)
        else:
            stated = _number(flag, text)
        if stated != actual:
            raise UserError(
                f"--option {flag}={text} does not fit {source}, whose state dict has {_show(actual)}; leave it out or correct it"
            )


def _choose(flags: dict[str, str], source: str) -> dict[str, Any]:
    """The options that the state dict does not show."""
    needed = {flag: flags.get(flag, "") for flag in NEEDED}
    if needed["num_head_channels"] in ("", "-1"):  # guided-diffusion's default, with which num_heads counts
        needed["num_head_channels"] = "-1" if flags.get("num_heads") else ""
    if missing := [flag for flag, value in needed.items() if not value]:
        raise UserError(
            f"{source} is not known by its sha256, and its state dict does not show {', '.join(missing)}; give them as it was trained: "
            f"{' '.join(f'--option {flag}={_VALUES[flag]}' for flag in missing)}"
        )
    schedule = needed["noise_schedule"]
    if schedule not in SCHEDULES:
        raise UserError(f"--option noise_schedule={schedule} is none of {', '.join(SCHEDULES)}")
    by_number = needed["num_head_channels"] == "-1"
    return {
        "use_new_attention_order": _truth("use_new_attention_order", needed["use_new_attention_order"]),
        "num_head_channels": None if by_number else _number("num_head_channels", needed["num_head_channels"]),
        "num_heads": _number("num_heads", flags["num_heads"]) if by_number else None,
        "noise_schedule": schedule,
        "diffusion_steps": _number("diffusion_steps", flags.get("diffusion_steps", "1000")),
        "image_size": _number("image_size", flags["image_size"]) if flags.get("image_size") else None,
    }


_VALUES = {"use_new_attention_order": "True|False", "num_head_channels": "N", "noise_schedule": "linear|cosine"}


def build(found: dict[str, Any], chosen: dict[str, Any]) -> UNet2DModel:
    """The network for these flags, with random weights."""
    from diffusers import UNet2DModel

    residual, widths = found["resblock_updown"], found["channel_mult"]
    plain_down, plain_up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    attends = [2**level in found["attention_resolutions"] for level in range(len(widths))]
    _check_heads([width for width, a in zip(widths, attends, strict=True) if a] + widths[-1:], chosen)
    return UNet2DModel(
        sample_size=chosen["image_size"],
        out_channels=6 if found["learn_sigma"] else 3,
        block_out_channels=tuple(widths),
        layers_per_block=found["num_res_blocks"],
        down_block_types=tuple("AttnDownBlock2D" if a else plain_down for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else plain_up for a in reversed(attends)),
        downsample_type="resnet" if residual else "conv",
        upsample_type="resnet" if residual else "conv",
        resnet_time_scale_shift="scale_shift" if found["use_scale_shift_norm"] else "default",
        attention_head_dim=chosen["num_head_channels"] or widths[-1] // chosen["num_heads"],
        attn_norm_num_groups=32,
        time_embedding_dim=4 * found["num_channels"],
    )


def _check_heads(widths: list[int], chosen: dict[str, Any]) -> None:
    flag = "num_head_channels" if chosen["num_head_channels"] else "num_heads"
    for width in widths:
        if width % chosen[flag]:
            raise UserError(f"--option {flag}={chosen[flag]} does not fit an attention over {width} channels")


def _number(flag: str, text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise UserError(f"--option {flag}={text} is no whole number above 0")
    return int(text)


def _share(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--option {flag}={text} is no number") from None


def _truth(flag: str, text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise UserError(f"--option {flag}={text} is neither True nor False")


def _show(value: Any) -> str:
    return ",".join(format(v, "g") for v in value) if isinstance(value, list) else str(value)
