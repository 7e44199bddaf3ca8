"""Imported BigGAN and BigGAN-deep: kind `biggan`.

Two formats are read: a folder of the torch model of the hub (BigGAN-deep: config.json and pytorch_model.bin), and G_ema.pth of
ajbrock/BigGAN-PyTorch, which IC-GAN shares.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.errors import UserError, first_line
from dreamteacher.teachers.base import Tap
from dreamteacher.teachers.biggan_network import SIDE, BigGAN
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import read_facts, write_facts
from dreamteacher.teachers.gan_import import Names, Weights, load, read_truncation, rename
from dreamteacher.teachers.importing import check_options, read_state_dict
from dreamteacher.teachers.synthesis import COARSEST, WEIGHTS, SynthesisTeacher, fill, read_weights
from dreamteacher.teachers.unpickling import in_one_line

LAYER = r"generator\.layers\.(\d+)"
DEEP: Names = [
    (r"embeddings\.weight", "embed.weight", None),
    (r"generator\.gen_z\.(weight|bias)", r"start.\1", None),
    (r"generator\.conv_to_rgb\.(weight|bias)", r"out.\1", None),
    (rf"{LAYER}\.snconv1x1_(theta|phi|g|o)(?:_conv)?\.weight", r"layers.\1.\2.weight", None),
    (rf"{LAYER}\.gamma", r"layers.\1.gamma", None),
    (rf"{LAYER}\.conv_(\d)\.(weight|bias)", r"layers.\1.convs.\2.\3", None),
    (rf"{LAYER}\.bn_(\d)\.scale\.weight", r"layers.\1.norms.\2.gain.weight", None),
    (rf"{LAYER}\.bn_(\d)\.offset\.weight", r"layers.\1.norms.\2.bias.weight", None),
    (rf"{LAYER}\.bn_(\d)\.running_(mean|var)s", r"layers.\1.norms.\2.\3", None),
    (r"generator\.bn\.running_(mean|var)s", r"norm.running_\1", None),
    (r"generator\.bn\.(weight|bias)", r"norm.\1", None),
]
AFFINE = (("gain", "weight"), ("bias", "bias"))  # of the last normalisation of BigGAN-PyTorch: its own names, and those of torch
PASSED = ("num_batches_tracked", "accumulation_counter")


def taps(network: BigGAN) -> list[Tap]:
    """The last maps of each resolution, fine to coarse."""
    finest = max(network.channels)
    return [Tap(f"b{side}", finest // side, n) for side, n in sorted(network.channels.items(), reverse=True) if finest // side <= COARSEST]


def save_teacher(network: BigGAN, folder: Path, kind: str) -> None:
    """Write a folder for `open_folder`."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    facts = {"resolution": max(network.channels), "trained_on": None, "network": network.config}
    write_facts(folder, kind, taps(network), facts)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> SynthesisTeacher:
    """The frozen teacher of a folder that `save_teacher` wrote. See `folder.open_teacher`."""
    network = fill(BigGAN(**read_facts(folder)["network"]), read_weights(folder), folder)
    return SynthesisTeacher(network, taps(network), strides, encoding)


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write the teacher's folder `out`; see `importing.import_teacher`.

    Options: `truncation` of z in (0, 1]; BigGAN-deep has batch-norm statistics for each. `eps` of conditional normalisation, 1e-5; not for
    BigGAN-deep, whose config.json has it.

    Raises:
        UserError: the file cannot be read without executing its code, or is of another architecture.
    """
    check_options(options, ["truncation", "eps"])
    path, truncation = Path(source), read_truncation(options)
    with in_one_line(path):
        if path.is_dir():
            network = read_deep(path, truncation)
        else:
            network = read_wide(path, read_state_dict(path), {"truncation": truncation, "eps": read_eps(options)})
    save_teacher(network, out, "biggan")


def read_eps(options: dict[str, str]) -> float:
    """The option `eps`.

    Raises:
        UserError: it is no positive number.
    """
    try:
        value = float(options.get("eps", 1e-5))
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UserError(f"--option eps={options['eps']} is no number between 0 and 1")
    return value


def read_deep(folder: Path, truncation: float) -> BigGAN:
    """BigGAN-deep from the folder of the torch model of the hub, at one truncation.

    Raises:
        UserError: the folder does not contain one config.json and one file of weights, or they are of another architecture.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".safetensors")]
    configs = sorted(folder.glob("*config.json"))
    if len(files) != 1 or len(configs) != 1:
        raise UserError(
            f"{folder} must hold one config.json and one file of weights (.bin, .pt or .safetensors); it has {len(files)} of these"
        )
    try:
        config = json.loads(configs[0].read_text())
        width, position, z = config["channel_width"], config["attention_layer_position"], config["z_dim"]
        layers: list[list[Any]] = []
        for i, (up, inputs, outputs) in enumerate(config["layers"]):
            layers += [["attention", inputs * width]] if i == position else []
            layers.append(["deep", inputs * width, outputs * width, bool(up)])
        shape = {"latent": z, "classes": config["num_classes"], "class_width": z, "eps": config["eps"], "out_eps": config["eps"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{configs[0]} is no configuration of a BigGAN-deep ({first_line(error)})") from error
    network = BigGAN(layers, truncation=truncation, **shape)
    found = without_spectral_norm(read_state_dict(files[0]))
    weights = rename(found, DEEP, files[0])
    for name, value in weights.items():
        if name == "embed.weight":
            weights[name] = value.T
        elif name.startswith("start."):  # rows are (H, W, C) there, (C, H, W) here
            weights[name] = value.unflatten(0, (SIDE, SIDE, -1)).movedim(2, 0).flatten(0, 2)
        elif name.startswith("out."):  # only three of its outputs are used
            weights[name] = value[:3]
        elif name.endswith(".gamma"):
            weights[name] = value.reshape(())
        elif name.endswith(("mean", "var")):
            weights[name] = at_truncation(value, truncation)
    return _load(network, weights, files[0])


def at_truncation(statistics: Tensor, truncation: float) -> Tensor:
    """Interpolate statistics `(n, C)` for truncations 0 ... 1 at `truncation`, to `(C,)`.

    Reproduces a bug of the published model, which gives the nearer of two neighbours the smaller weight.
    """
    share, first = math.modf(truncation * (len(statistics) - 1))
    first = int(first)
    if not share:
        return statistics[first]
    return statistics[first] * share + statistics[first + 1] * (1 - share)


def read_wide(path: Path, found: Weights, options: dict[str, Any], instances: tuple[Tensor, Tensor] | None = None) -> BigGAN:
    """A BigGAN-PyTorch generator, its architecture inferred from the weights; `instances`: IC-GAN's features `(n, d)` and classes `(n,)`.

    Raises:
        UserError: weights are missing, left over or of another shape, or the instances do not fit.
    """
    found = without_spectral_norm(found)
    weights: Weights = {}
    layers: list[list[Any]] = []
    try:
        for block in range(1 + max(int(name.split(".")[1]) for name in found if name.startswith("blocks."))):
            here, there = f"layers.{len(layers)}", f"blocks.{block}.0"
            outputs, inputs = found[f"{there}.conv1.weight"].shape[:2]
            layers.append(["wide", inputs, outputs])
            for i, name in enumerate(("conv1", "conv2")):
                weights |= {f"{here}.convs.{i}.{part}": found.pop(f"{there}.{name}.{part}") for part in ("weight", "bias")}
            weights |= {f"{here}.skip.{part}": found.pop(f"{there}.conv_sc.{part}") for part in ("weight", "bias")}
            for i, name in enumerate(("bn1", "bn2")):
                weights |= {f"{here}.norms.{i}.{part}.weight": found.pop(f"{there}.{name}.{part}.weight") for part in ("gain", "bias")}
                mean, var = standing_statistics(found, f"{there}.{name}")
                weights |= {f"{here}.norms.{i}.mean": mean, f"{here}.norms.{i}.var": var}
            if f"blocks.{block}.1.theta.weight" in found:
                here, there = f"layers.{len(layers)}", f"blocks.{block}.1"
                layers.append(["attention", outputs])
                weights |= {f"{here}.{part}.weight": found.pop(f"{there}.{part}.weight") for part in ("theta", "phi", "g", "o")}
                weights[f"{here}.gamma"] = found.pop(f"{there}.gamma").reshape(())
        weights |= {f"start.{part}": found.pop(f"linear.{part}") for part in ("weight", "bias")}
        mean, var = standing_statistics(found, "output_layer.0")
        gain, bias = (found.pop(next(n for n in (f"output_layer.0.{a}", f"output_layer.0.bn.{b}") if n in found)) for a, b in AFFINE)
        weights |= {"norm.running_mean": mean, "norm.running_var": var, "norm.weight": gain, "norm.bias": bias}
        weights |= {f"out.{part}": found.pop(f"output_layer.2.{part}") for part in ("weight", "bias")}
        shape = _conditioning(path, found, weights, len([layer for layer in layers if layer[0] == "wide"]), instances)
    except (KeyError, StopIteration, ValueError, IndexError) as error:
        raise UserError(f"{path} is no whole generator of BigGAN-PyTorch: {first_line(error)} is missing") from error
    if left := sorted(name for name in found if not name.endswith(PASSED)):
        raise UserError(f"{path} has {left[0]}, which a BigGAN of this layout has not; it is of another architecture")
    return _load(BigGAN(layers, **shape, **options), weights, path)


def _conditioning(path: Path, found: Weights, weights: Weights, blocks: int, instances: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """The generator's conditioning, inferred from the length of the condition; moves its weights."""
    start = weights["start.weight"].shape[1]
    features = found.get("shared_feat.weight")
    if features is not None and instances is None:
        raise UserError(f"{path} is conditioned on features of instances; import it as kind icgan")
    if instances is not None and len(instances[0][0]) != (size := 2048 if features is None else features.shape[1]):
        raise UserError(f"{path} wants instance features of length {size}, the stored ones have {len(instances[0][0])}")
    classes = found.get("shared.weight")
    given = 0 if instances is None else len(instances[0][0]) if features is None else len(features)
    rest = weights["layers.0.norms.0.gain.weight"].shape[1] - given
    width = 0 if classes is None else classes.shape[1]
    fits = [(by_class, chunk) for by_class in {0, width} for chunk in {0, start} if by_class + chunk == rest]
    if len(fits) != 1:
        raise UserError(f"{path} has conditions of length {rest + given}, which neither classes ({width}) nor parts of z ({start}) explain")
    by_class, chunk = fits[0]
    shape = {"latent": chunk * (blocks + 1) if chunk else start, "chunk": chunk}
    embedding = found.pop("shared.weight", None)  # IC-GAN has it even without classes
    if by_class and embedding is not None:
        shape |= {"classes": len(embedding), "class_width": width}
        weights["embed.weight"] = embedding
    if instances is not None:
        if by_class and embedding is not None and not 0 <= int(instances[1].min()) <= int(instances[1].max()) < len(embedding):
            raise UserError(f"{path} knows {len(embedding)} classes, the stored instances are of others, up to {int(instances[1].max())}")
        shape |= {"instances": len(instances[0]), "instance_size": len(instances[0][0])}
        if features is not None:
            shape["instance_width"] = len(features)
            weights |= {f"embed_instance.{part}": found.pop(f"shared_feat.{part}") for part in ("weight", "bias")}
        weights |= {"features": instances[0], "labels": instances[1] if by_class else torch.zeros(0, dtype=torch.long)}
    return shape


def standing_statistics(found: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Pop mean and variance of a normalisation from `found`; sums over batches are divided by their number."""
    prefix = f"{name}.bn." if any(key.startswith((f"{name}.bn.stored", f"{name}.bn.running")) for key in found) else f"{name}."
    names = ("stored_mean", "stored_var") if f"{prefix}stored_mean" in found else ("running_mean", "running_var")
    mean, var = (found.pop(prefix + key) for key in names)
    batches = float(found.get(f"{prefix}accumulation_counter", torch.zeros(1)))
    return (mean / batches, var / batches) if batches else (mean, var)


def without_spectral_norm(found: Weights) -> Weights:
    """Apply spectral normalisation: weights divided by their largest singular value, estimated from the stored vectors.

    torch keeps `weight_orig`, `weight_u` and `weight_v`. BigGAN-PyTorch keeps `weight` and `u0`, and improves the estimate by one step of
    power iteration each time it is used.
    """
    plain: Weights = {}
    for name, value in found.items():
        base = name.rpartition(".")[0]
        matrix = value.float().flatten(1) if value.ndim > 1 else value
        if name.endswith(".weight_orig"):
            sigma = found[f"{base}.weight_u"].float() @ matrix @ found[f"{base}.weight_v"].float()
            plain[f"{base}.weight"] = value / sigma
        elif name.endswith(".weight") and f"{base}.u0" in found:
            v = F.normalize(found[f"{base}.u0"].float() @ matrix, eps=1e-12)
            u = F.normalize(v @ matrix.T, eps=1e-12)
            plain[name] = value / (v @ matrix.T @ u.T).squeeze()
        elif not name.endswith((".weight_u", ".weight_v")) and not re.search(r"\.(u|sv)\d+$", name):
            plain[name] = value
    return plain


def _load(network: BigGAN, weights: Weights, path: Path) -> BigGAN:
    own = network.state_dict()
    return load(network, {name: own[name] for name in ("features", "labels", "norm.num_batches_tracked")} | weights, path)
