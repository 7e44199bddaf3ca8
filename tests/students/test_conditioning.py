"""Heads conditioned on the noise step, and the embedding head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.conditioning import StepCondition
from dreamteacher.students.regressor import FeatureRegressor, load_regressor, save_regressor


def levels() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 8, 16 // stride, 16 // stride, generator=generator) for stride in (1, 2, 4)]


def test_before_training_the_step_changes_nothing_and_after_it_scales_and_shifts_each_channel() -> None:
    torch.manual_seed(0)
    condition = StepCondition(8, 3)
    steps = torch.tensor([0, 50, 50])
    assert all(torch.equal(a, b) for a, b in zip(condition(levels(), steps), levels(), strict=True))
    torch.nn.init.normal_(condition.network[-1].weight)
    changed = condition(levels(), steps)
    for before, after in zip(levels(), changed, strict=True):
        scale = (after[:, :, 0, 1] - after[:, :, 0, 0]) / (before[:, :, 0, 1] - before[:, :, 0, 0])
        shift = after[:, :, 0, 0] - scale * before[:, :, 0, 0]
        torch.testing.assert_close(after, before * scale[:, :, None, None] + shift[:, :, None, None], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(scale[0], scale[1])
        torch.testing.assert_close(scale[1], scale[2], rtol=1e-3, atol=1e-3)
    coarse = condition(levels()[1:], steps)  # the finest level is missing
    assert all(torch.equal(a, b) for a, b in zip(coarse, changed[1:], strict=True))


def test_a_regressor_with_both_regresses_maps_and_embedding_and_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    regressor = FeatureRegressor(create_backbone("test_resnet"), [6, 10], [4, 8], 8, pooled=True, conditioned=True).eval()
    torch.nn.init.normal_(regressor.condition.network[-1].weight)  # type: ignore[union-attr]
    pictures, steps = torch.randn(2, 3, 32, 32), torch.tensor([10, 900])
    *maps, pooled = regressor(pictures, steps)
    assert [tuple(m.shape) for m in maps] == [(2, 6, 8, 8), (2, 10, 4, 4)]
    assert pooled.shape == (2, 10)
    pyramid = regressor.backbone(pictures)
    torch.testing.assert_close(pooled, regressor.pooled(pyramid[-1].mean((2, 3))))  # type: ignore[misc]
    assert not torch.equal(maps[0], regressor(pictures, steps.flip(0))[0])
    save_regressor(regressor, tmp_path)
    loaded = load_regressor(tmp_path).eval()
    for a, b in zip(loaded(pictures, steps), [*maps, pooled], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"pooled": True}, {"conditioned": True}])
def test_options_leave_the_random_weights_of_all_else_alone(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    plain = FeatureRegressor(create_backbone("test_resnet"), [6, 10], [4, 8], 8)
    torch.manual_seed(0)
    other = FeatureRegressor(create_backbone("test_resnet"), [6, 10], [4, 8], 8, **options)
    assert set(plain.facts) | set(options) == set(other.facts)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
