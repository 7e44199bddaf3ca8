"""Findings of a pod like the steps': that the image is pulled and its user writes to the volume and reaches MLflow and S3."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException, CoreV1Api

from pipelines.check.finding import Cluster, Finding, read, reason
from pipelines.check.needs import Needs

NAME = "dreamteacher-check-"
LITTLE = 10 * 2**30  # bytes free
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
            "nodeSelector": {needs.pool_label: min(needs.pods).pool} if needs.pool_label else {},
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
        yield _finding(each, cluster, needs)


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
            return "trial pod", f"finds no node: {scheduled.message}", f"kubectl get nodes -L dreamteacher.io/pool"
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
        mend = f"push it, or make a secret and name it in resources.yaml, image_pull_secrets: kubectl create secret docker-registry regcred -n {namespace} ..."
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


def _finding(told: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    """What the probe told, in words."""
    about, error = told["about"], told["error"]
    if about == "image":
        if error:
            return Finding("wrong", f"image {needs.image}", f"has no {' and no '.join(told['packages'])}", "build it by docker/Dockerfile")
        return Finding("ok", f"image {needs.image}", "was pulled, and has dreamteacher and kfp")
    if about == "volume":
        return _volume(told, cluster, needs)
    address = told["address"] or "Amazon's own"
    edit = f"kubectl edit configmap {next(iter(needs.config_maps), '')} -n {cluster.namespace}"
    if about == "mlflow":
        if told.get("skipped"):
            return Finding("warn", "MLflow", f"MLFLOW_TRACKING_URI = {address} is no server; records end with each pod", edit)
        return _mlflow(error, told["status"], address, edit)
    named = f"{address}, bucket {told['bucket']}" if told.get("bucket") else address
    if not error:
        return Finding("ok", "S3", f"{named} answers a pod")
    keys = next((f"secret {name}" for name, has in needs.secrets.items() if "AWS_ACCESS_KEY_ID" in has), "a secret")
    if error in ("no keys", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied"):
        return Finding("wrong", "S3", f"{named} refuses the keys ({error})", f"correct {keys}, or the right of its keys")
    if error in ("404", "NoSuchBucket"):
        return Finding("wrong", "S3", f"{named}: there is no such bucket", f"make it, or {edit}")
    return Finding("wrong", "S3", f"{named} does not answer a pod: {error}", edit)


def _mlflow(error: str, status: int, address: str, edit: str) -> Finding:
    if not error:
        return Finding("ok", "MLflow", f"{address} answers a pod")
    host = address.split("//")[-1].split("/")[0].split(":")[0]
    if status == 403:
        return Finding(
            "wrong",
            "MLflow",
            f"{address} refuses a pod: {error}",
            f"start it with --allowed-hosts '{host}:*', or give the steps rights there",
        )
    if status == 401:
        return Finding(
            "wrong",
            "MLflow",
            f"{address} wants a user: {error}",
            "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into a secret of resources.yaml",
        )
    return Finding("wrong", "MLflow", f"{address} does not answer a pod: {error}", edit)


def _volume(told: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    what = f"claim {needs.claim}"
    if not told["error"]:
        free = f"{told['free'] / 2**30:.0f} GiB free"
        if told["free"] < LITTLE:
            return Finding(
                "warn",
                what,
                f"writable, but only {free}",
                f"kubectl exec into a pod that has it, and remove folders of old runs from {needs.mount}",
            )
        return Finding("ok", what, f"writable by user {told['uid']}, groups {told['groups']}; {free}")
    words = f"user {told['uid']}, groups {told['groups']}, cannot write to it: {told['error']}"
    if "owner" in told:
        words += f" (it belongs to user {told['owner']}, group {told['group']}, mode {told['mode']})"
    return Finding("wrong", what, words, f"let group 0 write: {_open_to_group(cluster, needs)}")


def _open_to_group(cluster: Cluster, needs: Needs) -> str:
    """A pod of root, which a namespace that enforces Pod Security refuses; there the storage's own owner must do it."""
    command = ["sh", "-c", f"chgrp -R 0 {needs.mount} && chmod -R g+rwX {needs.mount}"]
    volume = {"name": "runs", "persistentVolumeClaim": {"claimName": needs.claim}}
    container = {
        "name": "open",
        "image": needs.image,
        "command": command,
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "runs", "mountPath": needs.mount}],
    }
    overrides = shlex.quote(json.dumps({"spec": {"volumes": [volume], "containers": [container]}}))
    return f"kubectl run open --rm -i --restart=Never -n {cluster.namespace} --image={needs.image} --overrides={overrides}"
