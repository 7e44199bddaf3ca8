"""Records of a pipeline's steps, and KFP's plugin for MLflow."""

import json
import shutil

import pytest
from mlflow.entities import Metric, Param
from tracked import assert_complete, client, runs, stage

from dreamteacher.cluster.trainjob import settings_of
from dreamteacher.errors import Interrupted
from dreamteacher.mlflow_server import tracking_uri
from dreamteacher.tracking import UNSENT


class Kubeflow:
    """What KFP's MLflow plugin does before and after a step (kubeflow/pipelines, backend/src/v2/common/plugins/mlflow/handler.go)."""

    def __init__(self, patch: pytest.MonkeyPatch, experiment: str):
        self.patch = patch
        self.experiment = client().create_experiment(experiment)
        self.pipeline = client().create_run(self.experiment, run_name="dreamteacher-pretrain-x7k2p").info.run_id
        config = {"endpoint": tracking_uri(), "parentRunId": self.pipeline, "experimentId": self.experiment, "authType": "none"}
        patch.setenv("KFP_MLFLOW_CONFIG", json.dumps(config))
        patch.setenv("DREAMTEACHER_RUN", "0b9e")
        patch.delenv("MLFLOW_EXPERIMENT_NAME")

    def start_task(self) -> str:
        """As the driver does; with `injectUserEnvVars` the step's process has the ids."""
        task = client().create_run(self.experiment, run_name="finetune", tags={"mlflow.parentRunId": self.pipeline}).info.run_id
        self.patch.setenv("MLFLOW_RUN_ID", task)
        self.patch.setenv("MLFLOW_EXPERIMENT_ID", self.experiment)
        return task

    def end_task(self, task: str, status: str) -> None:
        """As the launcher does: parameters as JSON and figures in one request, which MLflow refuses whole if a parameter differs."""
        params = {"settings": '{"finetune":{"lr":0.001}}', "init": '"mix"', "seed": "2"}
        figures = [Metric("miou", 0.75, 0, 0)] if status == "FINISHED" else []
        client().log_batch(task, metrics=figures, params=[Param(*each) for each in params.items()])
        client().set_terminated(task, status)

    def runs(self) -> set[str]:
        return {run.info.run_id for run in client().search_runs([self.experiment])}

    def assert_once(self, task: str, steps: list[int]) -> None:
        assert [point.step for point in client().get_metric_history(task, "loss")] == steps
        values = [point.value for point in client().get_metric_history(task, "miou") if point.timestamp]
        assert values in ([0.75], [])


@pytest.fixture
def kubeflow(live, monkeypatch, request):
    return Kubeflow(monkeypatch, request.node.name)


def test_with_kubeflows_plugin_the_stage_is_in_the_run_of_its_task_and_the_pipelines_run_continues(kubeflow):
    task = kubeflow.start_task()
    stage()
    assert kubeflow.runs() == {task, kubeflow.pipeline}
    assert client().get_run(kubeflow.pipeline).info.status == "RUNNING"
    kubeflow.end_task(task, "FINISHED")
    run = client().get_run(task)
    assert run.info.run_name == "finetune"
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"finetune.lr": "0.001", "init": '"mix"', "seed": "2"}.items()
    assert run.data.metrics["miou"] == 0.75
    assert run.data.tags["dreamteacher.stage"] == "finetune"
    assert [file.path for file in client().list_artifacts(task)] == ["pictures", "stage.json"]
    kubeflow.assert_once(task, [0, 1, 2])
    assert client().get_experiment_by_name("dreamteacher") is None
    assert not list(UNSENT.iterdir())


def test_a_step_that_is_retried_continues_in_the_run_of_its_task_and_sends_nothing_twice(kubeflow):
    task = kubeflow.start_task()
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    kubeflow.end_task(task, "FAILED")
    shutil.rmtree(UNSENT)  # went with the pod; the checkpoints are on a volume
    stage()
    assert client().get_run(task).info.status == "FINISHED"
    shutil.rmtree("artifacts")  # the rest of the step failed, and nothing of the pod is left
    stage()
    kubeflow.end_task(task, "FINISHED")
    assert kubeflow.runs() == {task, kubeflow.pipeline}
    kubeflow.assert_once(task, [0, 1, 2])


def test_a_task_that_kubeflow_starts_anew_has_the_records_from_then_on(kubeflow):
    first = kubeflow.start_task()
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    kubeflow.end_task(first, "FAILED")
    second = kubeflow.start_task()
    stage()
    assert kubeflow.runs() == {first, second, kubeflow.pipeline}
    assert client().get_run(first).info.status == "FAILED"
    assert client().get_run(second).data.metrics["miou"] == 0.75


def test_where_the_plugin_names_no_run_of_the_task_the_stage_is_a_child_of_the_pipelines(kubeflow):
    stage()
    (made,) = kubeflow.runs() - {kubeflow.pipeline}
    run = client().get_run(made)
    assert run.info.run_name == "finetune init=mix seed=2"
    assert run.data.params["init"] == "mix"
    assert run.data.tags["mlflow.parentRunId"] == kubeflow.pipeline
    assert client().get_run(kubeflow.pipeline).info.status == "RUNNING"


@pytest.mark.parametrize("config", ["", "no JSON", "[]", '{"parentRunId": "0123456789"}'])
def test_a_plugin_that_says_nothing_of_use_changes_nothing(config, monkeypatch):
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", config)
    stage()
    assert_complete(runs()["finetune init=mix seed=2"], runs()["chain adhoc"])


def test_nodes_of_a_trainjob_know_the_run_of_their_step():
    environment = {"DREAMTEACHER_TRAINJOB": '{"image": "i", "env": {"A": "b"}}', "MLFLOW_RUN_ID": "17", "DREAMTEACHER_RUN": "0b9e"}
    nodes = settings_of(environment | {"MLFLOW_TRACKING_URI": "http://of.the.config.map", "HOME": "/"})
    assert nodes.env == {"A": "b", "MLFLOW_RUN_ID": "17", "DREAMTEACHER_RUN": "0b9e"}
