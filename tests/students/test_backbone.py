"""timm models with a feature pyramid, against timm's features and loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.errors import UserError
from dreamteacher.students import backbone as backbones
from dreamteacher.students.backbone import create_backbone, load_backbone, save_backbone
from dreamteacher.students.regressor import FeatureRegressor

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
    ],
)
def test_a_student_that_will_not_do_is_refused_in_one_line(name: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_backbone(name)
    assert "\n" not in str(caught.value)


def test_a_model_whose_pyramid_cannot_be_measured_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a length\nof words")

    monkeypatch.setattr(backbones, "_measure", refuse)
    with pytest.raises(
        UserError, match=r"^the pyramid of 'test_resnet' cannot be measured \(a length\); choose another student\.backbone$"
    ):
        create_backbone("test_resnet")


# Made for pictures of one size, or for multiples of it; None: takes any, once told to or as it is, though not in whole fractions.
FAMILIES = [
    ("swin_tiny_patch4_window7_224", None, [4, 8, 16, 32]),
    ("swinv2_cr_tiny_224", None, [4, 8, 16, 32]),
    ("legacy_xception", None, [4, 8, 16, 32]),
    ("maxvit_nano_rw_256", 256, [4, 8, 16, 32]),
    ("coatnet_nano_rw_224", 224, [4, 8, 16, 32]),
    ("hiera_tiny_224", 224, [4, 8, 16, 32]),
    ("gcvit_xxtiny", 224, [4, 8, 16, 32]),
    ("efficientformerv2_s0", 224, [4, 8, 16, 32]),
    ("halonet26t", 256, [4, 8, 16, 32]),
    ("levit_128s", 224, [16, 32, 56]),
    ("pit_ti_224", 224, [8, 16, 32]),
    ("inception_v3", 320, [4, 8, 16, 40]),
]


@pytest.mark.parametrize(("name", "tile", "strides"), FAMILIES)
def test_families_made_for_one_size_are_distilled_into_as_well(name: str, tile: int | None, strides: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name)
    assert (backbone.tile, backbone.strides) == (tile, strides)
    regressor = FeatureRegressor(backbone, [4, 6], [4, 8], 8).train()
    optimizer = torch.optim.SGD(regressor.parameters(), 1e-3)
    before = {key: value.clone() for key, value in backbone.named_parameters()}
    target = [torch.randn(2, 4, 16, 24), torch.randn(2, 6, 8, 12)]
    objective = FeatureObjective(lambda maps: maps, [4, 8], {"mse": 1.0, "at": 10.0})
    losses = objective(regressor(torch.randn(2, 3, 64, 96)), target)
    losses["loss"].backward()
    torch.nn.utils.clip_grad_norm_(regressor.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.step()
    reached = [parameter.grad is not None for parameter in backbone.parameters()]
    assert sum(reached) > 0.8 * len(reached)
    assert any(not torch.equal(value, before[key]) for key, value in backbone.named_parameters())

    save_backbone(backbone, tmp_path)
    loaded, pictures = load_backbone(tmp_path), torch.randn(1, 3, 64, 96)
    assert (loaded.tile, loaded.strides, loaded.channels) == (tile, strides, backbone.channels)
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with torch.no_grad():
        for maps, again, stride in zip(backbone.eval()(pictures), loaded(pictures), strides, strict=True):
            assert torch.equal(maps, again)
            assert abs(maps.shape[2] - 64 / stride) < 1 + 1e-6
            assert abs(maps.shape[3] - 96 / stride) < 1 + 1e-6


def test_each_tile_is_seen_as_a_picture_of_the_size_that_the_model_was_made_for() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("efficientformerv2_s0").eval()
    tiles = torch.randn(6, 3, 224, 224)
    picture = torch.cat([torch.cat(list(tiles[i : i + 3]), dim=2) for i in (0, 3)], dim=1)[None]
    with torch.no_grad():
        whole, alone = backbone(picture), backbone.model.forward_intermediates(tiles, intermediates_only=True)
        cut = backbone(picture[:, :, :400, :640])
    for maps, part, each, stride in zip(whole, cut, alone, backbone.strides, strict=True):
        joined = torch.cat([torch.cat(list(each[i : i + 3]), dim=2) for i in (0, 3)], dim=1)[None]
        torch.testing.assert_close(maps, joined, rtol=1e-4, atol=1e-4)
        assert part.shape[2:] == (-(-400 // stride), -(-640 // stride))


def test_weights_that_cannot_be_had_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot load 'test_byobnet\.nothing' .*; drop imagenet from compare\.inits"):
        create_backbone("test_byobnet.nothing", pretrained=True)


def test_a_folder_without_a_backbone_names_the_stage_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `dreamteacher distill-features` first"):
        load_backbone(tmp_path)
