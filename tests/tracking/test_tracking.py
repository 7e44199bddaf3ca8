"""The MLflow run of a stage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import assert_complete, client, runs, stage

from dreamteacher.errors import Interrupted
from dreamteacher.mlflow_server import KIND, KIND_OF_TRAINING, without_password
from dreamteacher.tracking import UNSENT, open_tracker
from helpers import free_port


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


@pytest.mark.parametrize(
    ("fail", "status"),
    [(ZeroDivisionError(), "FAILED"), (Interrupted(15, 3), "KILLED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_stopped_stage_says_so_and_continues_in_the_same_run(fail, status):
    with pytest.raises(type(fail)):
        stage(fail=fail)
    assert runs()["finetune init=mix seed=2"].info.status == status
    stage()
    assert runs()["finetune init=mix seed=2"].info.status == "FINISHED"
    assert runs()["finetune init=mix seed=2"].data.metrics["miou"] == 0.75
    assert len(runs()) == 2


def test_a_named_run_that_does_not_exist_costs_no_record(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789")
    stage()
    assert_complete(runs()["finetune init=mix seed=2"], runs()["chain adhoc"])
    assert "MLflow has no run 0123456789" in caplog.text


def test_stages_that_begin_together_share_a_new_database_and_one_parent(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/new.db")
    body = (
        "import os, sys; import mlflow; from dreamteacher.tracking import open_tracker\n"
        "for name in sys.argv[1:]:\n"
        "    if os.fork() == 0:\n"
        "        with open_tracker(name, {}, {}): pass\n"
        "        os._exit(0)\n"
        "assert [os.wait()[1] for _ in sys.argv[1:]] == [0, 0, 0]\n"
    )
    subprocess.run([sys.executable, "-c", body, "ingest", "publish", "evaluate"], check=True)
    assert not list(UNSENT.glob("*/records.jsonl"))
    assert set(runs()) == {"chain adhoc", "ingest", "publish", "evaluate"}


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


def test_with_tracking_off_nothing_is_written(monkeypatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "off")
    stage()
    assert {path.name for path in Path().iterdir()} == {"artifacts", ".checkpoints"}


def test_password_of_the_server_is_kept_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    stage()
    (journal,) = UNSENT.iterdir()
    assert "hunter2" not in (journal / "records.jsonl").read_text() + caplog.text
    assert json.loads((journal / "records.jsonl").read_text().splitlines()[0])["uri"].startswith("http://127.0.0.1:")
