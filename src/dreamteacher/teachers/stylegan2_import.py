"""Import of StyleGAN2 networks: .pt of rosinality/stylegan2-pytorch, and .pkl of NVlabs/stylegan2-ada-pytorch."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.teachers.gan_import import Names, Weights, load, read_truncation, rename
from dreamteacher.teachers.importing import check_options, read_checkpoint
from dreamteacher.teachers.stylegan2 import save_teacher
from dreamteacher.teachers.stylegan2_network import FILTER, Discriminator, Synthesizer
from dreamteacher.teachers.unpickling import Stored, in_one_line, read_pickle

ROSINALITY_G: Names = [
    (r"style\.(\d+)\.(weight|bias)", r"mapping.layers.{n}.\2", lambda layer, _: int(layer) - 1),
    (r"input\.input", "const", None),
    (r"conv1\.(.+)", r"blocks.0.conv.\1", None),
    (r"to_rgb1\.(.+)", r"blocks.0.rgb.\1", None),
    (r"convs\.(\d*[02468])\.(.+)", r"blocks.{n}.up.\2", lambda layer, _: int(layer) // 2 + 1),
    (r"convs\.(\d*[13579])\.(.+)", r"blocks.{n}.conv.\2", lambda layer, _: int(layer) // 2 + 1),
    (r"to_rgbs\.(\d+)\.(.+)", r"blocks.{n}.rgb.\2", lambda layer, _: int(layer) + 1),
]
ROSINALITY_LAYER = {
    "conv.weight": "weight",
    "conv.modulation.weight": "style.weight",
    "conv.modulation.bias": "style.bias",
    "noise.weight": "noise",
    "activate.bias": "bias",
}
ROSINALITY_D: Names = [
    (r"convs\.0\.0\.weight", "rgb", None),
    (r"convs\.0\.1\.bias", "rgb_bias", None),
    (r"convs\.(\d+)\.conv1\.0\.weight", "blocks.{n}.conv", lambda block: int(block) - 1),
    (r"convs\.(\d+)\.conv1\.1\.bias", "blocks.{n}.conv_bias", lambda block: int(block) - 1),
    (r"convs\.(\d+)\.conv2\.1\.weight", "blocks.{n}.down", lambda block: int(block) - 1),
    (r"convs\.(\d+)\.conv2\.2\.bias", "blocks.{n}.down_bias", lambda block: int(block) - 1),
    (r"convs\.(\d+)\.skip\.1\.weight", "blocks.{n}.skip", lambda block: int(block) - 1),
    (r"final_conv\.0\.weight", "conv", None),
    (r"final_conv\.1\.bias", "conv_bias", None),
    (r"final_linear\.0\.(weight|bias)", r"dense.\1", None),
    (r"final_linear\.1\.(weight|bias)", r"out.\1", None),
]
ADA_G: Names = [
    (r"mapping\.fc(\d+)\.(weight|bias)", r"mapping.layers.{n}.\2", lambda layer, _: int(layer)),
    (r"mapping\.embed\.(weight|bias)", r"mapping.embed.\1", None),
    (r"mapping\.w_avg", "mapping.average", None),
    (r"synthesis\.b4\.const", "const", None),
    (r"synthesis\.b(\d+)\.conv0\.(.+)", r"blocks.{n}.up.\2", lambda side, _: int(math.log2(int(side))) - 2),
    (r"synthesis\.b(\d+)\.conv1\.(.+)", r"blocks.{n}.conv.\2", lambda side, _: int(math.log2(int(side))) - 2),
    (r"synthesis\.b(\d+)\.torgb\.(.+)", r"blocks.{n}.rgb.\2", lambda side, _: int(math.log2(int(side))) - 2),
]
ADA_DEFAULTS: dict[str, Any] = {"architecture": "skip", "activation": "lrelu", "lr_multiplier": 0.01}
ADA_LAYER = {"affine.weight": "style.weight", "affine.bias": "style.bias", "noise_strength": "noise"}


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write the teacher's folder `out`; see `importing.import_teacher`.

    Options: `truncation`, psi in (0, 1]; default 1, no truncation.

    Raises:
        UserError: the file cannot be read without executing its code, or is of another architecture.
    """
    check_options(options, ["truncation"])
    truncation = read_truncation(options)
    path = Path(source)
    generator, discriminator = read_ada(path) if path.suffix == ".pkl" else read_rosinality(path)
    generator.truncation = generator.config["truncation"] = truncation
    save_teacher(generator, discriminator, out, {"resolution": generator.resolutions[-1], "trained_on": None})


def read_rosinality(path: Path) -> tuple[Synthesizer, Discriminator | None]:
    """The EMA generator, and the discriminator if the file has one."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training run; plain values
        content = read_checkpoint(path)
    with in_one_line(path):
        return _averaged(content, path)


def _averaged(content: Any, path: Path) -> tuple[Synthesizer, Discriminator | None]:
    if not isinstance(content, dict) or "g_ema" not in content:
        raise UserError(f"{path} has no g_ema, the averaged generator of a checkpoint of rosinality/stylegan2-pytorch")
    found = dict(content["g_ema"])
    for name in [name for name in found if name.endswith(".kernel")]:
        _check_filter(found.pop(name), path, name)
    weights = rename(found, ROSINALITY_G, path, passed=r"noises\.noise_\d+")
    weights = {_layer(name, ROSINALITY_LAYER): value for name, value in weights.items()}
    for name, value in weights.items():
        if re.fullmatch(r"blocks\.\d+\.\w+\.(weight|noise)", name) or name == "const":
            weights[name] = value.squeeze(0)
        elif name.endswith(".rgb.bias"):
            weights[name] = value.flatten()
    average = content.get("latent_avg")
    generator = _build(weights | ({} if average is None else {"mapping.average": average.flatten()}), path, clamp=None)
    if average is None:
        _measure_average(generator)
    if "d" not in content:
        return generator, None
    found = dict(content["d"])
    for name in [name for name in found if name.endswith(".kernel")]:
        _check_filter(found.pop(name), path, name)
    return generator, _discriminator(rename(found, ROSINALITY_D, path), generator, path, clamp=None)


def read_ada(path: Path) -> tuple[Synthesizer, Discriminator | None]:
    """The EMA generator, and the discriminator if the file has an unconditional one.

    Raises:
        UserError: it is no such file, or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; name the .pkl")
    content = read_pickle(path)
    with in_one_line(path):
        return _networks(content, path)


