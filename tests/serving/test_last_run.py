"""Monitoring of scheduled retraining: the age of MLflow's newest run."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dreamteacher import cli

DAY = 86_400_000  # milliseconds


@pytest.fixture
def client(new_database: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = new_database(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "0")
    return MlflowClient(uri)


def test_a_schedule_that_missed_its_day_is_an_error(client: MlflowClient, capsys: pytest.CaptureFixture[str]):
    experiment = client.create_experiment("dreamteacher")
    now = int(time.time() * 1000)
    for days, name in ((30, "ingest"), (9, "compare-data"), (16, "gate")):
        client.create_run(experiment, start_time=now - days * DAY, run_name=name)
    assert cli.main(["last-run"]) == cli.main(["last-run", "--within-days", "10"]) == 0
    assert "the newest run of experiment dreamteacher, compare-data, began" in capsys.readouterr().out
    assert cli.main(["last-run", "--within-days", "8"]) == 2
    assert "9.0 days ago, more than 8; check the retraining schedule" in capsys.readouterr().err


def test_without_an_experiment_or_a_run_it_says_so(client: MlflowClient, capsys: pytest.CaptureFixture[str]):
    client.create_experiment("empty")
    assert cli.main(["last-run", "--experiment", "none"]) == cli.main(["last-run", "--experiment", "empty"]) == 2
    stderr = capsys.readouterr().err
    assert "MLflow has no experiment none; name another with --experiment" in stderr
    assert "experiment empty has no run" in stderr
