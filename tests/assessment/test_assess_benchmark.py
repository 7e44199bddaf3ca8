"""`python -m benchmarks.assess`: the prediction of each project compared with its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import assess


def project(folder: Path, expected: float, gain: float) -> Path:
    (folder / "artifacts/assess").mkdir(parents=True)
    (folder / "metrics").mkdir()
    prediction = {"features": {"low": expected - 0.02, "expected": expected, "high": expected + 0.02}}
    assessment = {"figure": "top1", "labels": {"few": 20}, "prediction": prediction}
    (folder / "artifacts/assess/assess.json").write_text(json.dumps(assessment))
    figures = {"scratch": 0.5, "features": 0.5 + gain}
    metrics = {init: {"top1_mean": mean, "top1_std": 0.01, "n_seeds": 3} for init, mean in figures.items()}
    (folder / "metrics/evaluate.json").write_text(json.dumps(metrics))
    return folder


def test_predictions_are_counted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    right, wrong = project(tmp_path / "right", 0.05, 0.06), project(tmp_path / "wrong", 0.0, 0.08)
    assess.main([str(right), str(wrong), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| right   | 20     | features | +5.0      | +3.0 | +7.0 | +6.0     | 0.8     | right |" in printed
    assert "right in sign: 50%, within the interval: 50%, of 2" in printed
    assert "<svg" in (tmp_path / "out.svg").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["rows"][1]["gain"] == pytest.approx(0.08)


def test_a_project_that_is_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"assess\.json is missing; run `dreamteacher assess` and `dvc repro` in .* first"):
        assess.main([str(tmp_path)])
