"""The Kubernetes API with one Deployment of ours, as a real Kubernetes 1.34 answered in each state (deployments.json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamteacher.serving.deployment import PINNED, VERSION
from json_server import JsonServer

RECORDED = json.loads(Path(__file__).with_name("deployments.json").read_text())
NAME = "dreamteacher-triton"


class Cluster:
    """One Deployment and its pods. A patch is merged as the API does, and the next question finds it rolled out if `rolls`."""

    def __init__(self, state: str) -> None:
        self.deployment = json.loads(json.dumps(RECORDED[state]))
        self.pods = RECORDED.get(f"{state}_pods", {"items": []})
        self.rolls, self.patches = True, 0

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/pods"):
            return 200, self.pods | {"apiVersion": "v1", "kind": "PodList"}
        if path.endswith("/deployments"):
            return 200, {"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [self.deployment]}
        if not path.endswith(f"/deployments/{NAME}"):
            return 404, {"message": "not found"}
        if method == "PATCH":
            self.patches += 1
            merge(self.deployment, body)
            self.deployment["metadata"]["generation"] += 1
        elif self.rolls:
            self.deployment["status"]["observedGeneration"] = self.deployment["metadata"]["generation"]
        return 200, self.deployment


def merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        elif value is None:
            into.pop(key, None)
        else:
            into[key] = value


def annotations(cluster: Cluster) -> tuple[str | None, str | None]:
    """(version of the pods, version that was named by hand)."""
    own, pods = cluster.deployment["metadata"]["annotations"], cluster.deployment["spec"]["template"]["metadata"]["annotations"]
    return pods.get(VERSION), own.get(PINNED)


@contextmanager
def running_cluster(state: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster that Kubernetes' client finds."""
    found = Cluster(state)
    server = JsonServer(lambda request: found.answer(request.method, request.path, json.loads(request.body or "null")))
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))
    with server:
        yield found
