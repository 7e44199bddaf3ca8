"""Any timm model with a pyramid, against timm's own features and timm's own way of loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from dreamteacher.errors import UserError
from dreamteacher.students.backbone import create_backbone, load_backbone, save_backbone

NAMES = ["resnet18", "convnext_atto", "efficientnet_lite0", "mobilenetv3_small_100", "regnety_002"]


@pytest.mark.parametrize("finest", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_pyramid_is_timms_own(name: str, finest: int) -> None:
    backbone = create_backbone(name, finest=finest).eval()
    reference = timm.create_model(name, features_only=True).eval()
    finer = sum(stride < finest for stride in reference.feature_info.reduction())  # left out
    assert backbone.strides == reference.feature_info.reduction()[finer:]
    assert backbone.strides == ([4, 8, 16, 32] if finest == 4 or name == "convnext_atto" else [2, 4, 8, 16, 32])  # its stem has stride 4
    assert backbone.channels == reference.feature_info.channels()[finer:]
    unexpected = reference.load_state_dict({_flat(name, k): v for k, v in backbone.model.state_dict().items()}, strict=False)
    assert not unexpected.missing_keys
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for maps, expected, stride in zip(backbone(pictures), reference(pictures)[finer:], backbone.strides, strict=True):
            torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
            assert maps.shape[2:] == (64 // stride, 96 // stride)
    assert backbone.embed(backbone(pictures)).shape == (2, backbone.channels[-1])


def _flat(name: str, key: str) -> str:
    """timm's feature wrapper renames what it takes out of a container of the model, such as ConvNeXt's stages."""
    return key.replace("stages.", "stages_", 1).replace("stem.", "stem_", 1) if name.startswith("convnext") else key


@pytest.mark.parametrize(("name", "finest"), [("resnet18", 2), ("efficientnet_lite0", 4)])
def test_a_saved_backbone_opens_with_timm_and_gives_identical_features(name: str, finest: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, finest=finest)
    for module in backbone.modules():  # no running statistic may be left at its default
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean), torch.nn.init.uniform_(module.running_var, 0.5, 2)
    backbone.eval()
    save_backbone(backbone, tmp_path / "it's a #1 folder")
    assert sorted(path.name for path in (tmp_path / "it's a #1 folder").iterdir()) == ["config.json", "model.safetensors"]
    assert str(tmp_path) not in (tmp_path / "it's a #1 folder/config.json").read_text()

    pictures = torch.randn(1, 3, 64, 64)
    foreign = timm.create_model(f"local-dir:{tmp_path}/it's a #1 folder", pretrained=True).eval()
    loaded = load_backbone(tmp_path / "it's a #1 folder")
    assert (loaded.name, loaded.strides, loaded.channels, loaded.mean, loaded.std) == (
        name,
        backbone.strides,
        backbone.channels,
        backbone.mean,
        backbone.std,
    )
    with torch.no_grad():
        for a, b in zip(loaded(pictures), backbone(pictures), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(foreign(pictures), backbone.model(pictures), rtol=1e-5, atol=1e-6)
    for key, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    backbone = create_backbone("test_resnet")
    for name in ("a", "b"):
        save_backbone(backbone, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text())["architecture"] == "test_resnet"


def test_measuring_the_pyramid_leaves_the_model_as_it_was() -> None:
    backbone = create_backbone("test_resnet")
    assert all(module.training for module in backbone.modules())
    assert all(int(m.num_batches_tracked) == 0 for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("resnet-18", r"timm has no model 'resnet-18'; near: .*resnet18"),
        ("resnett50", r"near: .*resnet50"),
        ("zzzzzz", r"timm has no model 'zzzzzz'; see timm\.list_models\(\)"),
        ("someone/model", r"timm has no model 'someone/model'"),
        ("resnet18.no_such_weights", r"cannot load 'resnet18\.no_such_weights' .*; choose another student\.backbone"),
        ("local-dir:/no/such/folder", r"cannot load 'local-dir:/no/such/folder'"),
        ("test_vit", r"'test_vit' has one resolution only \(stride 16\); a convolutional or hierarchical model is needed"),
        ("vit_tiny_patch16_224", r"'vit_tiny_patch16_224' does not take pictures of any size .*; choose a convolutional model"),
        ("inception_v3", r"128 px become 61, which is not a whole fraction"),
    ],
)
def test_a_student_that_will_not_do_is_refused_in_one_line(name: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_backbone(name)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_had_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot load 'test_byobnet\.nothing' .*; drop imagenet from compare\.inits"):
        create_backbone("test_byobnet.nothing", pretrained=True)


def test_a_folder_without_a_backbone_names_the_stage_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `dreamteacher distill-features` first"):
        load_backbone(tmp_path)
