"""Choosing the noise step and the taps of a teacher."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny_chain import Chain, brief_params

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.stages import tune
from dreamteacher.stages.tune import _choose, _suggestion


def run(chain: Chain, out: Path, few: int | None = 6, **changes: Any) -> dict[str, float]:
    params = brief_params(chain.source).model_copy(update={"few_labels": few})
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"images": 4, **changes})})
    return tune.run(params, data=chain.root / "data", teacher=chain.root / "teacher", out=out)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "tune.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_measures_every_tap_at_every_step_and_prints_settings(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    metrics = run(chain, tmp_path / "tune", T=[10, 0, 60])
    rows = table(tmp_path / "tune")
    assert [(row["T"], row["stride"]) for row in rows] == [(T, stride) for T in ("0", "10", "60") for stride in ("4", "8")]
    assert set(rows[0]) == {"T", "stride", "signal", "pixels", "teachable", "probe"}
    assert float(rows[0]["signal"]) > float(rows[-1]["signal"])  # noise drowns the picture
    assert set(metrics) == {"T", "monotone", "teachable", "probe"}
    assert (tmp_path / "tune/tune.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    overrides = [line.removeprefix("--set ") for line in printed.splitlines() if line.startswith("--set ")]
    params = load_params(None, [f"teacher.T_train={100}", *overrides])
    assert params.distill.T == params.interpreter.T == metrics["T"]
    assert set(params.taps) <= {4, 8}
    assert "a linear probe on 6 labelled pictures" in printed
    assert run(chain, tmp_path / "tune", T=[10, 0, 60]) == metrics  # nothing is measured again
    assert capsys.readouterr().out == printed


def test_without_labels_it_chooses_by_what_there_is_to_learn(
    chains: dict[str, Chain], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = run(chains["segmentation"], tmp_path / "three", few=3)
    assert [int(row["T"]) for row in table(tmp_path / "three")][::2] == [0, 1, 2, 5, 10, 15, 20, 30, 40, 50]  # shares of 100 steps
    assert set(metrics) == {"T", "monotone", "teachable"}
    assert "without labels" in capsys.readouterr().out
    monkeypatch.setattr(ImageSet, "labelled", lambda images: [])
    assert run(chains["classification"], tmp_path / "none", T=[0, 10, 60])["teachable"] <= 1


def test_what_cannot_be_is_refused_in_one_line(chains: dict[str, Chain], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise step T = 100 does not fit the teacher, which has 100 of them"):
        run(chains["segmentation"], tmp_path / "tune", T=[0, 10, 100])
    with pytest.raises(UserError, match="at least 3 items"):
        load_params(None, ["tune.T=[1, 2]"])
    assert not (tmp_path / "tune").exists()


def rows(probe: dict[int, list[float]], teachable: dict[int, list[float]]) -> list[dict[str, float]]:
    return [
        {"T": T, "stride": 2**place, "probe": probe[T][place], "teachable": teachable[T][place]}
        for T in probe
        for place in range(len(probe[T]))
    ]


def test_a_peak_is_chosen_and_no_warning_given() -> None:
    probe = {0: [0.5, 0.5], 50: [0.6, 0.7], 100: [0.55, 0.5], 200: [0.3, 0.3]}
    best, taps, near, monotone = _choose(rows(probe, {0: [0.4, 0.4], 50: [0.4, 0.3], 100: [0.3, 0.3], 200: [0.9, 0.1]}), "probe")
    assert (best, taps, near, monotone) == (50, [1, 2], [50], False)
    assert "warning" not in _suggestion(best, taps, near, monotone, 20)


def test_of_steps_as_good_the_one_with_most_to_learn_is_chosen() -> None:
    probe = {0: [0.602], 50: [0.606], 100: [0.601], 200: [0.5]}
    assert _choose(rows(probe, {0: [0.2], 50: [0.3], 100: [0.4], 200: [0.9]}), "probe")[:3] == (100, [1], [0, 50, 100])


def test_a_tap_with_less_than_half_of_what_the_best_one_has_is_left_out() -> None:
    flat = {T: [0.5, 0.5, 0.5] for T in (0, 50, 100)}
    assert _choose(rows(flat, {0: [0.1, 0.1, 0.1], 50: [0.1, 0.21, 0.4], 100: [0.1, 0.1, 0.1]}), "teachable")[:2] == (50, [2, 4])


def test_a_curve_that_only_falls_is_warned_of_as_memorisation() -> None:
    for probe in ({0: [0.7], 50: [0.6], 100: [0.5]}, {0: [0.7], 50: [0.705], 100: [0.5]}):  # a rise within the noise is none
        best, taps, near, monotone = _choose(rows(probe, {0: [0.3], 50: [0.2], 100: [0.1]}), "probe")
        assert (best, monotone) == (0, True)
        assert "warning: the score falls with the noise from the first step on" in _suggestion(best, taps, near, monotone, 0)
    level = {0: [0.5], 50: [0.5], 100: [0.5]}  # a teacher that sees no noise, such as the pixels
    assert not _choose(rows(level, level), "probe")[3]
    noise = {0: [0.506], 50: [0.503], 100: [0.5]}  # all are called as good as the best
    assert _choose(rows(noise, level), "probe")[2:] == ([0, 50, 100], False)
