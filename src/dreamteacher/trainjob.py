"""Several nodes: a stage runs as a Kubeflow TrainJob (Trainer v2), which the pipeline's step creates, watches and deletes.

The step itself holds no GPU. What the nodes read and write lies on a volume that the step mounts too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamteacher.errors import UserError
from dreamteacher.kubernetes_api import api_client, or_none, patiently, refusals
from dreamteacher.params import Params
from dreamteacher.params_file import write_sections
from dreamteacher.stage import digest_of
from dreamteacher.tracking import OF_THE_RUN

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUN_LABEL = "dreamteacher.io/run"
SETTINGS = "DREAMTEACHER_TRAINJOB"  # environment variable that holds Nodes as JSON


class Nodes(BaseModel):
    """What the nodes of a TrainJob are, as the pipeline's resource profile says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(description="the step's own image, by digest or commit")
    nodes: int = Field(2, ge=1)
    gpus: int = Field(0, ge=0, description="of each node, and so its processes; 0: one process on CPU")
    cpu: str = "8"
    memory: str = "32Gi"
    shm: str = Field("8Gi", description="shared memory of the loader processes")
    claim: str = Field("dreamteacher-runs", description="PersistentVolumeClaim (ReadWriteMany) that step and nodes share")
    mount: str = Field("/runs", description="where both have it")
    timeout: int = Field(86400, ge=1, description="seconds after which the job is ended")
    runtime: str = Field("torch-distributed", description="ClusterTrainingRuntime, which sets what torchrun needs to find the others")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, str]] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    config_maps: dict[str, dict[str, str]] = Field(default_factory=dict, description="{config map: {key: variable}}")
    secrets: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="{secret: {key: variable}}; one that is missing hinders nothing"
    )
    image_pull_secrets: list[str] = Field(default_factory=list, description="names of secrets by which the nodes pull `image`")


def settings_of(environment: Mapping[str, str]) -> Nodes | None:
    """What the environment says of nodes; None where the stage is to run in the step itself.

    Raises:
        UserError: the setting is not understood.
    """
    text = environment.get(SETTINGS)
    if not text:
        return None
    try:
        nodes = Nodes.model_validate_json(text)
        known = {name: environment[name] for name in OF_THE_RUN if name in environment}  # the step's run in MLflow is the nodes' too
        return nodes.model_copy(update={"env": nodes.env | known})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{SETTINGS}: {'.'.join(map(str, problem['loc'])) or 'the value'}: {problem['msg']}") from error


def run_stage(
    nodes: Nodes, stage: str, params: Params, *, inputs: dict[str, Path], out: Path, run_id: str, namespace: str, **given: str | int
) -> None:
    """Run `dreamteacher STAGE` on the nodes and put its output in `out`.

    `given` are the stage's further options (seed, mode, init). A step that is retried attaches to the job that its predecessor
    created, which is left alone when the step is killed; when the job ends it is deleted.

    Raises:
        UserError: an input is missing, or the job failed (the last lines of each node that failed are logged), was deleted, or cannot
            be created.
    """
    name = name_of(run_id, stage, params, inputs, given)
    room = Path(nodes.mount) / run_id / name
    places = {key: _share(path, room / "inputs" / key) for key, path in inputs.items()}
    words = arguments(stage, params, room / "params.yaml", {**places, "out": room / "out"}, given)
    run(api_client(), manifest(nodes, name, run_id, namespace, words))
    shutil.copytree(room / "out", out, dirs_exist_ok=True)
    shutil.rmtree(room)


def arguments(stage: str, params: Params, settings: Path, places: Mapping[str, Path], given: Mapping[str, str | int]) -> list[str]:
    """What `dreamteacher` is called with to run `stage` in other processes, from its inputs to its output `out`, both in `places`.

    `params` are written to the file `settings` for them.
    """
    write_sections(settings, params)
    options = {"params": settings, **places, **given}
    return [stage, "--sections", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def name_of(run_id: str, stage: str, params: Params, inputs: Mapping[str, Path], given: Mapping[str, str | int]) -> str:
    """The job's name: the same for each try of a step, and another for another step of the run, other settings or other inputs.

    Raises:
        UserError: an input is missing or incomplete.
    """
    digests = {key: digest_of(path) for key, path in inputs.items()}
    recorded = json.dumps([run_id, stage, params.model_dump(mode="json"), digests, given], sort_keys=True)
    return f"{stage}-{hashlib.sha256(recorded.encode()).hexdigest()[:10]}"  # JobSet appends to it, and a label holds 63 characters


def manifest(nodes: Nodes, name: str, run_id: str, namespace: str, words: list[str]) -> dict[str, Any]:
    """The TrainJob that runs `dreamteacher WORDS` in one process for each GPU of each node."""
    resources = {"cpu": nodes.cpu, "memory": nodes.memory} | ({"nvidia.com/gpu": nodes.gpus} if nodes.gpus else {})
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(nodes.env.items())]
    for kind, sources, more in (("configMapKeyRef", nodes.config_maps, {}), ("secretKeyRef", nodes.secrets, {"optional": True})):
        for source, keys in sorted(sources.items()):
            env += [{"name": var, "valueFrom": {kind: {"name": source, "key": key, **more}}} for key, var in sorted(keys.items())]
    env.append({"name": "DREAMTEACHER_CHECKPOINTS", "value": f"{nodes.mount}/{run_id}/checkpoints"})
    pod: dict[str, Any] = {
        "nodeSelector": nodes.node_selector,
        "tolerations": nodes.tolerations,
        "imagePullSecrets": [{"name": name} for name in nodes.image_pull_secrets],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": nodes.claim}},
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": nodes.shm}},
        ],
        "containers": [
            {"name": "node", "volumeMounts": [{"name": "runs", "mountPath": nodes.mount}, {"name": "dshm", "mountPath": "/dev/shm"}]}
        ],
    }
    job = {"name": "node", "template": {"spec": {"template": {"spec": {key: value for key, value in pod.items() if value}}}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": namespace, "labels": {RUN_LABEL: run_id}},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": nodes.runtime},
            "activeDeadlineSeconds": nodes.timeout,
            "trainer": {
                "image": nodes.image,
                "command": ["torchrun"],  # number of nodes and processes, rank and master come by PET_* from the runtime
                "args": ["--module", "dreamteacher.cli", *words],
                "numNodes": nodes.nodes,
                "numProcPerNode": max(nodes.gpus, 1),
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": env,
            },
            "runtimePatches": [
                {
                    "manager": "dreamteacher.io/pipeline",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
                }
            ],
        },
    }


