import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param

from dreamteacher import tracking
from dreamteacher.cluster.trainjob import settings_of
from dreamteacher.errors import Interrupted, UserError
from dreamteacher.mlflow_server import KIND, KIND_OF_TRAINING, _is_logged, tracking_uri, without_password
from dreamteacher.stage import open_stage
from dreamteacher.tracking import UNSENT, open_tracker, sync
from helpers import free_port


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One for all, since MLflow takes seconds to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def tracked(in_tmp, database, monkeypatch, request):
    """Tracking is on, into an experiment of the test's own."""
    monkeypatch.delenv("DREAMTEACHER_TRACKING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the machine may be busy


@pytest.fixture
def live(mlflow_server, monkeypatch):
    """A real server instead."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)


@pytest.fixture
def dead(monkeypatch):
    """The address of a server that is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


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
        opened.metrics["miou"] = 0.75


STEPS = (0, 10, 40, 50)


def test_points_of_an_earlier_try_are_known_by_their_steps():
    logged = {"loss": [10, 40], "miou": [0, 0], "both": [0, 40]}
    sent = [(key, step) for key in ("loss", "miou", "both", "new") for step in STEPS if not _is_logged(key, step, logged)]
    assert sent == [
        ("loss", 0),
        ("loss", 50),
        ("miou", 10),
        ("miou", 40),
        ("miou", 50),
        ("both", 50),
        *(("new", s) for s in (0, 10, 40, 50)),
    ]


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


def test_stage_is_a_child_of_the_chain_on_a_real_server(live):
    stage()
    found = runs()
    assert set(found) == {"chain adhoc", "finetune init=mix seed=2"}
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])
    assert not list(UNSENT.iterdir())


def test_without_settings_runs_go_to_a_database_here(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    stage()
    found = runs()
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])
    assert Path("mlflow.db").exists()


@pytest.mark.parametrize(
    ("environment", "chain"),
    [
        ({}, "{git}"),
        ({"DREAMTEACHER_RUN": "0b9e"}, "0b9e"),  # of a pipeline, each step of which has another folder
        ({"DVC_EXP_NAME": "snowy-owl"}, "snowy-owl"),
        ({"DVC_EXP_NAME": "x", "DREAMTEACHER_CHAIN": "it's mine"}, "its mine"),
    ],
)
def test_stages_of_one_chain_share_a_parent(environment, chain, monkeypatch):
    for command in ("init -q", "config user.email a@b.c", "config user.name a", "commit -q --allow-empty -m one"):
        subprocess.run(["git", *command.split()], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("ingest", "train-teacher"):
        with open_tracker(name, {}, {}):
            pass
    found = runs()
    parent = found.pop(f"chain {chain.format(git=head[:7])}")
    assert {name: run.data.tags["mlflow.parentRunId"] for name, run in found.items()} == dict.fromkeys(
        ["ingest", "train-teacher"], parent.info.run_id
    )
    assert {run.data.tags["mlflow.source.git.commit"] for run in found.values()} == {head}
    assert {run.data.tags["dreamteacher.git.dirty"] for run in found.values()} == {"false"}


def test_named_run_is_the_stage_run_and_no_other_is_made(live, monkeypatch):
    experiment = client().create_experiment("test of the caller")
    mine = client().create_run(experiment, run_name="mine", tags={"owner": "me"}).info.run_id
    client().log_param(mine, "seed", "7")  # in conflict with the stage's own, which must not lose the rest
    monkeypatch.setenv("MLFLOW_RUN_ID", mine)
    stage()
    assert client().get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"]) is None
    run = client().get_run(mine)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["miou"] == 0.75
    assert run.data.tags["owner"] == "me"
    assert not list(UNSENT.iterdir())


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


def test_with_kubeflows_plugin_the_stage_is_in_the_run_of_its_task_and_the_pipelines_run_goes_on(kubeflow):
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


def test_a_step_that_is_tried_again_goes_on_in_the_run_of_its_task_and_sends_nothing_twice(kubeflow):
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


def test_the_experiment_may_be_named_by_its_id(monkeypatch, caplog):
    chosen = client().create_experiment("chosen")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", chosen)
    stage()
    assert {run.info.run_name for run in client().search_runs([chosen])} == {"chain adhoc", "finetune init=mix seed=2"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "999999")
    shutil.rmtree("artifacts")
    stage()
    assert "MLflow has no experiment 999999" in caplog.text
    assert set(runs()) == {"chain adhoc", "finetune init=mix seed=2"}


def test_nodes_of_a_trainjob_know_the_run_of_their_step():
    environment = {"DREAMTEACHER_TRAINJOB": '{"image": "i", "env": {"A": "b"}}', "MLFLOW_RUN_ID": "17", "DREAMTEACHER_RUN": "0b9e"}
    nodes = settings_of(environment | {"MLFLOW_TRACKING_URI": "http://of.the.config.map", "HOME": "/"})
    assert nodes.env == {"A": "b", "MLFLOW_RUN_ID": "17", "DREAMTEACHER_RUN": "0b9e"}


def test_dead_server_stops_no_stage_and_sync_sends_everything_later(dead, mlflow_server, monkeypatch, caplog):
    begin = time.monotonic()
    stage()
    assert time.monotonic() - begin < 60
    assert Path("artifacts/x/stage.json").exists()
    warnings = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(warnings) == 1
    assert "`dreamteacher sync`" in warnings[0]
    assert "\n" not in warnings[0]
    with pytest.raises(UserError, match="stays unsent"):
        sync()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    assert len(sync()) == 1
    found = runs()
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])
    assert not list(UNSENT.iterdir())
    assert sync() == []


