"""Terms by name: ours, and those of other packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamteacher.distillation.features import feature_objective
from dreamteacher.distillation.terms import BUILT_IN, Compared, get_term
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params, restore_params
from dreamteacher.settings.pretraining import OBJECTIVES
from dreamteacher.teachers.base import Tap
from helpers import install_package

TAPS = [Tap("a", 2, 3)]


def test_the_settings_name_all_terms_and_each_is_a_mean_over_pictures() -> None:
    assert tuple(BUILT_IN) == OBJECTIVES
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 3, 6, 6, generator=generator) for _ in range(3)]
    pooled = torch.randn(4, 3, generator=generator)

    def value(name: str, rows: slice) -> float:
        regressed, raw, whitened = ([m[rows]] for m in maps)
        return get_term(name)(Compared(regressed, raw, whitened, pooled[rows])).item()

    for name in OBJECTIVES:
        halves = [value(name, slice(0, 2)), value(name, slice(2, 4))]
        assert value(name, slice(0, 4)) == pytest.approx(sum(halves) / 2, rel=1e-5), name


def test_the_terms_of_another_package_are_found_by_their_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def loudness(c): return sum((r.mean() - w.mean()).abs() for r, w in zip(c.regressed, c.raw))\n"
    entries = "[dreamteacher.objectives]\nloudness = toy_terms:loudness\nbroken = toy_terms:nothing\n"
    install_package(monkeypatch, tmp_path, entries, toy_terms=code)
    params = load_params(None, ["distill.objectives={loudness: 2, mse: 1}"])
    assert list(params.distill.objectives) == ["mse", "loudness"]
    objective = feature_objective(params.distill, layernorm, TAPS)
    losses = objective([torch.zeros(2, 3, 4, 4)], [torch.full((2, 3, 4, 4), 5.0)])
    assert losses["loudness"].item() == 5
    assert losses["loss"].item() == losses["mse"].item() + 10
    with pytest.raises(UserError, match=r"'loudnes' is not|no term 'loudnes'; name loudness"):
        load_params(None, ["distill.objectives={loudnes: 1}"])
    with pytest.raises(UserError, match="'broken' cannot be loaded"):
        feature_objective(load_params(None, ["distill.objectives={broken: 1}"]).distill, layernorm, TAPS)


def test_a_step_whose_image_lacks_the_package_of_a_term_says_so_in_one_line() -> None:
    plain = load_params(None).section("distill")
    plain["distill"]["objectives"] = {"loudness": 1.0}
    with pytest.raises(UserError, match=r"settings of this step, distill: objectives .*there is no term 'loudness'") as caught:
        restore_params(**plain)
    assert "\n" not in str(caught.value)
