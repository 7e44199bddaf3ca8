"""Deploy a version by setting an annotation of a Deployment's pods, so that a new version is an ordinary rollout.

Annotations of the pod template name the registered model, the alias to follow, and the version, which each pod's init container fetches.
Old pods serve until new ones are ready, and a version that does not become ready replaces none of them. For several models in one Triton
the annotations are lists, separated by commas. Versions are written as NAME=N, so that reordering or extending the list of models in an
overlay cannot mix up their versions.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamteacher.errors import UserError
from dreamteacher.kubernetes_api import api_client, or_none, refusals
from dreamteacher.lifecycle.promotion import CHAMPION
from dreamteacher.serving.delivery import has_repository, not_stored, resolve

if TYPE_CHECKING:
    from kubernetes.client import AppsV1Api, CoreV1Api

MODEL, ALIAS, VERSION = (f"dreamteacher.io/{each}" for each in ("model", "alias", "version"))  # annotations of the pods
PINNED = "dreamteacher.io/pinned"  # annotation of the Deployment: pinned versions, independent of the alias
SERVING = "app.kubernetes.io/part-of=dreamteacher,app.kubernetes.io/component=serving"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POLL = 2.0  # seconds


def deploy(
    deployment: str,
    namespace: str | None = None,
    *,
    version: str | None = None,
    model: str | None = None,
    follow: bool = False,
    wait: bool = False,
) -> str:
    """Deploy `version` (None: that of the Deployment's alias) of `model` (None: each) to `deployment`; returns a message.

    An explicit version is pinned until the next call without one. `follow`, used by the CronJob, keeps a pinned version.

    Raises:
        UserError: there is no such Deployment, model or version, its repository is not stored, MLflow or Kubernetes refuse, or (`wait`)
            the pods do not become ready.
    """
    apps, core, namespace = _apis(namespace)
    found = refusals(f"read Deployment {deployment}", lambda: or_none(lambda: apps.read_namespaced_deployment(deployment, namespace)))
    if not found:
        raise UserError(f"namespace {namespace} has no Deployment {deployment}; `kubectl apply -k k8s/serving` makes it")
    pods = _annotations(found.spec.template)
    if not pods.get(MODEL):
        raise UserError(f"the pods of {deployment} have no annotation {MODEL}; name the registered model that they serve")
    names = split(pods[MODEL])
    if (model and model not in names) or (version and not model and len(names) > 1):
        raise UserError(f"{deployment} serves {', '.join(names)}; name one of them by --model")
    served, pinned = versions_by_model(names, pods.get(VERSION)), versions_by_model(names, _annotations(found).get(PINNED))
    wanted, by_hand = dict(served), dict(pinned)
    chosen = [model] if model else names
    for name in names:
        if name not in chosen and served[name]:
            continue
        by_hand[name] = pinned[name] if follow or name not in chosen else version or ""
        wanted[name] = by_hand[name] or resolve(name, alias=pods.get(ALIAS, CHAMPION))
        if wanted[name] != served[name] and not has_repository(name, wanted[name]):
            raise not_stored(name, wanted[name])
    if (served, pinned) != (wanted, by_hand):
        cause = ", ".join(f"version {wanted[name]} of {name}" for name in names)
        about = {PINNED: _joined(by_hand), "kubernetes.io/change-cause": cause}
        patch: dict[str, Any] = {"metadata": {"annotations": about}}
        if served != wanted:  # otherwise running pods are not replaced
            patch["spec"] = {"template": {"metadata": {"annotations": {VERSION: _joined(wanted)}}}}
        refusals(f"change Deployment {deployment}", lambda: apps.patch_namespaced_deployment(deployment, namespace, patch))
    if wait:
        _wait(apps, core, deployment, namespace)
    done = []
    for name in chosen:
        if follow and pinned[name]:
            done.append(f"version {pinned[name]} of {name} was named by hand; `dreamteacher deploy` follows the alias again")
        else:
            now = "is served" if wait else "is being rolled out" if served[name] != wanted[name] else "is served already"
            done.append(f"version {wanted[name]} of {name} {now}")
    return f"{deployment}: {', '.join(done)}"


def split(listed: str) -> list[str]:
    """The items of a comma-separated list."""
    return [part.strip() for part in listed.split(",")]


def versions_by_model(names: list[str], listed: str | None) -> dict[str, str]:
    """{model: its version in `listed`, or ""}. `listed` is NAME=N,NAME=N, or N for a single model."""
    parts = split(listed) if listed else []
    by_name = {name: number for name, equals, number in (part.partition("=") for part in parts) if equals}
    if len(names) == 1 and len(parts) == 1 and "=" not in parts[0]:
        by_name = {names[0]: parts[0]}
    return {name: by_name.get(name, "") for name in names}


def _joined(by_model: dict[str, str]) -> str | None:
    """The value of an annotation; None, which removes it, if no model has a version."""
    return ",".join(f"{name}={version}" for name, version in by_model.items() if version) or None


def follow(name: str, alias: str, namespace: str | None = None) -> list[str]:
    """Deploy the version of `name` with `alias` to each of our Deployments that follows it; returns messages.

    Raises:
        UserError: as `deploy`.
    """
    apps, _, namespace = _apis(namespace)
    found = refusals("list Deployments", lambda: apps.list_namespaced_deployment(namespace, label_selector=SERVING)).items
    chosen = []
    for each in found:
        pods = _annotations(each.spec.template)
        if name in split(pods.get(MODEL, "")) and pods.get(ALIAS, CHAMPION) == alias:
            chosen.append(each.metadata.name)
    return [deploy(each, namespace, model=name, follow=True) for each in chosen]


def status(namespace: str | None = None) -> list[str]:
    """Status of each of our Deployments: model, version, alias, ready replicas, since when; and what blocks a rollout.

    Raises:
        UserError: Kubernetes refuses, or there is no Deployment of ours.
    """
    apps, core, namespace = _apis(namespace)
    found = refusals("list Deployments", lambda: apps.list_namespaced_deployment(namespace, label_selector=SERVING)).items
    if not found:
        raise UserError(f"nothing is served in namespace {namespace}; `kubectl apply -k k8s/serving -n {namespace}` starts it")
    return [line for each in found for line in _lines(core, each, namespace)]


def _lines(core: CoreV1Api, deployment: Any, namespace: str) -> list[str]:
    pods, state = _annotations(deployment.spec.template), deployment.status
    names, alias = split(pods.get(MODEL, "?")), pods.get(ALIAS, CHAMPION)
    versions, pinned = versions_by_model(names, pods.get(VERSION)), versions_by_model(names, _annotations(deployment).get(PINNED))
    wanted, ready, updated = deployment.spec.replicas, state.ready_replicas or 0, state.updated_replicas or 0
    since = max((each.last_update_time for each in state.conditions or [] if each.type == "Progressing"), default=None)
    what = ", ".join(f"version {version} of {name}" if version else f"the {alias} of {name}" for name, version in versions.items())
    if _is_done(deployment):
        words = [what, f"{ready} of {wanted} replicas ready", *([f"since {since:%Y-%m-%d %H:%M} ({_age(since)})"] if since else [])]
    else:
        words = [f"{what} is being rolled out", f"{updated} of {wanted} replicas have it", f"{ready} ready"]
    lines = [f"{deployment.metadata.name}: {', '.join(words)}"]
    for name, version in versions.items():
        try:
            newest = resolve(name, alias=alias)
        except UserError as error:
            lines.append(f"  {error}")
            continue
        if version and newest != version:
            why = "a version was named by hand" if pinned[name] else "it follows"
            of = f" of {name}" if len(names) > 1 else ""
            lines.append(f"  {alias}{of} is version {newest} now; {why}: `dreamteacher deploy --deployment {deployment.metadata.name}`")
    problem = None if _is_done(deployment) else _problem(core, deployment, namespace)
    return [*lines, *([f"  {problem}"] if problem else [])]


def _wait(apps: AppsV1Api, core: CoreV1Api, name: str, namespace: str) -> None:
    """Wait until all replicas have the newest template and are ready. Raises UserError if one cannot start, or there is no progress."""
    while True:
        found = refusals(f"read Deployment {name}", lambda: apps.read_namespaced_deployment(name, namespace))
        if _is_done(found):
            return
        if problem := _problem(core, found, namespace):
            raise UserError(f"{name} cannot serve the new version, and serves the one before it: {problem}")
        if any(each.type == "Progressing" and each.reason == "ProgressDeadlineExceeded" for each in found.status.conditions or []):
            raise UserError(f"{name} is not ready in time ({found.spec.progress_deadline_seconds} s); see `kubectl describe pods`")
        time.sleep(POLL)


def _is_done(deployment: Any) -> bool:
    state, wanted = deployment.status, deployment.spec.replicas
    seen = (state.observed_generation or 0) >= deployment.metadata.generation
    counts = (state.replicas or 0, state.updated_replicas or 0, state.available_replicas or 0)
    return bool(seen and counts == (wanted, wanted, wanted))


def _problem(core: CoreV1Api, deployment: Any, namespace: str) -> str | None:
    """The message why a pod of the newest version does not start."""
    selector = ",".join(f"{key}={value}" for key, value in deployment.spec.selector.match_labels.items())
    pods = refusals("list pods", lambda: core.list_namespaced_pod(namespace, label_selector=selector)).items
    version = _annotations(deployment.spec.template).get(VERSION)
    for pod in pods:
        if _annotations(pod).get(VERSION) != version:
            continue
        for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
            waiting, ended = container.state.waiting, container.state.terminated or (container.last_state or container.state).terminated
            if ended and ended.exit_code and not container.ready:
                said = [line for line in (ended.message or "").splitlines() if line.strip()]
                return f"pod {pod.metadata.name}: {said[-1] if said else f'{container.name} ended with code {ended.exit_code}'}"
            if waiting and waiting.reason in ("ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "InvalidImageName"):
                return f"pod {pod.metadata.name}: {waiting.reason}: {waiting.message}"
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"pod {pod.metadata.name}: no node for it: {condition.message}"
    return None


def _annotations(what: Any) -> dict[str, str]:
    return what.metadata.annotations or {}


def _apis(namespace: str | None) -> tuple[AppsV1Api, CoreV1Api, str]:
    api = api_client()
    from kubernetes import config
    from kubernetes.client import AppsV1Api, CoreV1Api

    if not namespace:
        if POD_NAMESPACE.exists():
            namespace = POD_NAMESPACE.read_text().strip()
        else:
            _, context = config.list_kube_config_contexts()
            namespace = context["context"].get("namespace", "default")
    return AppsV1Api(api), CoreV1Api(api), namespace


def _age(since: datetime) -> str:
    minutes = int((datetime.now(UTC) - since).total_seconds() // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
