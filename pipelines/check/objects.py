"""Findings on the objects in the namespace of the runs to which pods refer."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import suppress

from kubernetes.client import ApiException, CoreV1Api, StorageV1Api
from kubernetes.utils import parse_quantity

from pipelines.check.finding import APPLY, Cluster, Finding, read
from pipelines.check.needs import Needs, as_resources
from pipelines.resources import GPU

ACCOUNTS = ("pipeline-runner", "default-editor")  # of KFP for a single user, and for several
ENFORCE = "pod-security.kubernetes.io/enforce"
PULL_TYPES = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")


def namespace(cluster: Cluster) -> Iterator[Finding]:
    """Whether the namespace exists, and its Pod Security level."""
    name = cluster.namespace
    found = read(CoreV1Api(cluster.client).read_namespace, name)
    if found is None:
        yield Finding(
            "wrong",
            f"namespace {name}",
            "does not exist",
            f"set the namespace of the runs with --namespace, or kubectl create namespace {name}",
        )
    elif found.status.phase != "Active":
        yield Finding("wrong", f"namespace {name}", "is being deleted", f"kubectl create namespace {name}, once it is gone")
    else:
        level = (found.metadata.labels or {}).get(ENFORCE)
        more = ", which the steps' pods satisfy" if level == "restricted" else ""
        yield Finding("ok", f"namespace {name}", f"Pod Security {level or 'not enforced'}{more}")


def account_of_runs(cluster: Cluster) -> str:
    """The first of KFP's usual accounts that is in the namespace; the first of all if none can be read."""
    core = CoreV1Api(cluster.client)
    with suppress(ApiException):
        return next((name for name in ACCOUNTS if read(core.read_namespaced_service_account, name, cluster.namespace)), ACCOUNTS[0])
    return ACCOUNTS[0]


def account(cluster: Cluster, name: str) -> Iterator[Finding]:
    """Whether the service account of the runs exists."""
    if read(CoreV1Api(cluster.client).read_namespaced_service_account, name, cluster.namespace):
        yield Finding("ok", f"service account {name}", "exists")
    else:
        yield Finding(
            "wrong",
            f"service account {name}",
            f"not in namespace {cluster.namespace}; KFP creates it where it is installed, and in each profile",
            "set the namespace of the runs with --namespace, or their account with --service-account",
        )


def config_map(cluster: Cluster, name: str, keys: list[str]) -> Iterator[Finding]:
    """Whether the config map exists with all keys; otherwise no pod starts."""
    found = read(CoreV1Api(cluster.client).read_namespaced_config_map, name, cluster.namespace)
    if found is None:
        if name == "dreamteacher-env":
            fix = f"set the addresses in k8s/base/environment.yaml, then {APPLY.format(cluster.namespace)}"
        else:
            fix = f"kubectl create configmap {name} -n {cluster.namespace} {_literals(keys)}"
        yield Finding("wrong", f"config map {name}", f"not in namespace {cluster.namespace}; no step starts without it", fix)
        return
    missing = [key for key in keys if key not in (found.data or {})]
    if missing:
        patch = ", ".join(f'"{key}": "..."' for key in missing)
        fix = f"kubectl patch configmap {name} -n {cluster.namespace} --type merge -p '{{\"data\": {{{patch}}}}}'"
        yield Finding("wrong", f"config map {name}", f"lacks {', '.join(missing)}; no step starts without", fix)
    else:
        yield Finding("ok", f"config map {name}", f"has {len(keys)} of {len(keys)} keys")


def secret(cluster: Cluster, name: str, keys: list[str]) -> Iterator[Finding]:
    """Whether the secret exists with all keys. A pod starts without it, but is then refused by the services."""
    what = f"secret {name}"
    found = read(CoreV1Api(cluster.client).read_namespaced_secret, name, cluster.namespace)
    create = f"kubectl create secret generic {name} -n {cluster.namespace} {_literals(keys)}"
    if found is None:
        yield Finding(
            "warn", what, f"not in namespace {cluster.namespace}; steps start without it, but lack the access that it gives", create
        )
        return
    again = f"kubectl delete secret {name} -n {cluster.namespace} && {create}"
    values = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
    missing = [key for key in keys if key not in values]
    ragged = [key for key in keys if values.get(key, b"").strip() != values.get(key, b"")]
    if ragged:
        yield Finding(
            "wrong", what, f"{', '.join(ragged)} begins or ends with white space, such as the newline of `echo` without -n", again
        )
    if missing:
        yield Finding("warn", what, f"lacks {', '.join(missing)}", again)
    if not ragged and not missing:
        yield Finding("ok", what, f"has {len(keys)} of {len(keys)} keys")


