"""Baselines in the chain: pretrained without a teacher, then fine-tuned, evaluated and exported like any backbone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_chain import Chain, brief_params

from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stage import read_stage
from dreamteacher.stages import distill_features, distill_labels, evaluate, export_onnx, finetune
from dreamteacher.students.backbone import load_backbone


@pytest.mark.parametrize("method", ["byol", "spark"])
def test_a_baseline_goes_through_the_whole_chain_without_a_teacher(method: str, chains: dict[str, Chain], tmp_path: Path) -> None:
    made = chains["segmentation"]
    changes = {"method": method, "resolution": 64, "augment": "overhead", "ema": 0.9}
    params = brief_params(
        made.source,
        distill=changes,
        compare={"inits": ["scratch", "features"]},
        recipes={"features": {"teacher": "none"}, "other": {"teacher": "teacher"}},
        label_recipes={name: {"features": "other"} for name in ("labels", "mix")},
        export={"init": "features", "seed": 0},
    )
    data, features = made.root / "data", tmp_path / "features"
    metrics = distill_features.run(params, data=data, out=features)
    assert set(metrics) == {"loss", "embedding_spread", "pictures"}
    assert metrics["pictures"] == 4 * 4
    assert set(read_stage(features)["inputs"]) == {"data"}
    assert {path.name for path in features.iterdir()} == {"backbone", "curves.csv", "stage.json"}
    with (features / "curves.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["embedding_spread"]] == ["3", "4"]

    for init in ("scratch", "features"):
        backbone = features if init == "features" else None
        finetune.run(params, data=data, init=init, seed=0, backbone=backbone, out=tmp_path / f"finetuned/{init}/0")
    arguments = {"teachers": tmp_path, "backbones": tmp_path, "finetuned": tmp_path / "finetuned"}
    places = {"metrics": tmp_path / "metrics.json", "plots": tmp_path / "plots"}
    evaluate.run(params, data=data, **arguments, **places, out=tmp_path / "evaluation")
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert {"miou_mean", "linear_miou_mean", "knn_miou_mean"} <= set(results["features"])
    assert not list((tmp_path / "plots").glob("pca/*.png")) and list((tmp_path / "plots").glob("overlays/*.png"))
    assert not (tmp_path / "plots/distill_quality").exists()
    export_onnx.run(params, data=data, finetuned=tmp_path / "finetuned/features/0", out=tmp_path / "onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "onnx/model.onnx"))


def test_a_teacher_is_no_input_of_a_method_that_needs_none(chains: dict[str, Chain], tmp_path: Path) -> None:
    """The command line always names one, perhaps one that was never made."""
    made = chains["segmentation"]
    params = brief_params(made.source, distill={"method": "denoising"})
    where = {"data": made.root / "data", "out": tmp_path / "features"}
    first = distill_features.run(params, **where)
    assert distill_features.run(params, **where, teacher=tmp_path / "nowhere") == first
    with pytest.raises(UserError, match=r"distill\.method = 'features' needs --teacher: the output of train-teacher"):
        distill_features.run(brief_params(made.source), data=made.root / "data", out=tmp_path / "other")


def test_it_goes_on_from_an_earlier_backbone(chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chains["segmentation"]
    params = brief_params(made.source, distill={"method": "simclr"})
    where = {"data": made.root / "data", "out": tmp_path / "features"}
    begun = []
    train = distill_features.train

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        begun.append(model.backbone.state_dict()["model.conv1.0.weight"].clone())
        return train(model, *args, **options)

    monkeypatch.setattr(distill_features, "train", watched)
    distill_features.run(params, **where, start=made.root / "features")
    assert (begun[0] == load_backbone(made.root / "features/backbone").state_dict()["model.conv1.0.weight"]).all()
    assert set(read_stage(tmp_path / "features")["inputs"]) == {"data", "start"}


def test_label_distillation_says_that_a_baseline_has_no_neck(chains: dict[str, Chain], tmp_path: Path) -> None:
    made = chains["segmentation"]
    baseline = brief_params(made.source, distill={"method": "denoising"})
    distill_features.run(baseline, data=made.root / "data", out=tmp_path / "features")
    arguments = {"data": made.root / "data", "teacher": made.root / "teacher", "interpreter": made.root / "interpreter"}
    with pytest.raises(UserError, match=r"features holds no feature regressor.*distill\.method = 'features'"):
        distill_labels.run(made.params, **arguments, features=tmp_path / "features", seed=0, out=tmp_path / "mix")


def test_the_defaults_of_the_settings_are_feature_distillation() -> None:
    distill = Params().distill
    assert distill.method == "features"
    assert {distill.temperature, distill.projector, distill.momentum, distill.queue, distill.prototypes, distill.mask_ratio} == {None}
