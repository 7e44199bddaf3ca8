"""The answers of the probe in a trial pod, as findings."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import urlsplit

from pipelines.check.finding import Cluster, Finding
from pipelines.check.needs import Needs

MIN_FREE = 10 * 2**30  # bytes
REFUSALS = ("no keys", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied")  # of S3


def finding(answer: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    """The finding for one line of the probe, with the command that fixes it."""
    edit = f"kubectl edit configmap {next(iter(needs.config_maps), '')} -n {cluster.namespace}"
    about = answer["about"]
    if about == "image":
        return _image(answer, needs)
    if about == "volume":
        return _volume(answer, cluster, needs)
    return _mlflow(answer, edit) if about == "mlflow" else _s3(answer, needs, edit)


def _image(answer: dict[str, Any], needs: Needs) -> Finding:
    if answer["error"]:
        return Finding("wrong", f"image {needs.image}", f"has no {' and no '.join(answer['packages'])}", "build it with docker/Dockerfile")
    return Finding("ok", f"image {needs.image}", "was pulled, and has dreamteacher and kfp")


def _mlflow(answer: dict[str, Any], edit: str) -> Finding:
    address, error = answer["address"], answer["error"]
    if answer.get("skipped"):
        return Finding("warn", "MLflow", f"MLFLOW_TRACKING_URI = {address} is not a server; records are lost with each pod", edit)
    if not error:
        return Finding("ok", "MLflow", f"{address} answers a pod")
    if answer["status"] == 403:
        fix = f"start it with --allowed-hosts '{urlsplit(address).hostname}:*', or give the steps permission there"
        return Finding("wrong", "MLflow", f"{address} refuses a pod: {error}", fix)
    if answer["status"] == 401:
        fix = "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into a secret that resources.yaml names"
        return Finding("wrong", "MLflow", f"{address} requires a login: {error}", fix)
    how = "answers a pod, but not as MLflow" if answer["status"] else "does not answer a pod"
    return Finding("wrong", "MLflow", f"{address} {how}: {error}", edit)


def _s3(answer: dict[str, Any], needs: Needs, edit: str) -> Finding:
    address, error = answer["address"] or "Amazon's own", answer["error"]
    where = f"{address}, bucket {answer['bucket']}," if answer.get("bucket") else address
    if not error:
        return Finding("ok", "S3", f"{where} answers a pod")
    if error in REFUSALS:
        keys = next((f"secret {name}" for name, has in needs.secrets.items() if "AWS_ACCESS_KEY_ID" in has), "a secret")
        return Finding(
            "wrong", "S3", f"{where} rejects the credentials ({error})", f"correct {keys}, or the permissions of its credentials"
        )
    if error in ("404", "NoSuchBucket") and answer.get("bucket"):
        return Finding("wrong", "S3", f"{where} does not exist", f"create the bucket, or {edit}")
    how = "answers a pod, but not as S3" if error[:3].isdecimal() else "does not answer a pod"
    return Finding("wrong", "S3", f"{where} {how}: {error}", edit)


def _volume(answer: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    what = f"claim {needs.claim}"
    if not answer["error"]:
        free = f"{answer['free'] / 2**30:.0f} GiB free"
        if answer["locked"]:
            words = f"writable, but not its {', '.join(answer['locked'])}, which another user created"
            return Finding("warn", what, words, _open_to_group(answer, cluster, needs))
        if answer["free"] < MIN_FREE:
            return Finding(
                "warn",
                what,
                f"writable, but only {free}",
                f"kubectl exec into a pod that mounts it, and remove folders of old runs from {needs.mount}",
            )
        return Finding("ok", what, f"writable by user {answer['uid']}, groups {answer['groups']}; {free}")
    words = f"user {answer['uid']}, groups {answer['groups']}, cannot write to it: {answer['error']}"
    if "owner" in answer:
        words += f" (it belongs to user {answer['owner']}, group {answer['group']}, mode {answer['mode']})"
    return Finding("wrong", what, words, _open_to_group(answer, cluster, needs))


def _open_to_group(answer: dict[str, Any], cluster: Cluster, needs: Needs) -> str:
    """The command, which needs root: in a pod, or on the storage's own machine if Pod Security forbids that."""
    group = min(answer["groups"])  # 0, unless KFP sets another
    command = ["sh", "-c", f"chgrp -R {group} {needs.mount} && chmod -R g+rwX {needs.mount}"]
    volume = {"name": "runs", "persistentVolumeClaim": {"claimName": needs.claim}}
    container = {
        "name": "open",
        "image": needs.image,
        "command": command,
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "runs", "mountPath": needs.mount}],
    }
    overrides = shlex.quote(json.dumps({"spec": {"volumes": [volume], "containers": [container]}}))
    pod = f"kubectl run open --rm -i --restart=Never -n {cluster.namespace} --image={needs.image} --overrides={overrides}"
    where = "on the storage's machine or, where the namespace allows root, by"
    return f"let group {group} write (chgrp -R {group}, chmod -R g+rwX), {where} {pod}"
