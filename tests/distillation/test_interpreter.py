from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dreamteacher.distillation.interpreter import FeatureInterpreter, load_interpreter, save_interpreter
from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.teachers.encodings import Stochastic, get_encoding

CHANNELS = [6, 10, 12]


def taps(batch: int = 2, height: int = 32, width: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(batch, c, height // s, width // s, generator=generator) * 100 for c, s in zip(CHANNELS, (2, 4, 8), strict=True)]


def interpreter(dense: bool, dropout: float = 0.1) -> FeatureInterpreter:
    torch.manual_seed(0)
    return FeatureInterpreter(CHANNELS, 4, 16, dropout, dense)


@pytest.mark.parametrize(("dense", "shape"), [(True, (2, 4, 32, 48)), (False, (2, 4))])
def test_it_gives_logits_for_pixels_or_pictures_and_every_parameter_learns(dense: bool, shape: tuple[int, ...]) -> None:
    model = interpreter(dense)
    logits = model(taps(), (32, 48))
    assert logits.shape == shape
    nn.functional.cross_entropy(logits, torch.randint(0, 4, (shape[0], *shape[2:]))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_it_is_built_as_the_paper_says() -> None:
    """1x1 convolution in, a depthwise-separable one out of each layer, GroupNorm of 32 groups and Swish between, width 256 (App D.2)."""
    model = FeatureInterpreter([512, 512, 1024, 1024], 21, 256, 0.1, dense=True)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert {(norm.num_groups, norm.num_channels) for norm in norms} == {(32, 256)}
    first, second = model.layers[0], model.layers[1]
    assert [type(m) for m in first.enter] == [nn.Conv2d, nn.GroupNorm, nn.SiLU]
    depthwise, pointwise = second.merge[0], second.merge[1]
    assert (depthwise.kernel_size, depthwise.groups, depthwise.in_channels) == ((3, 3), 512, 512)
    assert (pointwise.kernel_size, pointwise.out_channels) == ((1, 1), 256)
    assert first.enter[0].in_channels == 1024  # coarse to fine
    assert model.classify[0].p == 0.1


def test_dropout_is_off_in_eval_and_on_in_training() -> None:
    model = interpreter(dense=True, dropout=0.5)
    first, second = model(taps(), (32, 48)), model(taps(), (32, 48))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(taps(), (32, 48)), model(taps(), (32, 48)))


def test_the_scale_of_a_tap_changes_nothing() -> None:
    model = interpreter(dense=True).eval()
    loud = [maps * factor for maps, factor in zip(taps(), (0.1, 10, 1000), strict=True)]
    torch.testing.assert_close(model(loud, (32, 48)), model(taps(), (32, 48)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
def test_a_loaded_interpreter_is_frozen_and_gives_equal_logits(dense: bool, tmp_path: Path) -> None:
    model = interpreter(dense)
    save_interpreter(model, [2, 4, 8], Interpreter(T=30), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interpreter.json", "interpreter.safetensors"]
    loaded, facts = load_interpreter(tmp_path)
    assert facts["strides"] == [2, 4, 8]
    assert get_encoding(facts["encoding"]) == Stochastic(30)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(taps(), (32, 48)), model.eval()(taps(), (32, 48)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="run `dreamteacher train-interpreter` first"):
        load_interpreter(tmp_path / "nothing")


def test_an_interpreter_of_an_earlier_version_opens_with_its_noise_step(tmp_path: Path) -> None:
    save_interpreter(interpreter(dense=True), [2, 4, 8], Interpreter(), tmp_path)
    facts = json.loads((tmp_path / "interpreter.json").read_text())
    del facts["encoding"]
    (tmp_path / "interpreter.json").write_text(json.dumps(facts | {"T": 30}))
    assert get_encoding(load_interpreter(tmp_path)[1]["encoding"]) == Stochastic(30)


def test_bf16_autocast_comes_near_float32() -> None:
    model = interpreter(dense=True).eval()
    exact = model(taps(), (32, 48))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(taps(), (32, 48))
    assert (exact - rounded.float()).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("side", [8, 16])
def test_one_small_picture_can_be_learned_from(side: int) -> None:
    """The coarsest map has one pixel, the batch one picture."""
    model = FeatureInterpreter(CHANNELS, 2, 32, 0.0, dense=False)
    logits = model(taps(1, side, side), (side, side))
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()
