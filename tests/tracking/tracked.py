"""A stage that is tracked, and what MLflow has of it."""

import os
from pathlib import Path

from dreamteacher.mlflow_server import tracking_uri
from dreamteacher.stage import open_stage


def client():
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri())


def runs() -> dict:
    """The runs of the test's experiment by name."""
    experiment = client().get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", "dreamteacher"))
    found = client().search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def stage(*, fail: BaseException | None = None) -> None:
    """A small stage that tells all kinds of things."""
    with open_stage("finetune", params={"finetune": {"lr": 1e-3}, "init": "mix", "seed": 2}, inputs={}, out=Path("artifacts/x")) as opened:
        if opened.done:
            return
        for step in range(3):
            opened.tracker.metrics({"loss": 1 / (step + 1), "iou/grün (%)": 0.5}, step=step)
        (opened.tmp / "grid.png").write_bytes(b"png")
        opened.tracker.artifact(opened.tmp / "grid.png", "pictures")
        if fail:
            raise fail
        opened.metrics |= {"miou": 0.75, "loss": 0.25}


def assert_complete(run, parent) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params == {"finetune.lr": "0.001", "init": "mix", "seed": "2"}
    assert run.data.metrics["miou"] == 0.75
    history = client().get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1), (1, 0.5), (2, 1 / 3)]
    assert [point.path for point in client().list_artifacts(run.info.run_id)] == ["pictures", "stage.json"]
    assert client().list_artifacts(run.info.run_id, "pictures")[0].path == "pictures/grid.png"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["dreamteacher.stage"] == "finetune"
    assert parent.info.status == "FINISHED"
