"""Objects that refer to others: selectors, ports, targets, bindings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manifest_lint.quantities import problem as quantity_problem
from manifest_lint.stack import WORKLOADS, Manifest, Pods, Stack, selects


def problems(one: Manifest, stack: Stack) -> Iterator[str]:
    """All that is wrong with one object, whatever its kind."""
    name = one["metadata"]["name"]
    place = one["metadata"].get("namespace")
    twins = [each for each in stack.of(one["kind"]) if each["metadata"]["name"] == name and each["metadata"].get("namespace") == place]
    if len(twins) > 1:
        yield "is there twice"
    checks = {
        "Service": _service,
        "ServiceMonitor": _monitor,
        "PodDisruptionBudget": _budget,
        "NetworkPolicy": _policy,
        "RoleBinding": _binding,
        "HorizontalPodAutoscaler": _autoscaler,
        "ScaledObject": _autoscaler,
        "HTTPRoute": _route,
        "GRPCRoute": _route,
        "PersistentVolumeClaim": _claim,
        "ResourceQuota": _quota,
        "ClusterQueue": _queue,
        "LocalQueue": _local_queue,
        "Secret": _secret,
    }
    yield from checks.get(one["kind"], lambda *_: ())(one, stack)
    if one["kind"] in WORKLOADS:
        yield from _workload(one, stack)


def _service(one: Manifest, stack: Stack) -> Iterator[str]:
    spec = one["spec"]
    if spec.get("type") == "ExternalName":
        return
    chosen = stack.chosen(spec["selector"]) if spec.get("selector") else []
    if not chosen:
        yield f"its selector {spec.get('selector')} matches no pod, so it has no endpoints"
    if chosen and all(each.owner["spec"].get("replicas", 1) == 0 for each in chosen):
        yield "its pods have 0 replicas, so it has no endpoints"
    for port in spec["ports"]:
        target = port.get("targetPort", port["port"])
        for pods in chosen:
            if not _has_port(pods, target):
                yield f"targetPort {target} is no port of {pods}"


def _has_port(pods: Pods, target: int | str) -> bool:
    ports = [each for container in pods.containers for each in container.get("ports", [])]
    return target in {each["containerPort"] for each in ports} | {each.get("name") for each in ports}


def _monitor(one: Manifest, stack: Stack) -> Iterator[str]:
    services = [each for each in stack.of("Service") if selects(one["spec"]["selector"], each["metadata"].get("labels", {}))]
    if not services:
        yield f"its selector {one['spec']['selector']} matches no Service"
    for endpoint in one["spec"]["endpoints"]:
        for service in services:
            if endpoint["port"] not in {port.get("name") for port in service["spec"]["ports"]}:
                yield f"Service {service['metadata']['name']} has no port {endpoint['port']}"


def _budget(one: Manifest, stack: Stack) -> Iterator[str]:
    chosen = stack.chosen(one["spec"]["selector"])
    if not chosen:
        yield f"its selector {one['spec']['selector']} matches no pod"
    if str(one["spec"].get("maxUnavailable")) in ("0", "0%") or str(one["spec"].get("minAvailable")) == "100%":
        yield "no pod may ever be evicted, so no node can be drained"
    least, replicas = one["spec"].get("minAvailable"), sum(_least_replicas(each.owner, stack) for each in chosen)
    if isinstance(least, int) and chosen and least >= replicas:
        yield f"minAvailable {least} of {replicas} replicas: no pod may ever be evicted, so no node can be drained"


def _least_replicas(workload: Manifest, stack: Stack) -> int:
    for scaler in [*stack.of("HorizontalPodAutoscaler"), *stack.of("ScaledObject")]:
        if scaler["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]:
            return int(scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1)))
    return int(workload["spec"].get("replicas", 1))


def _policy(one: Manifest, stack: Stack) -> Iterator[str]:
    if not stack.chosen(one["spec"]["podSelector"]):
        yield f"its selector {one['spec']['podSelector']} matches no pod"
    types = one["spec"].get("policyTypes", [])
    for way in ("Ingress", "Egress"):
        if one["spec"].get(way.lower()) and way not in types:
            yield f"it has {way.lower()} rules and no policyType {way}"


def _binding(one: Manifest, stack: Stack) -> Iterator[str]:
    for kind, name in [(one["roleRef"]["kind"], one["roleRef"]["name"]), *((each["kind"], each["name"]) for each in one["subjects"])]:
        if problem := stack.lacks(kind, name):
            yield problem


def _autoscaler(one: Manifest, stack: Stack) -> Iterator[str]:
    target = one["spec"]["scaleTargetRef"]
    found = stack.get(target.get("kind", "Deployment"), target["name"])
    if not found:
        yield f"there is no {target.get('kind', 'Deployment')} {target['name']}"
    elif "replicas" in found["spec"]:
        yield f"{target['name']} has replicas of its own, to which each apply sets it back"
    scalers = [*stack.of("HorizontalPodAutoscaler"), *stack.of("ScaledObject")]
    if sum(each["spec"]["scaleTargetRef"]["name"] == target["name"] for each in scalers) > 1:
        yield f"{target['name']} has two autoscalers"
    least, most = ("minReplicas", "maxReplicas") if one["kind"] == "HorizontalPodAutoscaler" else ("minReplicaCount", "maxReplicaCount")
    if one["spec"].get(least, 1) > one["spec"][most]:
        yield f"{least} is above {most}"


def _route(one: Manifest, stack: Stack) -> Iterator[str]:
    for parent in one["spec"]["parentRefs"]:
        gateway = stack.get("Gateway", parent["name"])
        if not gateway and "namespace" not in parent:  # in another namespace, it is another's
            yield f"there is no Gateway {parent['name']}"
        if gateway and parent.get("sectionName") not in {None, *(each["name"] for each in gateway["spec"]["listeners"])}:
            yield f"Gateway {parent['name']} has no listener {parent['sectionName']}"
    for rule in one["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            service = stack.get("Service", backend["name"])
            if not service:
                yield f"there is no Service {backend['name']}"
            elif backend.get("port") not in {port["port"] for port in service["spec"]["ports"]}:
                yield f"Service {backend['name']} has no port {backend.get('port')}"
        if not sum(backend.get("weight", 1) for backend in rule["backendRefs"]):
            yield "all its weights are 0, so each request fails"


def _claim(one: Manifest, _: Stack) -> Iterator[str]:
    if problem := quantity_problem("storage", one["spec"]["resources"]["requests"]["storage"]):
        yield problem


def _quota(one: Manifest, _: Stack) -> Iterator[str]:
    for name, value in one["spec"]["hard"].items():
        if problem := quantity_problem(name, value):
            yield problem


def _queue(one: Manifest, stack: Stack) -> Iterator[str]:
    for group in one["spec"].get("resourceGroups", []):
        for flavor in group["flavors"]:
            if problem := stack.lacks("ResourceFlavor", flavor["name"]):
                yield problem
            if [each["name"] for each in flavor["resources"]] != group["coveredResources"]:
                yield f"flavor {flavor['name']} does not have the coveredResources {group['coveredResources']}"
            for each in flavor["resources"]:
                if problem := quantity_problem(each["name"], each["nominalQuota"]):
                    yield f"flavor {flavor['name']}: {problem}"


def _local_queue(one: Manifest, stack: Stack) -> Iterator[str]:
    if problem := stack.lacks("ClusterQueue", one["spec"]["clusterQueue"]):
        yield problem


def _secret(one: Manifest, _: Stack) -> Iterator[str]:
    if one.get("data") or one.get("stringData"):
        yield "it is in the manifests with its values"


def _workload(one: Manifest, stack: Stack) -> Iterator[str]:
    pods = next(each for each in stack.pods if each.owner is one)
    selector: dict[str, Any] = one["spec"].get("selector", {})
    if selector and not selects(selector, pods.labels):
        yield "its selector does not match its own pods"
    rivals = [each for each in stack.pods if each.owner is not one and selector and selects(selector, each.labels)]
    for each in rivals:
        yield f"its selector matches the pods of {each} too"
    if one["kind"] == "StatefulSet":
        if problem := stack.lacks("Service", one["spec"].get("serviceName", "")):
            yield problem
        for claim in one["spec"].get("volumeClaimTemplates", []):
            yield from _claim(claim, stack)
