"""Encodings against their formulas in float64, with networks whose noise is known, and through the teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Distill, Teacher
from dreamteacher.teachers import ddpm, edm
from dreamteacher.teachers import unet as unets
from dreamteacher.teachers.ddpm import build_scheduler
from dreamteacher.teachers.diffusion import DiffusionTeacher
from dreamteacher.teachers.encodings import Dream, Inversion, Stochastic, Stratified, encoding_of_pictures, get_encoding
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.training.randomness import StepRandom
from slim_unets import SLIM

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))


@pytest.fixture(autouse=True)
def slim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unets.SIZES, "tiny", SLIM)


def images(count: int = 2, side: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random(step: int = 0, part: int = 0, parts: int = 1) -> StepRandom:
    return StepRandom(3, step, part, parts)


class Gaussian:
    """The exact denoiser of pictures drawn from a normal distribution of mean 0.1 and deviation 0.4, in float64."""

    MEAN, STD = 0.1, 0.4

    def __init__(self) -> None:
        self.scheduler = build_scheduler(1000)
        self.queried_steps: list[int] = []

    def predict_noise(self, noisy: Tensor, steps: Tensor) -> Tensor:
        a = torch.from_numpy(ALPHA_BAR)[steps].view(-1, 1, 1, 1)
        self.queried_steps += [int(steps[0])]
        return (1 - a).sqrt() * (noisy - a.sqrt() * self.MEAN) / (a * self.STD**2 + 1 - a)


def test_settings_name_encodings_and_what_was_recorded_before_there_were_some_is_stochastic() -> None:
    assert get_encoding(Distill()) == get_encoding({"T": 50, "lr": 1e-3}) == Stochastic(50)
    assert get_encoding(Distill(encoding="ddim", T=7, passes=3)) == Inversion(7, 3)
    assert get_encoding(Distill(encoding="stratified", strata=[0, 5, 9])) == Stratified((0, 5, 9))
    assert get_encoding(Distill(encoding="dream", T=7).model_dump()) == Dream(7, 10)
    assert encoding_of_pictures(Distill(encoding="dream", T=7)) == Stochastic(7)
    assert encoding_of_pictures(Distill(encoding="ddim", T=7)) == Inversion(7, 10)


def test_inversion_takes_the_steps_of_ddim_backwards() -> None:
    """x_t' = sqrt(a_t') x0 + sqrt(1 - a_t') eps, x0 = (x - sqrt(1 - a_t) eps) / sqrt(a_t), from a = 1 on (Song et al. 2021, Eq 13)."""
    network, pictures = Gaussian(), images().double() * 2 - 1
    noisy, steps, clean = Inversion(200, 4).encode(network, pictures, random())  # type: ignore[arg-type]
    x, a = pictures.numpy(), 1.0
    for queried_steps, after in ((0, 50), (50, 100), (100, 150), (150, 200)):
        kept = ALPHA_BAR[queried_steps]
        noise = np.sqrt(1 - kept) * (x - np.sqrt(kept) * 0.1) / (kept * 0.16 + 1 - kept)
        x0 = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        a = ALPHA_BAR[after]
        x = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
    np.testing.assert_allclose(noisy.numpy(), x, rtol=1e-5, atol=1e-6)
    assert network.queried_steps == [0, 50, 100, 150]
    assert steps.tolist() == [200, 200]
    assert clean is pictures
    again = Inversion(200, 4).encode(network, pictures, random(9)).noisy  # type: ignore[arg-type]
    assert torch.equal(again, noisy)  # nothing is drawn


def test_inversion_in_many_steps_keeps_each_pictures_place_in_the_distribution() -> None:
    """Along the exact flow of a normal distribution a value that many deviations from the mean stays as many."""
    pictures = torch.linspace(-1.1, 1.3, 12, dtype=torch.float64).view(1, 3, 2, 2)
    noisy = Inversion(400, 400).encode(Gaussian(), pictures, random()).noisy  # type: ignore[arg-type]
    a = ALPHA_BAR[400]
    place = (noisy - np.sqrt(a) * 0.1) / np.sqrt(a * 0.16 + 1 - a)
    torch.testing.assert_close(place, (pictures - 0.1) / 0.4, rtol=0, atol=0.05)


@pytest.mark.parametrize(("T", "passes"), [(0, 5), (3, 10), (999, 2)])
def test_inversion_ends_at_its_step_whatever_their_number(T: int, passes: int) -> None:
    network = Gaussian()
    encoded = Inversion(T, passes).encode(network, images().double(), random())  # type: ignore[arg-type]
    assert encoded.steps.tolist() == [T, T]
    assert len(network.queried_steps) <= passes
    assert network.queried_steps == sorted(set(network.queried_steps))


def test_strata_are_taken_in_turn_by_the_pictures_of_a_batch_however_it_is_split() -> None:
    encoding, pictures = Stratified((0, 10, 300, 1000)), images(6) * 2 - 1
    network = Gaussian()
    noisy, steps, _ = encoding.encode(network, pictures, random())  # type: ignore[arg-type]
    assert np.digitize(steps.numpy(), [0, 10, 300, 1000]).tolist() == [1, 2, 3, 1, 2, 3]
    parts = [encoding.encode(network, pictures[i : i + 3], random(0, i // 3, 2)) for i in (0, 3)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat([part.noisy for part in parts]), noisy)
    assert torch.equal(torch.cat([part.steps for part in parts]), steps)
    draws = random()
    draws.integers(0, 2, 6)
    a = ALPHA_BAR[steps.numpy()][:, None, None, None]
    np.testing.assert_allclose(
        noisy.numpy(), np.sqrt(a) * pictures.numpy() + np.sqrt(1 - a) * draws.normal(pictures.shape).numpy(), atol=1e-5
    )


def test_the_steps_of_a_stratum_are_all_drawn_and_batches_of_one_picture_meet_every_stratum() -> None:
    encoding, one = Stratified((5, 8, 12)), torch.zeros(1, 3, 2, 2)
    drawn = [int(encoding.encode(Gaussian(), one, random(step)).steps) for step in range(60)]  # type: ignore[arg-type]
    assert set(drawn[::2]) == {5, 6, 7}
    assert set(drawn[1::2]) == {8, 9, 10, 11}


def test_dreams_are_of_the_distribution_and_noisy_at_their_step() -> None:
    network = Gaussian()
    noisy, steps, clean = Dream(100, 300).encode(network, torch.zeros(64, 3, 8, 8, dtype=torch.float64), random())  # type: ignore[arg-type]
    assert (clean.mean().item(), clean.std().item()) == (pytest.approx(0.1, abs=0.02), pytest.approx(0.4, abs=0.02))
    a = ALPHA_BAR[100]
    assert noisy.std().item() == pytest.approx(np.sqrt(a * 0.16 + 1 - a), abs=0.02)
    assert np.corrcoef(noisy.flatten(), clean.flatten())[0, 1] == pytest.approx(1, abs=1e-6)  # the flow of a normal distribution is linear
    assert network.queried_steps[0] == 999
    assert network.queried_steps == sorted(network.queried_steps, reverse=True)
    assert 100 in network.queried_steps
    assert len(network.queried_steps) <= 302
    assert set(steps.tolist()) == {100}


@pytest.mark.parametrize("T", [0, 1, 998, 999])
def test_dreams_reach_any_step(T: int) -> None:
    encoded = Dream(T, 4).encode(Gaussian(), torch.zeros(1, 3, 2, 2), random())  # type: ignore[arg-type]
    assert encoded.steps.tolist() == [T]
    assert encoded.clean.isfinite().all()


def test_dreams_of_a_schedule_that_ends_in_noise_alone_are_of_the_distribution_too() -> None:
    """Zero terminal SNR (Lin et al. 2023): the last step keeps nothing of a picture, and sqrt(alpha bar) = 0 divides nothing."""
    network = Gaussian()
    network.scheduler.alphas[-1] = network.scheduler.alphas_cumprod[-1] = 0
    encoded = Dream(100, 300).encode(network, torch.zeros(64, 3, 8, 8, dtype=torch.float64), random())  # type: ignore[arg-type]
    assert network.queried_steps[0] == 998
    assert float(encoded.clean.mean()) == pytest.approx(Gaussian.MEAN, abs=0.02)
    assert float(encoded.clean.std()) == pytest.approx(Gaussian.STD, abs=0.02)
    Dream(998, 4).check(network.scheduler)
    with pytest.raises(UserError, match="T = 999 of this teacher is noise alone; take 998 or less"):
        Dream(999, 4).check(network.scheduler)


@pytest.mark.parametrize("encoding", [Stochastic(100), Inversion(100, 5), Dream(100, 5), Stratified((0, 101))])
def test_a_step_beyond_the_schedule_is_refused_by_every_encoding(encoding: Stochastic) -> None:
    with pytest.raises(UserError, match="noise step T = 100 does not fit the teacher, which has 100 of them"):
        encoding.check(build_scheduler(100))


def built(kind: str, folder: Path) -> DiffusionTeacher:
    torch.manual_seed(0)
    settings = Teacher(resolution=16, prediction="epsilon" if kind == "epsilon" else "v_prediction")
    generator = edm.Generator(settings) if kind == "edm" else ddpm.Generator(settings)
    generator.save(generator.build(), folder, {})
    return open_teacher(folder, [2, 4], Stochastic(50))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "edm"])
def test_the_noise_that_a_teacher_predicts_is_what_its_own_sampler_takes_away(kind: str, tmp_path: Path) -> None:
    """By diffusers' DDIM for what a U-Net predicts; by the denoised picture for an EDM."""
    teacher = built(kind, tmp_path)
    noisy, steps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([300, 300])
    with torch.no_grad():
        noise = teacher.predict_noise(noisy, steps)
        a = teacher.scheduler.alphas_cumprod[300]
        if kind == "edm":
            denoiser = edm.Denoiser(teacher.whole)
            clean = denoiser(noisy / a.sqrt(), ((1 - a) / a).sqrt().expand(2))
        else:
            from diffusers import DDIMScheduler

            sampler = DDIMScheduler.from_config(teacher.scheduler.config, clip_sample=False)
            sampler.set_timesteps(10)
            clean = sampler.step(teacher.whole(noisy, 300).sample, 300, noisy).pred_original_sample
    torch.testing.assert_close((noisy - (1 - a).sqrt() * noise) / a.sqrt(), clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["v_prediction", "edm"])
def test_what_a_teacher_teaches_by_each_encoding(kind: str, tmp_path: Path) -> None:
    teacher, pictures = built(kind, tmp_path), images(4)
    stochastic = teacher.teach(pictures, random())
    assert stochastic.step is not None
    assert stochastic.step.tolist() == [50] * 4

    stratified = teacher.with_encoding(Stratified((0, 500, 1000))).teach(pictures, random())
    assert stratified.images is pictures
    assert [int(step) // 500 for step in stratified.step] == [0, 1, 0, 1]  # type: ignore[union-attr]

    inverted = teacher.with_encoding(Inversion(50, 3))
    first, other = inverted.teach(pictures, random()), inverted.teach(pictures, random(5))
    assert first.images is pictures
    assert all(torch.equal(a, b) for a, b in zip(first.features, other.features, strict=True))
    assert not torch.equal(first.features[0], stochastic.features[0])

    dreaming = teacher.with_encoding(Dream(50, 4))
    first, same, other = (dreaming.teach(given, random(step)) for given, step in ((pictures, 0), (images(4, seed=2), 0), (pictures, 1)))
    assert first.images.shape == pictures.shape
    assert 0 <= first.images.min() <= first.images.max() <= 1
    assert torch.equal(first.images, same.images)  # nothing of the pictures that are given
    assert torch.equal(first.features[0], same.features[0])
    assert not torch.equal(first.images, other.images)
    assert [tuple(maps.shape) for maps in first.features] == [tuple(maps.shape) for maps in stochastic.features]


def test_the_cut_network_shares_its_weights_with_the_whole_one_and_both_move_together(tmp_path: Path) -> None:
    teacher = built("v_prediction", tmp_path)
    whole, cut = dict(teacher.whole.named_parameters()), dict(teacher.unet.named_parameters())
    assert set(cut) < set(whole)
    assert all(cut[name] is whole[name] for name in cut)
    teacher.double()
    assert all(teacher.unet.get_parameter(name) is teacher.whole.get_parameter(name) for name in cut)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float64}