def test_sync_that_breaks_off_sends_nothing_twice(dead, mlflow_server, monkeypatch):
    stage()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    real = tracking.replay
    for allowed in range(4):  # breaks off after ever more records, the last of them sent but not noted
        left = [None] * allowed

        def breaking(*args, left=left):
            real(*args)
            if not left:
                raise ConnectionError
            left.pop()

        with monkeypatch.context() as patch, pytest.raises(UserError):
            patch.setattr(tracking, "replay", breaking)
            sync()
    sync()
    found = runs()
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])


@pytest.mark.parametrize(
    ("fail", "status"),
    [(ZeroDivisionError(), "FAILED"), (Interrupted(15, 3), "KILLED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_stopped_stage_says_so_and_goes_on_in_the_same_run(fail, status):
    with pytest.raises(type(fail)):
        stage(fail=fail)
    assert runs()["finetune init=mix seed=2"].info.status == status
    stage()
    assert runs()["finetune init=mix seed=2"].info.status == "FINISHED"
    assert runs()["finetune init=mix seed=2"].data.metrics["miou"] == 0.75
    assert len(runs()) == 2


def test_stage_resumed_while_the_server_is_away_is_one_run_all_the_same(dead, mlflow_server, monkeypatch):
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    stage()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    sync()
    assert set(runs()) == {"chain adhoc", "finetune init=mix seed=2"}
    assert runs()["finetune init=mix seed=2"].info.status == "FINISHED"


def test_journal_of_a_killed_process_is_sent_and_its_run_ends_as_killed():
    body = (
        "import os; from dreamteacher.tracking import open_tracker\n"
        "with open_tracker('ingest', {}, {}) as tracker:\n"
        "    tracker.metrics({'n': 1.0})\n"
        "    (tracker._journal / 'records.jsonl').open('a').write('{\"do\": \"met')\n"  # the torn line of a kill
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == -signal.SIGKILL
    assert len(sync()) == 1
    assert runs()["ingest"].info.status == "KILLED"
    assert runs()["ingest"].data.metrics == {"n": 1.0}


@pytest.mark.parametrize("then", ["stage", "sync"])
def test_records_find_a_new_run_where_the_server_is_another_than_before(then, database, tmp_path, monkeypatch):
    """The stage was stopped, MLflow moved or its database was removed, and the run of before is unknown."""
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    if then == "sync":  # it was killed while the old server was away
        (UNSENT / "x").mkdir(parents=True)
        start = {"do": "start", "run": "0123", "name": "x", "chain": "adhoc", "experiment": os.environ["MLFLOW_EXPERIMENT_NAME"]}
        lines = [start | {"uri": database, "memory": None, "time": 1}, {"do": "metrics", "values": {"n": 1.0}, "step": 0, "time": 2}]
        (UNSENT / "x" / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (UNSENT / "x" / "cursor.json").write_text(json.dumps({"sent": 1, "run": "0123"}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    if then == "stage":
        stage()
        assert_complete(runs()["finetune init=mix seed=2"], runs()["chain adhoc"])
    else:
        assert sync() == ["x"]
        assert runs()["x"].data.metrics == {"n": 1.0}
    assert not list(UNSENT.glob("*/records.jsonl"))


def test_a_named_run_that_does_not_exist_costs_no_record(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789")
    stage()
    assert_complete(runs()["finetune init=mix seed=2"], runs()["chain adhoc"])
    assert "MLflow has no run 0123456789" in caplog.text


def test_a_journal_that_cannot_be_sent_does_not_hold_up_the_others(dead, mlflow_server, monkeypatch):
    for name in ("ingest", "publish"):
        with open_tracker(name, {}, {}):
            pass
    first, _ = sorted(UNSENT.glob("*/records.jsonl"))
    (UNSENT / "a-empty").mkdir()
    (UNSENT / "a-empty" / "records.jsonl").write_text('{"do": "sta')  # killed in its first line
    first.write_text(first.read_text().replace('"do": "tags"', '"do": "metrics"', 1))  # words for figures
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    with pytest.raises(
        UserError, match=rf"^MLflow at {mlflow_server} does not take .*{first.parent.name} stays unsent \(1 in all; 1 were sent\)$"
    ):
        sync()
    assert list(UNSENT.glob("*/records.jsonl")) == [first]
    assert "publish" in runs()


def test_the_place_that_did_not_answer_is_named(dead, monkeypatch):
    stage()
    place = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=f"MLflow at {place} does not take"):
        sync()


def test_a_database_that_cannot_be_opened_holds_nobody_up(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/1/none.db")
    begin = time.monotonic()
    stage()
    assert time.monotonic() - begin < 30  # MLflow's own tries take 200 s
    assert list(UNSENT.glob("*/records.jsonl"))


def test_stages_that_begin_together_share_a_new_database_and_one_parent(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/new.db")
    body = "import sys; from dreamteacher.tracking import open_tracker\nwith open_tracker(sys.argv[1], {}, {}): pass\n"
    together = [subprocess.Popen([sys.executable, "-c", body, name]) for name in ("ingest", "publish", "evaluate")]
    assert [one.wait() for one in together] == [0, 0, 0]
    assert not list(UNSENT.glob("*/records.jsonl"))
    assert set(runs()) == {"chain adhoc", "ingest", "publish", "evaluate"}


def test_sync_leaves_running_stages_alone():
    body = (
        "import sys; from dreamteacher.tracking import open_tracker\n"
        "with open_tracker('ingest', {}, {}):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"in\n"
        assert sync() == []
        running.stdin.close()
        assert running.wait() == 0
    assert runs()["ingest"].info.status == "FINISHED"


def test_registered_model_bears_its_alias_and_is_registered_once(live):
    model = Path("model")
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}\n")
    with open_tracker("publish", {}, {}) as tracker:
        tracker.register(model, "nuclei", alias="challenger", tags={"sha256": "a", "miou": "0.7"})
        tracker.register(model, "nuclei", alias="challenger", tags={"sha256": "a", "miou": "0.8"})
    version = client().get_model_version_by_alias("nuclei", "challenger")
    assert version.version == "1"
    assert version.tags.items() >= {"sha256": "a", "miou": "0.8"}.items()
    assert version.run_id == runs()["publish"].info.run_id
    assert [file.path for file in client().list_artifacts(version.run_id, "model")] == ["model/MLmodel"]


@pytest.mark.parametrize(("before", "after"), [(None, True), ("", True), ("no_inferred_type", True), ("genai_development", False)])
def test_an_experiment_is_of_the_kind_that_shows_runs_unless_somebody_chose_another(before, after):
    if before is not None:
        client().create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"], tags={KIND: before} if before else {})
    stage()
    kind = client().get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"]).tags[KIND]
    assert kind == (KIND_OF_TRAINING if after else before)


def test_a_stage_that_is_sent_late_does_not_end_the_chains_run_anew(monkeypatch, database):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(ValueError, match="boom"), open_tracker("ingest", {}, {}):
            raise ValueError("boom")
    stage()
    before = runs()["chain adhoc"].info
    sync()
    after = runs()["chain adhoc"].info
    assert (after.status, after.end_time) == (before.status, before.end_time) == ("FINISHED", before.end_time)
    assert runs()["ingest"].info.status == "FAILED"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host/x",
        "https://me:hunt@er2@host:80/x",
        "postgresql://me:hunt/er2@host/db",
        "https://hunter2@host",
        "x https://me:hunter2@host y",
    ],
)
def test_no_part_of_a_password_is_shown(text):
    shown = without_password(text)
    assert not [part for part in ("hunt", "er2", "me:") if part in shown]
    assert "://host" in shown


@pytest.mark.parametrize("text", ["http://host:5000/a@b", "sqlite:////home/me/mlflow.db", "a@b.c and http://host"])
def test_what_has_no_password_is_shown_whole(text):
    assert without_password(text) == text


def test_what_is_sent_later_is_sent_by_one_sync_for_all(monkeypatch):
    """No stage imports mlflow then, unless it takes so long that somebody may want to watch it."""
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    monkeypatch.setattr(tracking, "SEND_EVERY", 0)
    sent, send = [], tracking._send
    monkeypatch.setattr(tracking, "_send", lambda journal: sent.append(journal) or send(journal))
    for name in ("ingest", "train-teacher"):
        with open_tracker(name, {}, {}) as tracker:
            tracker.metrics({"loss": 1.0}, step=1)
    assert sent == []
    assert len(tracking.sync()) == 2
    assert {"ingest", "train-teacher"} < set(runs())
    monkeypatch.setattr(tracking, "LATER", 0)
    with open_tracker("finetune", {}, {}) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
    assert runs()["finetune"].info.status == "FINISHED"


def test_off_means_off(monkeypatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "off")
    stage()
    assert {path.name for path in Path().iterdir()} == {"artifacts", ".checkpoints"}


def test_password_of_the_server_is_kept_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    stage()
    (journal,) = UNSENT.iterdir()
    assert "hunter2" not in (journal / "records.jsonl").read_text() + caplog.text
    assert json.loads((journal / "records.jsonl").read_text().splitlines()[0])["uri"].startswith("http://127.0.0.1:")
