"""Pyramid pooling against torch's own, the FPN against its definition, the regressor on several families."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dreamteacher.errors import UserError
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.necks import PyramidNeck, PyramidPooling, adaptive_pool
from dreamteacher.students.regressor import FeatureRegressor, load_regressor, save_regressor

side = st.integers(1, 40)


@settings(max_examples=80)
@given(height=side, width=side, bins=st.integers(1, 8), seed=st.integers(0, 9))
def test_adaptive_pool_is_torchs_own(height: int, width: int, bins: int, seed: int) -> None:
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(adaptive_pool(maps, bins), F.adaptive_avg_pool2d(maps, bins), rtol=1e-10, atol=1e-12)


def test_adaptive_pool_passes_the_gradient_of_torchs_own() -> None:
    ours = torch.randn(1, 2, 7, 5, requires_grad=True)
    torchs = ours.detach().clone().requires_grad_()
    weight = torch.randn(1, 2, 6, 6)
    (adaptive_pool(ours, 6) * weight).sum().backward()
    (F.adaptive_avg_pool2d(torchs, 6) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, torchs.grad)


def test_pyramid_pooling_is_that_of_pspnet() -> None:
    """Zhao et al. 2017: pools of 1, 2, 3, 6 bins, each reduced by 1x1, resized, concatenated with the input, merged by 3x3."""
    torch.manual_seed(0)
    module = PyramidPooling(6, 4).eval()
    maps = torch.randn(2, 6, 5, 9)
    branches = [
        F.interpolate(reduce(F.adaptive_avg_pool2d(maps, bins)), size=(5, 9), mode="bilinear", align_corners=False)
        for bins, reduce in zip((1, 2, 3, 6), module.reduce, strict=True)
    ]
    torch.testing.assert_close(module(maps), module.merge(torch.cat([maps, *branches], 1)), rtol=1e-5, atol=1e-6)
    kernels = {m.kernel_size for branch in module.reduce for m in branch.modules() if isinstance(m, torch.nn.Conv2d)}
    assert kernels == {(1, 1)}
    assert module.merge[0].kernel_size == (3, 3)


def pyramid(height: int = 64, width: int = 96) -> list[torch.Tensor]:
    return [torch.randn(2, c, height // s, width // s) for c, s in zip((3, 5, 7, 9), (4, 8, 16, 32), strict=True)]


def test_the_neck_adds_up_from_the_coarsest_level() -> None:
    torch.manual_seed(0)
    neck = PyramidNeck([3, 5, 7, 9], 8).eval()
    levels = pyramid()
    top, expected = neck.pooling(levels[3]), []
    expected.append(top)
    for i in (2, 1, 0):
        top = neck.lateral[i](levels[i]) + F.interpolate(top, size=levels[i].shape[2:], mode="bilinear", align_corners=False)
        expected.insert(0, neck.smooth[i](top))
    outputs = neck(levels)
    assert [tuple(o.shape) for o in outputs] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(neck(levels, finest=2), expected[2:], strict=True):
        assert torch.equal(a, b)


def test_gradients_reach_every_parameter_of_the_neck_and_every_level() -> None:
    neck, levels = PyramidNeck([3, 5, 7, 9], 8), [level.requires_grad_() for level in pyramid()]
    sum(output.square().mean() for output in neck(levels)).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # A gain before a norm has no gradient of its own; everything else must move.
    assert [name for name, p in neck.named_parameters() if not p.grad.any()] == []
    assert all(level.grad is not None and level.grad.any() for level in levels)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_lite0", "mobilenetv3_small_100", "regnety_002"])
@pytest.mark.parametrize(("strides", "channels"), [([2, 4, 8], [16, 24, 32]), ([4, 8, 16, 32], [24, 24, 32, 32]), ([1], [16])])
def test_the_regressor_gives_each_tap_its_shape(name: str, strides: list[int], channels: list[int]) -> None:
    regressor = FeatureRegressor(create_backbone(name), channels, strides, 16)
    maps = regressor(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    sum(m.square().mean() for m in maps).backward()
    idle = [n for n, p in regressor.named_parameters() if p.grad is None and not n.startswith("backbone.")]
    wanted = {i for i in range(len(regressor.backbone.strides)) if i - len(regressor.backbone.strides) in regressor.heads.sources}
    assert all(n.startswith(("neck.smooth.", "neck.lateral.")) and int(n.split(".")[2]) not in wanted for n in idle), idle
    assert all(p.grad.isfinite().all() for p in regressor.parameters() if p.grad is not None)


def test_each_tap_is_read_from_the_nearest_level() -> None:
    fine = FeatureRegressor(create_backbone("test_resnet"), [4, 4, 4, 4], [4, 8, 16, 32], 8)
    assert fine.backbone.strides == [4, 8, 16, 32]
    assert fine.heads.sources == [-4, -3, -2, -1]
    assert fine.heads.finest == 0
    assert FeatureRegressor(create_backbone("test_resnet"), [4, 4, 4], [1, 2, 8], 8).heads.sources == [-4, -4, -3]
    coarse = FeatureRegressor(create_backbone("test_resnet"), [4, 4], [8, 32], 8)
    assert coarse.heads.sources == [-3, -1]
    assert coarse.heads.finest == 1


def test_levels_finer_than_every_tap_cost_nothing() -> None:
    regressor = FeatureRegressor(create_backbone("resnet18"), [8, 8], [8, 16], 256).eval()
    pictures = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        maps = regressor(pictures)
    with FlopCounterMode(display=False) as neck, torch.no_grad():
        levels = regressor.neck(regressor.backbone(pictures))
    assert flops.get_total_flops() < 0.6 * neck.get_total_flops()
    for a, b in zip(regressor.heads(levels, pictures.shape[2:]), maps, strict=True):
        assert torch.equal(a, b)


def test_a_saved_regressor_gives_the_same_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 8], [4, 8], 16)
    regressor(torch.randn(4, 3, 32, 32))  # moves the running statistics
    save_regressor(regressor.eval(), tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = load_regressor(tmp_path).eval()
    assert loaded.state_dict().keys() == regressor.state_dict().keys()
    for key, value in regressor.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    pictures = torch.randn(1, 3, 64, 64)
    for a, b in zip(loaded(pictures), regressor(pictures), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="holds no feature regressor"):
        load_regressor(tmp_path / "backbone")


def test_bf16_autocast_comes_near_float32() -> None:
    torch.manual_seed(0)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 8], [4, 8], 32).eval()
    exact = copy.deepcopy(regressor)(torch.ones(2, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = regressor(torch.ones(2, 3, 64, 64))
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b.float()).norm() < 0.05 * a.norm()
