"""`dreamteacher follow`: webhooks of a real MLflow server, and forged deliveries."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fake_cluster import Cluster, annotations, running_cluster
from mlflow.tracking import MlflowClient

from dreamteacher import cli
from dreamteacher.errors import UserError
from dreamteacher.serving import delivery, deployment
from dreamteacher.serving.deployment import ALIAS, MODEL, deploy
from dreamteacher.serving.webhook import FRESH, LONGEST, SECRET, server_of
from helpers import PROJECT, free_port, wait_for

KEY = "0123456789abcdef"
MOVED = {"entity": "model_version_alias", "action": "created", "data": {"name": "followed", "alias": "champion", "version": "1"}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Version 1 is served; MLflow's champion is version 2."""
    monkeypatch.setattr(deployment, "resolve", lambda name, alias: "2")
    monkeypatch.setattr(deployment, "has_repository", lambda name, version: True)
    with running_cluster("done", tmp_path, monkeypatch) as found:
        found.deployment["spec"]["template"]["metadata"]["annotations"][MODEL] = "followed"
        deploy("dreamteacher-triton", version="1")
        found.deployment["metadata"]["annotations"].pop(deployment.PINNED)
        found.patches = 0
        yield found


@pytest.fixture
def receiver(cluster: Cluster) -> Iterator[str]:
    """Its URL."""
    server = server_of(KEY, "ml", host="127.0.0.1", port=0)
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def signed(event: Any = MOVED, *, delivery: str = "d-1", at: float | None = None, key: str = KEY) -> tuple[bytes, dict[str, str]]:
    """Body and headers as MLflow makes them."""
    body, stamp = json.dumps(event).encode(), str(int(time.time() if at is None else at))
    digest = hmac.new(key.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return body, {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": stamp, "X-MLflow-Signature": signature}


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def test_a_delivery_is_done_once(receiver: str, cluster: Cluster):
    sent = signed()
    assert post(receiver, *sent) == (200, "dreamteacher-triton: version 2 of followed is being rolled out")
    assert annotations(cluster) == ("followed=2", None)
    assert post(receiver, *sent) == (401, "delivery d-1 is done already")
    assert post(receiver, *signed(delivery="d-2")) == (200, "dreamteacher-triton: version 2 of followed is served already")
    assert cluster.patches == 1


def without(name: str) -> tuple[bytes, dict[str, str]]:
    body, headers = signed()
    return body, {key: value for key, value in headers.items() if key != name}


def moved_dot() -> tuple[bytes, dict[str, str]]:
    """The signed text cut elsewhere: what was the time becomes part of the id."""
    body, headers = signed({"a": f".{int(time.time())}."}, delivery="d")
    first, stamp, rest = body.decode().split(".")
    return rest.encode(), headers | {"X-MLflow-Delivery-Id": f"d.{headers['X-MLflow-Timestamp']}.{first}", "X-MLflow-Timestamp": stamp}


@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (lambda: (signed()[0], {}), 401, "not signed"),
        (lambda: without("X-MLflow-Signature"), 401, "signed with another secret"),
        (lambda: without("X-MLflow-Timestamp"), 401, "not signed"),
        (lambda: without("X-MLflow-Delivery-Id"), 401, "not signed"),
        (lambda: signed(key="another"), 401, "signed with another secret"),
        (lambda: (signed()[0].replace(b"followed", b"followee"), signed()[1]), 401, "signed with another secret"),
        (lambda: (signed()[0], signed()[1] | {"X-MLflow-Timestamp": str(int(time.time()) + 1)}), 401, "signed with another secret"),
        (lambda: (signed()[0], signed()[1] | {"X-MLflow-Signature": "v1,\xe9"}), 401, "signed with another secret"),
        (moved_dot, 401, "not signed"),
        (lambda: signed(at=time.time() - FRESH - 5), 401, r"signed 30\d s ago; at most 300 are allowed \(check the clocks\)"),
        (lambda: signed(at=time.time() + FRESH + 5), 401, r"signed -30\d s ago"),
        (lambda: signed([]), 400, "no event of MLflow"),
        (lambda: signed(MOVED | {"data": {"name": ["followed"], "alias": "champion"}}), 400, "no event of MLflow"),
        (lambda: signed("x" * LONGEST), 400, "needs a Content-Length of at most"),
        (lambda: signed(MOVED | {"data": MOVED["data"] | {"name": "other"}}), 200, "nothing here follows it"),
        (lambda: signed(MOVED | {"data": MOVED["data"] | {"alias": "previous"}}), 200, "nothing here follows it"),
        (lambda: signed({"entity": "registered_model", "action": "created", "data": {"name": "followed"}}), 200, "nothing here follows it"),
    ],
)
def test_what_is_forged_stale_broken_or_about_others_changes_nothing(
    receiver: str, cluster: Cluster, sent: Callable[[], tuple[bytes, dict[str, str]]], status: int, why: str
):
    got, text = post(receiver, *sent())
    assert (got, bool(re.match(why, text))) == (status, True), text
    assert cluster.patches == 0


