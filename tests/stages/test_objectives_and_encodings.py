"""Every encoding, whitening and loss term through the stages, stopped and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chain import Chain, brief_params

from dreamteacher.data.dataset import ImageSet
from dreamteacher.distillation import whitening
from dreamteacher.distillation.drawing import draw_features
from dreamteacher.distillation.whitening import measure_statistics
from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import OBJECTIVES
from dreamteacher.stages import distill_features, distill_labels, train_interpreter
from dreamteacher.students.regressor import load_regressor
from dreamteacher.training.run import Run

ALL_TERMS = dict.fromkeys(OBJECTIVES, 1.0)
RICH: dict[str, Any] = {"objectives": ALL_TERMS, "encoding": "stratified", "strata": [0, 20, 60, 100], "whitening": "phi-s", "margin": 4}


def features(chain: Chain, out: Path, **changes: Any) -> dict[str, float]:
    params = brief_params(chain.source, distill=changes)
    return distill_features.run(params, data=chain.root / "data", teacher=chain.root / "teacher", out=out)


def test_all_terms_at_once_are_learned_and_logged(chains: dict[str, Chain], tmp_path: Path) -> None:
    metrics = features(chains["segmentation"], tmp_path / "features", **RICH)
    assert set(metrics) >= {"ev_stride4", "ev_stride8", "explained_variance", "embedding_spread"}
    with (tmp_path / "features/curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"loss", *OBJECTIVES, "at_floor"} <= set(rows[-1])
    terms = [float(rows[-1][name]) for name in OBJECTIVES]
    assert float(rows[-1]["loss"]) == pytest.approx(sum(terms), rel=1e-5)
    regressor = load_regressor(tmp_path / "features")
    assert (regressor.facts["pooled"], regressor.facts["conditioned"]) == (True, True)
    assert regressor.condition.network[-1].weight.any()  # type: ignore[union-attr]
    record = json.loads((tmp_path / "features/stage.json").read_text())
    assert record["params"]["distill"]["encoding"] == "stratified"


def test_a_stopped_run_resumes_to_the_same_bytes_and_measures_nothing_again(
    chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, changes, measured, take_step = chains["segmentation"], RICH | {"checkpoint_every": 1}, [], Run.take_step

    def measure(*arguments: Any) -> Any:
        measured.append(arguments)
        return measure_statistics(*arguments)

    def stop(run: Run, parts: Any) -> None:
        if run.done == 2:
            raise KeyboardInterrupt
        take_step(run, parts)

    monkeypatch.setattr(whitening, "measure_statistics", measure)
    features(made, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "take_step", stop)
        features(made, tmp_path / "stopped", **changes)
    features(made, tmp_path / "stopped", **changes)
    assert len(measured) == 2
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert Path("statistics.safetensors") in files
    assert [name for name in files if (tmp_path / "whole" / name).read_bytes() != (tmp_path / "stopped" / name).read_bytes()] == []


@pytest.mark.parametrize("encoding", ["ddim", "dream", "stratified"])
def test_each_encoding_teaches_features_labels_and_is_drawn(chains: dict[str, Chain], tmp_path: Path, encoding: str) -> None:
    chain = chains["segmentation"]
    changes = {"encoding": encoding, "passes": 2, "strata": [0, 50, 100]}
    interpreted = {"encoding": "stochastic" if encoding == "dream" else encoding, "passes": 2, "strata": [0, 50, 100]}
    params = brief_params(chain.source, distill=changes, interpreter=interpreted)
    made = {"data": chain.root / "data", "teacher": chain.root / "teacher"}
    metrics = distill_features.run(params, **made, out=tmp_path / "features")
    assert metrics["explained_variance"] != chain.metrics["features"]["explained_variance"]
    train_interpreter.run(params, **made, seed=0, out=tmp_path / "interpreter")
    facts = json.loads((tmp_path / "interpreter/interpreter.json").read_text())
    assert facts["encoding"]["encoding"] == interpreted["encoding"]
    folders = made | {"features": tmp_path / "features", "interpreter": tmp_path / "interpreter"}
    metrics = distill_labels.run(params, **folders, seed=0, out=tmp_path / "mix")
    assert set(metrics) == {"loss", "mse", "at", "labels"}
    val = ImageSet(chain.root / "data", "val")
    (picture,) = draw_features(val, [0], chain.root / "teacher", tmp_path / "features", torch.device("cpu"))
    assert [len(row) for row in picture] == [3, 3], "the picture and two taps, of generator and student"


def test_the_mix_does_not_start_from_features_with_other_heads(chains: dict[str, Chain], tmp_path: Path) -> None:
    chain = chains["segmentation"]
    folders = {name: chain.root / name for name in ("data", "teacher", "features", "interpreter")}
    for changes in ({"encoding": "stratified", "strata": [0, 100]}, {"objectives": {"mse": 1, "global": 1}}):
        params = brief_params(chain.source, distill=changes)
        with pytest.raises(UserError, match=r"heads for another distill\.encoding or another term `global`.* or set labels\.start = fresh"):
            distill_labels.run(params, **folders, seed=0, out=tmp_path / "mix")
        fresh = brief_params(chain.source, distill=changes, labels={"start": "fresh", "steps": 1})
        assert distill_labels.run(fresh, **folders, seed=0, out=tmp_path / "-".join(changes))["loss"] > 0
