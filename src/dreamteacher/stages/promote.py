"""The end of a retraining, and promotion by hand: a version becomes champion, with what it was made from beside it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.params import Params
from dreamteacher.serving.onnx_files import MODEL_FILE
from dreamteacher.serving.promotion import LINEAGE, Served, choose, keep_lineage, promote, refuse
from dreamteacher.stage import digest_of, read_stage
from dreamteacher.stages.gate import VERDICT_FILE

log = logging.getLogger(__name__)
PLACES = {"data": "data", "teacher": "teacher", "features": "backbones/features", "evaluation": "evaluation"}  # below artifacts/


@dataclass(frozen=True)
class Outcome:
    """Whether the version was promoted, why or why not, and what the aliases name now."""

    promoted: bool
    version: str
    reason: str
    served: Served


def run(params: Params, *, gate: Path, onnx: Path, data: Path, teacher: Path, features: Path, evaluation: Path) -> Outcome:
    """Act on the verdict in `gate` about the published model in `onnx`: promote it, or write on its version why not.

    What it was made from is stored with it either way, so that it can be promoted by hand later. Once more changes nothing.

    Raises:
        UserError: the model is not registered, the folders are not what it was made from, or MLflow does not answer.
    """
    name = params.publish.name
    read_stage(gate)
    verdict = json.loads((gate / VERDICT_FILE).read_text())
    version = choose(name, sha256=digest_of(onnx / MODEL_FILE))
    folders = {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation}
    _check(folders)
    keep_lineage(name, version, folders, digest=digest_of(evaluation))
    served = promote(name, version=version) if verdict["passed"] else refuse(name, version, verdict["reason"])
    return Outcome(verdict["passed"], version, verdict["reason"], served)


def by_hand(name: str, *, artifacts: Path, version: str | None = None) -> Served:
    """Promote `version` of `name` (default: the challenger). If it came from the chain in `artifacts`, that is stored with it.

    Raises:
        UserError: there is no such version, or MLflow does not answer.
    """
    chosen = choose(name, version=version)
    folders = {part: artifacts / PLACES[part] for part in LINEAGE}
    try:
        _check(folders)
        keep_lineage(name, chosen, folders, digest=digest_of(folders["evaluation"]))
    except UserError as error:
        log.warning("what version %s was made from is not stored, and no retraining can start from it (%s)", chosen, error)
    return promote(name, version=chosen)


def _check(folders: dict[str, Path]) -> None:
    """The evaluation's record says which data, teacher and features it knew."""
    recorded = read_stage(folders["evaluation"])["inputs"]
    for part in ("data", "teacher", "features"):
        if digest_of(folders[part]) != recorded[part]:
            raise UserError(f"{folders[part]} is not what {folders['evaluation']} was made from; run `dreamteacher evaluate` again")
