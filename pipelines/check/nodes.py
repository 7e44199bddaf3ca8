"""Findings on nodes: for each pool, whether its nodes take the steps' pods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kubernetes.client import ApiException, ApisApi, CoreV1Api
from kubernetes.utils import parse_quantity

from pipelines.check.finding import Cluster, Finding, read
from pipelines.check.needs import Needs, Pods, as_resources, in_words
from pipelines.resources import GPU

# Beside the step's own container: Argo's sidecar, as KFP 2.17 configures it.
SIDECAR = {"cpu": parse_quantity("10m"), "memory": parse_quantity("32Mi")}
MAY_COME = "; an autoscaler may add one"
FIELDS = ["cpu", "memory", GPU]


def pools(cluster: Cluster, needs: Needs) -> Iterator[Finding]:
    """One finding for each pool in order, and one for each kind of pod that fits no node.

    Nodes are considered empty except for DaemonSets.
    """
    core = CoreV1Api(cluster.client)
    nodes = read(core.list_node).items
    free = _free(core, nodes)
    unready = "warn" if _is_autoscaled(cluster) else "wrong"
    for pool in sorted({pods.pool for pods in needs.pods}):
        members = [node for node in nodes if (node.metadata.labels or {}).get(needs.pool_label) == pool]
        wanted = {pods: steps for pods, steps in needs.pods.items() if pods.pool == pool}
        if not members:
            yield _no_node(needs, pool, nodes, unready)
            continue
        lacking = [found for pods, steps in wanted.items() if (found := _not_taken(pods, steps, members, free, unready))]
        yield from lacking
        if not lacking:
            yield Finding("ok", f"pool {pool}", f"{len(members)} node{'s' * (len(members) > 1)}; each step fits on one")
        untainted = [node.metadata.name for node in members if free[node.metadata.name][GPU] and not node.spec.taints]
        if untainted and any(pods.gpus for pods in wanted):
            fix = f"kubectl taint node {' '.join(untainted)} {GPU}=present:NoSchedule"
            yield Finding("warn", f"pool {pool}", f"pods without GPUs may occupy {', '.join(untainted)}", fix)


def _no_node(needs: Needs, pool: str, nodes: list[Any], state: str) -> Finding:
    gpus = any(pods.gpus for pods in needs.pods if pods.pool == pool)
    others = sorted({value for node in nodes if (value := (node.metadata.labels or {}).get(needs.pool_label))})
    free = [
        node.metadata.name
        for node in nodes
        if needs.pool_label not in (node.metadata.labels or {})
        and bool(parse_quantity((node.status.allocatable or {}).get(GPU, 0))) == gpus
    ]
    steps = [step for pods, names in needs.pods.items() if pods.pool == pool for step in names]
    words = f"no node has the label {needs.pool_label}={pool}" + (f" (there is {', '.join(others)})" if others else "")
    more = MAY_COME if state == "warn" else ""
    return Finding(
        state,
        f"pool {pool}",
        f"{words}, so {_few(steps)} would wait{more}",
        f"kubectl label node {free[0] if free else 'NODE'} {needs.pool_label}={pool}",
    )


def _not_taken(pods: Pods, steps: list[str], members: list[Any], free: dict[str, dict[str, Any]], state: str) -> Finding | None:
    """The finding if such a pod fits on fewer nodes than it needs: what the nearest of the others lacks."""
    reasons = {node.metadata.name: _reasons(pods, node, free[node.metadata.name]) for node in members}
    taking = sum(not each for each in reasons.values())
    if taking >= pods.count:
        return None
    words = f"{_few(steps)} request{'s' * (len(steps) == 1)} {in_words(pods)}"
    more = MAY_COME if state == "warn" else ""
    if pods.count > 1:
        words += f" on {pods.count} nodes, and {taking} {'has' if taking == 1 else 'have'} that"
    if taking == len(members):
        return Finding(state, f"pool {pods.pool}", words + more, "kubectl label further nodes, or lower `nodes` in resources.yaml")
    name, (first, *rest) = min(((name, each) for name, each in reasons.items() if each), key=lambda pair: len(pair[1]))
    return Finding(state, f"pool {pods.pool}", f"{words}; node {name} {', '.join([first[0], *(text for text, _ in rest)])}{more}", first[1])


def _reasons(pods: Pods, node: Any, free: dict[str, Any]) -> list[tuple[str, str]]:
    """Why such a pod does not fit on the node, each with the command that fixes it."""
    name, found = node.metadata.name, []
    ready = next((each.status for each in node.status.conditions or [] if each.type == "Ready"), "Unknown")
    if ready != "True":
        found.append(("is not ready", f"kubectl describe node {name}"))
    if node.spec.unschedulable:
        found.append(("is cordoned", f"kubectl uncordon {name}"))
    for taint in node.spec.taints or []:
        tolerated = pods.gpus and taint.key == GPU and taint.effect == "NoSchedule"
        ours = taint.key.startswith("node.kubernetes.io/")  # those that Kubernetes sets for the two states above
        if taint.effect != "PreferNoSchedule" and not tolerated and not ours:
            found.append((f"has the taint {taint.key}:{taint.effect}", f"kubectl taint node {name} {taint.key}:{taint.effect}-"))
    for field, text in as_resources(pods).items():
        wanted = parse_quantity(text) + (SIDECAR.get(field, 0) if pods.count == 1 else 0)
        if free[field] >= wanted:
            continue
        lower = "dreamteacher pipelines resources, and lower the step in resources.yaml"
        if field != GPU:
            found.append((f"has {_readable(field, free[field])}", lower))
        elif free[field]:
            found.append((f"has {int(free[field])} of them", lower))
        else:
            drivers = "install NVIDIA's GPU operator, or check its device plugin: kubectl get pods -A -l app=nvidia-device-plugin-daemonset"
            found.append(("reports no nvidia.com/gpu", drivers))
    return found


def _free(core: CoreV1Api, nodes: list[Any]) -> dict[str, dict[str, Any]]:
    """What each node has for pods, less what pods of DaemonSets and of the node itself ask for, as far as these can be read."""
    free = {
        node.metadata.name: {field: parse_quantity((node.status.allocatable or {}).get(field, 0)) for field in FIELDS} for node in nodes
    }
    try:
        pods = read(core.list_pod_for_all_namespaces, field_selector="status.phase!=Succeeded,status.phase!=Failed").items
    except ApiException:
        return free
    for pod in pods:
        if pod.spec.node_name in free and any(owner.kind in ("DaemonSet", "Node") for owner in pod.metadata.owner_references or []):
            for container in pod.spec.containers:
                for field in FIELDS:
                    free[pod.spec.node_name][field] -= parse_quantity(
                        ((container.resources and container.resources.requests) or {}).get(field, 0)
                    )
    return free


def _is_autoscaled(cluster: Cluster) -> bool:
    """Whether nodes may come when a pod waits for one."""
    with suppress(ApiException):
        if read(CoreV1Api(cluster.client).read_namespaced_config_map, "cluster-autoscaler-status", "kube-system"):
            return True
    return any(group.name == "karpenter.sh" for group in read(ApisApi(cluster.client).get_api_versions).groups)


def _few(steps: list[str]) -> str:
    return ", ".join(steps[:3]) + (f" and {len(steps) - 3} more" if len(steps) > 3 else "")


def _readable(field: str, amount: Any) -> str:
    return f"cpu {float(amount):.3g}" if field == "cpu" else f"memory {float(amount) / 2**30:.3g}Gi"
