"""Any timm model, or a self-supervised checkpoint of a timm architecture, as a frozen teacher: kind `timm`.

It is an encoder, not a generator: the features are its maps of the clean picture, whatever the encoding. A hierarchical model has one tap
per stride, a plain ViT a single tap: the concatenated maps of its last blocks.
"""

from __future__ import annotations

import argparse
import difflib
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.errors import UserError, first_line
from dreamteacher.teachers.base import FrozenTeacher, Lesson, Tap, check_sides
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import read_facts, write_facts
from dreamteacher.teachers.importing import check_options, read_checkpoint
from dreamteacher.teachers.synthesis import fill, read_weights
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.transfer import constant

WEIGHTS = "encoder.safetensors"
WRAPPERS = ("teacher", "model_ema", "ema", "target_encoder", "state_dict", "model", "student", "encoder")  # keys of nested state dicts
PROBE = (128, 160)  # side of the picture for measuring strides, pixels
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)  # options for pictures of any size, by family


class Encoder(nn.Module):
    """A timm model that returns its maps, fine to coarse.

    If the patch size is no power of two, such as 14, the picture is downscaled so that maps are at the next power of two: for stride 16, a
    picture of 224 px is resized to 196.
    """

    def __init__(self, model: Any, blocks: int):
        """`blocks`: number of last maps per stride that are concatenated to a tap.

        Raises:
            ValueError: the model does not accept pictures of this size, or has fewer maps.
        """
        super().__init__()
        self.model = model
        config = model.pretrained_cfg
        self.mean, self.std = ([float(value) for value in config[name]] for name in ("mean", "std"))
        patch = int(model.feature_info[0]["reduction"])
        self.scale = patch / 2 ** round(math.log2(patch))
        maps = self._all_maps(torch.zeros(1, 3, *PROBE), None)
        strides = [round(PROBE[0] / m.shape[2]) for m in maps]
        if any(
            PROBE[0] % stride or m.shape[2:] != (PROBE[0] // stride, PROBE[1] // stride) for stride, m in zip(strides, maps, strict=True)
        ):
            raise ValueError(f"its maps of {PROBE[0]}x{PROBE[1]} px are {', '.join(str(tuple(m.shape[2:])) for m in maps)}")
        at = {stride: [i for i, other in enumerate(strides) if other == stride][-blocks:] for stride in sorted(set(strides))}
        if short := [stride for stride, chosen in at.items() if len(chosen) < blocks]:
            raise ValueError(f"it has fewer than {blocks} maps at stride {short[0]}")
        self.levels = at
        self.taps = [Tap(f"stride{stride}", stride, sum(maps[i].shape[1] for i in chosen)) for stride, chosen in at.items()]

    @torch.no_grad()
    def _all_maps(self, images: Tensor, indices: list[int] | None) -> list[Tensor]:
        """The maps of `indices` (None: all) for pictures `(B, 3, H, W)` in [0, 1]."""
        if self.scale != 1:
            size = [round(side * self.scale) for side in images.shape[2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        mean, std = (constant(values, images.device, images.dtype)[:, None, None] for values in (self.mean, self.std))
        normalized = (images - mean) / std
        plain = len({info["reduction"] for info in self.model.feature_info}) == 1  # then the last norm fits each map
        return self.model.forward_intermediates(normalized, indices=indices, norm=plain, intermediates_only=True)

    def forward(self, images: Tensor, strides: list[int]) -> list[Tensor]:
        """Pictures `(B, 3, H, W)` in [0, 1] to one `(B, C, H/stride, W/stride)` per stride."""
        wanted = sorted(i for stride in strides for i in self.levels[stride])
        maps = dict(zip(wanted, self._all_maps(images, wanted), strict=True))
        return [torch.cat([maps[i] for i in self.levels[stride]], 1) for stride in strides]


class EncoderTeacher(FrozenTeacher):
    """A frozen encoder of clean pictures, whatever the encoding."""

    def __init__(self, encoder: Encoder, strides: list[int] | None, encoding: Encoding):
        """`strides` chooses taps, None all.

        Raises:
            UserError: a stride that the encoder does not have.
        """
        super().__init__(encoder.taps, strides, encoding)
        self.multiple = max(encoder.levels)
        self.encoder = encoder
        self.freeze()

    @torch.no_grad()
    def teach(self, images: Tensor, random: StepRandom) -> Lesson:
        """The lesson of pictures `(B, 3, H, W)` in [0, 1], whose sides are multiples of `multiple`."""
        check_sides(images, self.multiple)
        return Lesson(images, [maps.float() for maps in self.encoder(images, [tap.stride for tap in self.taps])])


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> EncoderTeacher:
    """The frozen teacher of a folder that `import_weights` wrote. See `folder.open_teacher`."""
    import timm

    facts = read_facts(folder)["network"]
    model: Any = timm.create_model(facts["architecture"], pretrained=False, num_classes=0, **facts["options"])
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": facts["mean"], "std": facts["std"]}
    fill(model, read_weights(folder, WEIGHTS), folder)
    return EncoderTeacher(Encoder(model.eval(), facts["blocks"]), strides, encoding)


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write the teacher's folder `out`; see `importing.import_teacher`.

    `source` is a timm model name ("vit_small_patch16_dinov3.lvd1689m"), a hub id ("hf-hub:timm/..."), or a folder saved by timm.

    Options: `weights`, a checkpoint of this architecture (.pth, .pt, .safetensors) instead of timm's; `blocks`, number of last maps
    per stride that are concatenated to a tap (1); `pretrained`, false for random weights, a control.

    Raises:
        UserError: timm does not know it, it cannot be fetched, it has a fixed input size, or the checkpoint does not fit.
    """
    check_options(options, ["weights", "blocks", "pretrained"])
    if options.get("pretrained", "true") not in ("true", "false"):
        raise UserError(f"--option pretrained={options['pretrained']} is neither true nor false")
    if not options.get("blocks", "1").isdigit() or options.get("blocks") == "0":
        raise UserError(f"--option blocks={options['blocks']} is no number of maps")
    checkpoint = options.get("weights")
    pretrained = options.get("pretrained") != "false" and checkpoint is None
    name = f"local-dir:{source}" if Path(source).is_dir() else source
    encoder, config = _create(name, pretrained, int(options.get("blocks", 1)))
    model = encoder.model
    if checkpoint:
        _load(model, Path(checkpoint))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / WEIGHTS)
    network = {
        "architecture": model.pretrained_cfg["architecture"],
        "options": config,
        "blocks": int(options.get("blocks", 1)),
        "mean": encoder.mean,
        "std": encoder.std,
    }
    licence = model.pretrained_cfg.get("license") if pretrained else None
    write_facts(out, "timm", encoder.taps, {"network": network, "licence": licence, "trained_on": None})


def _create(name: str, pretrained: bool, blocks: int) -> tuple[Encoder, dict[str, Any]]:
    """The encoder, and the further arguments of its architecture."""
    import timm
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path

    schema, _, place = name.rpartition(":")
    if not schema and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3) or ["see timm.list_models()"]
        raise UserError(f"timm has no model {name!r}, and there is no such folder; near: {', '.join(near)}")
    config: dict[str, Any] = {}
    try:
        if schema == "local-dir":
            config = load_model_config_from_path(place)[2]
        elif schema:
            config = load_model_config_from_hf(place)[2]
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # no file, no network, or an unknown architecture: each has its own type
        raise UserError(
            f"{name} cannot be loaded ({first_line(error)}); give its weights by --option weights=FILE, or a folder that timm saved"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{name} offers no maps (forward_intermediates); choose another model")
    config = {key: value for key, value in config.items() if key not in ("num_classes", "pretrained")}
    state, why = model.state_dict(), "it takes none"
    for sizes in ANY_SIZE:
        try:
            other: Any = timm.create_model(model.pretrained_cfg["architecture"], pretrained=False, num_classes=0, **config, **sizes)
            other.load_state_dict(state)
            other.pretrained_cfg = model.pretrained_cfg
            return Encoder(other.eval(), blocks), {**config, **sizes}
        except Exception as error:  # each family has its own way to refuse a size, or the option
            why = why if isinstance(error, TypeError) else first_line(error)
    raise UserError(
        f"{name} takes no pictures of {PROBE[0]}x{PROBE[1]} px ({why}); choose a model that takes any size, and fewer --option blocks"
    )


def _load(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into `model`: with timm's names or names that timm converts, also nested or with a prefix.

    Other weights in the checkpoint, such as heads and queues, are ignored.

    Raises:
        UserError: a tensor of the encoder is missing or has another shape.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training run; plain values
        content = read_checkpoint(path)
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    found = {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"{path} holds no state dict; name a checkpoint of weights")
    wanted = model.state_dict()
    prefixes = {key[: -len(own)] for own in wanted for key in found if key.endswith(own) and (key == own or key[-len(own) - 1] == ".")}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + own in found for own in wanted), default="")
    found = {key.removeprefix(best): value for key, value in found.items() if key.startswith(best)}
    if convert := getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None):
        try:
            found = convert(found, model)
        except Exception as error:  # it fails for formats that it does not know
            raise UserError(f"{path} is of another architecture than {type(model).__name__} ({first_line(error)})") from error
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            has = tuple(found[name].shape) if name in found else "none"
            raise UserError(f"{path} does not fit the model: of {name} it has {has}, the model {tuple(value.shape)}")
    model.load_state_dict({name: found[name] for name in wanted})
