"""Duration and device of stages, in a file beside their checkpoints, because their outputs must not depend on time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dreamteacher.files import read_note, replace_file
from dreamteacher.project_root import project_folder
from dreamteacher.steps import device

CLOCK = "clock.json"  # in the checkpoint folder until the stage is complete


def checkpoints_of(stage: str, digest: str) -> Path:
    """The checkpoint folder: DREAMTEACHER_CHECKPOINTS, else `.checkpoints` of the project. It need not exist."""
    return Path(os.environ.get("DREAMTEACHER_CHECKPOINTS") or project_folder() / ".checkpoints") / stage / digest


@contextmanager
def timed(checkpoints: Path) -> Iterator[None]:
    """Add the seconds of the block to those of earlier attempts in `checkpoints`, also on failure; killed attempts do not count."""
    began = time.monotonic()
    try:
        yield
    finally:
        with suppress(OSError):  # the stage reports a full disk
            spent = read_note(checkpoints / CLOCK).get("seconds", 0.0) + time.monotonic() - began
            now = datetime.now(UTC).isoformat(" ", "seconds").removesuffix("+00:00")
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            values = {"seconds": round(spent, 3), "device": device(), "processes": processes, "ended": now}
            replace_file(checkpoints / CLOCK, json.dumps(values) + "\n")


def keep(checkpoints: Path) -> None:
    """Move the file to its final place, before the folder `checkpoints` is removed."""
    with suppress(OSError):
        (checkpoints / CLOCK).replace(checkpoints.with_suffix(".json"))


def clock_of(stage: str, digest: str) -> dict[str, Any]:
    """The record of the stage with this digest: `seconds` of all attempts, `device`, `processes`, `ended` (UTC).

    Empty if there is none: the output was made elsewhere, or by an earlier revision.
    """
    return read_note(checkpoints_of(stage, digest).with_suffix(".json"))
