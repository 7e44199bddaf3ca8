"""Create Triton repositories from the ONNX files, and register the task model in MLflow."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import choose, keep_lineage
from dreamteacher.lifecycle.registry import register
from dreamteacher.onnx_files import BACKBONE_FILE, MODEL_FILE, read_metadata
from dreamteacher.outages import GivenUp, patient
from dreamteacher.report.card import ABOUT, model_card
from dreamteacher.report.run import METRICS
from dreamteacher.serving.delivery import keep_repository
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.settings.schema import Params
from dreamteacher.stage import RECORD, digest_of, open_stage, read_stage
from dreamteacher.tracking import is_on, sync

log = logging.getLogger(__name__)


def run(params: Params, *, onnx: Path, evaluation: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Write `out/production` (onnxruntime backend) and `out/local` (python backend) and register the task model.

    Both repositories hold the models NAME, NAME-backbone and, unless params.publish.pictures is false, NAME-pictures (NAME is
    params.publish.name). In MLflow, NAME gets a version with
    alias `challenger` and a model card. Its tags are what promotion reads: init, evaluation (its digest), sha256 (of the file).

    Returns `models` (in each repository) and `parity_max`.

    Raises:
        UserError: an input is incomplete, or an ONNX file cannot be served.
    """
    name = params.publish.name
    models = {name: onnx / MODEL_FILE, f"{name}-backbone": onnx / BACKBONE_FILE}
    inputs = {"onnx": onnx, "evaluation": evaluation}
    with open_stage("publish", params=params.section("publish"), inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        served = write_repository(models, stage.tmp / "production", backend="onnxruntime", settings=params.publish)
        write_repository(models, stage.tmp / "local", backend="python", settings=params.publish)
        metadata = read_metadata(models[name])
        parity = read_stage(onnx)["metrics"]["parity_max"]
        figures = json.loads((evaluation / METRICS).read_text())
        tags = {"init": metadata["init"], "evaluation": digest_of(evaluation)}
        card = model_card(name, metadata, figures, parity)
        register(stage.tracker, models[name], name, tags=tags, description=card, about=ABOUT, scratch=stage.checkpoints / "model")
        stage.metrics = {"models": float(len(served)), "parity_max": parity}
        return stage.metrics


def keep(params: Params, *, onnx: Path, data: Path, teacher: Path, features: Path, evaluation: Path, repository: Path) -> str | None:
    """Store the lineage of the version that `run` registered, from which a retraining can start anywhere, and the output of `run`,
    `repository`, which a cluster serves.

    A pipeline step ends with this, because unsent MLflow records are lost with its pod: they are sent now, with retries while MLflow does
    not answer. Does nothing without tracking.

    For a recipe without a teacher, where `teacher` is missing, no lineage is stored.

    Returns the version; None without tracking.

    Raises:
        UserError: the model is not registered, the folders are not what it was made from, or MLflow does not answer.
    """
    if not is_on():
        return None
    try:
        patient(sync)()
    except GivenUp:
        raise
    except UserError as error:  # perhaps records of another stage, which must not stop this one
        log.warning("%s", error)
    version = choose(params.publish.name, sha256=digest_of(onnx / MODEL_FILE))
    if (teacher / RECORD).exists():
        store(params.publish.name, version, {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation})
    else:
        log.warning("the recipe of %s has no teacher, so no retraining can start from version %s", params.publish.name, version)
    keep_repository(params.publish.name, version, repository)
    return version


def store(name: str, version: str, folders: dict[str, Path]) -> None:
    """Store `folders`, by the names of `promotion.LINEAGE`, with `version` of `name`, if it was made from them. Idempotent.

    Raises:
        UserError: it was not, a folder is missing, or MLflow does not store them.
    """
    recorded = read_stage(folders["evaluation"])["inputs"]
    for part, group in (("data", "data"), ("teacher", "teachers"), ("features", "backbones")):  # inputs are GROUP or GROUP/NAME
        if digest_of(folders[part]) not in [digest for name, digest in recorded.items() if name.partition("/")[0] == group]:
            raise UserError(f"{folders[part]} is not what {folders['evaluation']} was made from; run `dreamteacher evaluate` again")
    keep_lineage(name, version, folders, digest=digest_of(folders["evaluation"]))
