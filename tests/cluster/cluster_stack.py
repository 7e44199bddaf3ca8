"""k8s/overlays/dev in a temporary namespace of a real cluster, with available images."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from helpers import PROJECT, free_port

NAMESPACE = f"dreamteacher-test-{os.getpid()}"
NEEDED = ("KUBECONFIG", "DREAMTEACHER_IMAGE", "TRITON_IMAGE")
GIVEN = {
    name: os.environ.get(name, "") for name in (*NEEDED, "SERVING_IMAGE", "POSTGRES_IMAGE", "OBJECT_STORE_IMAGE", "SERVICE_ADDRESS", "KEEP")
}
BACKEND = os.environ.get("TRITON_BACKEND", "local")  # production: of an image with Triton's onnxruntime backend, as NVIDIA's has
IMAGES = {
    "localhost/dreamteacher-python": GIVEN["DREAMTEACHER_IMAGE"],
    "localhost/dreamteacher-serving": GIVEN["SERVING_IMAGE"] or GIVEN["DREAMTEACHER_IMAGE"],
    "localhost/dreamteacher-triton": GIVEN["TRITON_IMAGE"],
    "docker.io/library/postgres": GIVEN["POSTGRES_IMAGE"],
    "docker.io/chrislusf/seaweedfs": GIVEN["OBJECT_STORE_IMAGE"],
}
Manifest = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["kubectl", "-n", NAMESPACE, *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def manifests(model: str) -> list[Manifest]:
    """The overlay's manifests, in NAMESPACE, with these images, serving `model`; the CronJob is suspended."""
    found = [each for each in yaml.safe_load_all(kubectl("kustomize", str(PROJECT / "k8s/overlays/dev"))) if each["kind"] != "Namespace"]
    has_storage = "is-default-class" in kubectl("get", "storageclass", "-o", "yaml")
    if not has_storage:
        print("the cluster has no default StorageClass: database and object store are emptied when their pods end")
    for each in found:
        each["metadata"]["namespace"] = NAMESPACE
        for subject in each.get("subjects", []):
            subject["namespace"] = NAMESPACE
        spec = each.get("spec", {})
        pods = ((spec.get("jobTemplate", {}).get("spec") or spec).get("template") or {}).get("spec", {})
        for container in [*pods.get("initContainers", []), *pods.get("containers", [])]:
            container["image"] = IMAGES[container["image"].rpartition(":")[0]] or container["image"]
        if each["kind"] == "CronJob":
            spec["suspend"] = True
        if each["kind"] == "StatefulSet" and not has_storage:
            pods["volumes"] += [{"name": claim["metadata"]["name"], "emptyDir": {}} for claim in spec.pop("volumeClaimTemplates")]
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "dreamteacher-triton"):
            spec["template"]["metadata"]["annotations"]["dreamteacher.io/model"] = model
            next(entry for entry in pods["initContainers"][0]["env"] if entry["name"] == "BACKEND")["value"] = BACKEND
    return found


@contextmanager
def applied(model: str) -> Iterator[None]:
    """A fresh namespace that enforces Pod Security `restricted`, with the overlay, until all but Triton is ready; deleted at the end."""
    kubectl("create", "namespace", NAMESPACE)
    try:
        kubectl(
            "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted"
        )
        keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(8), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
        for name, values in (("dreamteacher-s3", keys), ("dreamteacher-postgres", {"POSTGRES_PASSWORD": secrets.token_hex(16)})):
            kubectl("create", "secret", "generic", name, *(f"--from-literal={key}={value}" for key, value in values.items()))
        began = time.monotonic()
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests(model)))
        for workload in ("statefulset/dreamteacher-postgres", "statefulset/dreamteacher-object-store", "deployment/dreamteacher-mlflow"):
            kubectl("rollout", "status", workload, "--timeout=600s")
            print(f"{workload} is ready after {time.monotonic() - began:.0f} s")
        yield
    except BaseException:
        print(kubectl("get", "pods", "-o", "wide", check=False), kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-3000:])
        raise
    finally:
        if not GIVEN["KEEP"]:
            kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@contextmanager
def forwarded(target: str, port: int) -> Iterator[int]:
    """Forward a local port to `port` of `target` in the block."""
    local = free_port()
    process = subprocess.Popen(["kubectl", "-n", NAMESPACE, "port-forward", target, f"{local}:{port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", local)) == 0:
                    break
            time.sleep(0.1)
        yield local
    finally:
        process.terminate()
        process.wait()


def address() -> str:
    """Of Triton's Service, which this machine reaches if it is a node; else name a way to it in SERVICE_ADDRESS."""
    return GIVEN["SERVICE_ADDRESS"] or kubectl("get", "service", "dreamteacher-triton", "-o", "jsonpath={.spec.clusterIP}") + ":8000"


def fetch_seconds() -> list[float]:
    """Seconds that the init container of each current Triton pod took to fetch and verify its version."""
    pods = yaml.safe_load(kubectl("get", "pods", "-l", "app.kubernetes.io/name=triton", "-o", "yaml"))["items"]
    pods = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
    ends = [each["status"]["initContainerStatuses"][0]["state"]["terminated"] for each in pods]
    return [_seconds(end["finishedAt"]) - _seconds(end["startedAt"]) for end in ends]


def _seconds(when: str) -> float:
    return time.mktime(time.strptime(when, "%Y-%m-%dT%H:%M:%SZ"))
