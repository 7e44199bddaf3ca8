"""Helpers for tests of several folders; a module of its own, because every folder has its conftest."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
NUCLEI = PROJECT / "benchmarks/paper/sets/nuclei.yaml"  # settings with all kinds of stages


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Fixture to import in a conftest: tiny models are slower on several threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def process_inside(block: str, leaving: str = "pass") -> Iterator[None]:
    """Another process is in `block`, Python code that ends with the line of a `with`, while the body runs.

    leaving: what it does there before it leaves; it must then end with exit code 0.
    """
    code = f"import sys\n{block}\n    print('in', flush=True); sys.stdin.read(); {leaving}\n"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"in\n"
        yield
        process.stdin.close()
        assert process.wait() == 0


def install_package(patch: pytest.MonkeyPatch, folder: Path, entry_points: str, **modules: str) -> None:
    """What pip would leave of a package `toy` in `folder`, which joins the import path: its entry points, and its modules by name."""
    about = folder / "toy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry_points)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
        patch.delitem(sys.modules, name, raising=False)
    patch.syspath_prepend(folder)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    """Until `url` answers."""
    for _ in range(int(seconds / 0.1)):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer; {log.read_text()}")
