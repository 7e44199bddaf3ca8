"""The retrain pipeline by KFP's local runner, both branches, against a real registry. (tests/stages/test_retrain.py has all the rounds.)"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from local_runs import LocalRun, run_local
from mlflow.tracking import MlflowClient
from PIL import Image

from dreamteacher.stage import digest_of, read_stage

TRAINING = ("train-teacher", "distill-features", "train-interpreter", "distill-labels", "finetune")
Retrain = Callable[..., LocalRun]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("DREAMTEACHER_TRACKING")
        yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incoming")
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 90, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def retrain(small_project: Path, incoming: Path, registry: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Retrain:
    def run(*settings: str) -> LocalRun:
        limits = (f"incoming={incoming}", "min_new_images=5", "latency_ms=null")
        given = [*(f"retrain.{limit}" for limit in limits), "export.size=32", *settings]
        words = [word for setting in given for word in ("--set", setting)]
        return run_local(small_project, tmp_path_factory.mktemp("runs") / "retrain", "--pipeline", "retrain", *words)

    return run


@pytest.fixture(scope="module")
def first(retrain: Retrain) -> LocalRun:
    return retrain("retrain.metric_floor=0")


def aliases(registry: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in registry.get_registered_model("dreamteacher").aliases.items()}


def test_the_first_run_is_promoted(first: LocalRun, registry: MlflowClient) -> None:
    assert first.code == 0, first.said[-3000:]
    assert "promoted = true, version 1: miou" in first.said
    assert aliases(registry) == {"champion": 1}
    assert not list(first.steps.rglob("nothing-new*"))
    assert "passed: floor" in next(first.steps.rglob("gate/page")).read_text()


def test_with_nothing_new_the_run_succeeds_says_so_and_trains_nothing(first: LocalRun, retrain: Retrain, registry: MlflowClient) -> None:
    run = retrain()
    assert run.code == 0, run.said[-3000:]
    assert "nothing new: 0 new pictures, fewer than retrain.min_new_images = 5" in run.said
    assert not [step for step in TRAINING if list(run.steps.rglob(step))]
    assert aliases(registry) == {"champion": 1}


def test_what_arrives_is_trained_on_from_the_champion_and_refused_by_the_gate(
    first: LocalRun, retrain: Retrain, registry: MlflowClient, incoming: Path
) -> None:
    for i in range(100, 106):
        Image.fromarray(np.random.default_rng(i).integers(90, 180, (40, 48, 3), np.uint8)).save(incoming / f"{i}.png")
    run = retrain("retrain.metric_floor=1")
    assert run.code == 0, run.said[-3000:]
    assert "promoted = false, version 2: floor: miou" in run.said
    assert aliases(registry) == {"champion": 1, "challenger": 2}
    for step in ("train-teacher", "distill-features"):
        assert read_stage(run.out(step))["inputs"]["start"] == digest_of(first.out(step))
    drift = json.loads((run.out("compare-data") / "drift.json").read_text())
    assert drift["counts"]["n_new"] == 6
    assert drift["shifts"]["brightness"]["shift"] > 3 * drift["shifts"]["brightness"]["by_chance"]
    assert "embedding_shift" in next(run.steps.rglob("compare-data/page")).read_text()


def test_broken_pictures_fail_the_run_before_anything_is_trained(
    first: LocalRun, retrain: Retrain, registry: MlflowClient, incoming: Path
) -> None:
    before = aliases(registry)
    broken = [incoming / f"broken{i}.png" for i in range(5)]
    for path in broken:
        path.write_bytes(b"broken")
    run = retrain()
    for path in broken:
        path.unlink()
    assert run.code == 2
    assert "incoming pictures cannot be used, more than ingest.max_bad_fraction" in run.said
    assert not [step for step in TRAINING if list(run.steps.rglob(step))]
    assert "FAILED" in run.said
    assert aliases(registry) == before
