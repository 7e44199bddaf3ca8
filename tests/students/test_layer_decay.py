from __future__ import annotations

import pytest
import timm
from timm.optim import param_groups_layer_decay

from dreamteacher.students.layer_decay import layer_scales


@pytest.mark.parametrize(
    "name", ["test_vit", "resnet18", "convnext_atto", "efficientnet_lite0", "poolformer_s12", "swin_tiny_patch4_window7_224"]
)
def test_rates_by_layer_are_timms_own(name: str) -> None:
    whole = timm.create_model(name, num_classes=7)
    names = {parameter: key for key, parameter in whole.named_parameters()}
    theirs = {names[p]: group["lr_scale"] for group in param_groups_layer_decay(whole, layer_decay=0.7) for p in group["params"]}
    ours = layer_scales(timm.create_model(name, num_classes=0), 0.7)
    assert ours == {key: theirs[key] for key in ours}
    assert len(set(ours.values())) > 3
    assert max(ours.values()) <= 1


def test_each_block_is_a_layer() -> None:
    scales = layer_scales(timm.create_model("test_vit", num_classes=0), 0.5)
    assert scales["patch_embed.proj.weight"] == scales["pos_embed"] == 0.5**7
    assert [scales[f"blocks.{block}.attn.qkv.weight"] for block in (0, 4, 5)] == [0.5**6, 0.25, 0.5]


def test_without_decay_all_layers_learn_alike() -> None:
    assert set(layer_scales(timm.create_model("test_resnet", num_classes=0), 1.0).values()) == {1.0}
