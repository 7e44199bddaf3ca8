"""`dvc repro` with independent stages in parallel.

DVC runs stages in sequence, but allows other DVC processes while a stage's command runs. So each stage runs in its own
`dvc repro --single-item` as soon as its dependencies are done.

A stage needs seconds to import torch and other libraries. They are imported here once, and DVC's commands run as forks of this process.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from dreamteacher import forks
from dreamteacher.errors import UserError
from dreamteacher.graph import STAGES
from dreamteacher.limits import cores, memory_limit
from dreamteacher.locks import lock
from dreamteacher.tracking import is_sent_later, sync

log = logging.getLogger(__name__)
STAGE_MEMORY = 2 << 30  # of a stage of the demo, bytes
LOCK = ".dvc/tmp/dreamteacher-repro.lock"
MAX_JOBS = 4  # default maximum of parallel stages


def repro(jobs: int | None = None) -> int:
    """Bring the project in the current directory up to date, with up to `jobs` parallel stages; returns the first failure's exit code.

    `jobs` None: one for each core as far as memory allows, at most 4; one with a GPU, which stages would have to share.
    OMP_NUM_THREADS of a stage is, unless it is set, its share of the cores among the stages that run when it starts: on a CPU two
    stages with a thread each are nearly twice as fast as one after the other with two threads, and a stage alone gets all cores.

    If a stage fails, running stages finish and no other starts. Ctrl-C and SIGTERM reach all stages, which save and stop.

    Raises:
        UserError: the current directory is no DVC project, another process works in it, or its dvc.yaml or params.yaml cannot be
            understood.
    """
    with _alone():
        plan = _outdated()
        if not plan:
            print("Everything is up to date.")
            return 0
        os.environ.setdefault("DREAMTEACHER_TRACKING", "later")  # MLflow's client takes longer to import than some stages to run
        code = _run(plan, jobs or default_jobs())
        if not code and _has_remote():
            print("repro: done; `dvc push` sends the results to the project's remote storage")
    if is_sent_later() and code < 128:  # not after a signal: the next call sends them
        try:
            sync()
        except UserError as error:
            log.warning("%s; `dreamteacher sync` sends it", error)
    return code


def default_jobs() -> int:
    """How many stages this machine can run in parallel."""
    if Path("/dev/nvidiactl").exists():
        return 1
    return max(1, min(cores(), MAX_JOBS, int(min(psutil.virtual_memory().available, memory_limit())) // STAGE_MEMORY))


@contextmanager
def _alone() -> Iterator[None]:
    """Lock the project for this process: two at once would block each other's stages.

    Raises:
        UserError: another `dreamteacher repro` runs in it.
    """
    if not Path(".dvc").is_dir():  # not a project; `_outdated` refuses it
        yield
        return
    Path(LOCK).parent.mkdir(exist_ok=True)
    with lock(Path(LOCK)) as mine:
        if not mine:
            raise UserError(f"another `dreamteacher repro` runs in {Path.cwd()}; wait until it ends, or stop it")
        yield


def _outdated() -> dict[str, set[str]]:
    """{stage: its dependencies} of all changed stages and their dependents, longest critical path first."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # DVC's progress bars would start a thread, whose locks would break forks
    try:
        with Repo() as repo:
            graph, changed = repo.index.graph, set(repo.status())
            plan: dict[str, set[str]] = {}
            for stage in plan_repro(graph):  # each after those that it depends on
                needs = {other.addressing for other in graph.successors(stage)}
                if stage.addressing in changed or needs & plan.keys():
                    plan[stage.addressing] = needs & plan.keys()
    except NotDvcRepoError as error:
        raise UserError(
            f"{Path.cwd()} is not a project; change to one, or create one: `dreamteacher init FOLDER --source PICTURES`"
        ) from error
    except LockError as error:
        raise UserError(
            f"DVC cannot lock {Path.cwd()}, most likely because another DVC command runs in it; wait until it ends. If none runs, here or "
            "on a machine that shares the folder, see https://dvc.org/doc/user-guide/troubleshooting#lock-issue"
        ) from error
    except DvcException as error:
        raise UserError(f"DVC cannot read this project: {' '.join(str(error).split())}") from error
    to_end = dict.fromkeys(plan, 0)
    for stage, needs in reversed(plan.items()):
        for other in needs:
            to_end[other] = max(to_end[other], to_end[stage] + 1)
    return dict(sorted(plan.items(), key=lambda item: -to_end[item[0]]))


