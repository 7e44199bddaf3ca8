"""State dicts of guided-diffusion: infer the architecture, and rename weights to diffusers' UNet2DModel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dreamteacher.errors import UserError

READABLE = (  # guided-diffusion's flags that can be inferred from the state dict; options are compared with it
    *("num_channels", "num_res_blocks", "channel_mult", "attention_resolutions"),
    *("learn_sigma", "class_cond", "use_scale_shift_norm", "resblock_updown"),
)
FIRST = "input_blocks.0.0.weight"
RESNET = {  # of diffusers -> of guided-diffusion
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's part of a state dict that has it below a prefix, such as `model.`, perhaps beside other networks."""
    prefixes = [key.removesuffix(FIRST) for key in state if key.endswith(FIRST)]
    if len(prefixes) != 1 or prefixes == [""]:
        return state
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}


def read_flags(state: dict[str, Tensor], source: str) -> dict[str, Any]:
    """The flags READABLE from a state dict; `attention_resolutions` as strides, `channel_mult` in channels.

    Raises:
        UserError: it is not a guided-diffusion U-Net for RGB pictures.
    """
    blocks = 1 + max((int(key.split(".")[1]) for key in state if re.match(r"output_blocks\.\d+\.", key)), default=-1)
    try:
        inputs, outputs = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]
        ups = [i for i in range(blocks) if _upsampler(state, i)]
        if blocks and not ups and any(key.startswith("input_blocks.2.0.op") for key in state):
            raise KeyError("output_blocks")
        in_level = ups[0] + 1 if ups else blocks
        levels = blocks // in_level
        if ups != [in_level * (level + 1) - 1 for level in range(levels - 1)] or blocks % in_level:
            raise KeyError(f"output_blocks.{ups[-1]}")
        firsts = [in_level * (levels - 1 - level) for level in range(levels)]  # of each level's decoder, fine to coarse
        widths = [state[f"output_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
        embedded = state["middle_block.0.emb_layers.1.weight"].shape[0]
        attended = [2**level for level, i in enumerate(firsts) if f"output_blocks.{i}.1.qkv.weight" in state]
        residual = bool(ups) and f"output_blocks.{ups[0]}.{_upsampler(state, ups[0])}.in_layers.0.weight" in state
        channels = state["input_blocks.0.0.weight"].shape[0]
    except (KeyError, ZeroDivisionError) as error:
        raise UserError(f"{source} is no U-Net of guided-diffusion (at {error}); see docs/teachers.md for the other kinds") from error
    if inputs != 3 or outputs not in (3, 6):
        kinds = {4: "latents (import its pipeline as kind diffusers)", 6: "a picture and a smaller one"}
        raise UserError(f"{source} is a U-Net for {kinds.get(inputs, f'{inputs} channels')}; a teacher of kind adm takes RGB pictures")
    return {
        "num_channels": channels,
        "num_res_blocks": in_level - 1,
        "channel_mult": widths,
        "attention_resolutions": attended,
        "learn_sigma": outputs == 6,
        "class_cond": "label_emb.weight" in state,
        "use_scale_shift_norm": embedded == 2 * widths[-1],
        "resblock_updown": residual,
    }


def _upsampler(state: dict[str, Tensor], block: int) -> int:
    """Index of the up-sampler within a decoder block; 0: it has none."""
    return next((i for i in (1, 2) for key in ("conv.weight", "in_layers.0.weight") if f"output_blocks.{block}.{i}.{key}" in state), 0)


def to_diffusers(state: dict[str, Tensor], found: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in float32, by the names of UNet2DModel, without the class embedding."""
    weights: dict[str, Tensor] = {}
    for theirs, ours in _modules(state, found):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" not in state:
                continue
            value = state[f"{theirs}.{kind}"].float()
            if theirs.endswith(".qkv"):
                parts = split_qkv(value.flatten(1) if kind == "weight" else value, chosen)
                weights |= {f"{ours}.to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
            elif theirs.endswith(".proj_out"):
                weights[f"{ours}.{kind}"] = value.flatten(1) if kind == "weight" else value
            else:
                weights[f"{ours}.{kind}"] = value.clone()
    return weights


def split_qkv(rows: Tensor, chosen: dict[str, Any]) -> list[Tensor]:
    """Split the 3C rows of a `qkv` into queries, keys and values of C rows `(C, ...)` each, head by head.

    With H heads of c channels the legacy order is (H, 3, c), the new one (3, H, c).
    """
    if chosen["use_new_attention_order"]:
        return [part.contiguous() for part in rows.chunk(3)]
    channels = len(rows) // 3
    heads = chosen["num_heads"] or channels // chosen["num_head_channels"]
    by_head = rows.reshape(heads, 3, channels // heads, *rows.shape[1:])
    return [by_head[:, i].reshape(channels, *rows.shape[1:]).contiguous() for i in range(3)]


def _modules(state: dict[str, Tensor], found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of modules with weights: guided-diffusion's, and those of UNet2DModel."""

    def resnet(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{theirs}.{b}", f"{ours}.{a}") for a, b in RESNET.items())

    def attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{theirs}.{b}", f"{ours}{a}") for a, b in {".group_norm": "norm", "": "qkv", ".to_out.0": "proj_out"}.items())

    depth, levels = found["num_res_blocks"], len(found["channel_mult"])
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    yield from resnet("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0")
    yield from resnet("middle_block.2", "mid_block.resnets.1")
    for level in range(levels):
        for i in range(depth):
            theirs = f"input_blocks.{1 + level * (depth + 1) + i}"
            yield from resnet(f"{theirs}.0", f"down_blocks.{level}.resnets.{i}")
            yield from attention(f"{theirs}.1", f"down_blocks.{level}.attentions.{i}")
        theirs = f"input_blocks.{(level + 1) * (depth + 1)}.0"
        yield from resnet(theirs, f"down_blocks.{level}.downsamplers.0")
        yield f"{theirs}.op", f"down_blocks.{level}.downsamplers.0.conv"
        for i in range(depth + 1):
            theirs = f"output_blocks.{level * (depth + 1) + i}"
            yield from resnet(f"{theirs}.0", f"up_blocks.{level}.resnets.{i}")
            yield from attention(f"{theirs}.1", f"up_blocks.{level}.attentions.{i}")
        last = level * (depth + 1) + depth
        if place := _upsampler(state, last):
            yield from resnet(f"output_blocks.{last}.{place}", f"up_blocks.{level}.upsamplers.0")
            yield f"output_blocks.{last}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def check_shapes(weights: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    """Raises UserError if names or shapes of `weights` differ from `wanted`, those of a UNet2DModel."""
    wrong = [name for name in sorted({*weights, *wanted}) if name not in weights or name not in wanted]
    wrong += [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    if wrong:
        raise UserError(f"{source} is no U-Net of guided-diffusion as its flags say: {len(wrong)} weights differ, such as {wrong[0]}")
