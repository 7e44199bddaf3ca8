"""Commands as forks of a process that has imported torch and the libraries around it, which takes a new Python seconds."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from dreamteacher.graph import STAGES

# What the stages need; they start no threads before they compute, which would not live on in a fork.
MODULES = [
    "diffusers.models.unets.unet_2d",
    "timm",
    "torchmetrics.classification",
    "accelerate",
    *(f"dreamteacher.stages.{name.replace('-', '_')}" for name in STAGES),
]


def begin(folder: str, environment: Mapping[str, str]) -> None:
    """Make this fork what a new process would be in `folder` with `environment`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules and (threads := environment.get("OMP_NUM_THREADS", "")).isdecimal():
        import torch

        torch.set_num_threads(int(threads))


@contextmanager
def stopped_together(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop(signum)` on Ctrl-C and SIGTERM; all child processes, and theirs, get SIGINT at either."""

    def handle(signum: int, _: object) -> None:
        if signum == signal.SIGTERM:  # Ctrl-C was sent to all of them by the terminal
            for process in psutil.Process().children(recursive=True):
                process.send_signal(signal.SIGINT)
        stop(signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
