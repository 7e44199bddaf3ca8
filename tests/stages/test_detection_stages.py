"""Detection through the stages: boxes in, fine-tuned from scratch and from distilled features, compared; no labels are distilled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_chain import brief_params

import dreamteacher
from dreamteacher.errors import UserError
from dreamteacher.report.summary import table
from dreamteacher.stages import distill_features, evaluate, finetune, ingest, train_interpreter, train_teacher


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 train pictures and 3 for validation, with one or two bright squares each, and none in every fourth."""
    folder, generator = tmp_path_factory.mktemp("boxes"), np.random.default_rng(5)
    for number in range(15):
        split = "train" if number < 12 else "val"
        pixels, lines = generator.integers(0, 30, (48, 64, 3)), []
        for kind in range([1, 2, 2, 0][number % 4]):
            y, x = generator.integers(2, 30), generator.integers(2, 24) + 24 * kind
            pixels[y : y + 12, x : x + 12, kind] += 200
            lines.append(f"{kind} {(x + 6) / 64} {(y + 6) / 48} {12 / 64} {12 / 48}\n")
        for place in ("images", "labels"):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / split / f"{number}.png")
        (folder / "labels" / split / f"{number}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text("names: [green, red]\n")
    return folder


def test_boxes_go_through_the_chain(source: Path, tmp_path: Path) -> None:
    compare = {"compare": {"inits": ["scratch", "features"], "seeds": [0]}, "export": {"init": "scratch"}}
    params = brief_params(source, finetune={"accumulate": 2}, **compare)
    at = {name: tmp_path / name for name in ("data", "teacher", "features")}
    ingest.run(params, source=source, out=at["data"])
    train_teacher.run(params, data=at["data"], out=at["teacher"])
    distill_features.run(params, data=at["data"], teacher=at["teacher"], out=at["features"])
    for init, backbone in (("scratch", None), ("features", at["features"])):
        out = tmp_path / "finetuned" / init / "0"
        finetune.run(params, data=at["data"], init=init, seed=0, backbone=backbone, out=out)  # type: ignore[arg-type]
    results = {"metrics": tmp_path / "metrics.json", "plots": tmp_path / "plots"}
    results |= {"teachers": tmp_path, "backbones": tmp_path}
    returned = evaluate.run(params, data=at["data"], finetuned=tmp_path / "finetuned", out=tmp_path / "out", **results)

    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert [name for name in figures["scratch"] if name.endswith("_mean")] == [
        f"{name}_mean" for name in ("ap", "ap50", "ap75", "ap_green", "ap_red")
    ]
    assert set(returned) == {f"{init}_{key}" for init in figures for key in ("ap_mean", "ap_std", "n_seeds")}
    assert "AP mean ± std" in table(figures)
    assert len(list((tmp_path / "out/overlays").iterdir())) == 1
    assert dreamteacher.load(tmp_path / "finetuned/features/0").classes == ["green", "red"]
    with pytest.raises(UserError, match=r"detection predicts no classes that an interpreter could read; drop label_recipes"):
        train_interpreter.run(params, data=at["data"], teacher=at["teacher"], seed=0, out=tmp_path / "interpreter")
