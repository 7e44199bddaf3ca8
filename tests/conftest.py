"""Shared fixtures: no tracking, no files in the project, and no server unless a test needs one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from helpers import free_port, wait_for

hypothesis.settings.register_profile("loaded machine", deadline=None)  # an example may be delayed by other processes
hypothesis.settings.load_profile("loaded machine")

# `make test` has three processes, which take a file each (`--dist loadfile`): on two cores, as some wait for servers.
FIRST = ("pipelines", "dvc", "stages", "tracking", "training")  # the slowest folders are started first, for balance
TOGETHER = {"dvc", "stages", "tracking"}  # one process, as their fixtures take up to 20 s


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow folders first."""
    items.sort(key=lambda item: FIRST.index(folder) if (folder := item.path.parent.name) in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all files of a folder in TOGETHER in one process; the default otherwise."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return folder if (folder := Path(file).parent.name) in TOGETHER else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def no_trace_in_the_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Disable tracking, move checkpoints and caches, unset variables of MLflow, DVC and torchrun; inherited by subprocesses."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and so by all children, where the tests run in the background
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "DREAMTEACHER_"))]:
            patch.delenv(name)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        patch.setenv("DREAMTEACHER_WAIT_MINUTES", "0")
        patch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path_factory.mktemp("checkpoints")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        yield


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, with checkpoints in it as in production."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DREAMTEACHER_CHECKPOINTS")
    return tmp_path


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Factory of FOLDER/mlflow.db (returns its URI): a copy of an empty MLflow database, whose creation takes seconds."""
    from mlflow.tracking import MlflowClient

    empty = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{empty}").search_experiments()

    def copy(folder: Path) -> str:
        shutil.copy(empty, folder)
        return f"sqlite:///{folder}/mlflow.db"

    return copy


@pytest.fixture(scope="session")
def mlflow_server(new_database: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real MLflow server on SQLite, one per session, because it starts slowly."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", new_database(folder), "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        webhooks = {"ALLOWED_SCHEMES": "http", "ALLOW_PRIVATE_IPS": "true", "CACHE_TTL": "1"}
        environment = os.environ | {f"MLFLOW_WEBHOOK_{name}": value for name, value in webhooks.items()}
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", server, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)
