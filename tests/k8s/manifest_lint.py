"""What Kubernetes' schemas do not see in a set of manifests, and a cluster says late or never."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|k|[KMGTPE]i?)?$")
MOVING = re.compile(r":latest$|^[^:@]+$")


def lint(manifests: list[Manifest], given: set[tuple[str, str]] = frozenset()) -> list[str]:
    """All problems, each in a line.

    Args:
        manifests: what is applied together.
        given: (kind, name) of what the user makes beside them, such as secrets.
    """
    return [f"{each['kind']} {each['metadata']['name']}: {problem}" for each in manifests for problem in _problems(each, manifests, given)]


def _problems(one: Manifest, all_of_them: list[Manifest], given: set[tuple[str, str]]) -> Iterator[str]:
    known = {(each["kind"], each["metadata"]["name"]) for each in all_of_them} | given
    templates = [template for each in all_of_them if (template := _template(each))]
    if one["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector = one["spec"].get("podSelector") or one["spec"].get("selector") or {}
        chosen = [each for each in templates if _selects(selector.get("matchLabels", selector), each)]
        if not chosen:
            yield f"its selector {selector} matches no pod"
        ports = {port["name"] for each in chosen for container in each["spec"]["containers"] for port in container.get("ports", [])}
        for port in one["spec"].get("ports", []) if one["kind"] == "Service" else []:
            if isinstance(port.get("targetPort"), str) and port["targetPort"] not in ports:
                yield f"targetPort {port['targetPort']} is no port of its pods"
    if one["kind"] == "RoleBinding":
        for kind, name in [("Role", one["roleRef"]["name"]), *((each["kind"], each["name"]) for each in one["subjects"])]:
            if (kind, name) not in known:
                yield f"there is no {kind} {name}"
    template = _template(one)
    if not template:
        return
    if "matchLabels" in one["spec"].get("selector", {}) and not _selects(one["spec"]["selector"]["matchLabels"], template):
        yield "its selector does not match its own pods"
    spec = template["spec"]
    if ("ServiceAccount", spec.get("serviceAccountName", "default")) not in known | {("ServiceAccount", "default")}:
        yield f"there is no ServiceAccount {spec['serviceAccountName']}"
    pod = spec.get("securityContext", {})
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "restricted: seccompProfile is not RuntimeDefault"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for problem in _container(container, pod, volumes, known):
            yield f"container {container['name']}: {problem}"


def _container(container: dict[str, Any], pod: dict[str, Any], volumes: set[str], known: set[tuple[str, str]]) -> Iterator[str]:
    own = container.get("securityContext", {})
    if not (own.get("runAsNonRoot") or pod.get("runAsNonRoot")):
        yield "restricted: runAsNonRoot is not true"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "restricted: allowPrivilegeEscalation is not false"
    if own.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "restricted: capabilities are not dropped"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    if MOVING.search(container["image"]):
        yield f"image {container['image']} has no exact tag or digest"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        for what in ("cpu", "memory"):
            if not QUANTITY.match(str(resources.get(kind, {}).get(what, ""))):
                yield f"resources.{kind}.{what} = {resources.get(kind, {}).get(what)}"
    if lost := {mount["name"] for mount in container.get("volumeMounts", [])} - volumes:
        yield f"no volume {', '.join(sorted(lost))}"
    ports = {port["name"] for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"{probe}: no port {port}"
    sources = [*container.get("envFrom", []), *(entry["valueFrom"] for entry in container.get("env", []) if "valueFrom" in entry)]
    for source in sources:
        for key, kind in (
            ("configMapRef", "ConfigMap"),
            ("secretRef", "Secret"),
            ("configMapKeyRef", "ConfigMap"),
            ("secretKeyRef", "Secret"),
        ):
            if key in source and (kind, source[key]["name"]) not in known and not source[key].get("optional"):
                yield f"there is no {kind} {source[key]['name']}"
    names = [entry["name"] for entry in container.get("env", [])]
    for word in [*container.get("command", []), *container.get("args", [])]:
        for name in re.findall(r"\$\((\w+)\)", word):
            if name not in names:
                yield f"{word}: no variable {name}"


def _template(one: Manifest) -> dict[str, Any] | None:
    spec = one.get("spec", {})
    found: dict[str, Any] | None = (spec.get("jobTemplate", {}).get("spec") or spec).get("template")
    return found


def _selects(labels: dict[str, str], template: dict[str, Any]) -> bool:
    return bool(labels) and labels.items() <= template["metadata"].get("labels", {}).items()