def test_a_delivery_that_failed_may_come_again(receiver: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    def away(name: str, alias: str) -> str:
        raise UserError("MLflow does not answer")

    sent = signed()
    with monkeypatch.context() as patch:
        patch.setattr(deployment, "resolve", away)
        assert post(receiver, *sent) == (503, "MLflow does not answer")
    assert post(receiver, *sent)[0] == 200
    assert annotations(cluster) == ("followed=2", None)


def test_a_version_that_was_named_by_hand_stays(receiver: str, cluster: Cluster):
    deploy("dreamteacher-triton", version="1")
    assert post(receiver, *signed())[1] == (
        "dreamteacher-triton: version 1 of followed was named by hand; `dreamteacher deploy` follows the alias again"
    )
    assert annotations(cluster) == ("followed=1", "followed=1")


def test_the_canary_follows_its_own_alias(receiver: str, cluster: Cluster):
    cluster.deployment["spec"]["template"]["metadata"]["annotations"][ALIAS] = "challenger"
    assert post(receiver, *signed())[1] == "nothing here follows it"
    moved = MOVED | {"data": MOVED["data"] | {"alias": "challenger"}}
    assert post(receiver, *signed(moved, delivery="d-2"))[1] == "dreamteacher-triton: version 2 of followed is being rolled out"


def test_mlflow_itself_says_that_the_champion_moved(receiver: str, cluster: Cluster, mlflow_server: str, monkeypatch: pytest.MonkeyPatch):
    """Registered as docs/serving.md says."""
    for name in ("resolve", "has_repository"):  # MLflow is asked which version it is
        monkeypatch.setattr(deployment, name, getattr(delivery, name))
    (command,) = re.findall(r"^    python -c '(import mlflow, os; .*create_webhook.*)'$", (PROJECT / "docs/serving.md").read_text(), re.M)
    command = command.replace("http://dreamteacher-webhook.dreamteacher.svc:8080", receiver)
    variables = {"MLFLOW_TRACKING_URI": mlflow_server, SECRET: KEY}
    subprocess.run([sys.executable, "-c", command], env=os.environ | variables, check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    client = MlflowClient(mlflow_server)
    (webhook,) = client.list_webhooks()
    try:
        assert client.test_webhook(webhook.webhook_id).response_body == "nothing here follows it\n"
        client.create_registered_model("followed")
        for _ in range(2):
            run = client.create_run("0")
            client.create_model_version("followed", run.info.artifact_uri, run.info.run_id, tags={"repository": "there"})
        time.sleep(1)  # for which the server remembers which webhooks there are
        client.set_registered_model_alias("followed", "champion", "2")
        end = time.monotonic() + 30
        while annotations(cluster) != ("followed=2", None):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        client.delete_webhook(webhook.webhook_id)


def test_the_command_listens_and_ends_when_it_is_told_to(tmp_path: Path):
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "dreamteacher.cli", "follow", "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | {SECRET: KEY}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_without_a_secret_or_a_free_port_it_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv(SECRET, raising=False)
    assert cli.main(["follow"]) == 2
    assert f"error: {SECRET} is not set; it is the secret that the webhook has in MLflow" in capsys.readouterr().err
    monkeypatch.setenv(SECRET, KEY)
    with closing(server_of(KEY, port=0).socket) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["follow", "--port", str(port)]) == 2
    assert f"error: cannot listen on port {port}: Address already in use; choose another with --port" in capsys.readouterr().err
