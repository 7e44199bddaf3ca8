"""Last step of a pipeline on a cluster: push its outputs to DVC."""

from __future__ import annotations

import logging
import tempfile
from itertools import pairwise
from pathlib import Path

from dreamteacher.places import Place, inside, put
from dreamteacher.settings.file import save_overrides
from dreamteacher.settings.recipes import bases
from dreamteacher.settings.schema import Params
from dreamteacher.stages.evaluate import copy_results
from dreamteacher.steps import announce
from dreamteacher.versioning import Clone

log = logging.getLogger(__name__)


def run(*, git_url: str, commit: str, overrides: list[str], outputs: list[Path], run_id: str) -> dict[str, str]:
    """Record a run's stage outputs on the branch `runs/RUN_ID` of `git_url`, so that a clone of it with `dvc pull` is up to date.

    The branch starts at `commit`, the one that the run's data came from, and has the run's settings in params.yaml, its dvc.lock and its
    metrics; models and data go to DVC's remote. `outputs` are complete stage outputs in any order, identified by their stage.json.
    Recipes that are not compared, and so not in the run, are left to `dvc repro`. A rerun of the step replaces the branch.

    Returns:
        `{"branch", "commit"}`.

    Raises:
        UserError: an output that dvc.yaml has is not among `outputs` or the other way round, or something cannot be read or pushed.
    """
    branch = f"runs/{run_id}"
    announce("record", {"commit": commit, "overrides": overrides})
    with tempfile.TemporaryDirectory() as scratch:
        clone = Clone(git_url, commit, Path(scratch) / "project")
        settings, metrics, plots = (
            inside(clone.folder, name, f"{name} of git_url") for name in ("params.yaml", "metrics/evaluate.json", "plots/evaluate")
        )
        params = save_overrides(settings, overrides)
        source, places = params.ingest.source, clone.places()
        made = [place for place in places if not place.ours or _is_compared(place, params)]
        filled = put(outputs, made, clone.folder)
        copy_results(filled["evaluate"], metrics, plots)
        left = [place for place in places if place not in made or (not place.ours and not place.mark(clone.folder))]
        for place in left:
            log.warning("stage %s of dvc.yaml is not recorded, since a run has no output of it; `dvc repro` makes it", place.stage)
        clone.get(source)  # the input of ingest, which DVC compares
        message = "\n".join([f"Run {run_id} of {clone.commit[:12]}", "", *overrides])
        recorded = clone.push([place.stage for place in places if place not in left], branch, message)
    log.info("recorded on branch %s (%s)", branch, recorded[:12])
    return {"branch": branch, "commit": recorded}


def _is_compared(place: Place, params: Params) -> bool:
    """Whether the stage belongs to a recipe in compare.inits, or one that those build on, or to no recipe."""
    used = bases(params)
    named = {"--name": [params.recipes[name].teacher for name in used], "--recipe": [*used, *params.compare.inits]}
    return all(value in named.get(option, [value]) for option, value in pairwise(place.command))
