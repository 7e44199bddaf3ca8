"""Findings of a pod like the steps': that the image is pulled and its user writes to the volume and reaches MLflow and S3."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException, CoreV1Api

from pipelines.check.answers import finding
from pipelines.check.finding import Cluster, Finding, read, reason
from pipelines.check.needs import Needs
from pipelines.resources import GPU

NAME = "dreamteacher-check-"
POLL = 1.0
LAST_WORDS = 250  # characters of a message that are shown
PATIENCE = 30.0  # seconds for which a pod may find no node, or no volume, before that counts as its end
# What the kubelet says of a container that will not start, by its own reasons.
FINAL = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
}
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}


def manifest(needs: Needs, account: str, wait: int, user: dict[str, int] | None = None) -> dict[str, Any]:
    """The pod: as KFP makes those of the steps, but small. `user`: what stands in its security context, if not the image's."""
    of_maps = [
        {"name": key, "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}
        for name, keys in needs.config_maps.items()
        for key in keys
    ]
    of_secrets = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": True}}}
        for name, keys in needs.secrets.items()
        for key in keys
        if not key.startswith("GIT_")  # which the probe has no use for
    ]
    size = {"cpu": "200m", "memory": "512Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": NAME,
            "labels": {"app.kubernetes.io/part-of": "dreamteacher", "sidecar.istio.io/inject": "false"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": wait + 60,  # should this command be killed
            "serviceAccountName": account,
            "nodeSelector": {needs.pool_label: min(needs.pods, key=lambda pods: (pods.gpus, pods.count)).pool},
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
            "imagePullSecrets": [{"name": name} for name in needs.pull_secrets],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": needs.claim}}],
            "containers": [
                {
                    "name": "main",
                    "image": needs.image,
                    "command": ["python3", "-c", Path(__file__).with_name("probe.py").read_text()],
                    "env": [*of_maps, *of_secrets, {"name": "DREAMTEACHER_RUNS", "value": needs.mount}],
                    "resources": {"requests": size, "limits": size},
                    "volumeMounts": [{"name": "runs", "mountPath": needs.mount}],
                    "securityContext": {**RESTRICTED, "runAsNonRoot": True, **(user or {})},
                }
            ],
        },
    }


def trial(cluster: Cluster, needs: Needs, account: str, wait: int) -> Iterator[Finding]:
    """Run the pod, say what it found, and delete it. It may take `wait` seconds, for an image is pulled."""
    core = CoreV1Api(cluster.client)
    try:
        pod = read(core.create_namespaced_pod, cluster.namespace, manifest(needs, account, wait, _user_of_kfp(core, cluster)))
    except ApiException as error:
        if error.status == 403 and "cannot create resource" in str(error.body):
            yield Finding("unread", "trial pod", f"cannot be made: {reason(error)}; --no-pod leaves it out")
        else:
            yield Finding("wrong", "trial pod", f"refused, as a step's would be: {reason(error)}")
        return
    name = pod.metadata.name
    try:
        ended = _wait(core, cluster.namespace, name, wait)
        if isinstance(ended, Finding):
            yield ended
            return
        why = ended.status.container_statuses[0].state.terminated.message
        log = read(core.read_namespaced_pod_log, name, cluster.namespace) or ""
    finally:
        read(core.delete_namespaced_pod, name, cluster.namespace, grace_period_seconds=0)
    answers = [found for line in log.splitlines() if (found := _parsed(line))]
    if not answers:
        words = f"runs no Python: {_end_of(log or why or 'its log is empty')}"
        yield Finding("wrong", f"image {needs.image}", words, "build it with docker/Dockerfile")
    for each in answers:
        yield finding(each, cluster, needs)


def _user_of_kfp(core: CoreV1Api, cluster: Cluster) -> dict[str, int]:
    """The user and group that KFP's administrator has set for all steps, as far as it can be read; none as it is shipped."""
    try:
        config = read(core.read_namespaced_config_map, "pipeline-install-config", cluster.kfp_namespace)
    except ApiException:
        return {}
    values = (config and config.data) or {}
    found = {field: values.get(f"defaultSecurityContext{field[0].upper()}{field[1:]}", "") for field in ("runAsUser", "runAsGroup")}
    return {field: int(value) for field, value in found.items() if value.isdecimal()}


def _wait(core: CoreV1Api, namespace: str, name: str, wait: int) -> Any:
    """The pod when its container has ended; the finding where it does not start."""
    begin = time.monotonic()
    events = f"kubectl get events -n {namespace}"
    while True:
        pod = read(core.read_namespaced_pod, name, namespace)
        if pod is None:
            return Finding("wrong", "trial pod", "was deleted by somebody else", events)
        states = [status.state for status in pod.status.container_statuses or []]
        if any(state.terminated for state in states):
            return pod
        for state in states:
            if state.waiting and state.waiting.reason in FINAL:
                return _does_not_start(pod.spec.containers[0].image, state.waiting, namespace)
        passed = time.monotonic() - begin
        scheduled = next((each for each in pod.status.conditions or [] if each.type == "PodScheduled"), None)
        if passed > PATIENCE and scheduled and scheduled.status == "False":
            return Finding("wrong", "trial pod", f"finds no node: {scheduled.message}", "kubectl get nodes --show-labels")
        if passed > PATIENCE and (mount := _failed_mount(core, namespace, name)):
            return Finding("wrong", "trial pod", f"its volume cannot be mounted: {mount}", f"kubectl get pvc -n {namespace}")
        if passed > wait or pod.status.phase == "Failed":
            why = pod.status.message or "a large image takes longer: --wait SECONDS"
            return Finding("wrong", "trial pod", f"has not started in {passed:.0f} s; {why}", events)
        time.sleep(POLL)


def _does_not_start(image: str, waiting: Any, namespace: str) -> Finding:
    text = _end_of(waiting.message or "")
    if "Image" in waiting.reason:
        login = "--docker-server=... --docker-username=... --docker-password=..."
        fix = (
            f"push it, or name in resources.yaml, image_pull_secrets: kubectl create secret docker-registry regcred -n {namespace} {login}"
        )
        return Finding("wrong", f"image {image}", f"cannot be pulled: {waiting.reason} {text}", fix)
    if "non-root" in text or "runAsNonRoot" in text:
        words = f"runs as root or as a user without a number, which runAsNonRoot forbids: {text}"
        return Finding("wrong", f"image {image}", words, "end its Dockerfile with USER 65532:0")
    return Finding("wrong", "trial pod", f"does not start: {waiting.reason} {text}", f"kubectl get events -n {namespace}")


def _end_of(text: str) -> str:
    """One line of the last words."""
    line = " ".join(text.split())
    return line if len(line) <= LAST_WORDS else f"... {line[-LAST_WORDS:].partition(' ')[2]}"


def _failed_mount(core: CoreV1Api, namespace: str, name: str) -> str | None:
    try:
        events = read(core.list_namespaced_event, namespace, field_selector=f"involvedObject.name={name}").items
    except ApiException:
        return None
    return next((_end_of(each.message) for each in reversed(events) if each.reason in ("FailedMount", "FailedAttachVolume")), None)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "about" in found else None
