"""Network policies that block required traffic: DNS, MLflow, S3, databases, the Kubernetes API, and clients of Services."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from manifest_lint.stack import Pods, Stack, selects

URL = re.compile(r"\b(https?|postgres(?:ql)?(?:\+\w+)?)://(?:[^\s@/]*@)?([\w.-]+)(?::(\d+))?")
PORTS = {"http": 80, "https": 443}
HERE = ("0.0.0.0", "127.0.0.1", "localhost")
S3_VARIABLES = ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")  # of no use without keys
API_PORTS = (443, 6443)  # of the Service, and of the API server behind it: plugins differ in which of them they compare


@dataclass(frozen=True)
class Place:
    """Where a connection goes to: pods of ours, or something else, of which at most the namespace is known."""

    port: int | None
    protocol: str = "TCP"
    pods: Pods | None = None
    labels: dict[str, str] = field(default_factory=dict)  # of its namespace


def problems(pods: Pods, stack: Stack) -> Iterator[str]:
    """Required connections from `pods`, and to them through Services, that policies block."""
    for what, host, places in _needs(pods, stack):
        for place in places:
            if not _may(pods, "Egress", place, pods, stack):
                yield f"network policies cut {what} ({host}, port {place.port}): no egress"
            if place.pods and not _may(place.pods, "Ingress", place, pods, stack):
                yield f"network policies cut {what} ({host}, port {place.port}): no ingress to {place.pods}"
    for service in stack.of("Service"):
        if service["spec"].get("selector") and selects(service["spec"]["selector"], pods.labels):
            for port in service["spec"]["ports"]:
                place = Place(pods.port(port.get("targetPort", port["port"])), port.get("protocol", "TCP"), pods)
                if not _may(pods, "Ingress", place, None, stack):
                    yield f"network policies let nobody ask port {place.port}, to which Service {service['metadata']['name']} leads"


def _needs(pods: Pods, stack: Stack) -> Iterator[tuple[str, str, list[Place]]]:
    found = sorted({(name, *target) for container in pods.containers for name, target in _targets(container, stack)})
    for name, host, port in found:
        yield name, host, _places(host, port, stack)
    if pods.mounts_token:
        yield "the Kubernetes API", "kubernetes.default", [Place(port) for port in API_PORTS]
    if found or pods.mounts_token:
        yield "names", "DNS", [Place(53, "UDP"), Place(53, "TCP")]


def _targets(container: dict[str, Any], stack: Stack) -> Iterator[tuple[str, tuple[str, int]]]:
    """(variable or argument, (host, port)) of what a container is told to connect to."""
    values = _environment(container, stack)
    has_keys = any("secretRef" in each for each in container.get("envFrom", [])) or "AWS_ACCESS_KEY_ID" in values
    words = {f"argument {word.partition('=')[0]}": word for word in [*container.get("command", []), *container.get("args", [])]}
    for name, value in (values | words).items():
        if name in S3_VARIABLES and not has_keys:
            continue
        text = re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], ""), value)
        for scheme, host, port in URL.findall(text):
            if host not in HERE:
                yield name, (host, int(port or PORTS.get(scheme, 5432)))
    if "PGHOST" in values:
        yield "PGHOST", (values["PGHOST"], int(values.get("PGPORT", 5432)))


def _environment(container: dict[str, Any], stack: Stack) -> dict[str, str]:
    """Its variables as far as the manifests tell them; those from secrets are empty."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            values |= (stack.get("ConfigMap", source["configMapRef"]["name"]) or {}).get("data", {})
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("configMapKeyRef")
        data = (stack.get("ConfigMap", reference["name"]) or {}).get("data", {}) if reference else {}
        values[entry["name"]] = data.get(reference["key"], "") if reference else entry.get("value", "")
    return values


def _places(host: str, port: int, stack: Stack) -> list[Place]:
    """What is behind a host: pods, if it is a Service of ours, for plugins compare the pod's own port."""
    name, *rest = host.split(".")
    service = stack.get("Service", name)
    if service and (not rest or rest[0] == service["metadata"].get("namespace", rest[0])):
        target = next((each.get("targetPort", each["port"]) for each in service["spec"]["ports"] if each["port"] == port), port)
        return [Place(pods.port(target), "TCP", pods) for pods in stack.chosen(service["spec"]["selector"])]
    return [Place(port, labels={"kubernetes.io/metadata.name": rest[0]} if rest[1:2] == ["svc"] else {})]


def _may(pods: Pods, way: str, place: Place, source: Pods | None, stack: Stack) -> bool:
    """Whether the policies of `pods` let a connection to `place` in or out; it comes from `source` (None: from anybody)."""
    policies = [
        each
        for each in stack.of("NetworkPolicy")
        if selects(each["spec"]["podSelector"], pods.labels) and way in each["spec"]["policyTypes"]
    ]
    rules = [rule for each in policies for rule in each["spec"].get(way.lower()) or []]
    return not policies or any(_peer(rule, way, place, source) and _port(rule, place) for rule in rules)


def _peer(rule: dict[str, Any], way: str, place: Place, source: Pods | None) -> bool:
    peers = rule.get("to" if way == "Egress" else "from")
    other, labels = (place.pods, place.labels) if way == "Egress" else (source, {})
    if not peers or (way == "Ingress" and source is None):
        return True
    return any(_is(peer, other, labels) for peer in peers)


def _is(peer: dict[str, Any], other: Pods | None, labels: dict[str, str]) -> bool:
    if other is None:  # of what is not ours only the namespace's name is known
        return "ipBlock" in peer or ("namespaceSelector" in peer and (not labels or selects(peer["namespaceSelector"], labels)))
    if "namespaceSelector" in peer:
        namespace = other.owner["metadata"].get("namespace", "")
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    return "ipBlock" not in peer and selects(peer.get("podSelector", {}), other.labels)


def _port(rule: dict[str, Any], place: Place) -> bool:
    if not rule.get("ports"):
        return True
    for port in rule["ports"]:
        if port.get("protocol", "TCP") != place.protocol:
            continue
        wanted = port.get("port")
        number = place.pods.port(wanted) if place.pods and isinstance(wanted, str) else wanted
        if number is None and wanted is None:
            return True
        if isinstance(number, int) and place.port is not None and number <= place.port <= port.get("endPort", number):
            return True
    return False
