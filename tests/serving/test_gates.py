import json
import math
from pathlib import Path
from statistics import fmean, stdev

import pytest
from serving_samples import PARAMS, make_model

from dreamteacher.errors import UserError
from dreamteacher.lifecycle import gates
from dreamteacher.lifecycle.gates import OverSeeds, check_floor, check_latency, check_parity, check_regression
from dreamteacher.serving.export import export
from dreamteacher.stage import open_stage
from dreamteacher.stages import gate


def over(values: list[float]) -> OverSeeds:
    return OverSeeds(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def test_the_mean_over_seeds_must_reach_the_floor():
    assert check_floor("floor", "miou", [0.6, 0.8], 0.7).passed
    assert not check_floor("floor", "miou", [0.6, 0.79], 0.7).passed


def test_a_loss_within_the_spread_of_the_champions_seeds_is_no_regression():
    champion = over([0.78, 0.80, 0.82])  # standard deviation 0.02
    for seeds, error in ((3, 0.02 * (1 / 3 + 1 / 3) ** 0.5), (1, 0.02 * (1 + 1 / 3) ** 0.5)):
        for z in (0.0, 1.0, 2.0):
            limit = 0.80 - z * error
            for mean, passed in ((limit + 1e-4, True), (limit - 1e-4, False)):
                check = check_regression("no regression", "miou", [mean] * seeds, champion, z)
                assert (check.passed, check.limit) == (passed, pytest.approx(limit)), check


def test_a_models_own_scatter_allows_it_no_loss():
    champion = over([0.80, 0.81, 0.79])
    for values in ([0.9, 0.88, 0.05], [0.9, 0.9, 0.3], [0.75, 0.85, 0.75]):
        calm = check_regression("no regression", "miou", [fmean(values)] * 3, champion, 1.0)
        check = check_regression("no regression", "miou", values, champion, 1.0)
        assert not check.passed and check.limit == pytest.approx(calm.limit)


def test_one_seed_of_the_champion_allows_no_loss():
    assert check_regression("no regression", "miou", [0.8], over([0.8]), 3.0).passed
    assert not check_regression("no regression", "miou", [0.7999], over([0.8]), 3.0).passed
    assert not check_regression("no regression", "miou", [0.75, 0.8, 0.84], over([0.8]), 3.0).passed


def test_not_a_number_never_passes():
    nan = math.nan
    checks = [
        check_floor("floor", "miou", [nan], 0.0),
        check_regression("no regression", "miou", [nan], over([0.5]), 9.0),
        check_regression("no regression", "miou", [0.5], OverSeeds(nan, nan, 2), 9.0),
        check_parity(nan, 1e-4),
    ]
    assert [check.passed for check in checks] == [False] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(make_model("segmentation"), file, ["logits"], size=32, opset=18, tolerance=1e-3, metadata={})
    return file


def test_latency_is_held_against_the_budget(model, monkeypatch):
    monkeypatch.setattr(gates, "PAUSE", 0.0)
    assert check_latency(model, 64, 60_000, runs=2).passed
    check = check_latency(model, 64, 1e-6, runs=2)
    assert not check.passed and check.value > 0 and "64 x 64" in check.words


def test_a_machine_that_is_busy_for_a_while_refuses_nothing(model, monkeypatch):
    pauses, busy = [], iter([90.0] * 5)
    monkeypatch.setattr(gates.time, "sleep", pauses.append)
    monkeypatch.setattr(gates, "_median_ms", lambda *_: next(busy, 20.0))
    check = check_latency(model, 64, 50.0, runs=2)
    assert check.passed and check.value == 20.0 and pauses == [gates.PAUSE]
    monkeypatch.setattr(gates, "_median_ms", lambda *_: 90.0)
    check = check_latency(model, 64, 50.0, runs=2)
    assert not check.passed and check.value == 90.0 and len(pauses) == gates.TRIES


def test_latency_is_measured_with_the_threads_of_the_pod(model, monkeypatch):
    calls = []
    monkeypatch.setattr(gates, "_median_ms", lambda session, *_: calls.append(session.get_session_options().intra_op_num_threads) or 1.0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    check_latency(model, 64, 50.0, runs=1)
    assert set(calls) == {3}


def make_evaluation(folder: Path, values: list[float]) -> Path:
    with open_stage("evaluate", params={}, inputs={}, out=folder / "evaluation") as stage:
        rows = "".join(f"mix,{seed},{value}\n" for seed, value in enumerate(values))
        (stage.tmp / "per_model.csv").write_text(f"init,seed,miou\n{rows}")
        found = over(values)
        (stage.tmp / "metrics.json").write_text(
            json.dumps({"mix": {"miou_mean": found.mean, "miou_std": found.std, "n_seeds": found.count}})
        )
    return folder / "evaluation"


@pytest.fixture
def judge(project, here):
    """The step gate, about a model of which seed 0 is served, against a champion; returns the verdict."""

    def run(values: list[float], champion: list[float], validation: str = "val,a,mask,80\n", **limits) -> dict:
        folders = {"data": here / "data", "champion": here / "champion"}
        for folder in (folders["data"], folders["champion"] / "data"):
            folder.mkdir(parents=True)
            (folder / "manifest.csv").write_text(f"split,sha256,label,label_length\ntrain,{folder.name},mask,70\nval,a,mask,80\n")
        (folders["champion"] / "data/manifest.csv").write_text(f"split,sha256,label,label_length\n{validation}")
        (folders["champion"] / "champion.json").write_text(json.dumps({"name": "cells", "version": "7", "init": "mix"}))
        make_evaluation(folders["champion"], champion)
        made = {"onnx": project / "onnx" / "segmentation", "evaluation": make_evaluation(here, values)}
        params = PARAMS.model_copy(update={"retrain": PARAMS.retrain.model_copy(update={"latency_ms": None, **limits})})
        gate.run(params, **folders, **made, out=here / "gate")
        return json.loads((here / "gate" / gate.VERDICT_FILE).read_text())

    return run


@pytest.mark.parametrize(
    ("values", "floor", "failed"),
    [
        ([0.80, 0.81, 0.79], 0.5, set()),
        ([0.79, 0.86, 0.86], 0.5, set()),  # a standard error below the champion's mean
        ([0.70, 0.88, 0.88], 0.5, {"no regression of the served model"}),
        ([0.70, 0.88, 0.88], 0.75, {"floor of the served model", "no regression of the served model"}),
        ([0.88, 0.70, 0.70], 0.5, {"no regression"}),  # the seed was lucky, what it was made by is worse
        ([0.05, 0.90, 0.88], 0.5, {"no regression", "floor of the served model", "no regression of the served model"}),
    ],
)
def test_the_model_that_will_be_served_must_pass_as_the_mean_must(judge, values, floor, failed):
    verdict = judge(values, [0.80, 0.81, 0.79], metric_floor=floor)
    assert {check["name"] for check in verdict["checks"] if not check["passed"]} == failed
    assert verdict["passed"] == (not failed)
    assert verdict["champion"] == "7"


@pytest.mark.parametrize(
    ("validation", "differ"),
    [("val,a,mask,80\n", 0), ("val,a,mask,81\n", 0), ("val,b,mask,80\n", 2), ("val,a,mask,80\nval,b,mask,9\n", 1)],
)
def test_a_model_measured_on_other_pictures_than_the_champion_is_refused_for_a_person_to_decide(judge, validation, differ):
    verdict = judge([0.8, 0.81], [0.5, 0.5], validation=validation)
    assert verdict["passed"] == (differ == 0) and verdict["champion"] == "7"
    names = [check["name"] for check in verdict["checks"]]
    assert "same validation split" in names and ("no regression" in names) == (differ == 0)
    if differ:
        said = f"{differ} validation pictures differ from the champion's, so the models cannot be compared; a person must decide"
        assert verdict["reason"] == f"same validation split: {said}"


def test_a_champion_without_figures_is_one_line(judge, here, monkeypatch):
    monkeypatch.setattr(gate, "champion_facts", lambda _: {"version": "7", "init": "mix"})
    with pytest.raises(UserError, match=r"version 7, the champion, has no 'miou_mean' of init mix .*`dreamteacher promote`"):
        judge([0.8], [0.8])


def test_an_exported_seed_without_figures_is_one_line(judge, project, monkeypatch):
    monkeypatch.setattr(gate, "read_metadata", lambda _: {"init": "mix", "seed": "5"})
    with pytest.raises(UserError, match=r"has no figures of init mix, seed 5; add the seed to compare\.seeds"):
        judge([0.8], [0.8])
