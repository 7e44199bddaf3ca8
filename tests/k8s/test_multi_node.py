"""The runtime of k8s/multi-node against the schemas of Kubeflow Trainer 2.3 and Kubernetes, and against what the code asks for."""

import json
import shutil
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime

from dreamteacher.cluster.node_watch import CONTAINER
from dreamteacher.cluster.trainjob import GROUP, RUNTIME, VERSION, Nodes, manifest
from helpers import PROJECT

FOLDER = PROJECT / "k8s/multi-node"
OURS = yaml.safe_load((FOLDER / "runtime.yaml").read_text())
(NODE,) = OURS["spec"]["template"]["spec"]["replicatedJobs"]


def closed(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    for kind in [schema, *schema["$defs"].values()]:
        if "properties" in kind:
            kind["additionalProperties"] = False
    return jsonschema.Draft202012Validator(schema)


def test_runtime_is_valid_and_a_typo_would_be_found():
    validator = closed(TrainerV1alpha1TrainingRuntime.model_json_schema(by_alias=True))
    validator.validate(OURS)
    broken = json.loads(json.dumps(OURS).replace("backoffLimitPerIndex", "backofLimitPerIndex"))
    with pytest.raises(jsonschema.ValidationError, match="backofLimitPerIndex"):
        validator.validate(broken)


def test_runtime_is_the_one_that_the_step_looks_for():
    assert (OURS["apiVersion"], OURS["metadata"]["name"]) == (f"{GROUP}/{VERSION}", RUNTIME)
    job = manifest(Nodes(image="i"), "n", "r", "ml", [], own_runtime=True)
    assert job["spec"]["runtimeRef"] == {"apiGroup": GROUP, "kind": OURS["kind"], "name": RUNTIME}
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    (container,) = NODE["template"]["spec"]["template"]["spec"]["containers"]
    assert patch["name"] == NODE["name"]  # a patch of a job or container that the runtime lacks is refused
    assert patch["template"]["spec"]["template"]["spec"]["containers"][0]["name"] == container["name"] == CONTAINER


def test_rendered_job_does_not_count_disruptions_and_keeps_failed_pods():
    """The Job as JobSet makes it: completion mode and parallelism are added by its webhook and by Kubeflow Trainer."""
    spec = NODE["template"]["spec"]
    whole = spec | {"completionMode": "Indexed", "completions": 4, "parallelism": 4}
    kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "n"}, "spec": whole}, "1.32", strict=True)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"] == [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    assert "backoffLimit" not in spec  # which would sum the failures of all nodes
    assert spec["maxFailedIndexes"] == 0
    assert NODE["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}  # by which Trainer finds it


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_renders_it():
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True)
    (rendered,) = yaml.safe_load_all(done.stdout)
    assert rendered["spec"] == OURS["spec"]
