"""Replacements of operators that cannot be exported give the same numbers, and transformers export for any picture size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.serving.export import export
from dreamteacher.serving.exportable import exportable_operators, repeat_interleave, resize_positions, rms_norm
from dreamteacher.students.backbone import Backbone


@pytest.mark.parametrize("old", [(14, 14), (5, 9), (16, 16)])
@pytest.mark.parametrize("new", [(14, 14), (4, 6), (1, 1), (20, 31), (9, 5)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_resized_position_embeddings_are_timms(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    positions = torch.randn(1, prefix + old[0] * old[1], 7, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)
    torch.testing.assert_close(resize_positions(positions, new, old, prefix), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_repeated_values_are_torchs(dim: int) -> None:
    values = torch.randn(3, 4)
    assert torch.equal(repeat_interleave(values, 2, dim), values.repeat_interleave(2, dim))
    assert torch.equal(repeat_interleave(values, 2), values.repeat_interleave(2))
    assert torch.equal(repeat_interleave(values, torch.tensor([1, 0, 2]), 0), values.repeat_interleave(torch.tensor([1, 0, 2]), 0))


@pytest.mark.parametrize("eps", [1e-5, None])
def test_rms_norm_is_torchs(eps: float | None) -> None:
    values, weight = torch.randn(2, 3, 8), torch.randn(8)
    torch.testing.assert_close(rms_norm(values, [8], weight, eps), F.rms_norm(values, [8], weight, eps))
    torch.testing.assert_close(rms_norm(values, [3, 8], None, eps), F.rms_norm(values, [3, 8], None, eps))


def test_torch_and_timm_are_as_before_afterwards() -> None:
    before = Tensor.repeat_interleave, torch.rms_norm, timm.models.vision_transformer.resample_abs_pos_embed
    with pytest.raises(ValueError, match="stop"), exportable_operators():
        assert timm.models.vision_transformer.resample_abs_pos_embed is resize_positions
        raise ValueError("stop")
    assert before == (Tensor.repeat_interleave, torch.rms_norm, timm.models.vision_transformer.resample_abs_pos_embed)


SLIM = {"depth": 2, "embed_dim": 24, "num_heads": 2, "dynamic_img_size": True}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"dynamic_img_size": True}),
        ("test_vit4", {"dynamic_img_size": True}),  # RMS norms
        ("deit3_small_patch16_224", SLIM),  # positions without the class token's
        ("deit_tiny_distilled_patch16_224", SLIM),
        ("vit_small_patch14_dinov2", SLIM),  # patches of 14 px
        ("eva02_tiny_patch14_224", SLIM),  # rotary embeddings as well
        ("vit_small_patch16_dinov3", SLIM),  # rotary embeddings alone
    ],
)
def test_transformers_are_exported_for_pictures_of_any_size(name: str, options: dict[str, Any], opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone(timm.create_model(name, num_classes=0, **options), name)
    done = export(backbone, tmp_path / "it.onnx", ["a", "b", "c", "d"], size=64, opset=opset, tolerance=1e-3, metadata={})
    assert done.fixed_because is None


def test_the_size_that_it_was_made_for_is_not_the_only_one(tmp_path: Path) -> None:
    """At 160 px, its own size, timm leaves the position embedding as it is, and a trace would never resize it."""
    backbone = Backbone(timm.create_model("test_vit", num_classes=0, dynamic_img_size=True), "test_vit")
    assert backbone.model.patch_embed.img_size == (160, 160)
    done = export(backbone, tmp_path / "it.onnx", ["a", "b", "c", "d"], size=160, opset=18, tolerance=1e-4, metadata={})
    assert done.fixed_because is None
