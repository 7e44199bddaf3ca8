"""What a run of a whole pipeline on this machine leaves."""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from forked import Forked
from helpers import PROJECT
from pipelines import local_step
from pipelines.__main__ import main


@dataclass
class LocalRun:
    """`steps` holds a folder for each step, with its artifacts in it; `temporary` is what was /tmp to the run."""

    code: int
    output: str
    steps: Path
    temporary: Path

    def out(self, step: str) -> Path:
        """The stage output of a step, by KFP's name for it."""
        (found,) = self.steps.rglob(f"{step}/out")
        return found


def start_local(main: Callable[[], int | None], folder: Path, environment: Mapping[str, str]) -> Forked:
    """What runs a pipeline, and the server that its steps are forked from, as forks of the tests' process: each would import all anew."""

    def run() -> int | None:
        start = multiprocessing.util.spawnv_passfds

        def fork(path: bytes, words: list[bytes | str], passed: tuple[int, ...]) -> int:
            if "multiprocessing.forkserver" not in str(words[-1]):
                return int(start(path, words, passed))
            if pid := os.fork():
                return pid
            for path in list(Path("/proc/self/fd").iterdir()):
                descriptor = int(path.name)
                with suppress(OSError):  # whose other end is closed when the parent has ended
                    if descriptor not in passed and os.path.sameopenfile(descriptor, passed[1]):
                        os.close(descriptor)
            exec(words[-1])
            os._exit(0)

        multiprocessing.util.spawnv_passfds = fork
        server = multiprocessing.forkserver._forkserver
        server._forkserver_pid = None  # that of the tests' process is no child of this one
        server.set_forkserver_preload(local_step.MODULES)
        return main()

    for name in local_step.MODULES:
        import_module(name)
    return Forked(run, folder, environment)


def run_local(project: Path, root: Path, *words: str, anew: bool = False) -> LocalRun:
    """`python -m pipelines run-local` in a folder of its own, where `anew` by a new Python."""
    temporary = root / "tmp"
    temporary.mkdir(parents=True)
    words = ("run-local", "--project", str(project), "--root", str(root), *words)
    packages = os.pathsep.join([str(PROJECT), str(PROJECT / "src")])
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"} | os.environ | {"PYTHONPATH": packages, "TMPDIR": str(temporary)}
    if anew:
        command = [sys.executable, "-m", "pipelines", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        code, output = done.returncode, done.stdout + done.stderr
    else:
        forked = start_local(partial(main, [*words]), root, environment)
        code, output = forked.wait(), forked.output
    steps = next(root.glob("dreamteacher-*"), None)
    assert steps, output[-3000:]
    return LocalRun(code, output, steps, temporary)
