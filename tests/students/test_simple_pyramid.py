"""Plain vision transformers and others of one resolution as students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from dreamteacher.settings.section import Training
from dreamteacher.students.backbone import Backbone, create_backbone, load_backbone, save_backbone
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.students.simple_pyramid import SimplePyramid
from dreamteacher.training.optim import create_optimizer


def small(name: str, **options: Any) -> Backbone:
    """With two blocks, so that it is made in no time."""
    return Backbone(timm.create_model(name, num_classes=0, depth=2, embed_dim=24, num_heads=2, **options), name)


def test_each_level_is_a_branch_from_the_last_map() -> None:
    torch.manual_seed(0)
    pyramid = SimplePyramid(8, 16, 2)
    assert (pyramid.strides, pyramid.channels) == ([2, 4, 8, 16, 32], [1, 2, 4, 8, 8])
    maps = torch.randn(2, 8, 4, 6)
    levels = pyramid(maps)
    assert [tuple(level.shape) for level in levels] == [
        (2, c, 4 * 16 // s, 6 * 16 // s) for s, c in zip(pyramid.strides, pyramid.channels, strict=True)
    ]
    assert torch.equal(levels[3], maps)
    torch.testing.assert_close(levels[4][1, 5, 1, 2], maps[1, 5, 2:4, 4:6].mean())
    first, norm, _, second = pyramid.branches[1]
    once = torch.einsum("bchw,cdij->bdhiwj", maps, first.weight).reshape(2, 4, 8, 12) + first.bias[:, None, None]
    normed = (once - once.mean(1, keepdim=True)) / (once.var(1, keepdim=True, correction=0) + norm.eps).sqrt()
    twice = torch.einsum("bchw,cdij->bdhiwj", F.gelu(normed), second.weight).reshape(2, 2, 16, 24) + second.bias[:, None, None]
    torch.testing.assert_close(levels[1], twice)


@pytest.mark.parametrize(
    ("stride", "strides", "channels"),
    [(8, [4, 8, 16, 32], [8, 16, 16, 16]), (32, [4, 8, 16, 32], [2, 4, 8, 16]), (64, [4, 8, 16, 32, 64], [1, 2, 4, 8, 16])],
)
def test_any_patch_size_gets_the_same_strides(stride: int, strides: list[int], channels: list[int]) -> None:
    pyramid = SimplePyramid(16, stride, 4)
    assert (pyramid.strides, pyramid.channels) == (strides, channels)


# The tile: None where it takes any size.
MADE = [
    ("test_vit", None),  # a class token
    ("test_vit3", None),  # registers, no class token
    ("deit_tiny_distilled_patch16_224", None),
    ("xcit_nano_12_p8_224", None),  # patches of 8 px
    ("vit_tiny_r_s16_p8_224", None),  # a hybrid, with stride 32
    ("crossvit_tiny_240", None),  # about 9 px
    ("eva02_tiny_patch14_224", None),
    ("cait_xxs24_224", 224),
    ("mixer_s32_224", 224),
]


@pytest.mark.parametrize(("name", "tile"), MADE)
def test_a_model_of_one_resolution_gets_a_pyramid(name: str, tile: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    assert (backbone.tile, backbone.strides) == (tile, [4, 8, 16, 32])
    save_backbone(backbone, tmp_path)
    loaded, pictures = load_backbone(tmp_path), torch.randn(2, 3, 40, 72)
    assert (loaded.tile, loaded.strides, loaded.channels, loaded.name) == (tile, backbone.strides, backbone.channels, name)
    with torch.no_grad():
        for maps, again, stride, channels in zip(backbone(pictures), loaded(pictures), backbone.strides, backbone.channels, strict=True):
            assert torch.equal(maps, again)
            assert maps.shape == (2, channels, -(-40 // stride), -(-72 // stride))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "pyramid.safetensors"]
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.model.state_dict().items())


def test_the_level_of_its_patches_is_timms_own_last_map_and_the_embedding_its_mean() -> None:
    torch.manual_seed(0)
    backbone, pictures = create_backbone("test_vit").eval(), torch.randn(1, 3, 64, 96)
    reference = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    reference.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        tokens = reference.forward_features(pictures)[:, reference.num_prefix_tokens :]
        pyramid = backbone(pictures)
    torch.testing.assert_close(pyramid[2], tokens.transpose(1, 2).reshape(1, 64, 4, 6))
    torch.testing.assert_close(backbone.embed(pyramid), tokens.mean(1))


def test_patches_of_14_px_see_the_picture_reduced_to_14_16ths() -> None:
    torch.manual_seed(0)
    backbone, pictures = small("eva02_tiny_patch14_224", dynamic_img_size=True).eval(), torch.randn(1, 3, 64, 96)
    reduced = F.interpolate(pictures, size=(56, 84), mode="bilinear", align_corners=False)
    with torch.no_grad():
        [expected] = backbone.model.forward_intermediates(reduced, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(backbone(pictures)[2], expected)
    assert expected.shape == (1, 24, 4, 6)


def test_a_model_of_one_size_with_patches_of_14_px_sees_reduced_tiles() -> None:
    torch.manual_seed(0)
    backbone, pictures = small("vit_small_patch14_dinov2").eval(), torch.randn(1, 3, 640, 640)
    reduced = F.interpolate(pictures, size=(560, 560), mode="bilinear", align_corners=False)
    with torch.no_grad():
        [expected] = backbone.model.forward_intermediates(reduced[:, :, :518, :518], indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(backbone(pictures)[2][:, :, :37, :37], expected)
        assert [tuple(level.shape[2:]) for level in backbone(pictures[:, :, :100, :40])] == [(25, 10), (13, 5), (7, 3), (4, 2)]
    assert backbone.tile == 518


def test_every_parameter_of_the_pyramid_learns() -> None:
    regressor = FeatureRegressor(create_backbone("test_vit", finest=2), [4, 6, 6, 4, 4], [2, 4, 8, 16, 32], 8)
    sum(maps.square().mean() for maps in regressor(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in regressor.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_its_position_embedding_and_class_token_are_not_decayed() -> None:
    backbone = create_backbone("test_vit")
    groups = create_optimizer(backbone, Training(weight_decay=0.3)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    exempt = {name for name, p in backbone.named_parameters() if id(p) not in decayed and p.ndim > 1}
    assert exempt == {"model.pos_embed", "model.cls_token"}
