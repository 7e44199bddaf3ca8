"""Resources and environment of each step on the cluster: resources.yaml, typed, and applied to KFP's tasks.

A project's own resources.yaml (`write` copies the package's) replaces the package's.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from kfp import kubernetes
from kfp.dsl import PipelineTask
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamteacher.errors import UserError, first_line
from dreamteacher.settings.section import spelled

FILE = Path(__file__).with_name("resources.yaml")
OWN = Path("resources.yaml")  # in the current folder
GPU = "nvidia.com/gpu"
STEPS = {path.stem.replace("_", "-") for path in (FILE.parents[1] / "components").glob("[a-z]*.py")} | {"ingest-incoming"}
LAUNCHER = {"cpu": "1", "memory": "2Gi"}  # for a step that only watches a TrainJob
MARGIN = 1800  # seconds, at most a tenth of the limit: how much earlier a TrainJob ends than the step that watches it

Quantity = Annotated[
    str,
    spelled(
        r"[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?", "a number, in quotes, and a unit of Kubernetes if there is one, such as '2', '500m' or '16Gi'"
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Volume(_Strict):
    """A ReadWriteMany claim shared by all steps of a run: checkpoints, and the inputs and outputs of TrainJob nodes."""

    claim: str
    mount: str


class Environment(_Strict):
    """Environment of the steps."""

    config_map: dict[str, list[str]] = Field(description="{config map: its keys, each an environment variable}")
    secrets: dict[str, list[str]] = Field(description="{secret: its keys} for every step; missing secrets are ignored")
    step_secrets: dict[str, dict[str, list[str]]] = Field(description="{step: further secrets}")
    image_pull_secrets: list[str] = Field(description="names of the secrets; empty if the nodes can pull the image without")
    labels: dict[str, str] = Field({}, description="labels of each step's pod and of TrainJobs, such as {kueue.x-k8s.io/queue-name: NAME}")
    volume: Volume
    pool_label: str = Field(description="label of the nodes whose value is the pool's name")


class Step(_Strict):
    """The resources of one step."""

    pool: str = Field(description="node pool")
    cpu: Quantity
    memory: Quantity
    shm: Quantity = Field("1Gi", description="size of /dev/shm, through which data loader processes pass pictures")
    gpus: int = Field(0, ge=0, description="GPUs per node, one process each")
    nodes: int = Field(1, ge=1, description="if more than one, a TrainJob")
    timeout_h: float = Field(gt=0, description="time limit of one attempt, hours")
    start_min: float = Field(60, ge=0, description="minutes for which the nodes of a TrainJob may fail to start; 0: no limit")
    retries: int = Field(
        ge=0, description="retries after a failure or preemption, depending on Argo's retry policy (docs/cluster.md); training resumes"
    )
    cache: bool = Field(
        True,
        description="reuse the outputs of an equal earlier step, from KFP or the store of results; false for steps with external effects",
    )


class _ProfileFile(_Strict):
    default: dict[str, Any]
    steps: dict[str, dict[str, Any]]


class _File(_Strict):
    environment: Environment
    profiles: dict[str, _ProfileFile]


def in_use() -> Path:
    """The current folder's resources.yaml if it has one, else the package's."""
    return OWN if OWN.exists() else FILE


def write() -> Path:
    """Copy the package's resources.yaml into the current folder for editing; returns its path.

    Raises:
        UserError: the folder already has one.
    """
    try:
        with OWN.open("x") as file:
            file.write(FILE.read_text())
    except FileExistsError as error:
        raise UserError(f"{OWN} exists, and compile uses it; edit it, or move it away to get a new copy") from error
    return OWN


def threads(step: Step) -> str:
    """Threads of each process of `step` on CPU; by default torch starts one per core of the node, regardless of the container's limit."""
    cores = int(step.cpu[:-1]) / 1000 if step.cpu.endswith("m") else float(step.cpu)
    return str(max(1, int(cores) // max(step.gpus, 1)))


def _step(file: Path, where: str, values: dict[str, Any]) -> Step:
    try:
        return Step(**values)
    except ValidationError as error:
        raise _wrong(file, error, where, f"; a step has {', '.join(Step.model_fields)}") from error


def _wrong(file: Path, error: ValidationError | yaml.YAMLError | UnicodeDecodeError, where: str = "", possible: str = "") -> UserError:
    """The first problem in one line: its location, what is wrong, what is valid."""
    if not isinstance(error, ValidationError):
        return UserError(f"{file.name} is not valid YAML: {first_line(error)}")
    problem = error.errors()[0]
    place = ".".join(filter(None, [where, *map(str, problem["loc"])]))
    return UserError(f"{file.name}: {place or 'the whole'}: {problem['msg'].removeprefix('Value error, ')}{possible}")


class Profile:
    """One profile of resources.yaml."""

    def __init__(self, name: str, image: str, file: Path = FILE):
        """`image` is the image of the steps and of TrainJob nodes.

        Raises:
            UserError: the file has no such profile, or is invalid.
        """
        try:
            whole = _File.model_validate(yaml.safe_load(file.read_text()))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise _wrong(file, error) from error
        if name not in whole.profiles:
            raise UserError(f"{file.name} has no profile {name!r}; it has {', '.join(whole.profiles)}")
        chosen = whole.profiles[name]
        for unknown in sorted({*chosen.steps, *whole.environment.step_secrets} - STEPS):
            near = difflib.get_close_matches(unknown, STEPS, 1)
            raise UserError(f"{file.name}: no step is called {unknown!r}" + (f"; {near[0]!r} is" if near else ""))
        self.default = _step(file, f"profiles.{name}.default", chosen.default)
        self.steps = {step: _step(file, f"profiles.{name}.steps.{step}", chosen.default | own) for step, own in chosen.steps.items()}
        self.environment, self.image = whole.environment, image

    def of(self, step: str) -> Step:
        """The resources of a step, by its name in dvc.yaml or in the pipeline."""
        return self.steps.get(step, self.default)

    def apply(self, step: str, task: PipelineTask) -> PipelineTask:
        """Set resources and environment of `task`, the step `step`."""
        wanted, around = self.of(step), self.environment
        launcher = wanted.nodes > 1
        cpu, memory = (LAUNCHER["cpu"], LAUNCHER["memory"]) if launcher else (wanted.cpu, wanted.memory)
        task.set_display_name(step)
        task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
        task.set_caching_options(wanted.cache)
        if not wanted.cache:
            task.set_env_variable("DREAMTEACHER_REUSE", "false")
        if wanted.retries:  # otherwise KFP limits all retries to one hour from the start of the first attempt
            limit = f"{int((wanted.retries + 1) * wanted.timeout_h * 3600)}s"
            task.set_retry(wanted.retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration=limit)
        kubernetes.set_timeout(task, int(wanted.timeout_h * 3600))
        kubernetes.set_security_context(task, run_as_non_root=True)  # required by Pod Security `restricted`
        kubernetes.add_node_selector(task, around.pool_label, "cpu" if launcher else wanted.pool)
        for name, value in (
            {} if launcher else around.labels
        ).items():  # not for a launcher: queued, it would hold the quota that its TrainJob waits for
            kubernetes.add_pod_label(task, name, value)
        if wanted.gpus and not launcher:
            task.set_accelerator_type(GPU).set_accelerator_limit(wanted.gpus)
            kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
            if wanted.gpus > 1:
                task.set_env_variable("DREAMTEACHER_PROCESSES", str(wanted.gpus))
        task.set_env_variable("OMP_NUM_THREADS", threads(wanted))
        if launcher:
            task.set_env_variable("DREAMTEACHER_TRAINJOB", json.dumps(self._nodes(wanted)))
        if step == "finish" and any(each.nodes > 1 for each in self.steps.values()):
            task.set_env_variable("DREAMTEACHER_TRAINJOBS", "true")
        kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=wanted.shm)
        kubernetes.mount_pvc(task, pvc_name=around.volume.claim, mount_path=around.volume.mount)
        task.set_env_variable("DREAMTEACHER_RUNS", around.volume.mount)
        kubernetes.use_field_path_as_env(task, "DREAMTEACHER_RUN", "metadata.labels['pipeline/runid']")
        kubernetes.use_field_path_as_env(task, "DREAMTEACHER_NAMESPACE", "metadata.namespace")
        for name, keys in around.config_map.items():
            kubernetes.use_config_map_as_env(task, name, {key: key for key in keys})
        for name, keys in (around.secrets | around.step_secrets.get(step, {})).items():
            kubernetes.use_secret_as_env(task, name, {key: key for key in keys}, optional=True)
        if around.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, around.image_pull_secrets)
        return task

    def _nodes(self, wanted: Step) -> dict[str, Any]:
        """Input of dreamteacher.cluster.trainjob.Nodes."""
        around, limit = self.environment, wanted.timeout_h * 3600
        return {
            "image": self.image,
            "nodes": wanted.nodes,
            "gpus": wanted.gpus,
            "cpu": wanted.cpu,
            "memory": wanted.memory,
            "shm": wanted.shm,
            "claim": around.volume.claim,
            "mount": around.volume.mount,
            "timeout": int(limit - min(MARGIN, limit / 10)),
            "start_min": wanted.start_min,
            "node_selector": {around.pool_label: wanted.pool},
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}] if wanted.gpus else [],
            "env": {"OMP_NUM_THREADS": threads(wanted)},
            "config_maps": {name: {key: key for key in keys} for name, keys in around.config_map.items()},
            "secrets": {name: {key: key for key in keys} for name, keys in around.secrets.items()},
            "image_pull_secrets": around.image_pull_secrets,
            "labels": around.labels,
        }
