"""Locks of files between processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreamteacher.locks import is_locked, lock
from helpers import process_inside


def holding(path: Path) -> str:
    return f"from pathlib import Path; from dreamteacher.locks import lock\nwith lock(Path({str(path)!r})) as mine:"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder/lock"


@pytest.fixture(autouse=True)
def folder(path: Path) -> None:
    path.parent.mkdir()


def test_one_process_at_a_time_has_the_lock(path: Path) -> None:
    assert not is_locked(path)
    with process_inside(holding(path), "assert mine"):
        assert is_locked(path)
        with lock(path) as mine:
            assert not mine
    with lock(path) as mine:
        assert mine


def test_a_killed_process_leaves_no_lock(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", f"import os\n{holding(path)}\n    os.kill(os.getpid(), 9)"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.exists() and not is_locked(path)
    with lock(path) as mine:
        assert mine


def test_a_child_that_outlives_the_process_has_no_lock(path: Path) -> None:
    """As a loader worker may."""
    child = f"{holding(path)}\n    assert mine\n    pid = os.fork() or time.sleep(60)\n    print(pid, flush=True); os._exit(0)"
    done = subprocess.Popen([sys.executable, "-c", f"import os, time\n{child}"], stdout=subprocess.PIPE, text=True)
    assert done.stdout
    pid = int(done.stdout.readline())
    try:
        done.wait(30)
        assert not is_locked(path)
    finally:
        os.kill(pid, signal.SIGKILL)
        done.stdout.close()


@pytest.mark.parametrize("removed", [False, True])
def test_the_lock_is_waited_for_and_not_taken_on_a_file_that_is_gone(path: Path, removed: bool) -> None:
    told: list[str] = []
    found: list[bool] = []

    def wait() -> None:
        with lock(path, wait=True, on_wait=lambda: told.append("waits")) as mine:
            found.append(mine)

    second = threading.Thread(target=wait)
    with process_inside(holding(path), f"import shutil; {removed} and shutil.rmtree({str(path.parent)!r})"):
        second.start()
        second.join(0.5)
        assert second.is_alive()
    second.join(30)
    assert (told, found) == (["waits"], [not removed])
    with lock(path) as mine:
        assert mine is not removed
