"""Run a command as a fork of the tests' process, which saves seconds of imports."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from io import FileIO, TextIOWrapper
from multiprocessing import get_context
from pathlib import Path

from dreamteacher import forks


class Forked:
    """A process that runs `main`, in `folder` and with `environment`, and ends with the exit code that it returns."""

    def __init__(self, main: Callable[[], int | None], folder: Path, environment: Mapping[str, str] = os.environ):
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed with this object)
        self._process = get_context("fork").Process(target=self._run, args=(main, folder, {**environment}))
        self._process.start()
        self.pid = self._process.pid

    def _run(self, main: Callable[[], int | None], folder: Path, environment: Mapping[str, str]) -> None:
        for descriptor, file in zip((1, 2), self._files, strict=True):
            os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = (TextIOWrapper(FileIO(descriptor, "w", closefd=False), line_buffering=True) for descriptor in (1, 2))
        logging.getLogger().handlers.clear()  # pytest's
        forks.begin(str(folder), environment)
        sys.exit(main())

    @property
    def stdout(self) -> str:
        """Its output so far."""
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def _read(self, index: int) -> str:
        descriptor = self._files[index].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