def run(client: ApiClient, job: dict[str, Any], *, poll: float = 10.0) -> None:
    """Create the job, or attach to it; wait until it has ended, and delete it.

    Raises:
        UserError: it failed, was deleted by another, or the Kubernetes API refuses.
    """
    from kubernetes.client import CustomObjectsApi

    jobs, name, namespace = CustomObjectsApi(client), job["metadata"]["name"], job["metadata"]["namespace"]
    while not _create(jobs, job):
        time.sleep(poll)  # its predecessor of the same name is still being deleted
    logged = ""
    while True:
        found = patiently(lambda: jobs.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name), poll)
        if found is None:
            raise UserError(f"TrainJob {name} was deleted while it ran; start the run again, it resumes from its checkpoints")
        conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", []) if each["status"] == "True"}
        state = ", ".join(conditions) or "Running"
        if state != logged:
            log.info("TrainJob %s: %s (kubectl logs -n %s -f -l jobset.sigs.k8s.io/jobset-name=%s)", name, state, namespace, name)
            logged = state
        if "Failed" in conditions:
            _log_pods(client, name, namespace)
            _delete(jobs, name, namespace)
            why = " ".join(str(conditions["Failed"].get(key, "")) for key in ("reason", "message")).strip()
            raise UserError(f"TrainJob {name} failed ({why}); the log above has its nodes' last lines")
        if "Complete" in conditions:
            _delete(jobs, name, namespace)
            return
        time.sleep(poll)


def delete_of_run(client: ApiClient, run_id: str, namespace: str) -> list[str]:
    """Delete all TrainJobs that a run left, such as those of a step that was stopped for good; their names."""
    from kubernetes.client import CustomObjectsApi

    jobs = CustomObjectsApi(client)
    found = refusals(
        f"list TrainJobs in {namespace}",
        lambda: jobs.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, label_selector=f"{RUN_LABEL}={run_id}"),
    )
    names = [each["metadata"]["name"] for each in found["items"]]
    for name in names:
        _delete(jobs, name, namespace)
    return names


def _share(path: Path, place: Path) -> Path:
    """Copy an input to the volume, unless an earlier try of the step has."""
    if not place.exists():
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(path, temporary)
        temporary.rename(place)
    return place


def _create(jobs: Any, job: dict[str, Any]) -> bool:
    """Whether the job is there now; False while a former one of its name is still being deleted."""
    from kubernetes.client import ApiException

    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]

    def create() -> bool:
        try:
            jobs.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, job)
        except ApiException as error:
            if error.status != 409:
                raise
            found = or_none(lambda: jobs.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name))
            if found is None or "deletionTimestamp" in found["metadata"]:
                return False
            log.info("TrainJob %s exists: an earlier try of this step created it", name)
        return True

    return bool(refusals(f"create TrainJob {name} in {namespace}", create))


def _delete(jobs: Any, name: str, namespace: str) -> None:
    delete = partial(jobs.delete_namespaced_custom_object, GROUP, VERSION, namespace, PLURAL, name, propagation_policy="Foreground")
    refusals(f"delete TrainJob {name} in {namespace}", lambda: or_none(delete))


def _log_pods(client: ApiClient, name: str, namespace: str) -> None:
    """The last lines of the job's failed pods, as far as they can be had."""
    from kubernetes.client import ApiException, CoreV1Api

    core = CoreV1Api(client)
    try:
        pods = core.list_namespaced_pod(namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}").items
        for pod in pods:
            if pod.status.phase == "Failed":
                text = core.read_namespaced_pod_log(pod.metadata.name, namespace, tail_lines=30)
                log.error("pod %s:\n%s", pod.metadata.name, text)
    except ApiException as error:
        log.error("the logs of TrainJob %s cannot be read: %s", name, error.reason)