def _networks(content: Any, path: Path) -> tuple[Synthesizer, Discriminator | None]:
    stored = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(stored, Stored):
        raise UserError(f"{path} has no G_ema, the averaged generator of a .pkl of NVlabs/stylegan2-ada-pytorch")
    made_with = stored.state.get("_init_kwargs", {})
    synthesis, mapping = ({**ADA_DEFAULTS, **made_with.get(part, {})} for part in ("synthesis_kwargs", "mapping_kwargs"))
    for name, value in {(name, part[name]) for part in (synthesis, mapping) for name in ADA_DEFAULTS}:
        if value != ADA_DEFAULTS[name]:
            raise UserError(f"{path} was made with {name} = {value!r}; only {ADA_DEFAULTS[name]!r}, the default, is read")
    clamp = synthesis.get("conv_clamp")
    found = _without_filters(stored.tensors(), path)
    weights = rename(found, ADA_G, path, passed=r"synthesis\.b\d+\.conv\d\.noise_const")
    weights = {_layer(name, ADA_LAYER): value for name, value in weights.items()}
    # There the gain of 1 / sqrt(inputs) of ToRGB multiplies the style, here the weight: the same product.
    generator = _build(weights, path, clamp)
    judge = content.get("D")
    if not isinstance(judge, Stored) or generator.classes or judge.state.get("_init_kwargs", {}).get("architecture", "resnet") != "resnet":
        return generator, None
    names = {f"b{side}.": f"blocks.{i}." for i, side in enumerate(generator.resolutions[:0:-1])}
    renamed = {}
    for name, value in _without_filters(judge.tensors(), path).items():
        block = re.match(r"b\d+\.", name)
        inner = name[block.end() :] if block else name
        if name.startswith("b4."):
            key = {"conv.weight": "conv", "conv.bias": "conv_bias", "fc.weight": "dense.weight", "fc.bias": "dense.bias"}.get(inner, inner)
        elif inner.startswith("fromrgb."):
            key = {"fromrgb.weight": "rgb", "fromrgb.bias": "rgb_bias"}[inner]
        else:
            parts = {"conv0.weight": "conv", "conv0.bias": "conv_bias", "conv1.weight": "down", "conv1.bias": "down_bias"}
            key = names.get(block[0] if block else "", "") + {**parts, "skip.weight": "skip"}.get(inner, inner)
        renamed[key] = value
    return generator, _discriminator(renamed, generator, path, clamp)


def _layer(name: str, names: dict[str, str]) -> str:
    match = re.fullmatch(r"(blocks\.\d+\.\w+)\.(.+)", name)
    return f"{match[1]}.{names.get(match[2], match[2])}" if match else name


def _without_filters(found: Weights, path: Path) -> Weights:
    for name in [name for name in found if name.endswith("resample_filter")]:
        _check_filter(found.pop(name), path, name)
    return found


def _check_filter(kernel: Tensor, path: Path, name: str) -> None:
    taps = torch.tensor(FILTER, dtype=torch.float32)
    kernel = kernel.float()
    if kernel.shape != (4, 4) or not torch.allclose(kernel / kernel.sum(), taps[:, None] * taps / taps.sum() ** 2, atol=1e-5):
        raise UserError(f"{path} has another resampling filter ({name}) than {list(FILTER)}, the only one that is read")


def _build(weights: Weights, path: Path, clamp: float | None) -> Synthesizer:
    """The generator, with its architecture inferred from the weights."""
    try:
        levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        channels = [len(weights[f"blocks.{level}.conv.bias"]) for level in range(levels)]
        depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("mapping.layers."))
        embed = weights.get("mapping.embed.weight")
        width = len(weights[f"mapping.layers.{depth - 1}.bias"])
        latent = weights["mapping.layers.0.weight"].shape[1] - (0 if embed is None else len(embed))
        classes = 0 if embed is None else embed.shape[1]
        network = Synthesizer(latent, depth, channels, classes=classes, width=width, clamp=clamp)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} is no whole StyleGAN2: {error} is missing") from error
    weights.setdefault("mapping.average", torch.zeros(width))
    return load(network, weights, path)


def _discriminator(weights: Weights, generator: Synthesizer, path: Path, clamp: float | None) -> Discriminator:
    return load(Discriminator(generator.config["channels"], clamp), weights, path)


@torch.no_grad()
def _measure_average(generator: Synthesizer) -> None:
    """The mean of w, which training checkpoints do not contain."""
    z = torch.randn(10_000, generator.latent, generator=torch.Generator().manual_seed(0))
    generator.mapping.average.copy_(generator.mapping(z).mean(0))