def pull_secret(cluster: Cluster, name: str) -> Iterator[Finding]:
    """Whether the image pull secret exists, with a type that nodes can use."""
    login = "--docker-server=... --docker-username=... --docker-password=..."
    create = f"kubectl create secret docker-registry {name} -n {cluster.namespace} {login}"
    found = read(CoreV1Api(cluster.client).read_namespaced_secret, name, cluster.namespace)
    if found is None:
        yield Finding("wrong", f"image pull secret {name}", f"not in namespace {cluster.namespace}", create)
    elif found.type not in PULL_TYPES:
        fix = f"kubectl delete secret {name} -n {cluster.namespace} && {create}"
        yield Finding("wrong", f"image pull secret {name}", f"is of type {found.type}, which cannot be used to pull images", fix)
    else:
        yield Finding("ok", f"image pull secret {name}", "exists")


def claim(cluster: Cluster, name: str) -> Iterator[Finding]:
    """Whether the volume of the runs is bound, and writable from several nodes."""
    what, space = f"claim {name}", cluster.namespace
    found = read(CoreV1Api(cluster.client).read_namespaced_persistent_volume_claim, name, space)
    apply = APPLY.format(space)
    recreate = f"kubectl delete pvc {name} -n {space} (its checkpoints go with it), set a storage class in k8s/base/runs.yaml, then {apply}"
    if found is None:
        yield Finding(
            "wrong",
            what,
            f"not in namespace {space}; no step starts without it",
            f"set a storage class in k8s/base/runs.yaml, then {apply}",
        )
        return
    modes, phase, class_name = found.spec.access_modes or [], found.status.phase, found.spec.storage_class_name
    if found.metadata.deletion_timestamp:
        yield Finding(
            "wrong", what, "is being deleted", f"kubectl delete pods that use it: kubectl describe pvc {name} -n {space}; then {apply}"
        )
    elif "ReadWriteMany" not in modes:
        yield Finding("wrong", what, f"is {', '.join(modes)}; steps on several nodes need ReadWriteMany", recreate)
    elif phase == "Bound":
        yield Finding("ok", what, f"bound, ReadWriteMany, {(found.status.capacity or {}).get('storage', 'size unknown')}")
    elif phase == "Lost":
        yield Finding("wrong", what, f"its volume {found.spec.volume_name} is gone", recreate)
    elif class_name and _waits_for_a_pod(cluster, class_name):
        yield Finding("ok", what, f"ReadWriteMany; storage class {class_name} creates its volume with the first pod")
    else:
        of = f"storage class {class_name} has created no volume" if class_name else "no storage class, and no volume that fits"
        yield Finding("wrong", what, f"not bound: {of} (kubectl describe pvc {name} -n {space} says why)", recreate)


def quotas(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    """Whether each step alone fits the quotas of the namespace."""
    for quota in read(CoreV1Api(cluster.client).list_namespaced_resource_quota, cluster.namespace).items:
        low = {}
        for key, hard in (quota.spec.hard or {}).items():
            resource = key.removeprefix("requests.").removeprefix("limits.")
            if resource in ("cpu", "memory", GPU):
                for pods, steps in needs.pods.items():
                    if parse_quantity(as_resources(pods).get(resource, "0")) * pods.count > parse_quantity(hard):
                        low[key] = f"{key} = {hard} is less than {steps[0]} requests"
        if low:
            yield Finding(
                "wrong",
                f"quota {quota.metadata.name}",
                ", ".join(low.values()),
                f"kubectl edit quota {quota.metadata.name} -n {cluster.namespace}",
            )
        else:
            yield Finding("ok", f"quota {quota.metadata.name}", "each step fits")


def _waits_for_a_pod(cluster: Cluster, name: str) -> bool:
    found = read(StorageV1Api(cluster.client).read_storage_class, name)
    return found is not None and found.volume_binding_mode == "WaitForFirstConsumer"


def _literals(keys: list[str]) -> str:
    return " ".join(f"--from-literal={key}=..." for key in keys)
