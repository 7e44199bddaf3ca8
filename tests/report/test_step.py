"""Metadata and page of a step's artifact in the KFP UI."""

from pathlib import Path

import pytest

from dreamteacher.report.step import facts
from dreamteacher.stage import open_stage


@pytest.mark.parametrize(
    ("stage", "params", "expected"),
    [
        ("train-teacher", {"name": "own", "seed": 0}, {"teacher": "own", "seed": 0}),
        ("distill-labels", {"recipe": "mix", "seed": 2}, {"recipe": "mix", "seed": 2}),
        ("finetune", {"init": "mix", "seed": 2}, {"init": "mix", "seed": 2}),
    ],
)
def test_artifacts_are_distinguished_and_keep_their_own_name(
    stage: str, params: dict[str, object], expected: dict[str, object], tmp_path: Path
) -> None:
    with open_stage(stage, params=params, inputs={}, out=tmp_path / "out") as opened:
        (opened.tmp / "weights").touch()
    found = facts(tmp_path / "out")
    assert expected.items() <= found.items()
    assert "name" not in found  # KFP's lists would show it in place of the artifact's own
