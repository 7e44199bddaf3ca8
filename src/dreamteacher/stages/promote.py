"""The end of a retraining, and promotion by hand: a version becomes champion."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import LINEAGE, Served, choose, has_lineage, promote, refuse
from dreamteacher.onnx_files import MODEL_FILE
from dreamteacher.serving.delivery import has_repository, keep_repository
from dreamteacher.settings.recipes import base_of
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of, read_stage
from dreamteacher.stages.gate import VERDICT_FILE
from dreamteacher.stages.publish import store
from dreamteacher.steps import announce

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Whether the version was promoted, why or why not, and what the aliases name now."""

    promoted: bool
    version: str
    reason: str
    served: Served


def run(params: Params, *, gate: Path, onnx: Path) -> Outcome:
    """Act on the verdict in `gate` about the published model in `onnx`: promote it, or write on its version why not.

    If another champion was promoted since the gate compared, neither is done: the next retraining counts the same pictures as new,
    and compares with that one. Once more changes nothing.

    Raises:
        UserError: the model is not registered, or MLflow does not answer.
    """
    name = params.publish.name
    announce("promote", params.section("publish"))
    read_stage(gate)
    verdict = json.loads((gate / VERDICT_FILE).read_text())
    version = choose(name, sha256=digest_of(onnx / MODEL_FILE))
    if not verdict["passed"]:
        return Outcome(False, version, verdict["reason"], refuse(name, version, verdict["reason"]))
    served = promote(name, version=version, compared_with=verdict["champion"])
    if served.champion == version:
        return Outcome(True, version, verdict["reason"], served)
    compared = f"version {verdict['champion']}" if verdict["champion"] else "no champion"
    if served.champion:
        now = f"the champion is version {served.champion} by now; the next retraining compares with that"
    else:
        now = f"there is no champion any more; `dreamteacher promote {name} --version {version}` promotes it all the same"
    reason = f"it was compared with {compared}, but {now}"
    return Outcome(False, version, reason, served)


def promote_manually(params: Params, name: str, *, artifacts: Path, version: str | None = None) -> Served:
    """Promote `version` of `name` (default: the challenger). If it came from the chain of the settings `params` in `artifacts`, that is
    stored with it: what it was made from, and the repository that a cluster serves.

    Raises:
        UserError: there is no such version, the challenger was refused, or MLflow does not answer.
    """
    chosen = choose(name, version=version)
    recipe = base_of(params, params.export.init)
    below = {"teacher": f"teachers/{params.recipes[recipe].teacher}", "features": f"backbones/{recipe}"}
    parts = {part: artifacts / below.get(part, part) for part in LINEAGE}
    lacking: dict[str, Callable[[], None]] = {}
    if not has_lineage(name, chosen):
        lacking["what version %s was made from is not stored, and no retraining can start from it"] = lambda: store(name, chosen, parts)
    if not has_repository(name, chosen):
        repository = artifacts / "triton"
        lacking["the repository of version %s is not stored, and no cluster can serve it"] = lambda: keep_repository(
            name, chosen, repository
        )
    for words, keep in lacking.items():
        try:
            keep()
        except UserError as error:
            log.warning(
                f"{words} (%s); where its artifacts are (of a cluster: `git checkout runs/RUN_ID`, `dvc pull`), "
                "`dreamteacher promote %s --version %s` stores it",
                chosen,
                error,
                name,
                chosen,
            )
    return promote(name, version=chosen)
