"""Run a stage as a pipeline step: in its process, with torchrun on all its GPUs, or on several nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from dreamteacher import results
from dreamteacher.cluster.trainjob import arguments, run_stage, settings_of
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stage import read_stage

PROCESSES = "DREAMTEACHER_PROCESSES"  # environment variable: number of processes on this machine, one per GPU


def launch(stage: str, params: Params, inputs: dict[str, str], out: str, **extra: Any) -> dict[str, float]:
    """Run `stage` and return its metrics, as `dreamteacher.stages.STAGE.run` does.

    Args:
        stage: its name on the command line, such as train-teacher.
        params: settings.
        inputs: {name of the stage's argument: folder}.
        out: output folder.
        extra: the stage's further arguments (name, recipe, init, seed).

    Raises:
        UserError: an error of the stage, or its processes failed.
    """
    folders = {name: Path(place) for name, place in inputs.items()}
    if {"DREAMTEACHER_RUNS", "DREAMTEACHER_RUN"} <= set(os.environ):  # the run's volume, from which a retried pod resumes
        os.environ["DREAMTEACHER_CHECKPOINTS"] = f"{os.environ['DREAMTEACHER_RUNS']}/{os.environ['DREAMTEACHER_RUN']}/checkpoints"
    processes = int(os.environ.get(PROCESSES, "1"))
    nodes = settings_of(os.environ)
    if (nodes or processes > 1) and _is_taken(stage, params, folders, Path(out), extra):
        pass
    elif nodes:
        where = {"run_id": os.environ["DREAMTEACHER_RUN"], "namespace": os.environ["DREAMTEACHER_NAMESPACE"]}
        run_stage(nodes, stage, params, inputs=folders, out=Path(out), **where, **extra)
    elif processes > 1:
        with tempfile.TemporaryDirectory() as scratch:
            words = arguments(stage, params, Path(scratch) / "params.yaml", {**folders, "out": Path(out)}, extra)
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            done = subprocess.run([*torchrun, "--module", "dreamteacher.cli", *words], check=False)
        if done.returncode:
            raise UserError(f"{stage} failed in its {processes} processes (exit code {done.returncode}); the log above has the reason")
    else:
        _run(stage, params, folders, Path(out), extra)
    metrics: dict[str, float] = read_stage(Path(out))["metrics"]
    return metrics


def remove_run_folder() -> str:
    """Remove the run's folder on the volume, with its checkpoints, after the last step; returns a message, "" without a volume.

    All last steps do this, not only `finish`, because Argo does not rerun it after a retry of a failed run.
    """
    volume, run = (os.environ.get(f"DREAMTEACHER_{name}") for name in ("RUNS", "RUN"))
    if not (volume and run):
        return ""
    folder = Path(volume, run)
    shutil.rmtree(folder, ignore_errors=True)  # not an error of the run
    return f"{folder} {'could not be removed' if folder.exists() else 'is removed'}"


def _is_taken(stage: str, params: Params, folders: dict[str, Path], out: Path, extra: dict[str, Any]) -> bool:
    """Whether the store of results had the output. Checked here once, not in each process."""
    if not results.store():
        return False
    try:
        with results.only_take():
            _run(stage, params, folders, out, extra)
    except results.NothingToTake:
        return False
    return True


def _run(stage: str, params: Params, folders: dict[str, Path], out: Path, extra: dict[str, Any]) -> None:
    import_module(f"dreamteacher.stages.{stage.replace('-', '_')}").run(params, **folders, **extra, out=out)
