"""The step of feature distillation: Eq 3, both kinds of whitening, quality metrics and collapse detection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dreamteacher.distillation.features import FeatureObjective, Quality, embedding_spread, inner_cells
from dreamteacher.distillation.objectives import attention_transfer, feature_mse, layernorm_whitening
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Tap

TAPS = [Tap("up_blocks.1", 2, 3), Tap("up_blocks.0", 4, 5)]
EQUATION_3 = FeatureObjective(layernorm, [2, 4], {"mse": 1.0, "at": 10.0})


def features(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 8, 8, generator=generator) * 40, torch.randn(2, 5, 4, 4, generator=generator) + 9]


def test_equation_3_adds_attention_on_raw_targets_to_the_error_on_whitened_ones() -> None:
    regressed, target = features(0), features(1)
    losses = EQUATION_3(regressed, target)
    mse = feature_mse(regressed, [layernorm_whitening(t) for t in target])
    at = attention_transfer(regressed, target)
    assert losses["mse"].item() == pytest.approx(mse.item())
    assert losses["at"].item() == pytest.approx(at.item())
    assert losses["loss"].item() == pytest.approx(mse.item() + 10 * at.item())
    # whitened targets would give another attention term: it is the raw ones that count
    assert attention_transfer(regressed, [layernorm_whitening(t) for t in target]).item() != pytest.approx(at.item(), rel=1e-3)


def test_the_floor_of_attention_is_what_perfectly_regressed_whitened_maps_leave() -> None:
    """Eq 2 compares with raw maps, Eq 1 with whitened ones: no student brings both to 0."""
    losses = EQUATION_3([layernorm_whitening(t) for t in features(1)], features(1))
    assert losses["mse"].item() == 0
    assert losses["at"].item() == losses["at_floor"].item() > 0.05
    assert EQUATION_3(features(0), features(1))["at_floor"].item() == losses["at_floor"].item()
    assert "at_floor" not in replace(EQUATION_3, weights={"mse": 1.0})(features(0), features(1))


def test_a_term_of_weight_0_is_logged_and_teaches_nothing() -> None:
    regressed = [r.requires_grad_() for r in features(0)]
    losses = replace(EQUATION_3, weights={"mse": 2.0, "cosine": 0.0})(regressed, features(1))
    assert losses["cosine"].item() > 0
    assert losses["loss"].item() == 2 * losses["mse"].item()


def test_the_global_term_compares_the_embedding_with_the_average_of_the_coarsest_whitened_map() -> None:
    objective = replace(EQUATION_3, weights={"global": 1.0})
    average = layernorm(features(1))[1].mean((2, 3))
    assert objective([*features(0), average * 3], features(1))["loss"].item() == pytest.approx(0, abs=1e-6)
    assert objective([*features(0), -average], features(1))["global"].item() == pytest.approx(2, abs=1e-6)
    regressed, whitened = objective.compared([*features(0), average], features(1))
    assert len(regressed) == len(whitened) == 2


def test_the_margin_takes_whole_cells_of_every_tap() -> None:
    maps = features(0)
    for margin, shapes in ((1, [(6, 6), (2, 2)]), (2, [(6, 6), (2, 2)]), (3, [(4, 4), (2, 2)]), (4, [(4, 4), (2, 2)])):
        inner = inner_cells(maps, [2, 4], margin)
        assert [tuple(m.shape[2:]) for m in inner] == shapes
    assert torch.equal(inner[0], maps[0][:, :, 2:6, 2:6])
    assert inner_cells(maps, [2, 4], 0) is maps
    with pytest.raises(UserError, match=r"distill\.margin = 7 leaves less than 2 x 2 of the 8 x 8 cells at stride 2") as caught:
        inner_cells(maps[:1], [2], 7)
    assert "\n" not in str(caught.value)


def test_what_happens_in_the_margin_changes_neither_loss_nor_quality() -> None:
    """Whitening and attention are those of the inner cells alone."""
    objective = replace(EQUATION_3, margin=4)

    def measured(regressed: list[torch.Tensor], target: list[torch.Tensor]) -> tuple[float, float]:
        quality = Quality(TAPS)
        quality.update(*objective.compared(regressed, target))
        return objective(regressed, target)["loss"].item(), quality.compute()["explained_variance"]

    loud = [m.clone() for m in features(1)]
    for m, outer in zip(loud, (2, 1), strict=True):
        m[:, :, :outer], m[:, :, -outer:], m[..., :outer], m[..., -outer:] = 1e3, -1e3, 7e2, 0
    assert measured(features(0), loud) == measured(features(0), features(1))


def test_no_gradient_flows_to_the_targets_and_bf16_outputs_are_taken() -> None:
    regressed = [r.bfloat16().requires_grad_() for r in features(0)]
    losses = EQUATION_3(regressed, features(1))
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()
    assert all(r.grad is not None and r.grad.isfinite().all() and r.grad.any() for r in regressed)


def test_quality_is_the_explained_variance_of_each_tap_and_their_mean() -> None:
    target = features(1)
    whitened = layernorm(target)
    quality = Quality(TAPS)
    for i in range(2):  # a batch of one picture, twice
        quality.update([whitened[0][i : i + 1], torch.zeros_like(whitened[1][i : i + 1])], [w[i : i + 1] for w in whitened])
    figures = quality.compute()
    assert figures["ev_stride2"] == pytest.approx(1)
    assert figures["ev_stride4"] < 0.1
    assert figures["explained_variance"] == pytest.approx((figures["ev_stride2"] + figures["ev_stride4"]) / 2)


def test_embedding_spread_tells_collapse() -> None:
    same = torch.randn(1, 16).expand(8, 16)
    assert embedding_spread(same) == pytest.approx(0, abs=1e-6)
    assert embedding_spread(same * torch.rand(8, 1).add(0.1)) == pytest.approx(0, abs=1e-3)  # the length says nothing
    assert embedding_spread(torch.eye(16)) == pytest.approx((15 / 16) ** 0.5)
