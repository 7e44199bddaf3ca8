"""A model of how KFP 2.17 runs a compiled package: which steps it takes from its cache, and which inputs its driver cannot resolve.

The key is that of backend/src/v2/cacheutils/cache.go: the container (image, command, arguments), the values of the parameters, and of each
input artifact the id, which is new whenever the step that made it ran.

Lists of artifacts are resolved as in backend/src/v2/driver/resolve.go. CollectInputs goes down from a loop to the steps, through the loops
within it; one of these that has no items adds nothing to the list. But it is only called for a loop with items: of one without,
resolveUpstreamArtifacts looks for the step inside instead, and fails as there is none. A group, or a loop, stores an event for each of its
input artifacts, and GetInputArtifactsByExecutionID (backend/src/v2/metadata/client.go) reads them back by the input's name: of a list, one
artifact remains (kubeflow/pipelines#13900), of an empty list nothing, and a step inside fails.

The state of a group, which the exit handler's step gets, is updated by the launcher alone (UpdateDAGExecutionsState, same file), when a
step's pod ends: the group of this step, and while they become complete, those around it. A step from the cache has no pod.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from argo_nodes import Nodes

Values = dict[str, Any]
EMPTY = object()  # output of a loop without items


@dataclass
class Group:
    """A group of steps, or a loop, or one of its passes: how many of its members are complete."""

    members: int
    around: Group | None = None
    ended: int = 0
    state: str = "RUNNING"

    def pod_ended(self) -> None:
        if self.ended == self.members and self.state != "COMPLETE":
            self.state = "COMPLETE"
            if self.around:
                self.around.ended += 1
                self.around.pod_ended()


class Kfp:
    """A KFP that remembers. `computed` says how steps whose output parameters are looked at compute them from their inputs."""

    def __init__(self, computed: dict[str, Callable[[Values], Values]]):
        self._computed, self._cache, self._ids = computed, dict[str, dict[str, Values]](), itertools.count()
        self.nodes = Nodes()
        self.ended = ""  # what the step `finish` of the last run was told

    def run(self, spec: dict[str, Any], parameters: Values) -> list[str]:
        """The steps that were not taken from the cache, those of loops with their `init`, in the order of their start."""
        ran: list[str] = []
        self.nodes = Nodes()
        self.nodes.group("run.root", spec["root"], {})
        self._dag(spec, spec["root"], {"parameters": parameters, "artifacts": {}}, ran, "run.root", _group(spec["root"]))
        return ran

    def _dag(
        self, spec: dict[str, Any], component: dict[str, Any], given: dict[str, Values], ran: list[str], path: str, group: Group
    ) -> dict[str, Values]:
        made: dict[str, dict[str, Values]] = {}
        todo = dict(component["dag"]["tasks"])
        groups: dict[str, Group] = {}
        while todo:
            name = next(name for name, task in todo.items() if not set(task.get("dependentTasks", [])) & set(todo))
            task = todo.pop(name)
            inputs = {kind: self._inputs(task, kind, given, made) for kind in ("parameters", "artifacts")}
            inner = spec["components"][task["componentRef"]["name"]]
            iterator = task.get("parameterIterator")
            here = f"{path}.{name}"
            for key, value in inputs["artifacts"].items():
                assert value is not EMPTY, f"{here}: {key} comes from a loop without items, and the driver of KFP 2.17 finds no step in it"
                assert "dag" not in inner or not isinstance(value, list), (
                    f"{here}: KFP 2.17 keeps one artifact of the list {key} of a group"
                )
            if "dag" not in inner:
                self.nodes.step(here, spec, task, inputs)
                for source in task.get("inputs", {}).get("parameters", {}).values():
                    if "taskFinalStatus" in source:
                        self.ended = groups[source["taskFinalStatus"]["producerTask"]].state
                before = len(ran)
                made[name] = self._step(spec, task, inner, inputs, ran)
                group.ended += 1
                if len(ran) > before:
                    group.pod_ended()
            elif iterator:
                items = inputs["parameters"][iterator["items"]["inputParameter"]]
                self.nodes.loop(here, inner, task, len(items))
                loop = Group(len(items), group)
                passes = [
                    self._dag(
                        spec,
                        inner,
                        inputs | {"parameters": {**inputs["parameters"], iterator["itemInput"]: item}},
                        ran,
                        f"{here}-iterations({number}:{number}).iteration",
                        _group(inner, loop),
                    )
                    for number, item in enumerate(items)
                ]
                keys = inner.get("outputDefinitions", {}).get("artifacts", {})
                collected = {key: [one for each in passes for one in _listed(each["artifacts"][key])] if items else EMPTY for key in keys}
                made[name] = {"artifacts": collected, "parameters": {}}
            else:
                self.nodes.group(here, inner, task)
                groups[name] = _group(inner, group)
                made[name] = self._dag(spec, inner, inputs, ran, here, groups[name])
        outputs = component["dag"].get("outputs", {})
        return {
            "artifacts": {
                output: made[one["producerSubtask"]]["artifacts"][one["outputArtifactKey"]]
                for output, chosen in outputs.get("artifacts", {}).items()
                for one in chosen["artifactSelectors"]
            },
            "parameters": {
                output: made[chosen["valueFromParameter"]["producerSubtask"]]["parameters"][
                    chosen["valueFromParameter"]["outputParameterKey"]
                ]
                for output, chosen in outputs.get("parameters", {}).items()
            },
        }

    def _inputs(self, task: dict[str, Any], kind: str, given: dict[str, Values], made: dict[str, dict[str, Values]]) -> Values:
        found, iterates = {}, "parameterIterator" in task
        what = {"parameters": "Parameter", "artifacts": "Artifact"}[kind]
        for name, source in task.get("inputs", {}).get(kind, {}).items():
            if "runtimeValue" in source:
                value = source["runtimeValue"]["constant"]
            elif f"componentInput{what}" in source:
                value = given[kind][source[f"componentInput{what}"]]
            elif f"taskOutput{what}" in source:
                produced = source[f"taskOutput{what}"]
                value = made[produced["producerTask"]][kind][produced[f"output{what}Key"]]
            else:
                continue  # the final status, which finish gets
            if iterates and "parameterExpressionSelector" in source:
                raise AssertionError(f"the driver of KFP 2.17 selects {name} again in each pass, and fails")
            if selector := re.search(r'\["(\w+)"\]', source.get("parameterExpressionSelector", "")):
                value = value[selector[1]]
            found[name] = value
        return found

    def _step(
        self, spec: dict[str, Any], task: dict[str, Any], component: dict[str, Any], inputs: dict[str, Values], ran: list[str]
    ) -> dict[str, Values]:
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        key = json.dumps([container, inputs], sort_keys=True)
        if task.get("cachingOptions", {}).get("enableCache") and key in self._cache:
            return self._cache[key]
        step = task["taskInfo"]["name"]
        ran.append(" ".join([step, *(str(inputs["parameters"][name]) for name in ("init", "recipe") if name in inputs["parameters"])]))
        definitions = component.get("outputDefinitions", {})
        made: dict[str, Values] = {
            "artifacts": {name: next(self._ids) for name in definitions.get("artifacts", {})},
            "parameters": self._computed[step](inputs["parameters"])
            if step in self._computed
            else dict.fromkeys(definitions.get("parameters", {})),
        }
        self._cache[key] = made
        return made


def _group(component: dict[str, Any], around: Group | None = None) -> Group:
    return Group(len(component["dag"]["tasks"]), around)


def _listed(artifacts: Any) -> list[Any]:
    """One list of what loops within loops collect, as CollectInputs makes it."""
    if artifacts is EMPTY:
        return []
    return artifacts if isinstance(artifacts, list) else [artifacts]
