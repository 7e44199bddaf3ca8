"""Progress output of training, and the log beside the checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dreamteacher.files import append_line, replace_file
from dreamteacher.training.checkpoint import writing

LINE_EVERY = 30.0  # seconds between plain lines


class Pace:
    """Pictures per second and share of time spent waiting for data since the last reading, and seconds of all training so far.

    Time between steps (measurements, checkpoints) does not count.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self.restart()

    def restart(self) -> None:
        """Start now, and reset the counters."""
        self._since = time.perf_counter()
        self._pictures = 0
        self._waited = 0.0

    def go_on_at(self, seconds: float) -> None:
        """Add the training seconds of a stopped run."""
        self._before = seconds

    def add(self, pictures: int, waited: float) -> None:
        """Add pictures, and the seconds that training waited for them."""
        self._pictures += pictures
        self._waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - begin

    def seconds(self) -> float:
        """Seconds of all training."""
        return self._before + time.perf_counter() - self._since

    def read(self) -> dict[str, float]:
        """{"img_per_s", "data_wait" in [0, 1]} since the last reading."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {"img_per_s": self._pictures / seconds, "data_wait": self._waited / seconds}
        self._before += seconds
        self.restart()
        return values


class Idle:
    """Seconds in which a GPU was idle because the host waited for data or was late for another reason.

    The host runs ahead of the GPU, so its own waiting time does not show this. On a CPU nothing is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._since: torch.cuda.Event | None = None
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begins(self) -> None:
        """Record that all work of a step is queued; once it is done the GPU is idle."""
        if self.on_gpu:
            self._since = self._now()

    def ends(self) -> None:
        """Record that the next step starts."""
        if self._since:
            self._pairs.append((self._since, self._now()))

    def read(self) -> float:
        """Idle seconds since the last reading. The GPU must have finished these steps."""
        seconds = sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1000
        self._pairs.clear()
        self.pauses()
        return seconds

    def pauses(self) -> None:
        """Ignore the time until the next step (logging, measurements, checkpoints)."""
        self._since = None

    @staticmethod
    def _now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Display:
    """A progress bar on stderr if it is a terminal, else a line about every half minute; only in the first process."""

    def __init__(self, name: str, steps: int, shown: bool):
        self._name = name
        self._steps = steps
        self._shown = shown
        self._note = ""
        self._started = self._spoke = time.monotonic()
        self._first = 0
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=steps, note="")

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)

    def start_at(self, step: int) -> None:
        """Training starts at `step`."""
        self._first = step
        self._started = self._spoke = time.monotonic()
        if self._bar:
            self._bar.reset(self._task, completed=step)

    def record(self, row: dict[str, float]) -> None:
        """Show the losses and pace of a log record from now on."""
        self._note = f"loss {row['loss']:.4g}  {row['img_per_s']:.0f} img/s  data wait {row['data_wait']:.0%}"

    def step(self, done: int) -> None:
        """`done` steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=self._note)
        elif self._shown and (done == self._steps or time.monotonic() - self._spoke > LINE_EVERY):
            self._spoke = time.monotonic()
            left = (self._spoke - self._started) / max(done - self._first, 1) * (self._steps - done)
            self.say(f"{self._name}: step {done}/{self._steps}  {self._note}  ETA {_clock(left)}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Records:
    """JSON lines in `path`, one per record; records of a killed run after its last checkpoint are removed at resume."""

    def __init__(self, path: Path, step: int):
        """Keep the records up to `step`."""
        self._path = path
        kept = [line for line in self._lines() if _step(line) <= step]
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, "".join(kept))

    def add(self, row: dict[str, Any]) -> None:
        """Append a record."""
        with writing(self._path.parent):
            append_line(self._path, json.dumps(row))

    def _lines(self) -> list[str]:
        return self._path.read_text(errors="replace").splitlines(keepends=True) if self._path.exists() else []


def _step(line: str) -> float:
    """The step of a record; infinite for a line that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
