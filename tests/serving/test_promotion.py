"""Aliases of a registered model, on a database and on a real server; what is wrong comes out as one line."""

import os
import subprocess
import sys

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from dreamteacher import cli
from dreamteacher.errors import UserError
from dreamteacher.serving.promotion import choose, fetch_champion, promote, rollback
from helpers import free_port


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """One for all, since MLflow takes seconds to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(params=["database", "server"])
def registry(request, in_tmp, monkeypatch):
    """A client of a registry in which every test has a model of its own, named as the test."""
    uri = request.getfixturevalue("database" if request.param == "database" else "mlflow_server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the machine may be busy
    yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def add_versions(registry: MlflowClient, name: str, count: int) -> None:
    registry.create_registered_model(name)
    run = registry.create_run("0")
    for number in range(1, count + 1):
        registry.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"sha256": f"{number}" * 8})


def aliases(registry: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in registry.get_registered_model(name).aliases.items()}


def test_promotion_and_rollback_move_the_aliases_and_can_be_repeated(registry, request, capsys):
    name = f"story-{request.node.callspec.id}"
    add_versions(registry, name, 3)
    registry.set_registered_model_alias(name, "challenger", "1")
    assert cli.main(["promote", name]) == 0
    assert capsys.readouterr().out == f"{name}: champion is version 1, previous none\n"
    assert aliases(registry, name) == {"champion": 1}
    with pytest.raises(UserError, match=f"{name} has no previous champion"):
        rollback(name)
    registry.set_registered_model_alias(name, "challenger", "2")
    for _ in range(2):
        assert cli.main(["promote", name, "--version", "2"]) == 0
        assert aliases(registry, name) == {"champion": 2, "previous": 1}
    assert cli.main(["rollback", name]) == 0
    assert aliases(registry, name) == {"champion": 1, "previous": 2}
    assert choose(name, sha256="3" * 8) == "3"
    promote(name, version="3")
    assert aliases(registry, name) == {"champion": 3, "previous": 1}


def test_promotion_goes_on_where_it_was_interrupted(registry, request, monkeypatch):
    name = f"stopped-{request.node.callspec.id}"
    add_versions(registry, name, 2)
    promote(name, version="1")
    registry.set_registered_model_alias(name, "challenger", "2")
    for step in ("set_registered_model_alias", "delete_registered_model_alias"):
        with monkeypatch.context() as patch:
            whole = getattr(MlflowClient, step)

            def stop(client, model, alias, *rest, whole=whole):
                if alias != "previous":
                    raise KeyboardInterrupt
                return whole(client, model, alias, *rest)

            patch.setattr(MlflowClient, step, stop)
            with pytest.raises(KeyboardInterrupt):
                promote(name, version="2")
    promote(name, version="2")
    assert aliases(registry, name) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("registry", ["database"], indirect=True)
def test_what_is_missing_is_named(registry, tmp_path):
    with pytest.raises(UserError, match=r"has no model nobody; `dreamteacher publish` registers it"):
        promote("nobody", version="1")
    add_versions(registry, "lone", 2)
    with pytest.raises(UserError, match="lone has no challenger; `dreamteacher publish` makes one"):
        choose("lone")
    with pytest.raises(UserError, match="lone has no version 7; it has 1, 2"):
        promote("lone", version="7")
    with pytest.raises(UserError, match=r"lone has no version of this file; `dreamteacher sync`"):
        choose("lone", sha256="f" * 64)
    assert fetch_champion("lone", tmp_path / "a") is fetch_champion("nobody", tmp_path / "b") is None
    assert not list((tmp_path / "a").iterdir())
    promote("lone", version="2")
    with pytest.raises(UserError, match=r"nobody stored what version 2 of lone, the champion, was made from; .*promote lone --version 2"):
        fetch_champion("lone", tmp_path / "c")


def test_server_that_is_down_is_one_line_without_the_password(in_tmp):
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://me:secret@127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "dreamteacher.cli", "promote", "blobs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1 and "secret" not in done.stderr
