"""What a pipeline needs from a cluster, read from a profile of resources.yaml or from a compiled package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dreamteacher.cluster.trainjob import SETTINGS, Nodes
from pipelines.resources import GPU, LAUNCHER, STEPS, Profile


@dataclass(frozen=True, order=True)
class Pods:
    """Pods that a step has at the same time, and what the node of each must have."""

    pool: str
    cpu: str
    memory: str
    gpus: int = 0
    count: int = 1


@dataclass(frozen=True)
class Needs:
    """The objects that pods refer to, and what they request from nodes."""

    image: str
    config_maps: dict[str, list[str]]  # with their keys; a pod does not start without one
    secrets: dict[str, list[str]]  # a pod starts without them
    pull_secrets: list[str]
    claim: str
    mount: str
    pool_label: str
    pods: dict[Pods, list[str]]  # with the steps that have such pods

    @property
    def nodes(self) -> int:
        """Number of nodes of the largest TrainJob; 1 if no step has several nodes."""
        return max((each.count for each in self.pods), default=1)


def of_profile(profile: Profile) -> Needs:
    """What the steps of all pipelines need."""
    around = profile.environment
    pods = []
    for step in sorted(STEPS):
        wanted = profile.of(step)
        of_step = Pods(wanted.pool, wanted.cpu, wanted.memory, wanted.gpus, wanted.nodes)
        pods += [(of_step, step)] if wanted.nodes == 1 else [(of_step, step), (Pods("cpu", LAUNCHER["cpu"], LAUNCHER["memory"]), step)]
    secrets = dict(around.secrets)
    for of_one_step in around.step_secrets.values():
        secrets |= of_one_step
    return Needs(
        image=profile.image,
        config_maps=around.config_map,
        secrets=secrets,
        pull_secrets=around.image_pull_secrets,
        claim=around.volume.claim,
        mount=around.volume.mount,
        pool_label=around.pool_label,
        pods=_by_pods(pods),
    )


def of_package(package: Path) -> Needs:
    """What the steps of a compiled pipeline need; `package` is valid for pipelines.client.read_package."""
    with package.open() as file:
        pipeline, *others = yaml.load_all(file, yaml.CSafeLoader)  # safe_load_all in C: a package has thousands of lines
    executors = pipeline["deploymentSpec"]["executors"]
    platform: dict[str, Any] = {}
    for document in others:
        platform |= document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    image = claim = mount = label = ""
    config_maps: dict[str, list[str]] = {}
    secrets: dict[str, list[str]] = {}
    pull: set[str] = set()
    pods: list[tuple[Pods, str]] = []
    for name, executor in executors.items():
        container, around = executor.get("container", {}), platform.get(name, {})
        step, resources = re.sub(r"^exec-|-\d+$", "", name), container.get("resources", {})
        environment = {each["name"]: each["value"] for each in container.get("env", [])}
        image = container.get("image", image)
        gpus = int(resources.get("accelerator", {}).get("resourceCount", 0))
        for key, pool in around.get("nodeSelector", {}).get("labels", {}).items():
            label = key
            pods.append((Pods(pool, resources.get("resourceCpuRequest", "0"), resources.get("resourceMemoryRequest", "0"), gpus), step))
        if SETTINGS in environment:
            job = Nodes.model_validate(json.loads(environment[SETTINGS]))
            (pool,) = job.node_selector.values()
            pods.append((Pods(pool, job.cpu, job.memory, job.gpus, job.nodes), step))
        for each in around.get("pvcMount", []):
            claim, mount = each["constant"], each["mountPath"]
        config_maps |= {
            each["configMapName"]: [key["configMapKey"] for key in each["keyToEnv"]] for each in around.get("configMapAsEnv", [])
        }
        secrets |= {each["secretName"]: [key["secretKey"] for key in each["keyToEnv"]] for each in around.get("secretAsEnv", [])}
        pull |= {each["secretName"] for each in around.get("imagePullSecret", [])}
    return Needs(image, config_maps, secrets, sorted(pull), claim, mount, label, _by_pods(pods))


def _by_pods(pairs: Iterable[tuple[Pods, str]]) -> dict[Pods, list[str]]:
    found: dict[Pods, list[str]] = {}
    for pods, step in sorted(set(pairs)):
        found.setdefault(pods, []).append(step)
    return found


def in_words(pods: Pods) -> str:
    """What a node must have: `8 GPUs, cpu 64, memory 384Gi`."""
    gpus = f"{pods.gpus} GPU{'s' * (pods.gpus > 1)}, " if pods.gpus else ""
    return f"{gpus}cpu {pods.cpu}, memory {pods.memory}"


def as_resources(pods: Pods) -> dict[str, str]:
    """The same as Kubernetes writes it."""
    return {"cpu": pods.cpu, "memory": pods.memory} | ({GPU: str(pods.gpus)} if pods.gpus else {})
