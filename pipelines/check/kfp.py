"""Findings on KFP itself: versions, and what Argo does with a pod that failed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from kubernetes.client import AppsV1Api, CoreV1Api, VersionApi

from pipelines.check.finding import Cluster, Finding, read

# On these versions the pipelines ran, in November 2026.
KUBERNETES, KFP, ARGO = "1.34", "2.17.0", "4.0.8"
CONTROLLER, CONFIG = "workflow-controller", "workflow-controller-configmap"
WANTED = {"retryPolicy": "Always", "limit": "0"}
# What is final under each of Argo's policies. Without one it is OnFailure.
FINAL = {
    "OnError": "a step that fails (a crash, out of memory, an eviction) is not tried again, only one whose pod was deleted",
    "OnFailure": "a step whose pod was deleted (preempted, drained) is not tried again, only one that fails",
    "OnTransientError": "most steps that fail are not tried again, whatever `retries` says",
}


def kubernetes_version(cluster: Cluster) -> Iterator[Finding]:
    """That of the API server."""
    version = read(VersionApi(cluster.client).get_code).git_version.removeprefix("v")
    yield Finding("ok", "Kubernetes", version + _tried(version, KUBERNETES))


def kfp_version(cluster: Cluster) -> Iterator[Finding]:
    """KFP's API server."""
    yield from _deployment(cluster, "ml-pipeline", "Kubeflow Pipelines", KFP)


def argo_version(cluster: Cluster) -> Iterator[Finding]:
    """Argo's controller, by which KFP runs its steps."""
    yield from _deployment(cluster, CONTROLLER, "Argo", ARGO)


def retry_policy(cluster: Cluster) -> Iterator[Finding]:
    """What Argo tries again. KFP gives it the number of tries of a step, and not for what."""
    config = read(CoreV1Api(cluster.client).read_namespaced_config_map, CONFIG, cluster.kfp_namespace)
    if config is None:
        return  # KFP is not here, which the finding on its version says
    text = (config.data or {}).get("workflowDefaults", "")
    try:
        defaults: Any = yaml.safe_load(text) or {}
        strategy = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
        policy, limit = strategy.get("retryPolicy", "OnFailure"), str(strategy.get("limit", ""))
    except (yaml.YAMLError, AttributeError):
        yield Finding(
            "wrong", CONFIG, "its workflowDefaults is no valid YAML", f"kubectl edit configmap {CONFIG} -n {cluster.kfp_namespace}"
        )
        return
    if policy != "Always":
        yield Finding("warn", CONFIG, f"retryPolicy {policy}: {FINAL.get(policy, 'no policy of Argo')}", _always(cluster, defaults))
    elif limit != "0":
        times = f"up to {limit} times more" if limit else "without end"
        yield Finding(
            "warn", CONFIG, f"limit {limit or 'missing'}: a group of steps is repeated whole, {times}", _always(cluster, defaults)
        )
    else:
        yield Finding("ok", CONFIG, "a step that fails or loses its pod is tried again, as often as its `retries` says")


def _always(cluster: Cluster, defaults: dict[str, Any]) -> str:
    """The command that sets the policy and keeps all else, such as ttlStrategy."""
    defaults.setdefault("spec", {}).setdefault("templateDefaults", {})["retryStrategy"] = WANTED
    patch = shlex.quote(json.dumps({"data": {"workflowDefaults": yaml.safe_dump(defaults)}}))
    namespace = cluster.kfp_namespace
    return (
        f"kubectl patch configmap {CONFIG} -n {namespace} --type merge -p {patch} "
        f"&& kubectl rollout restart deployment {CONTROLLER} -n {namespace}"
    )


def _deployment(cluster: Cluster, name: str, what: str, tried: str) -> Iterator[Finding]:
    namespace = cluster.kfp_namespace
    found = read(AppsV1Api(cluster.client).read_namespaced_deployment, name, namespace)
    if found is None:
        yield Finding("wrong", what, f"no deployment {name} in namespace {namespace}", "name KFP's own namespace with --kfp-namespace")
        return
    image = found.spec.template.spec.containers[0].image
    version = re.search(r":v?(\d+\.\d+\.\d+[^@]*)", image)
    if not found.status.available_replicas:
        yield Finding("wrong", what, f"{name} is not running", f"kubectl describe pods -n {namespace} -l app={name}")
    elif not version:
        yield Finding("ok", what, f"{image}, which names no version; tried with {tried}")
    elif what == "Kubeflow Pipelines" and version[1] < "2":
        yield Finding(
            "wrong",
            what,
            f"{version[1]}; these pipelines need version 2, tried with {tried}",
            "kubectl apply -k 'https://github.com/kubeflow/pipelines/manifests/kustomize/env/platform-agnostic?ref=2.17.0'",
        )
    else:
        yield Finding("ok", what, version[1] + _tried(version[1], tried))


def _tried(version: str, tried: str) -> str:
    return "" if version.split(".")[: tried.count(".") + 1] == tried.split(".") else f", tried with {tried}"
