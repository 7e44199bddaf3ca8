"""StyleGAN2 against its equations, one picture at a time, and its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.schema import Params
from dreamteacher.teachers import ada, augmentation
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.teachers.stylegan2 import Generator, Players, default_gamma, gradient_penalty
from dreamteacher.teachers.stylegan2_network import Discriminator, Synthesizer, blur, deviation, modulated_convolution, upsample
from dreamteacher.training.randomness import StepRandom


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random(step: int = 0, part: int = 0, parts: int = 1) -> StepRandom:
    return StepRandom(3, step, part, parts)


def built(**settings: Any) -> tuple[Generator, Players]:
    torch.manual_seed(0)
    generator = Generator(Teacher(kind="stylegan2", resolution=16, **settings))
    return generator, generator.build()


def stretched(x: Tensor) -> Tensor:
    """Zeros between the values."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


KERNEL = torch.tensor([1.0, 3, 3, 1])[:, None] * torch.tensor([1.0, 3, 3, 1]) / 64


def filtered(x: Tensor, before: int, after: int) -> Tensor:
    return torch.stack([F.conv2d(F.pad(m[None, None], [before, after, before, after]), KERNEL[None, None])[0, 0] for m in x[0]])[None]


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_is_that_of_each_picture_with_its_own_kernel(up: bool) -> None:
    x, weight, style = normal(3, 4, 6, 6), normal(5, 4, 3, 3, seed=1), normal(3, 4, seed=2)
    expected = []
    for picture, s in zip(x, style, strict=True):
        kernel = weight * s[None, :, None, None]  # Eq 1
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # Eq 3
        if up:  # the true convolution (mirrored kernel) of the picture with zeros between, then the filter
            wide = F.conv2d(F.pad(stretched(picture[None]), [2, 1, 2, 1]), kernel.flip(2, 3))
            expected.append(filtered(wide, 1, 1)[0] * 4)
        else:
            expected.append(F.conv2d(picture[None], kernel, padding=1)[0])
    found = modulated_convolution(x, weight, style, up)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_resampling_keeps_the_mean_and_is_the_filter_over_stretched_maps() -> None:
    x = normal(1, 2, 8, 8)
    torch.testing.assert_close(upsample(x), filtered(stretched(x), 2, 1) * 4)
    torch.testing.assert_close(upsample(torch.ones(1, 2, 8, 8))[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    torch.testing.assert_close(blur(x, 1), filtered(x, 1, 1))
    assert blur(x, 2).shape == (1, 2, 9, 9)


def test_the_deviation_is_that_over_groups_of_four_or_what_divides_the_batch() -> None:
    x = normal(8, 3, 2, 2)
    groups = [[x[i], x[i + 2], x[i + 4], x[i + 6]] for i in range(2)]
    expected = [torch.stack(group).std(0, unbiased=False).mean() for group in groups]
    torch.testing.assert_close(deviation(x)[:, 0, 0, 0], torch.stack(expected * 4), rtol=1e-4, atol=1e-4)
    assert deviation(x[:6]).shape == (6, 1, 2, 2)
    torch.testing.assert_close(deviation(x[:1]), torch.full((1, 1, 2, 2), 1e-4))


def test_the_penalty_is_the_squared_gradient_by_finite_differences() -> None:
    """All in float64: of a sum in float32 a step so small that it crosses no kink of a leaky ReLU would show mostly rounding."""
    torch.manual_seed(0)
    discriminator, images, step = Discriminator([4, 4]).double(), normal(2, 3, 8, 8).double(), 1e-7
    steps = torch.eye(images[0].numel(), dtype=torch.double).view(-1, 1, *images.shape[1:]) * step

    def total(pictures: Tensor) -> Tensor:
        return discriminator(pictures).sum()

    with in_double(), torch.no_grad():
        squares = [((total(images + moved) - total(images - moved)) / (2 * step)).square() for moved in _one_picture(steps, images)]
    with in_double():
        penalty = gradient_penalty(discriminator, images)
    assert penalty.item() == pytest.approx(float(torch.stack(squares).sum() / len(images)), rel=1e-5)
    penalty.backward()
    weight = discriminator.conv.grad
    assert weight is not None and weight.abs().max() > 0  # it can be learnt from


def _one_picture(steps: Tensor, images: Tensor) -> list[Tensor]:
    moves = []
    for i in range(len(images)):
        for step in steps:
            moved = torch.zeros_like(images)
            moved[i] = step
            moves.append(moved)
    return moves


@contextmanager
def in_double() -> Iterator[None]:
    """What computes in float32 does so in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def test_each_player_learns_from_its_own_loss_alone() -> None:
    """The gradient of the sum is that of each loss with the other player's weights fixed."""
    _, players = built(r1_gamma=0.0)
    images = normal(4, 3, 16, 16).sigmoid()
    together = players(images, random(1))
    together["loss"].backward()
    for name, own in (("generator", players.generator), ("discriminator", players.discriminator)):
        alone = copy.deepcopy(players)
        alone.zero_grad()
        alone(images, random(1))[name].backward()
        for (key, parameter), (_, reference) in zip(own.named_parameters(), getattr(alone, name).named_parameters(), strict=True):
            assert parameter.grad is not None and reference.grad is not None, key
            torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        fake, _ = players.generator.draw(4, random(1))
        logits = players.discriminator(fake)
        torch.testing.assert_close(together["generator"], -F.logsigmoid(logits).mean())
        real = -F.logsigmoid(players.discriminator(images * 2 - 1)).mean()
        torch.testing.assert_close(together["discriminator"], real - F.logsigmoid(-logits).mean())


def test_regularisation_is_lazy_and_scaled_for_it() -> None:
    _, players = built(r1_gamma=3.0)
    images = normal(4, 3, 16, 16).sigmoid()
    penalties = [players(images, random(step))["r1"] for step in (0, 1, 15, 16)]
    assert [bool(value > 0) for value in penalties] == [True, False, False, True]
    expected = 16 * 3 / 2 * gradient_penalty(players.discriminator, images * 2 - 1)
    torch.testing.assert_close(penalties[0], expected, rtol=1e-4, atol=1e-6)
    assert default_gamma(256, 16) == pytest.approx(0.8192)


def test_augmentation_adapts_to_how_well_real_pictures_are_recognised() -> None:
    """At 0.6 mean sign p stays; above it rises by 4 batches of 500,000 every 4 steps; it never passes 0.8, nor does it fall below 0."""
    adaptation = ada.Adaptation(0.6)
    sure, lost = torch.ones(50_000), -torch.ones(50_000)
    for step in range(9):
        adaptation.update(sure, random(step))
    assert float(adaptation.p) == pytest.approx(0.8)  # twice 4 x 50,000 / 500,000
    for step in range(12, 25):
        adaptation.update(lost, random(step))
    assert float(adaptation.p) == 0
    off = ada.Adaptation(None)
    for step in range(9):
        off.update(sure, random(step))
    assert float(off.p) == 0


def test_the_parts_of_a_batch_adapt_it_as_the_whole_does() -> None:
    whole, parted = ada.Adaptation(0.6), ada.Adaptation(0.6)
    for step in range(9):
        logits = normal(8, seed=step) + 2
        whole.update(logits, random(step))
        for part, share in enumerate(logits.chunk(2)):
            parted.update(share, random(step, part, 2))
    assert torch.equal(whole.p, parted.p)
    assert float(whole.p) > 0


def test_unaugmented_pictures_are_left_as_they_are_and_augmented_ones_pass_gradients() -> None:
    pictures = (normal(4, 3, 16, 16) / 2).requires_grad_()
    torch.testing.assert_close(ada.augment(pictures, torch.tensor(0.0), random()), pictures)
    changed = ada.augment(pictures, torch.tensor(0.8), random())
    assert not torch.allclose(changed, pictures)
    (gradient,) = torch.autograd.grad(changed.sum(), pictures)
    assert gradient.isfinite().all() and (gradient != 0).any()
    grey = torch.full((64, 3, 4, 4), 0.25)
    turned = ada.recolour(grey, torch.tensor(1.0), random())
    torch.testing.assert_close(turned.amax(1), turned.amin(1))  # hue and saturation leave grey alone


def test_p_is_the_share_of_pictures_that_are_changed() -> None:
    parameters = augmentation.draw_parameters(20_000, random(), torch.tensor(0.3))
    assert float(parameters[:, 0].mean()) == pytest.approx(0.15, abs=0.02)  # of those changed half are flipped
    assert float((parameters[:, 2] != 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_a_trained_one_continues_and_teaches_from_its_folder(tmp_path: Path) -> None:
    generator, players = built()
    generator.save(players, tmp_path, {"resolution": 16})
    torch.manual_seed(1)
    other = generator.build()
    generator.load_weights(other, tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in players.state_dict().items())
    assert choose_strides(tmp_path, "auto") == [2, 4]
    teacher = open_teacher(tmp_path, [1, 4], Stochastic(50))
    given = torch.rand(3, 3, 40, 24)
    lesson = teacher.teach(given, random())
    assert lesson.images.shape == (3, 3, 16, 16) and lesson.images.min() >= 0 and lesson.images.max() <= 1
    assert [tuple(m.shape) for m in lesson.features] == [(3, 64, 16, 16), (3, 64, 4, 4)]
    again = teacher.with_encoding(Stochastic(0)).teach(torch.zeros(3, 3, 8, 8), random())
    assert torch.equal(lesson.images, again.images)
    assert not torch.equal(lesson.images, teacher.teach(given, random(1)).images)
    picture, maps = players.eval().generator.draw(3, random())
    torch.testing.assert_close(lesson.features[0], maps[2])
    torch.testing.assert_close(lesson.images, (picture / 2 + 0.5).clamp(0, 1))
    pictures = generator.sample(players, 2, seed=4)
    assert pictures.shape == (2, 3, 16, 16) and torch.equal(pictures, generator.sample(players, 2, seed=4))


def test_truncation_pulls_w_to_its_mean() -> None:
    network = Synthesizer(8, 2, [8, 8]).train()
    z = normal(512, 8)
    for _ in range(1500):
        network.mapping(z)
    network.eval()
    mean = network.mapping(z).mean(0)
    torch.testing.assert_close(network.mapping.average, mean, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(network.mapping(z, truncation=0.25), mean + 0.25 * (network.mapping(z) - mean), rtol=1e-2, atol=1e-3)


def test_it_learns_the_colour_of_the_pictures() -> None:
    """Red pictures: after fifty steps with the kind's own optimiser settings it makes red ones."""
    from dreamteacher.training.optim import create_optimizer

    settings = Params.model_validate({"teacher": {"kind": "stylegan2", "resolution": 16}}).teacher
    assert (settings.betas, settings.clip) == ((0.0, 0.99), None)
    torch.manual_seed(0)
    generator = Generator(settings)
    players = generator.build()
    optimizer = create_optimizer(players, settings)
    red = torch.zeros(4, 3, 16, 16)
    red[:, 0] = 0.9
    for step in range(50):
        generator.loss(players, red + 0.05 * torch.rand(4, 3, 16, 16), random(step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    made = generator.sample(players.eval(), 16, 0).mean((0, 2, 3))
    assert made[0] > made[1:].max() + 0.3


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.resolution = 48 does not fit a stylegan2: take a power of two, such as 32"):
        Generator(Teacher(resolution=48)).build()
    generator, players = built()
    generator.save(players, tmp_path, {})
    with pytest.raises(UserError, match=r"of another size than teacher\.size"):
        larger = Generator(Teacher(resolution=32))
        larger.load_weights(larger.build(), tmp_path)
    with pytest.raises(UserError, match=r"no tap at stride 8; it has \[1, 2, 4\]"):
        open_teacher(tmp_path, [8], Stochastic(0))
    (tmp_path / "discriminator.safetensors").unlink()
    with pytest.raises(UserError, match=r"no discriminator\.safetensors, so its training cannot go on"):
        generator.load_weights(players, tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        open_teacher(tmp_path, [4], Stochastic(0))
