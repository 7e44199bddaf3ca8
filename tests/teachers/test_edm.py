"""EDM against its formulas by numpy, a full pass with hooks, and a distribution whose denoiser is known."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.teachers import unet as unets
from dreamteacher.teachers.edm import Denoiser, EDMTeacher, Generator, open_folder
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.training.randomness import StepRandom
from slim_unets import SLIM


@pytest.fixture(autouse=True)
def slim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unets.SIZES, "tiny", SLIM)


def random() -> StepRandom:
    return StepRandom(3, 0, 0, 1)


def images(count: int = 2, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def built() -> Denoiser:
    torch.manual_seed(0)
    return Generator(Teacher(resolution=16)).build()


def test_the_denoiser_scales_inputs_and_outputs_as_the_papers_table_1() -> None:
    denoiser, calls = built().eval(), []
    denoiser.unet.register_forward_hook(lambda module, inputs, options, output: calls.append((*inputs, options, output)), with_kwargs=True)
    sigma = np.array([0.01, 0.7, 30.0], np.float32)
    noisy = images(3).numpy() * 10
    with torch.no_grad():
        denoised = denoiser(torch.from_numpy(noisy), torch.from_numpy(sigma)).numpy()
    scaled, level, options, output = calls[0]
    s = sigma[:, None, None, None]
    np.testing.assert_allclose(scaled.numpy(), noisy / np.sqrt(s**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(level.numpy(), np.log(sigma) / 4, rtol=1e-5)
    assert not options["class_labels"].any()
    expected = 0.25 / (s**2 + 0.25) * noisy + s * 0.5 / np.sqrt(s**2 + 0.25) * output.sample.numpy()
    np.testing.assert_allclose(denoised, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_weighs_every_noise_level_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """lambda(sigma) of Tab 1 makes the error of a network that outputs nothing the same in expectation: that of unit variance."""
    denoiser = built()
    monkeypatch.setattr(denoiser.unet, "forward", lambda noisy, *_, **__: SimpleNamespace(sample=torch.zeros_like(noisy)))
    gaussian = (torch.randn(4000, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 1) / 2  # sigma_data in [-1, 1]
    losses = []
    for log_sigma in (-3.0, 0.0, 3.0):
        monkeypatch.setattr("dreamteacher.teachers.edm.LOG_SIGMA_MEAN", log_sigma)
        monkeypatch.setattr("dreamteacher.teachers.edm.LOG_SIGMA_STD", 0.0)
        monkeypatch.setattr("dreamteacher.teachers.augmentation.SHARE", 0.0)
        losses.append(Generator(Teacher()).loss(denoiser, gaussian, random())["loss"].item())
    assert losses == pytest.approx([1, 1, 1], abs=0.02)


def test_the_network_is_told_of_its_augmentation_and_learns_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamteacher.teachers.augmentation.SHARE", 1.0)
    denoiser = built()
    Generator(Teacher()).loss(denoiser, images(4), random())["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in denoiser.parameters())
    assert (denoiser.conditioning.weight.grad != 0).any(0).all()  # type: ignore[union-attr]


def test_sampling_gives_the_distribution_whose_denoiser_it_is_given() -> None:
    """Of normal values of mean 0 and deviation 0.3, D is x s^2 / (s^2 + sigma^2)."""

    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where = nn.Parameter(torch.zeros(()))

        def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
            return noisy * 0.09 / (0.09 + sigma[:, None, None, None].square())

    errors = []
    for steps in (18, 36):
        generator = Generator(Teacher(resolution=32, sample_steps=steps))
        pictures = generator.sample(Known(), 16, seed=0) * 2 - 1
        assert pictures.shape == (16, 3, 32, 32)
        assert float(pictures.mean()) == pytest.approx(0, abs=0.01)
        assert torch.equal(pictures, generator.sample(Known(), 16, seed=0) * 2 - 1)
        errors.append(abs(float(pictures.std()) - 0.3))
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 3  # of second order


@pytest.mark.parametrize("T", [0, 50, 400])
def test_the_teacher_hands_out_what_a_full_pass_at_the_same_noise_does(T: int, tmp_path: Path) -> None:
    """Through the folder. The noise at step T is that of a DDPM: sigma^2 = (1 - a) / a with a the running product of 1 - beta."""
    denoiser = built().eval()
    torch.nn.init.normal_(denoiser.conditioning.weight)  # which parameters of 0 keep out
    Generator(Teacher(resolution=16)).save(copy.deepcopy(denoiser), tmp_path, {})
    seen: list[Tensor] = []
    for module in [*(block.upsamplers[0] for block in denoiser.unet.up_blocks[:-1]), denoiser.unet.conv_norm_out]:
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    a = float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[T])
    sigma = torch.tensor([((1 - a) / a) ** 0.5] * 2)
    with torch.no_grad():
        denoiser(images() * 2 - 1 + sigma[0] * random().normal((2, 3, 16, 16)), sigma)
    teacher = open_folder(tmp_path, None, Stochastic(T))
    assert isinstance(teacher, EDMTeacher)
    lesson = teacher.teach(images(), random())
    for maps, reference in zip(lesson.features, seen[::-1], strict=True):
        torch.testing.assert_close(maps, reference, rtol=1e-3, atol=1e-4)


def test_training_continues_from_what_was_saved(tmp_path: Path) -> None:
    denoiser, generator = built(), Generator(Teacher(resolution=16))
    generator.save(denoiser, tmp_path, {})
    torch.manual_seed(1)
    other = generator.build()
    generator.load_weights(other, tmp_path)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in denoiser.state_dict().items())
    with pytest.raises(UserError, match=r"num_train_timesteps = 1000, not 500; set teacher\.T_train alike"):
        Generator(Teacher(resolution=16, T_train=500)).load_weights(other, tmp_path)
    (tmp_path / "augmentation.safetensors").unlink()
    with pytest.raises(UserError, match=r"is damaged \(.+\); fetch it again"):
        generator.load_weights(other, tmp_path)


def refused(**settings: Any) -> None:
    Generator(Teacher(**settings)).build()


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"teacher\.resolution = 36 does not fit the 'tiny' U-Net: take a multiple of 8"):
        refused(resolution=36)


def test_a_self_conditioned_network_learns_from_its_own_estimate_half_of_the_time() -> None:
    torch.manual_seed(0)
    generator = Generator(Teacher(resolution=16, self_conditioning=True, sample_steps=3))
    denoiser, calls = generator.build(), []
    denoiser.unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].detach()))
    generator.loss(denoiser, images(64), random())["loss"].backward()
    first, second = calls
    assert first.shape[1] == second.shape[1] == 6
    assert not first[:, 3:].any()
    assert torch.equal(first[:, :3], second[:, :3])
    conditioned = second[:, 3:].flatten(1).any(1)
    assert 20 < int(conditioned.sum()) < 44
    calls.clear()
    assert generator.sample(denoiser, 2, seed=0).shape == (2, 3, 16, 16)
    assert not calls[0][:, 3:].any()
    assert all(each[:, 3:].any() for each in calls[1:])


def test_a_self_conditioned_teacher_teaches_the_pass_that_has_seen_the_first_ones_estimate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = Generator(Teacher(resolution=16, self_conditioning=True))
    denoiser = generator.build().eval()
    generator.save(copy.deepcopy(denoiser), tmp_path, {})
    seen: list[Tensor] = []
    denoiser.unet.conv_norm_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    a = float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[50])
    sigma = torch.tensor([((1 - a) / a) ** 0.5] * 2)
    noisy = images() * 2 - 1 + sigma[0] * random().normal((2, 3, 16, 16))
    with torch.no_grad():
        denoiser(noisy, sigma, estimate=denoiser(noisy, sigma))
    lesson = open_folder(tmp_path, [1], Stochastic(50)).teach(images(), random())
    torch.testing.assert_close(lesson.features[0], seen[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1], rtol=1e-3, atol=1e-3)
