"""The manifests that are applied together, and how they refer to each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

Manifest = dict[str, Any]
Made = dict[tuple[str, str], set[str]]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


@dataclass(frozen=True)
class Pods:
    """The pods of one workload."""

    owner: Manifest
    template: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def spec(self) -> dict[str, Any]:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.template.get("metadata", {}).get("labels", {})

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def mounts_token(self) -> bool:
        return bool(self.spec.get("automountServiceAccountToken", self.spec.get("serviceAccountName")))

    def port(self, port: int | str) -> int | None:
        """The number of a container port by its name, or of one that no container has to declare."""
        if isinstance(port, int):
            return port
        named = {each["name"]: each["containerPort"] for one in self.containers for each in one.get("ports", []) if "name" in each}
        return named.get(port)


@dataclass(frozen=True)
class Stack:
    """What is applied, and what the user makes beside it."""

    manifests: list[Manifest]
    made: Made

    @cached_property
    def pods(self) -> list[Pods]:
        return [Pods(each, template) for each in self.manifests if (template := _template(each))]

    @cached_property
    def _keys(self) -> Made:
        found = {(each["kind"], each["metadata"]["name"]): {*each.get("data", {}), *each.get("stringData", {})} for each in self.manifests}
        return found | self.made

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in self._keys

    def lacks(self, kind: str, name: str, key: str | None = None) -> str | None:
        """What is wrong with a reference to an object, or to a key of it."""
        if not self.has(kind, name):
            return f"there is no {kind} {name}"
        return f"{kind} {name} has no key {key}" if key is not None and key not in self._keys[kind, name] else None

    def of(self, kind: str) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] == kind]

    def get(self, kind: str, name: str) -> Manifest | None:
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    def chosen(self, selector: dict[str, Any] | None) -> list[Pods]:
        """The pods that `selector` chooses: matchLabels and matchExpressions, or the plain labels of a Service."""
        return [each for each in self.pods if selects(selector or {}, each.labels)]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether `selector` chooses what has `labels`; an empty one chooses all."""
    is_plain = not {"matchLabels", "matchExpressions"} & selector.keys()
    if not (selector if is_plain else selector.get("matchLabels", {})).items() <= labels.items():
        return False
    tests = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    return all(tests[each["operator"]](each["key"], each.get("values")) for each in selector.get("matchExpressions", []))


def _template(one: Manifest) -> dict[str, Any] | None:
    if one["kind"] == "InferenceService":
        predictor = one["spec"]["predictor"]
        return {"metadata": {"labels": predictor.get("labels", {})}, "spec": predictor}
    if one["kind"] not in WORKLOADS:
        return None
    spec = one["spec"]
    template: dict[str, Any] = (spec["jobTemplate"]["spec"] if one["kind"] == "CronJob" else spec)["template"]
    return template
