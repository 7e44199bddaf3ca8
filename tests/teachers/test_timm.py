"""Models of timm as teachers: their own maps of clean pictures, from weights of several forms."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.training.randomness import StepRandom

RANDOM = StepRandom(0, 0, 0, 1)


def pictures(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def made(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, num_classes=0).eval()


def features(folder: Path, images: Tensor, strides: list[int] | None = None) -> list[Tensor]:
    return open_teacher(folder, strides, Stochastic(50)).teach(images, RANDOM).features


def normalized(model: torch.nn.Module, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))  # type: ignore[index]
    return (images - mean) / std


def test_a_hierarchical_model_gives_its_pyramid_of_the_clean_picture(tmp_path: Path) -> None:
    model = made("test_resnet")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    import_teacher("timm", "test_resnet", tmp_path / "teacher", [f"weights={tmp_path / 'weights.pth'}", "licence=Apache-2.0"])
    facts = json.loads((tmp_path / "teacher/teacher.json").read_text())
    assert (facts["source"], facts["licence"], facts["network"]["architecture"]) == ("test_resnet", "Apache-2.0", "test_resnet")
    assert [tap["stride"] for tap in facts["taps"]] == [2, 4, 8, 16, 32]
    assert choose_strides(tmp_path / "teacher", "auto") == [4, 8, 16, 32]
    with torch.no_grad():
        expected = model.forward_intermediates(normalized(model, pictures()), intermediates_only=True)  # type: ignore[operator]
    for maps, reference in zip(features(tmp_path / "teacher", pictures()), expected, strict=True):
        assert torch.equal(maps, reference)
    assert torch.equal(features(tmp_path / "teacher", pictures(), [8, 32])[1], expected[4])


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_plain_vit_gives_its_last_blocks_at_one_stride_of_pictures_of_any_size(blocks: int, tmp_path: Path) -> None:
    import_teacher("timm", "test_vit", tmp_path / "teacher", ["pretrained=false", f"blocks={blocks}"])
    teacher = open_teacher(tmp_path / "teacher", None, Stochastic(50))
    assert [(tap.stride, tap.channels) for tap in teacher.taps] == [(16, 64 * blocks)]
    model = teacher.encoder.model  # type: ignore[attr-defined]
    with torch.no_grad():
        tokens = model.forward_features(normalized(model, pictures()))[:, 1:]
        last = model.forward_intermediates(normalized(model, pictures()), indices=blocks, norm=True, intermediates_only=True)
    maps = teacher.teach(pictures(), RANDOM).features[0]
    assert torch.equal(maps, torch.cat(last, 1))
    torch.testing.assert_close(maps[:, -64:].flatten(2).transpose(1, 2), tokens)
    assert not teacher.training
    with pytest.raises(UserError, match="40x64 px do not fit the teacher: their sides must be multiples of 16"):
        teacher.teach(pictures(40, 64), RANDOM)


def test_a_patch_of_14_px_has_maps_at_stride_16_of_a_picture_that_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"patch_size": 14, "img_size": 70, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": True}
    model = timm.create_model("test_vit", num_classes=0, **options)
    save_for_hf(model, str(tmp_path / "saved"), model_config={"num_classes": 0, "model_args": options}, safe_serialization=True)
    import_teacher("timm", str(tmp_path / "saved"), tmp_path / "teacher", [])
    maps = features(tmp_path / "teacher", pictures(64, 96))[0]
    assert maps.shape == (2, 32, 4, 6)
    smaller = torch.nn.functional.interpolate(pictures(64, 96), size=(56, 84), mode="bilinear", antialias=True)
    encoder = open_teacher(tmp_path / "teacher", None, Stochastic(0)).encoder  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = encoder.model.forward_intermediates(normalized(model, smaller), indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(maps, expected[0])


def test_checkpoints_of_self_supervised_training_are_read_behind_their_keys_and_prefixes(tmp_path: Path) -> None:
    model = made("test_vit", seed=5)
    state = model.state_dict()
    expected = None
    forms = {
        "plain.safetensors": state,
        "dino.pth": {
            "student": {f"module.backbone.{key}": torch.zeros_like(value) for key, value in state.items()},
            "teacher": {f"backbone.{key}": value for key, value in state.items()} | {"head.mlp.0.weight": torch.ones(2, 2)},
            "args": argparse.Namespace(arch="vit_tiny"),
            "epoch": 3,
        },
        "moco.pth": {"state_dict": {f"module.base_encoder.{key}": value for key, value in state.items()} | {"module.queue": torch.ones(3)}},
        "lightning.pth": {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    }
    for name, content in forms.items():
        if name.endswith("safetensors"):
            save_file(content, tmp_path / name)  # type: ignore[arg-type]
        else:
            torch.save(content, tmp_path / name)
        import_teacher("timm", "test_vit", tmp_path / f"{name}.teacher", [f"weights={tmp_path / name}"])
        maps = features(tmp_path / f"{name}.teacher", pictures())[0]
        expected = maps if expected is None else expected
        assert torch.equal(maps, expected), name
    with torch.no_grad():
        weight = open_teacher(tmp_path / "dino.pth.teacher", None, Stochastic(0)).encoder.model.patch_embed.proj.weight  # type: ignore[attr-defined]
    assert torch.equal(weight, state["patch_embed.proj.weight"])


@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3", "mobilenetv3_small_050"])
def test_families_that_take_any_size_in_their_own_way_are_taken(name: str, tmp_path: Path) -> None:
    import_teacher("timm", name, tmp_path / "teacher", ["pretrained=false"])
    teacher = open_teacher(tmp_path / "teacher", None, Stochastic(0))
    lesson = teacher.teach(pictures(64, 96), RANDOM)
    assert [tuple(m.shape[1:]) for m in lesson.features] == [(tap.channels, 64 // tap.stride, 96 // tap.stride) for tap in teacher.taps]
    assert teacher.with_encoding(Stochastic(9)).encoding == Stochastic(9)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, message: str, *options: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            import_teacher("timm", source, tmp_path / "teacher", list(options))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "teacher").exists()

    refused("test_vitt", "timm has no model 'test_vitt', and there is no such folder; near: test_vit")
    refused(
        "hiera_tiny_224", r"hiera_tiny_224 takes no pictures of 128x160 px \(.+\); choose a model that takes any size", "pretrained=false"
    )
    refused("test_vit", "blocks=0 is no number of maps", "blocks=0")
    refused("test_vit", "fewer than 99 maps at stride 16", "blocks=99", "pretrained=false")
    refused("test_vit", "pretrained=no is neither true nor false", "pretrained=no")
    torch.save(made("test_vit2").state_dict(), tmp_path / "a.pth")
    refused("test_vit", r"a\.pth does not fit the model: of .+ it has .+, the model \(", f"weights={tmp_path / 'a.pth'}")
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    refused("test_vit", r"a\.pth holds no state dict", f"weights={tmp_path / 'a.pth'}")
    torch.save({"model": Fraction(1, 2)}, tmp_path / "a.pth")
    refused("test_vit", r"a\.pth holds more than tensors .+, and none of it was run", f"weights={tmp_path / 'a.pth'}")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to the hub")))
    refused("test_vit", r"test_vit cannot be loaded \(no route to the hub\); give its weights by --option weights=FILE")
