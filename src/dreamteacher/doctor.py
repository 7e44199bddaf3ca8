"""Checks whether this machine can run the chain: one line each, with what to do."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.git_access import output_of
from dreamteacher.limits import cores, memory_limit

Finding = tuple[str, str, str]  # "ok", "warn" (the chain runs) or "missing" (it does not); the checked thing; the message, with what to do

GB = 1e9
INIT = "dreamteacher init FOLDER --source PICTURES"
LITTLE_DISK, LITTLE_MEMORY = 5 * GB, 4 * GB


def examine() -> int:
    """Print the findings; returns 0 if the chain can run here, else 1."""
    worst = 0
    for look in (_python, _packages, _devices, _memory_and_disk, _settings, _git_and_dvc, _mlflow, _triton):
        for state, what, words in look():
            print(f"{state:8} {what:12} {words}", flush=True)
            worst = max(worst, int(state == "missing"))
    can = "the chain can run here" if _project_here() else "this machine can run the chain; a project for your pictures is made by " + INIT
    print(can if not worst else "the chain cannot run here: see `missing`")
    return worst


def _python() -> Iterator[Finding]:
    fits = platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))
    yield ("ok" if fits else "missing"), "python", platform.python_version() + ("" if fits else "; 3.11 or 3.12 is needed")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    remedy = f"pip install -c {shlex.quote(str(files('dreamteacher.project') / 'constraints.txt'))}"  # also part of the wheel
    found = []
    for requirement in map(Requirement, requires("dreamteacher") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield "missing", requirement.name, f"not installed; {remedy} '{requirement}'"
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield "warn", requirement.name, f"{installed} is not {requirement.specifier}; {remedy} '{requirement}'"
        found.append(f"{requirement.name} {installed}")
    yield "ok", "packages", ", ".join(found)


def _devices() -> Iterator[Finding]:
    import torch

    from dreamteacher.training.precision import choose_precision

    yield _bf16(f"{cores()} cores, {torch.backends.cpu.get_cpu_capability()}", "cpu", choose_precision("auto", torch.device("cpu")))
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        words = f"{about.name}, {about.total_memory / GB:.0f} GB"
        yield _bf16(words, f"cuda:{index}", choose_precision("auto", torch.device("cuda", index)))
    if not torch.cuda.is_available():
        yield "warn", "gpu", "none: the demo runs on CPU; the paper's sizes (teacher.size adm-256) do not"


def _bf16(words: str, what: str, precision: object) -> Finding:
    return "ok", what, words + (", bf16 (fast)" if str(precision) == "torch.bfloat16" else ", fp32 (bf16 would be emulated)")


def _memory_and_disk() -> Iterator[Finding]:
    try:
        memory = int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
        yield _at_least(min(memory, memory_limit()), LITTLE_MEMORY, "memory", "lower the batch sizes")
    except OSError:
        yield "warn", "memory", "unknown: no /proc/meminfo here"
    shared = Path("/dev/shm")
    if shared.exists() and (size := shutil.disk_usage(shared).total) < 0.25 * GB:
        yield "warn", "/dev/shm", f"{size / GB:.2f} GB; loader processes and Triton share memory there: start the container with --shm-size"
    yield _at_least(shutil.disk_usage(Path()).free, LITTLE_DISK, "disk", "make room, or move artifacts/ and .dvc/cache")
    if not os.access(Path(), os.W_OK):
        yield "missing", "folder", f"{Path().absolute()} cannot be written; start from a folder of yours"


def _at_least(have: float, want: float, what: str, remedy: str) -> Finding:
    return ("ok", what, f"{have / GB:.1f} GB free") if have >= want else ("warn", what, f"only {have / GB:.1f} GB free; {remedy}")


def _settings() -> Iterator[Finding]:
    from dreamteacher.settings.file import load_params

    try:
        params = load_params()
    except UserError as error:
        yield "missing", "settings", str(error)
        return
    if not _project_here():
        yield "warn", "settings", f"no params.yaml here, so the defaults; {INIT} makes a project"
        return
    yield "ok", "settings", "params.yaml"
    source = params.ingest.source
    if "://" not in source and "{" not in source and not Path(source).exists():
        yield "missing", "pictures", f"ingest.source = {source} does not exist here"


def _project_here() -> bool:
    return Path("params.yaml").exists()


def _git_and_dvc() -> Iterator[Finding]:
    if not _project_here():  # `dreamteacher init` creates both
        return
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    remedy = "git add . && git commit" if output_of("git", "rev-parse", "--git-dir") else "git init"
    yield ("ok", "git", commit) if commit else ("warn", "git", f"no commit here: results cannot say what settings made them; {remedy}")
    if not Path(".dvc").is_dir():
        yield "warn", "dvc", "no .dvc here: `dvc repro` needs `dvc init`; single stages run without"
    elif remotes := output_of("dvc", "remote", "list"):
        yield "ok", "dvc", f"remote {' '.join(remotes.split())}"
    else:
        yield "warn", "dvc", "no remote: results stay on this machine; dvc remote add -d NAME s3://BUCKET/PATH"


def _mlflow() -> Iterator[Finding]:
    from dreamteacher.mlflow_server import tracking_uri, without_password
    from dreamteacher.tracking import unsent_stages

    uri = tracking_uri()
    try:
        if uri.startswith("http"):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
        yield "ok", "mlflow", without_password(uri)
    except (urllib.error.URLError, OSError, ValueError) as error:
        yield (
            "warn",
            "mlflow",
            f"{without_password(uri)} does not answer ({error}); stages run, and `dreamteacher sync` sends their records later",
        )
    waiting, running = unsent_stages()
    if running:
        yield "ok", "mlflow", f"{running} stages are running"
    if waiting:
        yield "warn", "mlflow", f"{waiting} stages have records to send; dreamteacher sync"


def _triton() -> Iterator[Finding]:
    from dreamteacher.serving.triton_server import find_server

    try:
        find_server()
        yield "ok", "triton", f"tritonserver of nvidia-pytriton {version('nvidia-pytriton')}"
    except UserError as error:
        yield "warn", "triton", f"`dreamteacher serve` cannot run: {error}"
