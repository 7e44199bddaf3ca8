"""benchmarks/cost.py measures whatever the code's tables name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from benchmarks import cost
from dreamteacher.distillation import terms
from dreamteacher.methods.base import BUILT_IN
from dreamteacher.settings import pretraining
from dreamteacher.teachers import folder, unet

SLIM = {"widths": (8, 8, 8, 16, 16), "depth": 1, "attention": (8,), "head_dim": 8, "groups": 4, "dropout": 0.0}


def test_every_name_is_measured_or_left_out_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unet.SIZES, "tiny", SLIM)
    for i in range(12):
        path = tmp_path / f"pictures/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 90, 3), np.uint8)).save(path)
    arguments = [
        "--quick",
        "--backbone",
        "test_resnet",
        "--transformer",
        "test_vit",
        "--width",
        "8",
        "--source",
        str(tmp_path / "pictures"),
    ]
    cost.main([*arguments, "--out", str(tmp_path / "cost")])
    results = json.loads((tmp_path / "cost.json").read_text())
    found = {part: [row["name"] for row in results["rows"] if row["part"] == part] for part in cost.PARTS}
    assert found["teacher"] == list(folder.KINDS)
    assert found["encoding"] == list(get_args(pretraining.EncodingSettings.model_fields["encoding"].annotation))
    assert found["objective"] == list(terms.BUILT_IN)
    assert found["neck"] == list(get_args(pretraining.Student.model_fields["neck"].annotation))
    assert found["method"] == list(BUILT_IN)
    for row in results["rows"]:
        assert row["left_out"] if "left_out" in row else row["ms"] > 0 and (row["mb"] is None or row["mb"] >= 0), row
    assert not [row for row in results["rows"] if "left_out" in row and row["part"] != "teacher"]
    assert results["loop"]["ratio"] > 0 and results["loop"]["wanted"] == 0.95
    text = (tmp_path / "cost.md").read_text()
    assert all(f"| {name} " in text for names in found.values() for name in names)
