"""A published repository is delivered from MLflow to a pod completely, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from serving_samples import PARAMS

from dreamteacher import cli, outages
from dreamteacher.errors import UserError
from dreamteacher.serving import delivery
from dreamteacher.serving.delivery import fetch_repositories, fetch_repository, has_repository, keep_repository, resolve
from dreamteacher.stages import publish

MODELS = ["cells", "cells-backbone", "cells-pictures"]


@pytest.fixture(scope="module")
def published(project: Path, new_database: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory):
    """(client, output of publish, registered as version 1 of cells with its repository; the folder of MLflow's artifacts)."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "on")
        patch.setenv("MLFLOW_TRACKING_URI", uri := new_database(folder))
        onnx = project / "onnx" / "segmentation"
        publish.run(PARAMS, onnx=onnx, evaluation=project / "evaluation", out=folder / "triton")
        keep_repository("cells", "1", folder / "triton")
        yield MlflowClient(uri), folder / "triton"
        mlflow.set_tracking_uri(None)


def stored(client: MlflowClient) -> Path:
    """Where MLflow keeps the repository of version 1."""
    version = client.get_model_version("cells", "1")
    return Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / version.tags["repository"]


@pytest.mark.parametrize("backend", ["production", "local"])
def test_a_pod_gets_what_was_published_to_the_byte(published, tmp_path: Path, backend: str):
    _, folder = published
    out = tmp_path / "models" / "repository"
    for _ in range(2):  # a restarted pod finds the first one's
        assert fetch_repository("cells", "1", out, backend=backend) == MODELS
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert {str(file): (out / file).read_bytes() for file in files} == {
        str(path.relative_to(folder / backend)): path.read_bytes() for path in (folder / backend).rglob("*") if path.is_file()
    }
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["repository"]


def test_triton_says_which_registered_version_answers(published, tmp_path: Path):
    client, folder = published
    run = client.create_run("0")
    sha256 = client.get_model_version("cells", "1").tags["sha256"]
    version = str(client.create_model_version("cells", run.info.artifact_uri, run.info.run_id, tags={"sha256": sha256}).version)
    keep_repository("cells", version, folder)
    out = tmp_path / "models/repository"
    assert fetch_repository("cells", version, out, backend="local") == MODELS
    assert sorted(path.name for path in (out / "cells").iterdir() if path.is_dir()) == [version]


def test_several_registered_models_come_as_one_repository(published, project: Path, tmp_path: Path, monkeypatch, capsys):
    client, _ = published
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    onnx = project / "onnx" / "segmentation"
    for name in ("roads", "cells-backbone"):  # of the second one model bears the name of one that cells brings
        params = PARAMS.model_copy(update={"publish": PARAMS.publish.model_copy(update={"name": name})})
        publish.run(params, onnx=onnx, evaluation=project / "evaluation", out=tmp_path / name)
        keep_repository(name, "1", tmp_path / name)
    client.set_registered_model_alias("cells", "champion", "1")
    out = tmp_path / "models/repository"
    together = [*MODELS, "roads", "roads-backbone", "roads-pictures"]
    for _ in range(2):
        assert fetch_repositories({"cells": "1", "roads": "1"}, out) == together
    assert sorted(path.name for path in out.iterdir()) == sorted(together)
    assert check_repository_of(out) == together
    assert [path.name for path in out.parent.iterdir()] == ["repository"]
    before = (out / "cells/1/model.onnx").read_bytes()
    with pytest.raises(UserError, match=r"cells-backbone serves a model cells-backbone, as another one of cells, cells-backbone does"):
        fetch_repositories({"cells": "1", "cells-backbone": "1"}, out)
    assert (out / "cells/1/model.onnx").read_bytes() == before
    assert cli.main(["fetch-model", "cells,roads", "--version=roads=1,faces=7", "--out", str(tmp_path / "again")]) == 0
    assert "version 1 of cells, version 1 of roads: cells, cells-backbone, cells-pictures, roads" in capsys.readouterr().out
    assert cli.main(["fetch-model", "cells,roads", "--version=1", "--out", str(tmp_path / "again")]) == 2
    assert "--version 1 names no model, and there are cells, roads; write NAME=N, separated by commas" in capsys.readouterr().err
    client.delete_registered_model_alias("cells", "champion")


def check_repository_of(out: Path) -> list[str]:
    """The models, each under the number of its version, beside a label file where it has classes."""
    return sorted(path.parent.name for path in out.glob("*/config.pbtxt") if (path.parent / "1").is_dir())


def test_the_alias_is_resolved_to_a_version(published, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    client, _ = published
    assert resolve("cells", alias="challenger") == "1"
    assert cli.main(["fetch-model", "cells", "--out", str(tmp_path / "models")]) == 2
    assert "cells has no champion; it has challenger" in capsys.readouterr().err
    client.set_registered_model_alias("cells", "champion", "1")
    assert cli.main(["fetch-model", "cells", "--out", str(tmp_path / "models")]) == 0
    assert capsys.readouterr().out == f"version 1 of cells: {', '.join(MODELS)} -> {tmp_path}/models\n"
    client.delete_registered_model_alias("cells", "champion")


def test_a_pod_that_starts_before_mlflow_does_waits_for_it(published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client, _ = published
    client.set_registered_model_alias("cells", "champion", "1")
    tries, slept = [], []

    def server(name: str, **kind: str) -> str:
        tries.append(name)
        if len(tries) < 3:
            raise outages.NoAnswer("MLflow does not answer (connection refused)")
        return resolve(name, **kind)

    monkeypatch.setattr(delivery, "resolve", server)
    monkeypatch.setattr(outages.time, "sleep", slept.append)
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "5")
    assert cli.main(["fetch-model", "cells", "--out", str(tmp_path / "models")]) == 0
    assert len(tries) == 3
    assert len(slept) == 2
    client.delete_registered_model_alias("cells", "champion")


@pytest.mark.parametrize("damage", ["truncated", "missing", "rewritten", "other record", "gone"])
def test_what_is_damaged_in_the_store_reaches_no_pod(published, tmp_path: Path, damage: str):
    client, _ = published
    place = stored(client)
    safe = shutil.copytree(place, tmp_path / "safe")
    model = place / "production/cells/1/model.onnx"
    out = tmp_path / "models" / "repository"
    fetch_repository("cells", "1", out)
    before = (out / "cells/1/model.onnx").read_bytes()
    try:
        if damage == "truncated":
            model.write_bytes(model.read_bytes()[:-1])
        elif damage == "missing":
            model.unlink()
        elif damage == "rewritten":
            model.write_bytes(model.read_bytes()[:-1] + b"x")
        elif damage == "other record":
            record = json.loads((place / "stage.json").read_text())
            (place / "stage.json").write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"}))
        else:
            shutil.rmtree(place)
        with pytest.raises(UserError, match=r"version 1 of cells is damaged: |MLflow at .* cannot be used"):
            fetch_repository("cells", "1", out)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(safe, place)
    assert (out / "cells/1/model.onnx").read_bytes() == before


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_registry_that_goes_down_in_the_middle_costs_time_or_one_message(published, tmp_path: Path, monkeypatch, comes_back: bool):
    original, out, pauses = LocalArtifactRepository.download_artifacts, tmp_path / "models/repository", []
    fetch_repository("cells", "1", out)
    before = sorted((path, path.read_bytes()) for path in out.rglob("*") if path.is_file())

    def breaking(*args, **named):
        folder = Path(original(*args, **named))
        if comes_back and pauses:
            return str(folder)
        (folder / "production/cells/1/model.onnx").write_bytes(b"half")
        raise ConnectionError("Connection aborted.")

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", breaking)
    monkeypatch.setattr("dreamteacher.outages.time.sleep", pauses.append)
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "30" if comes_back else "0")
    if comes_back:
        assert fetch_repository("cells", "1", out) == MODELS
    else:
        with pytest.raises(UserError, match="MLflow") as error:
            fetch_repository("cells", "1", out)
        assert "Connection aborted" in str(error.value) and "\n" not in str(error.value)
    assert sorted((path, path.read_bytes()) for path in out.rglob("*") if path.is_file()) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["repository"]


def test_a_version_without_a_repository_says_who_stores_it(published, tmp_path: Path):
    client, folder = published
    run = client.create_run("0")
    version = str(client.create_model_version("cells", run.info.artifact_uri, run.info.run_id, tags={"sha256": "0" * 64}).version)
    assert not has_repository("cells", version)
    with pytest.raises(
        UserError,
        match=f"of version {version} of cells is not stored; .*`dreamteacher promote cells --version {version}`",
    ):
        fetch_repository("cells", version, tmp_path / "models")
    with pytest.raises(UserError, match=f"serves another model than version {version} of cells"):
        keep_repository("cells", version, folder)
