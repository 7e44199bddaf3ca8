"""Run commands as forks of a process that has already imported torch and other libraries, which takes seconds in a new Python."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from dreamteacher.graph import STAGES

# Modules that the stages need and that start no threads on import, since threads do not survive a fork.
MODULES = [
    "diffusers.models.unets.unet_2d",
    "timm",
    "torchmetrics.classification",
    "accelerate",
    *(f"dreamteacher.stages.{name.replace('-', '_')}" for name in STAGES),
]


def begin(folder: str, environment: Mapping[str, str]) -> None:
    """Set up this fork like a new process in `folder` with `environment`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may have changed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "torch" in sys.modules and (threads := environment.get("OMP_NUM_THREADS", "")).isdecimal():
        import torch

        torch.set_num_threads(int(threads))


@contextmanager
def stopped_together(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop(signum)` on Ctrl-C and SIGTERM; all child processes, and theirs, get SIGINT at either."""

    def handle(signum: int, _: object) -> None:
        if signum == signal.SIGTERM:  # the terminal sent Ctrl-C to all of them
            for process in psutil.Process().children(recursive=True):
                process.send_signal(signal.SIGINT)
        stop(signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
