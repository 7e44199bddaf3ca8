"""Outputs of steps, which KFP stores under meaningless names, as stage folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamteacher.graph import STAGES
from dreamteacher.stage import RECORD, read_stage


def stage_outputs(*artifacts: Any) -> list[Path]:
    """The folders of KFP artifacts, single or in lists, that contain a stage output.

    KFP passes None for an empty list and for an optional artifact that is missing; the teacher `none` has no stage.json.
    """
    single = [each for several in artifacts for each in (several if isinstance(several, list) else [several]) if each]
    return [Path(artifact.path) for artifact in single if (Path(artifact.path) / RECORD).exists()]


@contextmanager
def lay_out(*artifacts: Any) -> Iterator[Path]:
    """A folder with the outputs of stages laid out as in `artifacts`: teachers/NAME, finetuned/INIT/SEED, gate, ...; removed afterwards.

    `artifacts`: result of `stage_outputs`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for output in stage_outputs(*artifacts):
            record = read_stage(output)
            stage = record["stage"]
            out = STAGES[stage].out.format(**record["params"]) if stage in STAGES else f"artifacts/{stage}"
            place = scratch / Path(out).relative_to("artifacts")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(output.absolute(), target_is_directory=True)
        yield Path(scratch)
