"""A stage as a pipeline's step: in its own process, by torchrun on all its GPUs, or on several nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from dreamteacher.errors import UserError
from dreamteacher.params import Params
from dreamteacher.stage import read_stage
from dreamteacher.trainjob import arguments, run_stage, settings_of

PROCESSES = "DREAMTEACHER_PROCESSES"  # environment variable: processes on this machine, one for each GPU


def launch(stage: str, params: Params, inputs: dict[str, str], out: str, **given: Any) -> dict[str, float]:
    """Run `stage` and return its metrics, as `dreamteacher.stages.STAGE.run` does.

    Args:
        stage: its name on the command line, such as train-teacher.
        params: settings.
        inputs: {name of the stage's argument: folder}.
        out: folder to make.
        given: the stage's further arguments (seed, mode, init).

    Raises:
        UserError: whatever the stage says, or that its processes failed.
    """
    folders = {name: Path(place) for name, place in inputs.items()}
    if {"DREAMTEACHER_RUNS", "DREAMTEACHER_RUN"} <= set(os.environ):  # the run's volume, by which a retried pod resumes
        os.environ["DREAMTEACHER_CHECKPOINTS"] = f"{os.environ['DREAMTEACHER_RUNS']}/{os.environ['DREAMTEACHER_RUN']}/checkpoints"
    processes = int(os.environ.get(PROCESSES, "1"))
    if nodes := settings_of(os.environ):
        where = {"run_id": os.environ["DREAMTEACHER_RUN"], "namespace": os.environ["DREAMTEACHER_NAMESPACE"]}
        run_stage(nodes, stage, params, inputs=folders, out=Path(out), **where, **given)
    elif processes > 1:
        with tempfile.TemporaryDirectory() as scratch:
            words = arguments(stage, params, Path(scratch) / "params.yaml", {**folders, "out": Path(out)}, given)
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            done = subprocess.run([*torchrun, "--module", "dreamteacher.cli", *words], check=False)
        if done.returncode:
            raise UserError(f"{stage} failed in its {processes} processes (exit code {done.returncode}); the reason stands above")
    else:
        import_module(f"dreamteacher.stages.{stage.replace('-', '_')}").run(params, **folders, **given, out=Path(out))
    metrics: dict[str, float] = read_stage(Path(out))["metrics"]
    return metrics
