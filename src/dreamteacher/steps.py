"""Information for people who watch a run: the first line of a step's log, and its external effects."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dreamteacher.errors import first_line
from dreamteacher.files import replace_file

log = logging.getLogger(__name__)
WITH_EFFECTS = {"pretrain": ("publish", "record"), "retrain": ("publish", "promote")}  # steps, by pipeline
EFFECTS = ".effects"  # on the volume of runs, beside the runs' folders, which their last steps remove


def announce(title: str, settings: dict[str, Any]) -> None:
    """Log the first line of a stage, to find it below KFP's own lines: command, version, settings digest, device.

    Nothing is logged in a terminal, or in other than the first process (RANK).
    """
    if sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    log.info("dreamteacher %s: version %s, settings %s, on %s", title, _version(), digest, device())


def _version() -> str:
    try:
        return version("dreamteacher")
    except PackageNotFoundError:
        return "unknown"


def device() -> str:
    """The GPUs visible to this process; "cpu" if there are none, or the stage does not use torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    return f"{f'{count} x ' if count > 1 else ''}{torch.cuda.get_device_name()}"


@contextmanager
def effect(step: str) -> Iterator[dict[str, Any]]:
    """Record the external effects of `step` for `finish`: that it began and, when the body ends, what was done or why not.

    The body adds what it did to the yielded dictionary. Without a volume of runs, nothing is recorded.
    """
    done: dict[str, Any] = {}
    _record(step, {"began": datetime.now(UTC).isoformat(" ", "minutes")})
    try:
        yield done
    except BaseException as error:
        _record(step, {"failed": first_line(error, 500)})
        raise
    _record(step, {"done": done})


def skip_effects(pipeline: str, reason: str) -> None:
    """Record for `finish` that no step of `pipeline` will have its external effects."""
    for step in WITH_EFFECTS[pipeline]:
        _record(step, {"skipped": reason})


def effects(pipeline: str) -> dict[str, str]:
    """{step: "done: ...", "skipped: ...", "not done: ..." or "not started"} of a run that has ended; empty without a volume of runs.

    `pipeline` is pretrain or retrain.
    """
    folder = _folder()
    return {step: _words(folder / f"{step}.json") for step in WITH_EFFECTS[pipeline]} if folder else {}


def how_run_ended(state: str, done: dict[str, str]) -> tuple[str, bool]:
    """How a run ended, in words, and whether the run's folder may go: KFP calls it a success, or no external effect is missing.

    KFP 2.17's server updates the state of a group of steps only when a pod of one of its steps ends. So the steps may have succeeded and
    still be called RUNNING: if a group's last step came from the cache, a loop had no items, or a condition was false; or FAILED: if one
    was retried besides. A killed pod, too, leaves RUNNING. Then the effects decide.

    Args:
        state: of the run's steps, from KFP's local runner (SUCCEEDED, FAILED) or its server (COMPLETE, FAILED, RUNNING).
        done: result of `effects`.
    """
    succeeded = state in ("SUCCEEDED", "COMPLETE")
    if not succeeded and done and all(words.startswith(("done", "skipped")) for words in done.values()):
        return f"{'FAILED, but ' if state == 'FAILED' else ''}no external effect is missing (Kubeflow calls the steps {state})", True
    ended = "SUCCEEDED" if succeeded else "unknown (Kubeflow calls the steps RUNNING)" if state == "RUNNING" else state
    if lacking := [step for step, words in done.items() if words.startswith("not done")]:
        ended += f"{', but' if succeeded else ','} not done: {', '.join(lacking)}"
    return ended, succeeded


def forget_effects() -> None:
    """Remove the records of this run."""
    if folder := _folder():
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path | None:
    volume, run = (os.environ.get(f"DREAMTEACHER_{name}") for name in ("RUNS", "RUN"))
    return Path(volume, EFFECTS, run) if volume and run else None


def _record(step: str, content: dict[str, Any]) -> None:
    """The effect counts, not its record: a volume that cannot be written stops nothing."""
    if not (folder := _folder()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{step}.json", json.dumps(content) + "\n")
    except OSError as error:
        log.warning("%s: finish will not know what became of it (%s)", step, first_line(error))


def _words(path: Path) -> str:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return "not started"
    except (OSError, ValueError) as error:
        return f"not known: {first_line(error)}"
    if "done" in content:
        return f"done: {', '.join(f'{key} {value}' for key, value in content['done'].items())}"
    if "skipped" in content:
        return f"skipped: {content['skipped']}"
    if "failed" in content:
        return f"not done: {content['failed']}"
    return f"not done: it began at {content['began']}, and its pod was killed or lost before it ended"
