"""What the probe of a trial pod tells, as findings."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import urlsplit

from pipelines.check.finding import Cluster, Finding
from pipelines.check.needs import Needs

LITTLE = 10 * 2**30  # bytes free
REFUSALS = ("no keys", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied")  # of S3


def finding(told: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    """One line of the probe in words, with the command that mends it."""
    edit = f"kubectl edit configmap {next(iter(needs.config_maps), '')} -n {cluster.namespace}"
    about = told["about"]
    if about == "image":
        return _image(told, needs)
    if about == "volume":
        return _volume(told, cluster, needs)
    return _mlflow(told, edit) if about == "mlflow" else _s3(told, needs, edit)


def _image(told: dict[str, Any], needs: Needs) -> Finding:
    if told["error"]:
        return Finding("wrong", f"image {needs.image}", f"has no {' and no '.join(told['packages'])}", "build it by docker/Dockerfile")
    return Finding("ok", f"image {needs.image}", "was pulled, and has dreamteacher and kfp")


def _mlflow(told: dict[str, Any], edit: str) -> Finding:
    address, error = told["address"], told["error"]
    if told.get("skipped"):
        return Finding("warn", "MLflow", f"MLFLOW_TRACKING_URI = {address} is no server; records end with each pod", edit)
    if not error:
        return Finding("ok", "MLflow", f"{address} answers a pod")
    if told["status"] == 403:
        mend = f"start it with --allowed-hosts '{urlsplit(address).hostname}:*', or give the steps rights there"
        return Finding("wrong", "MLflow", f"{address} refuses a pod: {error}", mend)
    if told["status"] == 401:
        mend = "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into a secret that resources.yaml names"
        return Finding("wrong", "MLflow", f"{address} wants a user: {error}", mend)
    how = "answers a pod, but not as MLflow" if told["status"] else "does not answer a pod"
    return Finding("wrong", "MLflow", f"{address} {how}: {error}", edit)


def _s3(told: dict[str, Any], needs: Needs, edit: str) -> Finding:
    address, error = told["address"] or "Amazon's own", told["error"]
    where = f"{address}, bucket {told['bucket']}," if told.get("bucket") else address
    if not error:
        return Finding("ok", "S3", f"{where} answers a pod")
    if error in REFUSALS:
        keys = next((f"secret {name}" for name, has in needs.secrets.items() if "AWS_ACCESS_KEY_ID" in has), "a secret")
        return Finding("wrong", "S3", f"{where} refuses the keys ({error})", f"correct {keys}, or the rights of its keys")
    if error in ("404", "NoSuchBucket") and told.get("bucket"):
        return Finding("wrong", "S3", f"{where} is not there", f"make the bucket, or {edit}")
    how = "answers a pod, but not as S3" if error[:3].isdecimal() else "does not answer a pod"
    return Finding("wrong", "S3", f"{where} {how}: {error}", edit)


def _volume(told: dict[str, Any], cluster: Cluster, needs: Needs) -> Finding:
    what = f"claim {needs.claim}"
    if not told["error"]:
        free = f"{told['free'] / 2**30:.0f} GiB free"
        if told["locked"]:
            words = f"writable, but not its {', '.join(told['locked'])}, which another user made"
            return Finding("warn", what, words, _open_to_group(told, cluster, needs))
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
    return Finding("wrong", what, words, _open_to_group(told, cluster, needs))


def _open_to_group(told: dict[str, Any], cluster: Cluster, needs: Needs) -> str:
    """The command, which needs root: a pod, or the storage's own machine where Pod Security forbids that."""
    group = min(told["groups"])  # 0, unless KFP sets another
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
