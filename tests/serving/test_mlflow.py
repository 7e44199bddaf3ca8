"""MLflow as k8s/components/mlflow runs it: on a real PostgreSQL, with artifacts in an S3 API server (moto's)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import mlflow
import pytest
from cryptography.fernet import Fernet
from mlflow.tracking import MlflowClient
from mlflow_stack import DATABASE, KEYS, MlflowServer, Postgres, environment, manifest, running_postgres
from moto.server import ThreadedMotoServer
from serving_samples import PARAMS

from dreamteacher import cli, outages
from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import promote
from dreamteacher.serving.delivery import fetch_repository, has_repository, keep_repository
from dreamteacher.stages import publish
from json_server import JsonServer, Request

pytestmark = pytest.mark.skipif(not DATABASE, reason="no PostgreSQL here (Debian: apt-get install postgresql)")
MODELS = ["cells", "cells-backbone", "cells-pictures"]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        server.execute("CREATE DATABASE mlflow", "postgres")
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Its address; it has the bucket of the Job."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    (container,) = manifest("object-store", "Job")["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]} | {"ENDPOINT": f"http://{host}:{port}"}
    for _ in range(2):  # once more changes nothing
        subprocess.run([sys.executable, *container["command"][1:]], env=os.environ | given | KEYS, check=True)
    yield f"http://{host}:{port}"
    server.stop()


def keys(s3: str) -> list[str]:
    """Of all objects in the bucket."""
    client = boto3.client(
        "s3", endpoint_url=s3, region_name="us-east-1", aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key="secret"
    )
    return [
        each["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket="dreamteacher") for each in page.get("Contents", [])
    ]


def migrate(variables: dict[str, str], database: str) -> None:
    """As the init container does."""
    (container,) = manifest("mlflow", "Deployment")["spec"]["template"]["spec"]["initContainers"]
    command = [word.replace("$(MLFLOW_BACKEND_STORE_URI)", database) for word in container["command"]]
    subprocess.run([sys.executable, "-m", *command], env=variables, check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(postgres: Postgres, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    variables = environment(postgres, s3) | {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode()}
    migrate(variables, variables["MLFLOW_BACKEND_STORE_URI"])
    found = MlflowServer(tmp_path_factory.mktemp("server"), variables)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """One that has no keys of S3."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the machine may be busy
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "on")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    yield MlflowClient(server.url)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def published(client: MlflowClient, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of `publish`, whose model is version 1 of cells, challenger."""
    monkeypatch.chdir(tmp_path)
    publish.run(PARAMS, onnx=project / "onnx/segmentation", evaluation=project / "evaluation", out=tmp_path / "triton")
    return tmp_path / "triton"


def test_a_model_goes_through_registry_and_store_to_a_pod(
    client: MlflowClient, published: Path, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keep_repository("cells", "1", published)
    promote("cells", version="1")
    assert cli.main(["fetch-model", "cells", "--backend", "local", "--out", str(tmp_path / "models")]) == 0
    assert capsys.readouterr().out == f"version 1 of cells: {', '.join(MODELS)} -> {tmp_path}/models\n"
    of_version = client.get_model_version("cells", "1").tags["repository"]
    assert all(key.startswith("mlflow/") for key in keys(s3))
    assert any(key.endswith(f"{of_version}/production/cells/1/model.onnx") for key in keys(s3))


def test_names_of_the_service_are_answered_and_others_refused(server: MlflowServer):
    def answer(host: str) -> int:
        request = urllib.request.Request(f"{server.url}/api/2.0/mlflow/registered-models/search", headers={"Host": host})
        try:
            return urllib.request.urlopen(request, timeout=60).status
        except urllib.error.HTTPError as error:
            return error.code

    name = manifest("mlflow", "Service")["metadata"]["name"]
    good = [name, f"{name}.ml.svc", f"{name}.ml.svc.cluster.local"]
    assert {host: answer(f"{host}:5000") for host in good} == dict.fromkeys(good, 200)
    bad = ["example.org", f"{name}.example.org", f"{name}.example.org:5000", f"{name}.ml.svc.example.org:5000"]
    assert {host: answer(host) for host in bad} == dict.fromkeys(bad, 403)


def test_each_worker_can_sign_what_a_webhook_in_the_cluster_gets(client: MlflowClient):
    signatures = []

    def answer(request: Request) -> tuple[int, str]:
        signatures.append(request.headers["X-MLflow-Signature"])
        return 200, ""

    with JsonServer(answer) as receiver:
        webhook = client.create_webhook("mine", receiver.url, ["model_version_alias.created"], secret="s")
        for _ in range(8):  # connections that either worker takes
            assert MlflowClient(client.tracking_uri).test_webhook(webhook.webhook_id).success
        client.delete_webhook(webhook.webhook_id)
    assert len(signatures) == 8 and all(signature.startswith("v1,") for signature in signatures)


def test_a_server_that_is_killed_while_it_takes_an_upload_leaves_nothing_half_stored(
    client: MlflowClient, server: MlflowServer, published: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = client.create_run("0")
    tags = {"sha256": client.get_model_version("cells", "1").tags["sha256"]}
    version = str(client.create_model_version("cells", run.info.artifact_uri, run.info.run_id, tags=tags).version)
    place, files = f"/{run.info.run_id}/", sum(path.is_file() for path in published.rglob("*"))

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(keep_repository, "cells", version, published)
        while not (arrived := [key for key in keys(s3) if place in key]):
            assert not upload.done(), upload.result()
        server.stop(by=signal.SIGKILL)
        with pytest.raises(UserError) as raised:
            upload.result()
    assert 0 < len(arrived) < files
    assert f"MLflow at {server.url} cannot be used" in str(raised.value)
    assert "\n" not in str(raised.value)

    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "3")
    monkeypatch.setattr(outages, "FIRST", 0.5)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(keep_repository, "cells", version, published)  # it waits for the server
        server.start()
        assert not has_repository("cells", version)
        again.result()
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "0")
    assert fetch_repository("cells", version, tmp_path / "models") == MODELS


# The last schema of MLflow 2, whose tables know nothing of traces, logged models and webhooks.
MLFLOW_2 = "4465047574b1"


@pytest.fixture
def older(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a database with the schema of MLflow 2, with a model that has a champion."""
    from alembic import command
    from mlflow.store.db.utils import InitialBase, _get_alembic_config, create_sqlalchemy_engine

    postgres.execute("CREATE DATABASE older", "postgres")
    for name, value in postgres.environment.items():
        monkeypatch.setenv(name, value)
    engine = create_sqlalchemy_engine(postgres.uri("older"))
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(postgres.uri("older"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, MLFLOW_2)
    engine.dispose()
    for statement in (
        "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES ('nuclei', 's3://b/nuclei', 'active')",
        "INSERT INTO registered_models (name, creation_time) VALUES ('nuclei', 1)",
        "INSERT INTO model_versions (name, version, creation_time, current_stage, source) VALUES ('nuclei', 1, 1, 'None', 's3://b/m')",
        "INSERT INTO registered_model_aliases (name, alias, version) VALUES ('nuclei', 'champion', 1)",
    ):
        postgres.execute(statement, "older")
    return postgres.uri("older")


def test_a_database_of_mlflow_2_is_migrated_with_all_that_is_in_it(
    older: str, postgres: Postgres, s3: str, monkeypatch: pytest.MonkeyPatch, in_tmp: Path
):
    migrate(environment(postgres, s3), older)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", older)
    found = MlflowClient(older)
    assert found.get_model_version_by_alias("nuclei", "champion").source == "s3://b/m"
    assert found.get_experiment_by_name("nuclei").artifact_location == "s3://b/nuclei"
    postgres.execute("UPDATE alembic_version SET version_num = '75868b020152'", "older")  # MLflow itself makes tables that are missing
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{older}?application_name=later")  # MLflow keeps what it has opened by its address
    with pytest.raises(
        UserError, match=r"^the tables of postgresql://\S+ are not those of MLflow 3.*`mlflow db upgrade URI` after a backup"
    ):
        promote("nuclei", version="1")
    mlflow.set_tracking_uri(None)
