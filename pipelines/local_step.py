"""A step of a local run: instead of starting a new Python, fork a process that has already imported what the steps need."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from dreamteacher import forks
from dreamteacher.errors import Interrupted, UserError, resource_errors_in_one_line
from dreamteacher.graph import IDENTITY

# A fork server, since KFP runs loop iterations in threads, and forking a multi-threaded process is unsafe.
_FORKS = get_context("forkserver")
MODULES = ["kfp.dsl.executor_main", "dreamteacher.cluster.launch", "dreamteacher.report.step", *forks.MODULES, "mlflow"]
_FORKS.set_forkserver_preload(MODULES)
ERROR = "error: "  # prefix of the line of a UserError
MAX_FOLDER, SHORT_FOLDERS = 60, ("/tmp", "/var/tmp", "/dev/shm")  # of the fork server's socket; bytes
_signals: list[int] = []  # received
_running: set[BaseProcess] = set()
_failures: list[str] = []


def prepare() -> None:
    """Start the fork server; it imports in the background and ends with this process."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must not end it
    own = tempfile.tempdir
    try:
        # The path of its socket, in the temporary folder, may have at most 107 bytes; paths of other files may be longer.
        if len(os.fsencode(tempfile.gettempdir())) > MAX_FOLDER:
            tempfile.tempdir = next((place for place in SHORT_FOLDERS if os.access(place, os.W_OK)), own)
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = own
        signal.signal(signal.SIGINT, before)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM stop the steps, which save; no other step starts, and the block ends with SystemExit."""

    def stop(signum: int) -> None:
        _signals.append(signum)
        if not _running:
            raise SystemExit

    _signals.clear()
    _failures.clear()
    with forks.stopped_together(stop):
        try:
            yield
        finally:
            if _signals:
                for process in psutil.Process().children():  # the fork server may still be importing
                    process.terminate()
                print("stopped; run the same command again to resume", file=sys.stderr)
                raise SystemExit(128 + _signals[0])


def first_failure() -> str:
    """The step of this run that failed first, and why, in one line; "" if none did."""
    return _failures[0] if _failures else ""


def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """Run a step, stream its output, and return its exit code. Replaces `run_local_subprocess` of KFP.

    Args:
        full_command: the shell command before a component's source, the source, and the arguments of KFP's executor.
        env_vars: environment variables in addition to those of this process.
    """
    if _signals:
        return 128 + _signals[0]
    _shell, _option, _script, source, *words = full_command
    reader, writer = _FORKS.Pipe(duplex=False)
    environment = {**os.environ, **(env_vars or {})}
    process = _FORKS.Process(target=_execute, args=(writer, source, words, str(Path.cwd()), environment))
    process.start()
    _running.add(process)
    writer.close()
    last = error = ""
    with reader, open(reader.fileno(), errors="replace", closefd=False) as lines:
        for line in lines:
            print(line, end="")
            last = line.strip() or last
            error = last if last.startswith(ERROR) else error
    print("\n")  # as KFP does between a step's lines and its own
    process.join()
    _running.discard(process)
    if code := process.exitcode:
        reason = (error or last).removeprefix(ERROR) or f"exit code {code}"
        reason = reason if code > 0 else f"its process was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            reason += ", most likely because memory is too small"
        _failures.append(f"{_title(words)}: {reason}")
    return process.exitcode or 0


def _execute(output: Connection, source: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    """KFP's executor, as if it had just been started in `folder`."""
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output.fileno(), descriptor)
    output.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    forks.begin(folder, environment)
    sys.path.insert(0, folder)
    component = Path(tempfile.mkdtemp()) / "ephemeral_component.py"
    component.write_text(source)
    sys.argv = ["executor_main", "--component_module_path", str(component), *words]
    from kfp.dsl.executor_main import executor_main

    try:
        with resource_errors_in_one_line(_step(words)):
            executor_main()
    except UserError as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signum)


def _step(words: list[str]) -> str:
    return words[words.index("--function_to_execute") + 1].replace("_", "-")


def _title(words: list[str]) -> str:
    """The step's name and its identity among steps of that name: "finetune mix 0"."""
    parameters = json.loads(words[words.index("--executor_input") + 1])["inputs"].get("parameterValues", {})
    return " ".join([_step(words), *(str(parameters[key]) for key in IDENTITY if key in parameters)])
