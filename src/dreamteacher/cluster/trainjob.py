"""Run a stage on several nodes as a Kubeflow TrainJob (Trainer v2), which the pipeline step creates, watches and deletes.

The step itself uses no GPU. Inputs and outputs of the nodes are on a volume that the step mounts too.
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

from dreamteacher.cluster.node_watch import NodeWatch
from dreamteacher.errors import UserError
from dreamteacher.kubernetes_api import api_client, or_none, patiently, refusals
from dreamteacher.settings.file import write_sections
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of
from dreamteacher.tracking import OF_THE_RUN

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUN_LABEL = "dreamteacher.io/run"
RUNTIME = "dreamteacher-torch"  # TrainingRuntime of k8s/multi-node, which survives more preemptions than the shipped one
MIN_TIME_LIMIT = 60  # of a job, seconds
SETTINGS = "DREAMTEACHER_TRAINJOB"  # environment variable with Nodes as JSON


class Nodes(BaseModel):
    """Nodes of a TrainJob, from the pipeline's resource profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(description="the step's own image, by digest or commit")
    nodes: int = Field(2, ge=1)
    gpus: int = Field(0, ge=0, description="GPUs of each node, with a process each; 0: one process on CPU")
    cpu: str = "8"
    memory: str = "32Gi"
    shm: str = Field("8Gi", description="shared memory of the loader processes")
    claim: str = Field("dreamteacher-runs", description="PersistentVolumeClaim (ReadWriteMany) that step and nodes share")
    mount: str = Field("/runs", description="mount path of the claim in both")
    timeout: int = Field(86400, ge=1, description="time limit of the job, seconds after the step's start")
    start_min: float = Field(60, ge=0, description="minutes for which nodes may be unable to start; 0: no limit")
    runtime: str = Field("torch-distributed", description=f"ClusterTrainingRuntime for namespaces without the TrainingRuntime {RUNTIME}")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, str]] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    config_maps: dict[str, dict[str, str]] = Field(default_factory=dict, description="{config map: {key: variable}}")
    secrets: dict[str, dict[str, str]] = Field(default_factory=dict, description="{secret: {key: variable}}; missing secrets are ignored")
    image_pull_secrets: list[str] = Field(default_factory=list, description="secrets with which the nodes pull `image`")
    labels: dict[str, str] = Field(default_factory=dict, description="labels of the TrainJob, such as Kueue's queue name")


def settings_of(environment: Mapping[str, str]) -> Nodes | None:
    """Nodes from the environment; None if the stage runs in the step itself.

    Raises:
        UserError: the value is invalid.
    """
    text = environment.get(SETTINGS)
    if not text:
        return None
    try:
        nodes = Nodes.model_validate_json(text)
        known = {name: environment[name] for name in OF_THE_RUN if name in environment}  # the nodes log to the step's MLflow run
        return nodes.model_copy(update={"env": nodes.env | known})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{SETTINGS}: {'.'.join(map(str, problem['loc'])) or 'the value'}: {problem['msg']}") from error


def run_stage(
    nodes: Nodes, stage: str, params: Params, *, inputs: dict[str, Path], out: Path, run_id: str, namespace: str, **extra: str | int
) -> None:
    """Run `dreamteacher STAGE` on the nodes and copy its output to `out`.

    `extra` are the stage's further options (name, recipe, init, seed). The job survives if the step is killed, and a retried step attaches
    to it; when the job ends it is deleted.

    Raises:
        UserError: an input is missing, or the job failed (how each node failed is logged), was deleted, cannot be created or cannot start.
    """
    begun = time.monotonic()
    name = name_of(run_id, stage, params, inputs, extra)
    room = Path(nodes.mount) / run_id / name
    places = {key: _share(path, room / "inputs" / key) for key, path in inputs.items()}
    words = arguments(stage, params, room / "params.yaml", {**places, "out": room / "out"}, extra)
    client = api_client()
    job = manifest(nodes, name, run_id, namespace, words, own_runtime=has_own_runtime(client, namespace))
    run(client, job, begun=begun, start_min=nodes.start_min)
    shutil.copytree(room / "out", out, dirs_exist_ok=True)
    shutil.rmtree(room)


