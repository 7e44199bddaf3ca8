"""Each neck against its definition, computed by plain loops in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.serving.export import export
from dreamteacher.settings.pretraining import Student
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.necks import DEFAULT, NECKS, FeaturePyramid, GlobalAttention, PathAggregation, create_neck
from dreamteacher.students.regressor import FeatureRegressor, load_regressor, save_regressor
from dreamteacher.tasks.model import TaskModel, load_task_model, save_task_model

CHANNELS = [2, 3, 5]


def shaken(module: nn.Module) -> Any:
    """In eval mode, with no weight or running statistic at its default."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if name.endswith("var") else -0.4))
    return module.double().eval()


def pyramid(sides: tuple[int, ...] = (8, 4, 2)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, c, side, side + 2 * side // sides[-1], generator=generator).double() for c, side in zip(CHANNELS, sides, strict=True)
    ]


def block(layers: Any, maps: np.ndarray) -> np.ndarray:
    """Convolution, batch normalisation in eval mode, ReLU: `(C, h, w)` to `(C', h', w')`."""
    convolution, norm = layers[0], layers[1]
    weight, step, reach = convolution.weight.detach().numpy(), convolution.stride[0], convolution.kernel_size[0] // 2
    height, width = maps.shape[1:]
    rows, columns = range(0, height, step), range(0, width, step)
    out = np.zeros((len(weight), len(rows), len(columns)))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        out[:, i, j] += weight[:, :, dy + reach, dx + reach] @ maps[:, y + dy, x + dx]
    mean, var, gain, bias = (t.detach().numpy()[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return np.maximum((out - mean) / np.sqrt(var + norm.eps) * gain + bias, 0)


def resized(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear, by the centres of the cells."""

    def places(length: int, wanted: int) -> list[tuple[int, int, float]]:
        found = [min(max((i + 0.5) * length / wanted - 0.5, 0), length - 1) for i in range(wanted)]
        return [(int(p), min(int(p) + 1, length - 1), p - int(p)) for p in found]

    out = np.zeros((len(maps), *size))
    for i, (top, bottom, down) in enumerate(places(maps.shape[1], size[0])):
        for j, (left, right, across) in enumerate(places(maps.shape[2], size[1])):
            above = maps[:, top, left] * (1 - across) + maps[:, top, right] * across
            below = maps[:, bottom, left] * (1 - across) + maps[:, bottom, right] * across
            out[:, i, j] = above * (1 - down) + below * down
    return out


def attended(module: GlobalAttention, maps: np.ndarray) -> np.ndarray:
    entered = block(module.enter, maps)
    width, heads = len(entered), module.heads
    places = entered.reshape(width, -1).T
    normed = (places - places.mean(1, keepdims=True)) / np.sqrt(places.var(1, keepdims=True) + module.norm.eps)
    normed = normed * module.norm.weight.detach().numpy() + module.norm.bias.detach().numpy()
    q, k, v = np.split(normed @ module.qkv.weight.detach().numpy().T + module.qkv.bias.detach().numpy(), 3, axis=1)
    mixed = np.zeros_like(places)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        for i in range(len(places)):
            votes = np.array([np.exp(q[i, part] @ k[j, part] / np.sqrt(width / heads)) for j in range(len(places))])
            mixed[i, part] = votes / votes.sum() @ v[:, part]
    added = mixed @ module.project.weight.detach().numpy().T + module.project.bias.detach().numpy()
    return entered + added.T.reshape(entered.shape)


def fpn(neck: FeaturePyramid, levels: list[np.ndarray]) -> list[np.ndarray]:
    tops = []
    for lateral, maps in reversed(list(zip(neck.lateral, levels, strict=True))):
        entered = attended(lateral, maps) if isinstance(lateral, GlobalAttention) else block(lateral, maps)
        tops.append(entered + resized(tops[-1], entered.shape[1:]) if tops else entered)
    return [block(smooth, top) for smooth, top in zip(neck.smooth, reversed(tops), strict=True)]


def pafpn(neck: PathAggregation, levels: list[np.ndarray]) -> list[np.ndarray]:
    below = fpn(neck.down_path, levels)
    outputs = below[:1]
    for i in range(1, len(below)):
        outputs.append(block(neck.merge[i - 1], below[i] + resized(block(neck.halve[i - 1], outputs[-1]), below[i].shape[1:])))
    return outputs


@pytest.mark.parametrize(("name", "reference"), [("fpn", fpn), ("fpn-attention", fpn), ("pafpn", pafpn)])
@pytest.mark.parametrize("sides", [(8, 4, 2), (9, 5, 2)])
def test_a_neck_is_what_its_paper_says(name: str, reference: Any, sides: tuple[int, ...]) -> None:
    neck, levels = shaken(create_neck(name, CHANNELS, 4)), pyramid(sides)
    with torch.no_grad():
        outputs = neck(levels)
    for output, expected in zip(outputs, reference(neck, [level[0].numpy() for level in levels]), strict=True):
        np.testing.assert_allclose(output[0].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_attention_has_heads_of_64_channels_and_starts_as_a_plain_fpn() -> None:
    assert [GlobalAttention(3, width).heads for width in (8, 64, 96, 128, 256)] == [1, 1, 1, 2, 4]
    torch.manual_seed(0)
    attention = GlobalAttention(3, 128).eval()
    maps = torch.randn(2, 3, 4, 6)
    assert torch.equal(attention(maps), attention.enter(maps))
    attention.project.weight.data.normal_()
    moved = maps.clone()
    moved[:, :, 0, 0] += 1
    assert (attention(moved) - attention(maps))[:, :, 3, 5].abs().max() > 1e-4  # the farthest place sees it


@pytest.mark.parametrize("name", NECKS)
def test_outputs_are_the_same_without_the_finest_levels(name: str) -> None:
    neck, levels = shaken(create_neck(name, CHANNELS, 4)), pyramid()
    with torch.no_grad():
        for some, one in zip(neck(levels, finest=1), neck(levels)[1:], strict=True):
            assert torch.equal(some, one)
    assert [tuple(output.shape[1:]) for output in neck(levels)] == [(4, *level.shape[2:]) for level in levels]


@pytest.mark.parametrize("name", NECKS)
def test_every_parameter_of_a_neck_learns(name: str) -> None:
    neck = create_neck(name, CHANNELS, 4).train()
    for module in neck.modules():
        if isinstance(module, GlobalAttention):
            nn.init.normal_(module.project.weight)
    levels = [torch.randn(2, c, side, side) for c, side in zip(CHANNELS, (8, 4, 2), strict=True)]
    sum(output.square().mean() for output in neck(levels)).backward()
    assert [key for key, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_settings_name_all_necks() -> None:
    assert set(get_args(Student.model_fields["neck"].annotation)) == set(NECKS)
    assert Student().neck == DEFAULT
    with pytest.raises(UserError, match=r"^there is no neck 'pa-fpn'; name pafpn, or update dreamteacher$"):
        create_neck("pa-fpn", CHANNELS, 4)


@pytest.mark.parametrize("name", NECKS)
def test_a_saved_model_opens_with_its_neck(name: str, tmp_path: Path) -> None:
    pictures = torch.randn(1, 3, 64, 64)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 8], [4, 8], 16, name).eval()
    model = TaskModel(create_backbone("test_resnet"), "segmentation", ["a", "b"], 32, 16, neck=name).eval()
    save_regressor(regressor, tmp_path / "features")
    save_task_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "features/regressor.json").read_text())["neck"] == name
    assert json.loads((tmp_path / "model/task.json").read_text())["neck"] == name
    for one, other in zip(load_regressor(tmp_path / "features").eval()(pictures), regressor(pictures), strict=True):
        assert torch.equal(one, other)
    opened = load_task_model(tmp_path / "model")
    assert torch.equal(opened(pictures), model(pictures))
    assert type(opened.head.neck) is type(model.head.neck)


def test_a_folder_from_before_there_were_several_has_fpn_with_pyramid_pooling(tmp_path: Path) -> None:
    save_regressor(FeatureRegressor(create_backbone("test_resnet"), [6], [4], 16), tmp_path / "features")
    save_task_model(TaskModel(create_backbone("test_resnet"), "segmentation", ["a", "b"], 32, 16), tmp_path / "model")
    for file in (tmp_path / "features/regressor.json", tmp_path / "model/task.json"):
        facts = json.loads(file.read_text())
        assert facts.pop("neck") == DEFAULT
        file.write_text(json.dumps(facts))
    assert load_regressor(tmp_path / "features").facts["neck"] == DEFAULT
    assert load_task_model(tmp_path / "model").neck == DEFAULT


@pytest.mark.parametrize("name", NECKS)
def test_the_exported_neck_takes_pictures_of_any_size(name: str, tmp_path: Path) -> None:
    model = TaskModel(create_backbone("test_resnet"), "segmentation", ["a", "b"], 32, 16, neck=name)
    for module in model.modules():
        if isinstance(module, GlobalAttention):
            nn.init.normal_(module.project.weight)
    done = export(model, tmp_path / "model.onnx", ["logits"], size=64, opset=17, tolerance=1e-4, metadata={})
    assert done.fixed_because is None
