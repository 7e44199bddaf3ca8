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


def manifest(needs: Needs, account: str, wait: int) -> dict[str, Any]:
    """The pod: as KFP makes those of the steps, but small."""
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
                    "securityContext": {**RESTRICTED, "runAsNonRoot": True},
                }
            ],
        },
    }


def trial(cluster: Cluster, needs: Needs, account: str, wait: int) -> Iterator[Finding]:
    """Run the pod, say what it found, and delete it. It may take `wait` seconds, for an image is pulled."""
    core, what = CoreV1Api(cluster.client), f"image {needs.image}"
    try:
        pod = read(core.create_namespaced_pod, cluster.namespace, manifest(needs, account, wait))
    except ApiException as error:
        if error.status == 403 and "cannot create resource" in str(error.body):
            yield Finding("unread", "trial pod", f"cannot be made: {reason(error)}; --no-pod leaves it out")
        else:
            yield Finding("wrong", "trial pod", f"refused, as a step's would be: {reason(error)}")
        return
    name = pod.metadata.name
    try:
        trouble = _wait(core, cluster.namespace, name, wait)
        if trouble:
            yield Finding("wrong", *trouble)
            return
        log = read(core.read_namespaced_pod_log, name, cluster.namespace) or ""
    finally:
        read(core.delete_namespaced_pod, name, cluster.namespace, grace_period_seconds=0)
    told = [found for line in log.splitlines() if (found := _parsed(line))]
    if not told:
        yield Finding(
            "wrong", what, f"runs no Python here: {' '.join(log.split())[-200:] or 'its log is empty'}", "build it by docker/Dockerfile"
        )
        return
    for each in told:
        yield finding(each, cluster, needs)


def _wait(core: CoreV1Api, namespace: str, name: str, wait: int) -> tuple[str, str, str] | None:
    """Until the pod has ended; (what, words, command) where it does not start."""
    begin = time.monotonic()
    describe = f"kubectl get events -n {namespace} --field-selector reason!=Scheduled"
    while True:
        pod = read(core.read_namespaced_pod, name, namespace)
        if pod is None:
            return "trial pod", "was deleted by another", describe
        if pod.status.phase in ("Succeeded", "Failed") and not _never_started(pod):
            return None
        passed = time.monotonic() - begin
        for status in pod.status.container_statuses or []:
            waiting = status.state.waiting
            if waiting and waiting.reason in FINAL:
                return _does_not_start(pod, waiting.reason, waiting.message or "", namespace)
        scheduled = next((each for each in pod.status.conditions or [] if each.type == "PodScheduled"), None)
        if scheduled and scheduled.status == "False" and passed > PATIENCE:
            return "trial pod", f"finds no node: {scheduled.message}", "kubectl get nodes --show-labels"
        if passed > PATIENCE and (mount := _failed_mount(core, namespace, name)):
            return "trial pod", f"its volume cannot be mounted: {mount}", f"kubectl get pvc -n {namespace}"
        if passed > wait or pod.status.phase == "Failed":
            why = f" ({pod.status.message})" if pod.status.message else ""
            return "trial pod", f"has not ended after {passed:.0f} s{why}; a large image takes longer: --wait SECONDS", describe
        time.sleep(POLL)


def _never_started(pod: Any) -> bool:
    return not any(status.state.terminated for status in pod.status.container_statuses or [])


def _does_not_start(pod: Any, why: str, message: str, namespace: str) -> tuple[str, str, str]:
    image, text = pod.spec.containers[0].image, " ".join(message.split())[-250:]
    if "Image" in why:
        mend = (
            "push it, or name a secret in resources.yaml, image_pull_secrets: "
            f"kubectl create secret docker-registry regcred -n {namespace} --docker-server=... --docker-username=... --docker-password=..."
        )
        return f"image {image}", f"cannot be pulled: {why} {text}", mend
    if "non-root" in message or "runAsNonRoot" in message:
        return (
            f"image {image}",
            f"starts as root or as a user without a number, which runAsNonRoot forbids: {text}",
            "end its Dockerfile with USER 65532:0",
        )
    return "trial pod", f"does not start: {why} {text}", f"kubectl get events -n {namespace}"


def _failed_mount(core: CoreV1Api, namespace: str, name: str) -> str | None:
    try:
        events = read(core.list_namespaced_event, namespace, field_selector=f"involvedObject.name={name}").items
    except ApiException:
        return None
    return next(
        (" ".join(each.message.split())[:250] for each in reversed(events) if each.reason in ("FailedMount", "FailedAttachVolume")), None
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "about" in found else None
