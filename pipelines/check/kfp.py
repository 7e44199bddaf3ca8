"""Findings on KFP itself: versions, and Argo's retry policy."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from kubernetes.client import AppsV1Api, CoreV1Api, VersionApi

from pipelines.check.finding import Cluster, Finding, read

# Versions on which the pipelines ran in November 2026.
KUBERNETES, KFP, ARGO = "1.34", "2.17.0", "4.0.8"
CONTROLLER, CONFIG = "workflow-controller", "workflow-controller-configmap"
WANTED = {"retryPolicy": "Always", "limit": "0"}
# What each of Argo's policies does not retry. The default is OnFailure.
FINAL = {
    "OnError": "a failed step (crash, out of memory, eviction) is not retried, only one whose pod was deleted",
    "OnFailure": "a step whose pod was deleted (preempted, drained) is not retried, only a failed one",
    "OnTransientError": "most failed steps are not retried, regardless of `retries`",
}


def kubernetes_version(cluster: Cluster) -> Iterator[Finding]:
    """Version of the Kubernetes API server."""
    version = read(VersionApi(cluster.client).get_code).git_version.removeprefix("v")
    yield Finding("ok", "Kubernetes", version + _tested(version, KUBERNETES))


def kfp_version(cluster: Cluster) -> Iterator[Finding]:
    """Version of KFP's API server."""
    yield from _deployment(cluster, "ml-pipeline", "Kubeflow Pipelines", KFP)


def argo_version(cluster: Cluster) -> Iterator[Finding]:
    """Version of Argo's controller, which runs KFP's steps."""
    yield from _deployment(cluster, CONTROLLER, "Argo", ARGO)


def retry_policy(cluster: Cluster) -> Iterator[Finding]:
    """Argo's retry policy. KFP sets the number of retries of a step, but not the policy."""
    config = read(CoreV1Api(cluster.client).read_namespaced_config_map, CONFIG, cluster.kfp_namespace)
    if config is None:
        return  # KFP is not installed; the finding on its version says so
    text = (config.data or {}).get("workflowDefaults", "")
    try:
        defaults: Any = yaml.safe_load(text) or {}
        strategy = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
        policy, limit = strategy.get("retryPolicy", "OnFailure"), str(strategy.get("limit", ""))
    except (yaml.YAMLError, AttributeError):
        yield Finding(
            "wrong", CONFIG, "its workflowDefaults is not valid YAML", f"kubectl edit configmap {CONFIG} -n {cluster.kfp_namespace}"
        )
        return
    if policy != "Always":
        yield Finding("warn", CONFIG, f"retryPolicy {policy}: {FINAL.get(policy, 'not a policy of Argo')}", _always(cluster, defaults))
    elif limit != "0":
        times = f"up to {limit} times" if limit else "without limit"
        yield Finding("warn", CONFIG, f"limit {limit or 'missing'}: whole groups of steps are rerun, {times}", _always(cluster, defaults))
    else:
        yield Finding("ok", CONFIG, "a step that fails or loses its pod is retried up to `retries` times")


def _always(cluster: Cluster, defaults: dict[str, Any]) -> str:
    """The command that sets the policy and keeps all else, such as ttlStrategy."""
    defaults.setdefault("spec", {}).setdefault("templateDefaults", {})["retryStrategy"] = WANTED
    patch = shlex.quote(json.dumps({"data": {"workflowDefaults": yaml.safe_dump(defaults)}}))
    namespace = cluster.kfp_namespace
    return (
        f"kubectl patch configmap {CONFIG} -n {namespace} --type merge -p {patch} "
        f"&& kubectl rollout restart deployment {CONTROLLER} -n {namespace}"
    )


def _deployment(cluster: Cluster, name: str, what: str, tested: str) -> Iterator[Finding]:
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
        yield Finding("ok", what, f"{image}, without a version; tested with {tested}")
    elif what == "Kubeflow Pipelines" and version[1] < "2":
        yield Finding(
            "wrong",
            what,
            f"{version[1]}; these pipelines need version 2, tested with {tested}",
            "kubectl apply -k 'https://github.com/kubeflow/pipelines/manifests/kustomize/env/platform-agnostic?ref=2.17.0'",
        )
    else:
        yield Finding("ok", what, version[1] + _tested(version[1], tested))


def _tested(version: str, tested: str) -> str:
    return "" if version.split(".")[: tested.count(".") + 1] == tested.split(".") else f"; tested with {tested}"