def arguments(stage: str, params: Params, settings: Path, places: Mapping[str, Path], extra: Mapping[str, str | int]) -> list[str]:
    """The arguments of `dreamteacher` to run `stage` in other processes; `places` has the paths of inputs and `out`.

    `params` are written to the file `settings` for them.
    """
    write_sections(settings, params)
    options = {"params": settings, **places, **extra}
    return [stage, "--sections", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def name_of(run_id: str, stage: str, params: Params, inputs: Mapping[str, Path], extra: Mapping[str, str | int]) -> str:
    """The job's name: the same for each attempt of a step, different for other steps, runs, settings or inputs.

    Raises:
        UserError: an input is missing or incomplete.
    """
    digests = {key: digest_of(path) for key, path in inputs.items()}
    recorded = json.dumps([run_id, stage, params.model_dump(mode="json"), digests, extra], sort_keys=True)
    return f"{stage}-{hashlib.sha256(recorded.encode()).hexdigest()[:10]}"  # JobSet appends to it, and a label has at most 63 characters


def has_own_runtime(client: ApiClient, namespace: str) -> bool:
    """Whether the namespace has the TrainingRuntime of k8s/multi-node; False if the role (of an earlier version) may not read it."""
    from kubernetes.client import ApiException, CustomObjectsApi

    def get() -> Any:
        try:
            return CustomObjectsApi(client).get_namespaced_custom_object(GROUP, VERSION, namespace, "trainingruntimes", RUNTIME)
        except ApiException as error:
            if error.status != 403:
                raise
            log.warning("the step's service account may not read the TrainingRuntime %s; apply k8s/base again", RUNTIME)
            return None

    return patiently(get, 10.0) is not None


def manifest(nodes: Nodes, name: str, run_id: str, namespace: str, words: list[str], *, own_runtime: bool = False) -> dict[str, Any]:
    """The TrainJob that runs `dreamteacher WORDS` in one process per GPU of each node, compliant with Pod Security `restricted`."""
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
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": nodes.claim}},
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": nodes.shm}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [{"name": "runs", "mountPath": nodes.mount}, {"name": "dshm", "mountPath": "/dev/shm"}],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
    job = {"name": "node", "template": {"spec": {"template": {"spec": {key: value for key, value in pod.items() if value}}}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": namespace, "labels": nodes.labels | {RUN_LABEL: run_id}},
        "spec": {
            "runtimeRef": {
                "apiGroup": GROUP,
                "kind": "TrainingRuntime" if own_runtime else "ClusterTrainingRuntime",
                "name": RUNTIME if own_runtime else nodes.runtime,
            },
            "activeDeadlineSeconds": nodes.timeout,
            "trainer": {
                "image": nodes.image,
                "command": ["torchrun"],  # the runtime sets number of nodes and processes, rank and master in PET_*
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


def run(client: ApiClient, job: dict[str, Any], *, begun: float | None = None, start_min: float = 0, poll: float = 10.0) -> None:
    """Create the job or attach to it, watch it until it ends, and delete it.

    The job's time limit counts from `begun` (time.monotonic, default now), so that it ends before the step that began then. A job found
    failed, or one that reaches the limit set by an earlier attempt, is created again, since this attempt has its own limit.

    Raises:
        UserError: it failed, was deleted by another, could not start for `start_min` minutes, or the Kubernetes API refuses.
    """
    from kubernetes.client import CustomObjectsApi

    jobs, name, namespace = CustomObjectsApi(client), job["metadata"]["name"], job["metadata"]["namespace"]
    limit = time.monotonic() if begun is None else begun
    limit += job["spec"]["activeDeadlineSeconds"]

    def obtain() -> bool:
        while (is_new := _create(jobs, job, limit)) is None:
            time.sleep(poll)  # the previous job of the same name is still being deleted
        return is_new

    is_new, logged = obtain(), ""
    watch = NodeWatch(client, name, namespace, job["spec"]["trainer"]["numNodes"], start_min, attached=not is_new)
    while True:
        get = partial(jobs.get_namespaced_custom_object, GROUP, VERSION, namespace, PLURAL, name, _request_timeout=60)
        found = patiently(get, poll)
        if found is None:
            raise UserError(f"TrainJob {name} was deleted while it ran; retry the run, which resumes from its checkpoints")
        conditions = _conditions(found)
        state = ", ".join(conditions) or "Running"
        if state != logged:
            log.info("TrainJob %s: %s (kubectl logs -n %s -f -l jobset.sigs.k8s.io/jobset-name=%s)", name, state, namespace, name)
            logged = state
        ended = {"Failed", "Complete"} & set(conditions)
        created = found["metadata"].get("creationTimestamp", "")
        try:
            watch.look(0 if ended else poll, created, starting=not ended and "Suspended" not in conditions)
        except UserError:
            if "Complete" not in conditions:
                _delete(jobs, name, namespace)
                raise
        if not ended:
            continue
        _delete(jobs, name, namespace)
        if "Complete" in conditions:
            return
        if is_new or conditions["Failed"].get("reason") != "DeadlineExceeded":
            raise UserError(f"TrainJob {name} failed ({_reason(conditions['Failed'])}); {watch.summary()}")
        log.warning("TrainJob %s reached the time limit set by an earlier attempt of this step; it is created again and resumes", name)
        is_new, logged = obtain(), ""


def delete_of_run(client: ApiClient, run_id: str, namespace: str) -> list[str]:
    """Delete all remaining TrainJobs of a run, such as those of a terminated step; returns their names."""
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
    """Copy an input to the volume, unless an earlier attempt has."""
    if not place.exists():
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(path, temporary)
        temporary.rename(place)
    return place


def _create(jobs: Any, job: dict[str, Any], limit: float) -> bool | None:
    """Create the job. True if it is new; None while a previous one of its name is being deleted, as failed ones are here."""
    from kubernetes.client import ApiException

    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]

    def create() -> bool | None:
        left = max(MIN_TIME_LIMIT, int(limit - time.monotonic()))
        body = job | {"spec": job["spec"] | {"activeDeadlineSeconds": left}}
        try:
            jobs.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)
            return True
        except ApiException as error:
            if error.status != 409:
                raise
        found = or_none(lambda: jobs.get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name))
        if found is None or "deletionTimestamp" in found["metadata"]:
            return None
        if failed := _conditions(found).get("Failed"):
            log.info("TrainJob %s of an earlier attempt of this step has failed (%s); it is created again", name, _reason(failed))
            _delete(jobs, name, namespace)
            return None
        log.info("TrainJob %s exists, created by an earlier attempt of this step", name)
        return False

    is_new: bool | None = refusals(f"create TrainJob {name} in {namespace}", create)
    return is_new


def _delete(jobs: Any, name: str, namespace: str) -> None:
    delete = partial(jobs.delete_namespaced_custom_object, GROUP, VERSION, namespace, PLURAL, name, propagation_policy="Foreground")
    refusals(f"delete TrainJob {name} in {namespace}", lambda: or_none(delete))


def _conditions(job: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {each["type"]: each for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"}


def _reason(condition: dict[str, str]) -> str:
    return " ".join(str(condition.get(key, "")) for key in ("reason", "message")).strip()
