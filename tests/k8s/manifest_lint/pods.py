"""Pods: references, Pod Security `restricted`, resources, ports of probes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from manifest_lint.quantities import amount
from manifest_lint.quantities import problem as quantity_problem
from manifest_lint.stack import Pods, Stack, selects

MOVING = re.compile(r":latest$|^[^:@]+$|^[^@]*:[^:@]*/[^:@]*$")  # a colon before the last slash is that of a port
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = ("RuntimeDefault", "Localhost")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
SYSTEM_CLASSES = ("system-cluster-critical", "system-node-critical")


def problems(pods: Pods, stack: Stack) -> Iterator[str]:
    """All that is wrong with the pods of a workload."""
    spec = pods.spec
    account = spec.get("serviceAccountName", "default")
    if account != "default" and (problem := stack.lacks("ServiceAccount", account)):
        yield problem
    bound = {each["name"] for binding in stack.of("RoleBinding") for each in binding["subjects"]}
    if spec.get("automountServiceAccountToken", True) and account not in bound:
        yield f"it mounts a token of {account}, to which no role is bound; set automountServiceAccountToken: false"
    if (wanted := spec.get("priorityClassName")) and wanted not in SYSTEM_CLASSES and (problem := stack.lacks("PriorityClass", wanted)):
        yield problem
    for spread in spec.get("topologySpreadConstraints", []):
        if not selects(spread.get("labelSelector", {}), pods.labels):
            yield f"topologySpreadConstraints: {spread['labelSelector']} does not match its own pods"
    yield from _restricted_pod(spec)
    yield from _volumes(pods, stack)
    for name, count in Counter(each["name"] for each in pods.containers).items():
        if count > 1:
            yield f"two containers are called {name}"
    for container in pods.containers:
        for problem in [*_restricted(container, spec), *_resources(container), *_references(container, stack), *_ports(container)]:
            yield f"container {container['name']}: {problem}"


def _restricted_pod(spec: dict[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"restricted: {name} is true"
    if spec.get("securityContext", {}).get("sysctls"):
        yield "restricted: sysctls are set"
    for volume in spec.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"restricted: volume {volume['name']} is a {kind}"


def _restricted(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    """The rules of Pod Security `restricted`, and a root file system that is read-only."""
    pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
    both = pod | own
    if both.get("runAsNonRoot") is not True:
        yield "restricted: runAsNonRoot is not true"
    if both.get("runAsUser") == 0:
        yield "restricted: runAsUser is 0"
    if both.get("seccompProfile", {}).get("type") not in PROFILES:
        yield "restricted: seccompProfile is not RuntimeDefault"
    if both.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        yield "restricted: appArmorProfile is not RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "restricted: allowPrivilegeEscalation is not false"
    if own.get("privileged"):
        yield "restricted: it is privileged"
    if own.get("procMount", "Default") != "Default":
        yield "restricted: procMount is not Default"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "restricted: capabilities are not dropped"
    if extra := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"restricted: capabilities {', '.join(sorted(extra))} are added"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "restricted: it has a hostPort"
    hooks = [*(container.get(probe, {}) for probe in PROBES), *container.get("lifecycle", {}).values()]
    if any(hook.get(kind, {}).get("host") for hook in hooks for kind in ("httpGet", "tcpSocket")):
        yield "restricted: a probe or hook asks another host"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    if MOVING.search(container["image"]):
        yield f"image {container['image']} has no exact tag or digest"


def _resources(container: dict[str, Any]) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for kind, given in (("requests", requests), ("limits", limits)):
        for name in {"cpu", "memory"} - given.keys():
            yield f"it has no resources.{kind}.{name}"
        for name, value in given.items():
            if problem := quantity_problem(name, value):
                yield f"resources.{kind}.{problem}"
    for name in requests.keys() & limits.keys():
        wanted, most = amount(requests[name]), amount(limits[name])
        if wanted is not None and most is not None and (wanted > most or ("/" in name and wanted != most)):
            yield f"resources.requests.{name} = {requests[name]} and its limit is {limits[name]}"
    for name in requests.keys() - limits.keys():
        if "/" in name:
            yield f"resources.requests.{name} has no limit"


def _volumes(pods: Pods, stack: Stack) -> Iterator[str]:
    volumes = {each["name"]: each for each in pods.spec.get("volumes", [])}
    claims = [each["metadata"]["name"] for each in pods.owner["spec"].get("volumeClaimTemplates", [])]
    mounts = [(container, mount) for container in pods.containers for mount in container.get("volumeMounts", [])]
    for container, mount in mounts:
        if mount["name"] not in {*volumes, *claims}:
            yield f"container {container['name']}: there is no volume {mount['name']}"
    for unused in {*volumes, *claims} - {mount["name"] for _, mount in mounts}:
        yield f"nobody mounts volume {unused}"
    for container in pods.containers:
        for path, count in Counter(mount["mountPath"] for mount in container.get("volumeMounts", [])).items():
            if count > 1:
                yield f"container {container['name']}: two volumes at {path}"
    for name, volume in volumes.items():
        if problem := volume.get("emptyDir") and quantity_problem("sizeLimit", volume["emptyDir"].get("sizeLimit")):
            yield f"volume {name}: {problem}"
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and (problem := stack.lacks("PersistentVolumeClaim", claim)):
            yield f"volume {name}: {problem}"
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            for kind, field, named in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName" if source is volume else "name"),
            ):
                if field in source and not source[field].get("optional"):
                    for key in [None, *(item["key"] for item in source[field].get("items", []))]:
                        if problem := stack.lacks(kind, source[field][named], key):
                            yield f"volume {name}: {problem}"


def _references(container: dict[str, Any], stack: Stack) -> Iterator[str]:
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source and not source[field].get("optional") and (problem := stack.lacks(kind, source[field]["name"])):
                yield problem
    for entry in container.get("env", []):
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            source = entry.get("valueFrom", {}).get(field)
            if source and not source.get("optional") and (problem := stack.lacks(kind, source["name"], source["key"])):
                yield f"variable {entry['name']}: {problem}"
    names = [entry["name"] for entry in container.get("env", [])]
    for name, count in Counter(names).items():
        if count > 1:
            yield f"variable {name} is there twice"
    for position, entry in enumerate(container.get("env", [])):  # $(NAME) is replaced by variables that stand before it
        for name in re.findall(r"(?<!\$)\$\((\w+)\)", entry.get("value", "")):
            if name not in names[:position] and not container.get("envFrom"):
                yield f"variable {entry['name']}: no variable {name} before it"
    for word in [*container.get("command", []), *container.get("args", [])]:
        for name in re.findall(r"(?<!\$)\$\((\w+)\)", word):
            if name not in names:
                yield f"{word}: no variable {name}"


def _ports(container: dict[str, Any]) -> Iterator[str]:
    declared = container.get("ports", [])
    for field in ("name", "containerPort"):
        for value, count in Counter(each[field] for each in declared if field in each).items():
            if count > 1:
                yield f"port {value} is there twice"
    known = {each.get("name") for each in declared} | {each["containerPort"] for each in declared}
    for probe in PROBES:
        for kind in ("httpGet", "tcpSocket", "grpc"):
            port = container.get(probe, {}).get(kind, {}).get("port")
            if port is not None and port not in known:
                yield f"{probe}: no port {port}"