def _has_remote() -> bool:
    from dvc.config import Config

    return bool(Config.from_cwd()["remote"])


def _run(plan: Mapping[str, Collection[str]], jobs: int) -> int:
    """Run the stages of `plan` in order, each once its dependencies are done; returns the first failure's exit code."""
    waiting, done, running = list(plan), set[str](), dict[str, BaseProcess]()
    code, slow = 0, _slow_imports(plan)

    def stop(signum: int) -> None:
        nonlocal code
        code = code or 128 + signum

    def goes_on() -> bool:
        return not code

    with forks.stopped_together(stop):
        while running or (waiting and not code):
            ready = [stage for stage in waiting if done.issuperset(plan[stage])][: 0 if code else jobs - len(running)]
            threads = max(1, cores() // max(1, len(running) + len(ready)))
            for stage in ready:
                waiting.remove(stage)
                print(f"repro: {stage}", flush=True)
                # A fork, so that DVC is imported once.
                running[stage] = multiprocessing.get_context("fork").Process(target=_reproduce, args=(stage, threads))
                running[stage].start()
            if slow and len(running) + len(waiting) > 1:
                _import(slow, goes_on)
                slow = []
            wait([process.sentinel for process in running.values()])
            for stage, process in list(running.items()):
                if process.exitcode is not None:
                    del running[stage]
                    done.add(stage)
                    code = code or abs(process.exitcode)
    return code


def _slow_imports(plan: Collection[str]) -> list[str]:
    """Modules to import before forking, since they take seconds; none if no stage of `plan` trains, or if `dreamteacher` on PATH belongs to
    another environment."""
    names = {stage.partition("@")[0] for stage in plan} & {name for name, stage in STAGES.items() if stage.trains}
    return forks.MODULES if names and _is_ours("dreamteacher", os.environ.get("PATH")) else []


def _is_ours(command: str, path: str | None) -> bool:
    return Path(shutil.which(command, path=path) or "").parent == Path(sys.executable).parent


def _import(modules: list[str], go_on: Callable[[], bool]) -> None:
    """Import `modules` while `go_on()`."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # numpy's BLAS fixes its thread count at import; stages share the cores
    for name in modules:
        if go_on():
            importlib.import_module(name)
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


def _reproduce(stage: str, threads: int) -> None:
    import dvc.stage.run
    from dvc.cli import main
    from dvc.ui import ui

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    dvc.stage.run._run = _fork_or(dvc.stage.run._run)
    for name in ("dvc", "dvc_objects", "dvc_data"):  # its hints after each stage would clutter the output
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).propagate = False
    write = ui.write
    ui.write = lambda *words, **how: None if "dvc push" in str(words) else write(*words, **how)  # `repro` says it, once
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    sys.exit(main(["--wait-for-lock", "repro", "--single-item", stage]))


def _fork_or(run_by_dvc: Callable[..., None]) -> Callable[..., None]:
    """Replacement of `run_by_dvc`, which runs a command in a shell: commands of `dreamteacher` that need no shell run in a fork."""

    def run(executable: str, command: str, **options: Any) -> None:
        from dvc.stage.exceptions import StageCmdFailedError

        name, *words = shlex.split(command)
        ours = name == "dreamteacher" and _is_ours(name, options["env"].get("PATH"))
        if not ours or not re.fullmatch(r"[\w\s./=@:,-]+", command):
            run_by_dvc(executable, command, **options)
            return
        process = multiprocessing.get_context("fork").Process(target=_run_stage, args=(words, options["cwd"], options["env"]))
        process.start()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does: the command handles Ctrl-C and ends first
        try:
            process.join()
        finally:
            signal.signal(signal.SIGINT, before)
        if process.exitcode:
            raise StageCmdFailedError(command, process.exitcode)

    return run


def _run_stage(words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run `dreamteacher WORDS` in this fork, like a new process."""
    forks.begin(folder, environment)
    sys.argv = ["dreamteacher", *words]
    command, *_ = entry_points(group="console_scripts", name="dreamteacher")
    sys.exit(command.load()())
