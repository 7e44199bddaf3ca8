"""Checkpoints in the layouts of other implementations, from our networks."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamteacher.teachers.stylegan2_network import Discriminator, Synthesizer

TAPS = torch.tensor([1.0, 3, 3, 1])
KERNEL = TAPS[:, None] * TAPS / 64


def rosinality(network: Synthesizer, judge: Discriminator | None = None) -> dict[str, Any]:
    """The content of a .pt: `g_ema`, `latent_avg`, and `d` where there is a discriminator."""
    own = network.state_dict()
    found: dict[str, Tensor] = {"input.input": own["const"][None], "noises.noise_0": torch.zeros(1, 1, 4, 4)}
    for layer in range(len(network.mapping.layers)):
        for name in ("weight", "bias"):
            found[f"style.{layer + 1}.{name}"] = own[f"mapping.layers.{layer}.{name}"]
    for level in range(len(network.resolutions)):
        convs = {"conv1": "conv"} if level == 0 else {f"convs.{2 * level - 2}": "up", f"convs.{2 * level - 1}": "conv"}
        for there, here in convs.items():
            _rosinality_conv(found, there, own, f"blocks.{level}.{here}")
            found[f"{there}.noise.weight"] = own[f"blocks.{level}.{here}.noise"][None]
            found[f"{there}.activate.bias"] = own[f"blocks.{level}.{here}.bias"]
            if here == "up":
                found[f"{there}.conv.blur.kernel"] = KERNEL * 4
        there = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        _rosinality_conv(found, there, own, f"blocks.{level}.rgb")
        found[f"{there}.bias"] = own[f"blocks.{level}.rgb.bias"].view(1, 3, 1, 1)
        if level:
            found[f"{there}.upsample.kernel"] = KERNEL * 4
    content: dict[str, Any] = {"g_ema": found, "latent_avg": own["mapping.average"]}
    if judge:
        d = judge.state_dict()
        names = {"convs.0.0.weight": "rgb", "convs.0.1.bias": "rgb_bias", "final_conv.0.weight": "conv", "final_conv.1.bias": "conv_bias"}
        names |= {f"final_linear.{i}.{n}": f"{layer}.{n}" for i, layer in enumerate(("dense", "out")) for n in ("weight", "bias")}
        content["d"] = {there: d[here] for there, here in names.items()}
        for block in range(len(judge.blocks)):
            parts = {"conv1.0.weight": "conv", "conv1.1.bias": "conv_bias", "conv2.1.weight": "down", "conv2.2.bias": "down_bias"}
            for there, here in {**parts, "skip.1.weight": "skip"}.items():
                content["d"][f"convs.{block + 1}.{there}"] = d[f"blocks.{block}.{here}"]
            content["d"] |= {f"convs.{block + 1}.{part}.0.kernel": KERNEL for part in ("conv2", "skip")}
    return content


def _rosinality_conv(found: dict[str, Tensor], there: str, own: dict[str, Tensor], here: str) -> None:
    found[f"{there}.conv.weight"] = own[f"{here}.weight"][None]
    for name in ("weight", "bias"):
        found[f"{there}.conv.modulation.{name}"] = own[f"{here}.style.{name}"]


class Module:
    """What a persistent module of NVlabs' code is pickled as: its source code, the name of its class and its attributes."""

    source = "raise RuntimeError('the source in the pickle was run')"

    def __init__(
        self, kind: str, parameters: dict[str, Tensor], buffers: dict[str, Tensor], modules: dict[str, Module], kwargs: Any = None
    ):
        state = {
            "training": False,
            "_parameters": OrderedDict((name, torch.nn.Parameter(value)) for name, value in parameters.items()),
            "_buffers": OrderedDict(buffers),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict(modules),
            "weight_gain": np.float32(0.5),
            "_init_args": (),
            "_init_kwargs": kwargs if kwargs is not None else {},
        }
        self.meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": kind, "state": state}

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def ada(network: Synthesizer, judge: Discriminator | None, path: Path, **kwargs: Any) -> Path:
    """Write a .pkl with `G_ema`, and `D` where there is a discriminator."""
    own = network.state_dict()
    layers: dict[str, Module] = {}
    for layer in range(len(network.mapping.layers)):
        layers[f"fc{layer}"] = _module("FullyConnectedLayer", own, f"mapping.layers.{layer}.")
    if network.mapping.embed is not None:
        layers["embed"] = _module("FullyConnectedLayer", own, "mapping.embed.")
    mapping = Module("MappingNetwork", {}, {"w_avg": own["mapping.average"]}, layers)
    blocks: dict[str, Module] = {}
    for level, side in enumerate(network.resolutions):
        inner = {}
        for there, here in (("conv0", "up"), ("conv1", "conv")) if level else (("conv1", "conv"),):
            prefix = f"blocks.{level}.{here}."
            parameters = {"weight": own[f"{prefix}weight"], "bias": own[f"{prefix}bias"], "noise_strength": own[f"{prefix}noise"]}
            buffers = {"resample_filter": KERNEL, "noise_const": torch.zeros(side, side)}
            inner[there] = Module("SynthesisLayer", parameters, buffers, {"affine": _module("FullyConnectedLayer", own, f"{prefix}style.")})
        prefix = f"blocks.{level}.rgb."
        parameters = {"weight": own[f"{prefix}weight"], "bias": own[f"{prefix}bias"]}
        inner["torgb"] = Module("ToRGBLayer", parameters, {}, {"affine": _module("FullyConnectedLayer", own, f"{prefix}style.")})
        blocks[f"b{side}"] = Module("SynthesisBlock", {} if level else {"const": own["const"]}, {"resample_filter": KERNEL}, inner)
    synthesis = Module("SynthesisNetwork", {}, {}, blocks)
    with writable() as easy_dict:
        options = easy_dict(z_dim=network.latent, c_dim=network.classes, img_channels=3)
        options.update(mapping_kwargs=easy_dict(num_layers=2), synthesis_kwargs=easy_dict(**kwargs))
        content: dict[str, Any] = {
            "training_set_kwargs": easy_dict(class_name="training.dataset.ImageFolderDataset", resolution=16, xflip=False),
            "G_ema": Module("Generator", {}, {}, {"synthesis": synthesis, "mapping": mapping}, options),
            "augment_pipe": None,
        }
        if judge:
            content["D"] = _judge(judge, network.resolutions)
        path.write_bytes(pickle.dumps(content))
    return path


