"""Equations 1 to 6 against numpy code written from the paper, and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamteacher.distillation.objectives import (
    ExplainedVariance,
    attention_map,
    attention_transfer,
    cosine_distance,
    feature_mse,
    layernorm_whitening,
    relational,
    self_similarity,
    smooth_l1,
    soft_label_cross_entropy,
    soft_label_dice,
    standardize_whitening,
)


def maps(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + scale


def test_layernorm_whitening_is_that_of_numpy_per_picture() -> None:
    features = maps(3, 4, 5, 6, scale=70)
    array = features.double().numpy()
    mean, var = array.mean((1, 2, 3), keepdims=True), array.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(layernorm_whitening(features).numpy(), (array - mean) / np.sqrt(var + 1e-5), atol=1e-5)


def test_whitening_has_no_parameters_and_forgets_the_scale() -> None:
    features = maps(2, 8, 4, 4)
    torch.testing.assert_close(layernorm_whitening(features * 100 + 3), layernorm_whitening(features), rtol=1e-3, atol=1e-4)
    assert layernorm_whitening(torch.full((1, 2, 3, 3), 7.0)).abs().max() == 0


def test_standardize_whitening_centres_and_scales_each_channel() -> None:
    features = torch.tensor([[[[1.0, 3.0]], [[10.0, 30.0]]]])
    whitened = standardize_whitening(features, torch.tensor([2.0, 20.0]), torch.tensor([1.0, 5.0]))
    assert whitened.tolist() == [[[[-1.0, 1.0]], [[-2.0, 2.0]]]]


def test_equation_1_on_small_numbers() -> None:
    """Two taps: squares 1, 4 (mean 2.5) and 9 (mean 9); their mean is 5.75."""
    regressed = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0]]]])]
    assert feature_mse(regressed, [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]).item() == pytest.approx(5.75)


def test_equation_2_on_small_numbers() -> None:
    """Regressed: two channels (1, 0) and (1, 0) at two pixels sum to Q = (2, 0), a unit vector (1, 0).

    Target: one channel (sqrt 3, 2) gives Q = (3, 4), the unit vector (0.6, 0.8). Their distance is sqrt(0.4^2 + 0.8^2) = sqrt 0.8.
    """
    regressed = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    target = torch.tensor([[[[math.sqrt(3), 2.0]], [[0.0, 0.0]]]])
    assert attention_map(target).tolist() == [pytest.approx([0.6, 0.8])]
    assert attention_transfer([regressed], [target]).item() == pytest.approx(math.sqrt(0.8))


def numpy_attention_transfer(regressed: list[np.ndarray], target: list[np.ndarray]) -> float:
    """Eq 2, p = 2, one picture and one tap at a time."""
    total = 0.0
    for r, t in zip(regressed, target, strict=True):
        distances = []
        for one, other in zip(r, t, strict=True):
            q_r, q_t = (np.sum(np.abs(x) ** 2, axis=0).ravel() for x in (one, other))
            distances.append(np.linalg.norm(q_r / np.linalg.norm(q_r) - q_t / np.linalg.norm(q_t), ord=2))
        total += np.mean(distances)
    return total / len(regressed)


def numpy_mse(regressed: list[np.ndarray], whitened: list[np.ndarray]) -> float:
    return sum(np.sum((r - w) ** 2) / r.size for r, w in zip(regressed, whitened, strict=True)) / len(regressed)


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.sampled_from([1e-2, 1.0, 1e3]), st.integers(0, 99))
def test_equations_1_and_2_are_those_of_numpy(batch: int, channels: int, side: int, scale: float, seed: int) -> None:
    shapes = [(batch, channels, 2 * side, side), (batch, channels + 1, side, side)]
    regressed = [maps(*shape, seed=seed) for shape in shapes]
    target = [maps(*shape, seed=seed + 1, scale=scale) for shape in shapes]
    arrays = [[x.double().numpy() for x in side] for side in (regressed, target)]
    assert feature_mse(regressed, target).item() == pytest.approx(numpy_mse(*arrays), rel=1e-4)
    assert attention_transfer(regressed, target).item() == pytest.approx(numpy_attention_transfer(*arrays), rel=1e-4, abs=1e-5)


def test_attention_of_equal_energy_is_free_whatever_the_channels_and_the_scale() -> None:
    target = maps(2, 6, 4, 4)
    assert attention_transfer([target.flip(1) * 5], [target]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("case", ["equal", "zero", "tiny", "huge", "zero target"])
def test_gradients_are_finite_where_a_norm_vanishes(case: str) -> None:
    target = maps(2, 3, 4, 4)
    start = {"equal": target, "zero": target * 0, "tiny": target * 1e-18, "huge": target * 1e6, "zero target": target}[case]
    regressed = start.clone().requires_grad_()
    other = target * 0 if case == "zero target" else target
    loss = attention_transfer([regressed], [other]) + feature_mse([regressed], [layernorm_whitening(other)])
    loss.backward()
    assert loss.isfinite()
    assert regressed.grad is not None
    assert regressed.grad.isfinite().all()


TAPS = [(maps(2, 3, 4, 5, seed=1), maps(2, 3, 4, 5, seed=2)), (maps(2, 6, 2, 2, seed=3), maps(2, 6, 2, 2, seed=4))]
REGRESSED, WHITENED = [r for r, _ in TAPS], [w for _, w in TAPS]


def vectors(features: torch.Tensor) -> list[list[np.ndarray]]:
    """The channel vectors of each place, picture by picture, in float64."""
    return [[picture[:, y, x].double().numpy() for y in range(picture.shape[1]) for x in range(picture.shape[2])] for picture in features]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_cosine_distance_and_smooth_l1_are_those_of_plain_loops() -> None:
    distances, errors = [], []
    for r, w in TAPS:
        pairs = [(a, b) for rs, ws in zip(vectors(r), vectors(w), strict=True) for a, b in zip(rs, ws, strict=True)]
        distances.append(np.mean([1 - cosine(a, b) for a, b in pairs]))
        gaps = [abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)]
        errors.append(np.mean([gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps]))
    assert cosine_distance(REGRESSED, WHITENED).item() == pytest.approx(np.mean(distances), rel=1e-5)
    assert smooth_l1(REGRESSED, WHITENED).item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert cosine_distance([7 * r for r in WHITENED], WHITENED).item() == pytest.approx(0, abs=1e-6)  # the length says nothing


def test_relational_compares_the_cosines_between_the_places_of_each_picture() -> None:
    expected = []
    for r, w in TAPS:
        gaps = []
        for rs, ws in zip(vectors(r), vectors(w), strict=True):
            gaps += [(cosine(rs[i], rs[j]) - cosine(ws[i], ws[j])) ** 2 for i in range(len(rs)) for j in range(len(rs))]
        expected.append(np.mean(gaps))
    assert relational(REGRESSED, WHITENED).item() == pytest.approx(np.mean(expected), rel=1e-5)
    # Any rotation of the channels is free: a student may have features of its own, and even another number of them.
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    rotated = torch.einsum("dc,bchw->bdhw", rotation, WHITENED[1])
    assert relational([rotated], [WHITENED[1]]).item() == pytest.approx(0, abs=1e-6)


def test_the_places_of_large_maps_are_compared_after_averaging_and_in_float32() -> None:
    large = maps(1, 4, 64, 32)
    similarity = self_similarity(large)
    assert similarity.shape == (1, 256, 256)
    torch.testing.assert_close(similarity, self_similarity(torch.nn.functional.avg_pool2d(large, (4, 2))))
    assert self_similarity(maps(1, 4, 3, 40)).shape == (1, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(self_similarity(large), similarity)


def test_equation_5_on_small_numbers() -> None:
    """tau = 4: teacher logits (4 ln 3, 0) soften to (3/4, 1/4); student logits (0, 0) to (1/2, 1/2). H = ln 2."""
    teacher, student = torch.tensor([[4 * math.log(3), 0.0]]), torch.zeros(1, 2)
    assert soft_label_cross_entropy(student, teacher, 4.0).item() == pytest.approx(math.log(2))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert soft_label_cross_entropy(teacher, teacher, 4.0).item() == pytest.approx(entropy)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 6)])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_equation_5_is_that_of_numpy(shape: tuple[int, ...], tau: float) -> None:
    student, teacher = maps(*shape, seed=1, scale=5), maps(*shape, seed=2, scale=5)

    def softened(logits: torch.Tensor) -> np.ndarray:
        e = np.exp(logits.double().numpy() / tau)
        return e / e.sum(1, keepdims=True)

    expected = -(softened(teacher) * np.log(softened(student))).sum(1).mean()
    assert soft_label_cross_entropy(student, teacher, tau).item() == pytest.approx(expected, rel=1e-5)
    student.requires_grad_()
    soft_label_cross_entropy(student, teacher, tau).backward()
    # d H / d logit = (P_student - P_teacher) / tau, over the number of pictures and pixels
    count = student.numel() / shape[1]
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), (softened(student.detach()) - softened(teacher)) / tau / count, atol=1e-6)


def test_soft_labels_survive_extreme_logits_and_bf16() -> None:
    student = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = soft_label_cross_entropy(student, torch.tensor([[-1000.0, 1000.0]]), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(500)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert soft_label_cross_entropy(torch.zeros(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16(), 4.0).dtype == torch.float32


def explained_variance(regressed: torch.Tensor, target: torch.Tensor, batches: int = 1) -> float:
    explained = ExplainedVariance()
    for r, t in zip(regressed.chunk(batches), target.chunk(batches), strict=True):
        explained.update(r, t)
    return explained.compute()


def test_explained_variance_is_one_for_the_target_and_zero_for_its_mean() -> None:
    target = maps(4, 3, 5, 5)
    assert explained_variance(target, target) == 1
    mean = target.mean((0, 2, 3), keepdim=True).expand_as(target)
    assert explained_variance(mean, target) == pytest.approx(0, abs=1e-6)
    assert explained_variance(2 * mean - target, target, batches=4) == explained_variance(2 * mean - target, target)
    assert explained_variance(2 * mean - target, target) == pytest.approx(-3, abs=1e-5)
    array, noisy = target.double().numpy(), maps(4, 3, 5, 5, seed=9).double().numpy()
    spread = np.sum((array - array.mean((0, 2, 3), keepdims=True)) ** 2)
    assert explained_variance(torch.from_numpy(noisy).float(), target) == pytest.approx(1 - np.sum((noisy - array) ** 2) / spread, rel=1e-5)


def test_variance_within_pictures_counts_nothing_that_tells_pictures_apart() -> None:
    looks, places = 10 * maps(4, 3, 1, 1), maps(4, 3, 5, 5)
    places = places - places.mean((2, 3), keepdim=True)
    explained = ExplainedVariance()
    for picture in range(4):  # as batches of one
        explained.update(looks[picture : picture + 1].expand(1, 3, 5, 5), (looks + places)[picture : picture + 1])
    assert explained.compute() > 0.9
    assert explained.within() == pytest.approx(0, abs=1e-5)
    half = ExplainedVariance()
    half.update(looks + 0.5 * places, looks + places)
    assert half.within() == pytest.approx(0.75, abs=1e-5)
    of_one_cell = ExplainedVariance()
    of_one_cell.update(looks, 2 * looks)
    assert of_one_cell.within() is None


def test_dice_of_soft_labels_is_least_where_both_agree() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 8, 8)
    assert soft_label_dice(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    student = teacher.clone().requires_grad_()
    soft_label_dice(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-6  # also where the labels are not sure
    sharper = soft_label_dice(3 * teacher, teacher).item()
    assert 0 < sharper < soft_label_dice(-teacher, teacher).item() <= 1


def test_dice_of_sure_labels_is_the_share_of_overlap() -> None:
    """Classes of 32 and 32 against 16 and 48 pixels, 16 and 32 of which overlap."""
    student, teacher = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    for logits, rows in ((student, 4), (teacher, 2)):
        logits[:, 0, :rows] = logits[:, 1, rows:] = 1000.0
    expected = 1 - ((2 * 16 + 1) / (32 + 16 + 1) + (2 * 32 + 1) / (32 + 48 + 1)) / 2
    assert soft_label_dice(student, teacher).item() == pytest.approx(expected, rel=1e-5)
