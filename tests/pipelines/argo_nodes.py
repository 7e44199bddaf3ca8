"""A model of what Argo 4 keeps of a run of KFP 2.17: the nodes of the workflow's status, and how large they are.

KFP (backend/src/v2/compiler/argocompiler) makes of each step a driver's pod and a group with the step's own pod, of each group and of each
pass of a loop a driver's pod and a group. Argo writes the inputs and outputs of every template into its node, so the component, the task
and the pod stand there three to six times; the stock `templateDefaults.retryStrategy` doubles every node but a loop's. It keeps the nodes
in the Workflow, as base64 of gzip where they are large, and refuses one above 1 MiB.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

LIMIT = 2**20  # bytes of a Workflow
FACTS = {"stage": "finetune", "version": "0.1.0", "loss": 0.123456, "backbone": "resnet18", "taps": "[8, 16]", "seed": 0}


class Nodes:
    """Filled by the walk through a compiled package."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def size(self) -> tuple[int, int]:
        """Bytes of the nodes as JSON, and as Argo keeps them where that is too large."""
        text = json.dumps(self._nodes, separators=(",", ":"), sort_keys=True).encode()
        return len(text), len(base64.b64encode(gzip.compress(text, mtime=0)))

    def group(self, path: str, component: dict[str, Any], task: dict[str, Any]) -> None:
        """A group: its driver and itself."""
        asked = {"component": _json(component), "parent-dag-id": "10", "task": _json(task), "runtime-config": "", "iteration-index": "-1"}
        told = {"execution-id": "11", "iteration-count": "0", "condition": "true"}
        self._twice(f"{path}-driver", "Pod", "system-dag-driver", asked | {"driver-type": "DAG"}, told)
        self._twice(path, "DAG", f"comp-{path.rpartition('.')[2]}", {"parent-dag-id": "11"}, {})

    def loop(self, path: str, component: dict[str, Any], task: dict[str, Any], passes: int) -> None:
        """A loop: its driver, the loop, and of each pass a group with a driver in it."""
        asked = {"component": _json(component), "parent-dag-id": "10", "task": _json(task), "runtime-config": "", "iteration-index": "-1"}
        told = {"execution-id": "12", "iteration-count": str(passes), "condition": "true"}
        self._twice(f"{path}-driver", "Pod", "system-dag-driver", asked | {"driver-type": "DAG"}, told)
        self._add(f"{path}-iterations", "TaskGroup", "", {}, {})
        for number in range(passes):
            inside = f"{path}-iterations({number}:{number})"
            self._twice(inside, "DAG", f"comp-{path.rpartition('.')[2]}", {"parent-dag-id": "12", "iteration-index": str(number)}, {})
            self.group(f"{inside}.iteration", component, task)

    def step(self, path: str, spec: dict[str, Any], task: dict[str, Any], inputs: dict[str, Any]) -> None:
        """A step: its driver, the group of its pod, and the pod."""
        component = spec["components"][task["componentRef"]["name"]]
        executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        platform = spec.get("platforms", {}).get(component["executorLabel"], {})
        asked = {"component": _json(component), "task": _json(task), "container": _json(executor), "parent-dag-id": "10"}
        patch = {"pod-spec-patch": _json(_pod(path, component, executor, platform, inputs)), "cached-decision": "false"}
        told = patch | {"condition": "true"}
        config = {"iteration-index": "-1", "kubernetes-config": _json(platform)}
        self._twice(f"{path}-driver", "Pod", "system-container-driver", asked | config, told)
        self._twice(path, "DAG", "system-container-executor", patch, {})
        self._twice(f"{path}.executor", "Pod", "retry-system-container-impl", {"pod-spec-patch": patch["pod-spec-patch"]}, {})

    def _twice(self, *node: Any) -> None:
        path, kind, *rest = node
        self._add(path, "Retry", *rest)
        self._add(f"{path}(0)", kind, *rest)

    def _add(self, path: str, kind: str, template: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        own, child = _digest(path), _digest(path + "(0)")
        logs = {"name": "main-logs", "s3": {"key": f"artifacts/run/2026/11/01/run-{child}/main.log"}}
        self._nodes[f"run-{own[:10]}"] = {
            "id": f"run-{own[:10]}", "name": path, "displayName": path.rpartition(".")[2], "type": kind, "phase": "Succeeded",
            "templateName": template, "templateScope": "local/run", "boundaryID": f"run-{own[10:20]}", "children": [f"run-{child[:10]}"],
            "hostNodeName": "node-1", "progress": "1/1", "resourcesDuration": {"cpu": int(own[:2], 16), "memory": int(own[2:5], 16)},
            "startedAt": f"2026-11-01T00:{int(own[5], 16):02}:00Z", "finishedAt": f"2026-11-01T01:{int(own[6:7], 16):02}:10Z",
            "inputs": {"parameters": [{"name": name, "value": value} for name, value in inputs.items()]},
            "outputs": {
                "exitCode": "0", "artifacts": [logs] if kind == "Pod" else [],
                "parameters": [{"name": n, "value": v, "valueFrom": {"path": f"/tmp/outputs/{n}"}} for n, v in outputs.items()],
            },
        }  # fmt: skip


def _pod(
    path: str, component: dict[str, Any], executor: dict[str, Any], platform: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    """What the driver makes of a step: KFP's launcher with the executor's input as an argument, around the component's command."""
    place = "s3://bucket/v2/artifacts/dreamteacher-pretrain/11111111-2222-3333-4444-555555555555/"

    def artifact(name: str) -> dict[str, Any]:
        own = _digest(path + name)
        made = {
            "name": own[:4],
            "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"},
            "uri": f"{place}{name}/{own[:32]}/{name}",
        }
        return {"artifacts": [made | {"metadata": FACTS | {"digest": own}}]}

    asked = {
        "inputs": {"parameterValues": inputs["parameters"], "artifacts": {name: artifact(name) for name in inputs["artifacts"]}},
        "outputs": {"artifacts": {name: artifact(name) for name in component.get("outputDefinitions", {}).get("artifacts", {})}},
    }
    arguments = [
        "--pipeline_name",
        "dreamteacher-pretrain",
        "--run_id",
        place[-37:],
        "--execution_id",
        "123",
        "--pod_name",
        "$(KFP_POD_NAME)",
    ]
    arguments += ["--executor_input", _json(asked), "--component_spec", _json(component), "--", *executor["command"], *executor["args"]]
    main = {"name": "main", "image": executor["image"], "command": ["/kfp-launcher/launch"], "args": arguments}
    return {"containers": [main | {"env": executor.get("env", []), "resources": executor["resources"]}], **platform}


def _digest(text: str) -> str:
    """What differs from node to node and cannot be compressed: names of pods, ids and digests of artifacts."""
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
