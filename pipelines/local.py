"""A whole pipeline on this machine, each step a process, by KFP's local runner. Resources and caching have no effect here."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from kfp import local

import components
from dreamteacher.errors import UserError
from pipelines.resources import Profile


def run_local(name: str, root: Path, arguments: dict[str, Any], *, parallel: bool = False) -> None:
    """Run pipeline `name`; outputs come to `root`/RUN/STEP.

    Args:
        name: one of compile.NAMES.
        root: folder of all local runs.
        arguments: the pipeline's parameters.
        parallel: the passes of a loop at the same time. Otherwise one after the other, which suits one machine.

    Raises:
        UserError: a step failed; what the others made stays in `root`.
    """
    root = root.absolute()
    # Each step's process finds this project's packages and settings where this one does.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("DREAMTEACHER_CHECKPOINTS", str(root / "checkpoints"))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    pipeline = import_module(f"pipelines.{name}").build(Profile("cpu", components.IMAGE), parallelism=0 if parallel else 1)
    try:
        pipeline(**arguments)
    except RuntimeError as error:
        raise UserError(f"{name}: {_plain(str(error))}; what the other steps made stays in {root}") from error


def _plain(text: str) -> str:
    """The first line without the runner's colours."""
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[0]
