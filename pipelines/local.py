"""Run a pipeline on this machine with KFP's local runner, each step as a process. Resources and caching have no effect."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl import PipelineTask
from kfp.local import subprocess_task_handler
from kfp.local.io import IOStore
from kfp.local.orchestrator import enhanced_dag_orchestrator, task_spec_utils

from dreamteacher.errors import UserError
from dreamteacher.stages.find_commit import resolve
from pipelines import local_step

# To restore, since one process may run several pipelines.
_PASS_OF_KFP = task_spec_utils.create_parameter_loop_iteration_task_spec
_LOOP_OF_KFP = enhanced_dag_orchestrator._run_parallel_for_task
_OUTPUT_OF_KFP = IOStore.put_task_output


def check(name: str, project: Path, settings: list[str]) -> None:
    """Check what the first step of pipeline `name` would check, before anything runs.

    Args:
        name: one of pipelines.NAMES.
        project: folder of the project.
        settings: overrides of its params.yaml, as KEY=VALUE.

    Raises:
        UserError: a setting is invalid, or the data is missing.
    """
    resolve(git_url=str(project), data_rev="", overrides=settings, pipeline=name)


def run_local(name: str, root: Path, arguments: dict[str, Any], *, parallel: bool = False) -> None:
    """Run pipeline `name`; outputs are in `root`/RUN/STEP.

    Args:
        name: one of pipelines.NAMES.
        root: folder of all local runs.
        arguments: the pipeline's parameters.
        parallel: run loop iterations in parallel; otherwise one after another, which suits one machine.

    Raises:
        UserError: a step failed; outputs of the others stay in `root`.
        OSError: `root` cannot be written.
        SystemExit: 128 + signal, after Ctrl-C or SIGTERM, once the running steps have saved and stopped.
    """
    root = root.absolute()
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    _patch_kfp()
    with tempfile.TemporaryDirectory(prefix="dreamteacher-") as scratch, _environment(root, scratch), local_step.stopped_by_signals():
        local_step.prepare()
        pipeline = import_module(f"pipelines.{name}").build(_unchanged, parallelism=0 if parallel else 1)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), workspace_root=scratch)
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            reason = local_step.first_failure() or _plain(str(error))
            raise UserError(f"{name}: {reason}; the outputs of the other steps stay in {root}") from error


@contextmanager
def _environment(root: Path, scratch: str) -> Iterator[None]:
    """Set the variables that the steps' processes inherit; restores the old ones afterwards."""
    own = dict(os.environ)
    # The steps find this project's packages and settings like this process does.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), own.get("PYTHONPATH")]))
    os.environ.setdefault("DREAMTEACHER_CHECKPOINTS", str(root / "checkpoints"))
    os.environ["TMPDIR"] = scratch  # where each step leaves a folder with the component's source
    os.environ["_KFP_RUNTIME"] = "true"  # kfp then imports only what a step needs, as in a pod
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(own)


def _unchanged(_: str, task: PipelineTask) -> PipelineTask:
    """No resources: KFP would also set a profile's variables here, and a cluster node's thread count would slow down and change results."""
    return task


def _patch_kfp() -> None:
    """Fork steps, and work around five bugs of kfp 2.17.0's local runner: in a ParallelFor, its item replaces every parameter that is
    another task's output or an outer loop's item; items that are one of several outputs of a task are not found, nor is such an output in
    the condition of an If without an Else; a loop without items has no outputs; nested loops collect a list of lists, where a cluster
    gives one list."""

    def patched_pass(task: Any, item: Any, name: str) -> Any:
        made = _PASS_OF_KFP(task, item, name)
        for key, value in task.inputs.parameters.items():
            if key != task.parameter_iterator.item_input:
                made.inputs.parameters[key].CopyFrom(value)
        return made

    def patched_loop(*, task_name: str, task_spec: Any, io_store: Any, components: Any, **options: Any) -> bool:
        outputs = components[task_spec.component_ref.name].output_definitions.artifacts
        for key in outputs:
            io_store.put_task_output(task_name, key, [])
        name = task_spec.parameter_iterator.items.input_parameter
        if (items := task_spec.inputs.parameters[name]).HasField("task_output_parameter"):
            source = items.task_output_parameter
            io_store.put_parent_input(name, io_store.get_task_output(source.producer_task, source.output_parameter_key))
        failed = bool(_LOOP_OF_KFP(task_name=task_name, task_spec=task_spec, io_store=io_store, components=components, **options))
        for key in outputs:
            passes = io_store.get_task_output(task_name, key)
            flat = [each for one in passes for each in (one if isinstance(one, list) else [one])]
            io_store.put_task_output(task_name, key, flat)
        return failed

    def patched_output(self: IOStore, task_name: str, key: str, value: Any) -> None:
        _OUTPUT_OF_KFP(self, task_name, key, value)
        self.put_parent_input(f"pipelinechannel--{task_name}-{key}", value)  # where a condition looks for it

    subprocess_task_handler.run_local_subprocess = local_step.run
    IOStore.put_task_output = patched_output
    task_spec_utils.create_parameter_loop_iteration_task_spec = patched_pass
    enhanced_dag_orchestrator._run_parallel_for_task = patched_loop


def _plain(text: str) -> str:
    """The first line without the runner's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[0]
