"""What a run of a whole pipeline on this machine leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import PROJECT


@dataclass
class LocalRun:
    """`steps` holds a folder for each step, with its artifacts in it; `temporary` is what was /tmp to the run."""

    code: int
    said: str
    steps: Path
    temporary: Path

    def out(self, step: str) -> Path:
        """The stage output of a step, by KFP's name for it."""
        (found,) = self.steps.rglob(f"{step}/out")
        return found


def run_local(project: Path, root: Path, *words: str) -> LocalRun:
    """`python -m pipelines run-local` in a folder of its own."""
    temporary = root / "tmp"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "pipelines", "run-local", "--project", str(project), "--root", str(root), *words]
    packages = os.pathsep.join([str(PROJECT), str(PROJECT / "src")])
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"} | os.environ | {"PYTHONPATH": packages, "TMPDIR": str(temporary)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    steps = next(root.glob("dreamteacher-*"), None)
    assert steps, said[-3000:]
    return LocalRun(done.returncode, said, steps, temporary)