def _judge(judge: Discriminator, resolutions: list[int]) -> Module:
    own = judge.state_dict()

    def conv(weight: str, bias: str | None) -> Module:
        return Module("Conv2dLayer", {"weight": own[weight]} | ({"bias": own[bias]} if bias else {}), {"resample_filter": KERNEL}, {})

    blocks = {}
    for i, side in enumerate(resolutions[:0:-1]):
        parts = {"conv0": conv(f"blocks.{i}.conv", f"blocks.{i}.conv_bias"), "conv1": conv(f"blocks.{i}.down", f"blocks.{i}.down_bias")}
        parts["skip"] = conv(f"blocks.{i}.skip", None)
        if i == 0:
            parts["fromrgb"] = conv("rgb", "rgb_bias")
        blocks[f"b{side}"] = Module("DiscriminatorBlock", {}, {"resample_filter": KERNEL}, parts)
    dense = {"fc": _module("FullyConnectedLayer", own, "dense."), "out": _module("FullyConnectedLayer", own, "out.")}
    end = {"conv": conv("conv", "conv_bias"), "mbstd": Module("MinibatchStdLayer", {}, {}, {}), **dense}
    return Module("Discriminator", {}, {}, {**blocks, "b4": Module("DiscriminatorEpilogue", {}, {}, end)})


def _module(kind: str, own: dict[str, Tensor], prefix: str) -> Module:
    return Module(kind, {name: own[prefix + name] for name in ("weight", "bias")}, {}, {})


class writable:
    """NVlabs' modules, as far as pickle looks at them to write their names."""

    def __enter__(self) -> Any:
        self.patch = pytest.MonkeyPatch()
        persistence, dnnlib, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib"), ModuleType("dnnlib.util")

        def _reconstruct_persistent_obj(meta: Any) -> None:
            raise AssertionError("called by the reader")

        _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        easy_dict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
        persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
        util.EasyDict = easy_dict  # type: ignore[attr-defined]
        for name, module in {
            "torch_utils": ModuleType("torch_utils"),
            "torch_utils.persistence": persistence,
            "dnnlib": dnnlib,
            "dnnlib.util": util,
        }.items():
            self.patch.setitem(sys.modules, name, module)
        return easy_dict

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()
