"""Conditioning of ddpm and edm: self-conditioning, the picture's class, and, as a teacher, no class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.teachers import ddpm, edm
from dreamteacher.teachers import unet as unets
from dreamteacher.teachers.conditioning import some_without
from dreamteacher.teachers.ddpm import estimate_picture
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.training.randomness import StepRandom
from slim_unets import SLIM

CLASSES = 3


@pytest.fixture(autouse=True)
def slim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unets.SIZES, "tiny", SLIM)


def random() -> StepRandom:
    return StepRandom(3, 0, 0, 1)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def built(kind: Any, *, classes: int = 0, **settings: Any) -> tuple[Any, Any, nn.Module]:
    """Generator, network and its U-Net."""
    torch.manual_seed(0)
    generator = kind.Generator(Teacher(kind=kind.__name__.rpartition(".")[2], resolution=16, sample_steps=3, **settings))
    generator.classes = classes
    network = generator.build()
    return generator, network, getattr(network, "unet", network)


def watched(unet: nn.Module) -> list[tuple[Tensor, Any]]:
    """(input, class_labels) of each pass that follows."""
    seen: list[tuple[Tensor, Any]] = []
    unet.register_forward_pre_hook(lambda _, given, more: seen.append((given[0].detach(), more.get("class_labels"))), with_kwargs=True)
    return seen


@pytest.mark.parametrize("kind", [ddpm, edm])
def test_without_the_settings_nothing_is_drawn_or_built_for_them(kind: Any) -> None:
    generator, network, unet = built(kind)
    assert unet.config.in_channels == 3
    assert unet.config.num_class_embeds is None
    assert getattr(network, "classes", None) is None
    drawn = random()
    generator.loss(network, images(), drawn)
    assert drawn._calls == (2 if kind is ddpm else drawn._calls)


@pytest.mark.parametrize("kind", [ddpm, edm])
def test_it_learns_from_classes_and_of_some_pictures_from_none(kind: Any) -> None:
    generator, network, unet = built(kind, classes=CLASSES)
    generator.loss(network, images(4), random(), classes=torch.tensor([0, 1, 2, 1]))["loss"].backward()
    table = network.classes.weight if kind is edm else unet.class_embedding.weight  # type: ignore[union-attr]
    assert table.shape[0] == CLASSES + 1
    assert table.grad.abs().sum(1).gt(0).sum() >= 2
    network.zero_grad()
    generator.loss(network, images(4), random())["loss"].backward()
    assert table.grad[:CLASSES].eq(0).all()
    assert table.grad[CLASSES].ne(0).any()
    ids = torch.arange(3000) % CLASSES
    kept = some_without(ids, CLASSES, random())
    assert 0.07 < float((kept == CLASSES).float().mean()) < 0.13
    assert torch.equal(kept[kept < CLASSES], ids[kept < CLASSES])


@pytest.mark.parametrize("kind", [ddpm, edm])
@pytest.mark.parametrize("self_conditioning", [False, True])
def test_its_samples_are_of_each_class_in_turn_and_depend_on_it(kind: Any, self_conditioning: bool) -> None:
    generator, network, unet = built(kind, classes=CLASSES, self_conditioning=self_conditioning)
    seen = watched(unet)
    pictures = generator.sample(network, 4, seed=0)
    assert pictures.shape == (4, 3, 16, 16)
    labels = seen[0][1]
    if kind is ddpm:
        assert labels.tolist() == [0, 1, 2, 0]
    else:
        assert torch.equal(labels, network.classes.weight[[0, 1, 2, 0]])  # type: ignore[index, union-attr]
    with torch.no_grad():
        table = network.classes.weight if kind is edm else unet.class_embedding.weight  # type: ignore[union-attr]
        table[0] += 3
    changed = (generator.sample(network, 4, seed=0) - pictures).abs().amax((1, 2, 3)) > 1e-6
    assert changed.tolist() == [True, False, False, True]


@pytest.mark.parametrize("kind", [ddpm, edm])
def test_a_teacher_takes_features_without_a_class(kind: Any, tmp_path: Path) -> None:
    generator, network, unet = built(kind, classes=CLASSES)
    generator.save(copy.deepcopy(network).eval(), tmp_path, {})
    table = network.classes.weight if kind is edm else unet.class_embedding.weight  # type: ignore[union-attr]
    lessons = []
    for row in (0, CLASSES):
        with torch.no_grad():
            table[row] += 5
        generator.save(copy.deepcopy(network).eval(), tmp_path / str(row), {})
        lessons.append(kind.open_folder(tmp_path / str(row), [1], Stochastic(50)).teach(images(), random()).features[0])
    before = kind.open_folder(tmp_path, [1], Stochastic(50)).teach(images(), random()).features[0]
    assert torch.equal(before, lessons[0])  # the class 0 has no say
    assert not torch.allclose(before, lessons[1], atol=1e-3)


@pytest.mark.parametrize("kind", [ddpm, edm])
def test_training_continues_where_classes_are_the_same_and_is_refused_elsewhere(kind: Any, tmp_path: Path) -> None:
    generator, network, _ = built(kind, classes=CLASSES)
    generator.save(network, tmp_path, {})
    _, other, _ = built(kind, classes=CLASSES)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    generator.load_weights(other, tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())
    for classes in (0, CLASSES + 1):
        apart, fresh, _ = built(kind, classes=classes)
        with pytest.raises(UserError, match=r"number of classes|teacher\.conditional alike"):
            apart.load_weights(fresh, tmp_path)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_estimate_is_the_picture_that_the_prediction_means(prediction: str) -> None:
    kept, picture, noise = torch.tensor([0.9, 0.3]), images() * 2 - 1, torch.randn(2, 3, 16, 16)
    a = kept[:, None, None, None]
    noisy = a.sqrt() * picture + (1 - a).sqrt() * noise
    output = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * picture
    torch.testing.assert_close(estimate_picture(output, noisy, kept, prediction), picture, rtol=1e-4, atol=1e-5)
    assert estimate_picture(output * 100, noisy, kept, prediction).abs().max() == 1


def test_a_self_conditioned_ddpm_learns_from_its_own_estimate_half_of_the_time() -> None:
    generator, unet, _ = built(ddpm, self_conditioning=True)
    seen = watched(unet)
    generator.loss(unet, images(64), random())["loss"].backward()
    (first, _), (second, _) = seen
    assert first.shape[1] == second.shape[1] == 6
    assert not first[:, 3:].any()
    assert torch.equal(first[:, :3], second[:, :3])
    assert 20 < int(second[:, 3:].flatten(1).any(1).sum()) < 44
    assert second[:, 3:].abs().max() <= 1
    seen.clear()
    generator.sample(unet, 2, seed=0)
    assert not seen[0][0][:, 3:].any()
    assert all(each[:, 3:].any() for each, _ in seen[1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_self_conditioned_ddpm_teaches_the_pass_that_has_seen_the_first_ones_estimate(prediction: str, tmp_path: Path) -> None:
    generator, unet, _ = built(ddpm, self_conditioning=True, prediction=prediction)
    unet.eval()
    generator.save(copy.deepcopy(unet), tmp_path, {})
    maps: list[Tensor] = []
    unet.conv_norm_out.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    a = float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[50])
    kept, steps = torch.tensor([a, a]), torch.tensor([50, 50])
    noisy = a**0.5 * (images() * 2 - 1) + (1 - a) ** 0.5 * random().normal((2, 3, 16, 16))
    with torch.no_grad():
        output = unet(torch.cat([noisy, torch.zeros_like(noisy)], 1), steps).sample
        unet(torch.cat([noisy, estimate_picture(output, noisy, kept, prediction)], 1), steps)
    lesson = ddpm.open_folder(tmp_path, [1], Stochastic(50)).teach(images(), random())
    torch.testing.assert_close(lesson.features[0], maps[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps[0], maps[1], rtol=1e-3, atol=1e-3)
