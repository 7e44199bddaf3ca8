"""Where tracking and checkpoints go when DVC runs a stage in a copy of the project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamteacher.errors import Interrupted
from dreamteacher.mlflow_server import tracking_uri
from dreamteacher.project_root import project_folder
from dreamteacher.stage import open_stage
from dreamteacher.tracking import UNSENT

PARAMS = "ingest:\n  source: pictures\n  val_fraction: 0\n  min_side: 16\n"
GRAPH = """stages:
  ingest:
    cmd: dreamteacher ingest
    deps: [pictures]
    params: [ingest]
    outs: [artifacts/data]
"""


@pytest.fixture
def copy(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as DVC makes it; in_tmp is the project."""
    folder = in_tmp / ".dvc/tmp/exps/tmp1a2b"
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(in_tmp))
    return folder


def test_the_project_is_here(in_tmp, monkeypatch):
    assert project_folder().absolute() == in_tmp
    (in_tmp / ".dvc").mkdir()
    (in_tmp / "sub").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(in_tmp))  # as in `dvc repro`
    assert project_folder().absolute() == in_tmp
    monkeypatch.chdir("sub")
    assert project_folder().absolute() == in_tmp / "sub"


def test_a_copy_uses_the_records_of_its_project(copy, in_tmp, monkeypatch):
    assert project_folder() == in_tmp
    (copy / "models/cells").mkdir(parents=True)
    monkeypatch.chdir("models/cells")
    assert project_folder() == in_tmp / "models/cells"


def test_a_copy_of_a_project_in_a_subfolder_of_its_repository_uses_its_records(in_tmp, monkeypatch):
    project = in_tmp / "models"
    copy = project / ".dvc/tmp/exps/tmp1a2b/models"
    (copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert project_folder() == project


def test_a_project_elsewhere_is_not_mistaken_for_a_copy(copy, in_tmp, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (other / ".dvc").mkdir()
    monkeypatch.chdir(other)
    assert project_folder().absolute() == other


def test_a_stage_in_a_copy_leaves_its_checkpoints_and_records_in_the_project(copy, in_tmp, monkeypatch):
    monkeypatch.delenv("DREAMTEACHER_TRACKING")
    monkeypatch.setattr("dreamteacher.tracking.client_of", None)  # MLflow does not answer
    with pytest.raises(Interrupted), open_stage("ingest", params={}, inputs={}, out=Path("artifacts/data")) as stage:
        (stage.checkpoints / "step-10").touch()
        raise Interrupted(15, 10)
    assert len(list(in_tmp.glob(".checkpoints/ingest/*/step-10"))) == 1
    assert len(list((in_tmp / UNSENT).iterdir())) == 1
    assert {path.name for path in copy.iterdir()} == {".dvc", "artifacts"}
    monkeypatch.chdir(in_tmp)
    with open_stage("ingest", params={}, inputs={}, out=Path("artifacts/data")) as stage:
        assert (stage.checkpoints / "step-10").exists()


@pytest.mark.parametrize("given", [None, "", "sqlite:///mlflow.db"])
def test_the_database_is_that_of_the_project(given, copy, in_tmp, monkeypatch):
    if given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri() == f"sqlite:///{in_tmp}/mlflow.db"
    for absolute in (f"sqlite:///{copy}/mine.db", "http://mlflow:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", absolute)
        assert tracking_uri() == absolute


def test_experiments_in_copies_are_found_in_the_projects_mlflow(in_tmp, monkeypatch):
    """`dvc exp run --temp` for real, with the files of the run."""
    import numpy as np
    from PIL import Image

    monkeypatch.delenv("DREAMTEACHER_TRACKING")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in ("git init -q .", "git config user.email a@b", "git config user.name a", "dvc init -q"):
        subprocess.run(command.split(), check=True)
    Path("pictures").mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)).save(f"pictures/{i}.png")
    Path("params.yaml").write_text(PARAMS)
    Path("dvc.yaml").write_text(GRAPH)
    Path(".gitignore").write_text("/mlflow.db\n/mlruns\n/.checkpoints\n/.dreamteacher\n/artifacts\n")
    for command in ("git add -A", "git commit -qm 1", "dvc exp run -q --temp --name quick -S ingest.min_side=20"):
        subprocess.run(command.split(), check=True)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{in_tmp}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.run_name for run in runs} == {"chain quick", "ingest"}
    (run,) = (run for run in runs if run.info.run_name == "ingest")
    assert run.data.params["ingest.min_side"] == "20"
    assert Path(run.info.artifact_uri.removeprefix("file://"), "stage.json").is_file()
    assert Path(".checkpoints/ingest").is_dir()
    assert not list(Path(".dreamteacher/unsent").iterdir())
