"""The ONNX files to Triton repositories, and the task model to MLflow's registry."""

from __future__ import annotations

import json
from pathlib import Path

from dreamteacher.params import Params
from dreamteacher.serving.onnx_files import BACKBONE_FILE, MODEL_FILE, read_metadata
from dreamteacher.serving.registry import register
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.stage import digest_of, open_stage, read_stage

TOLD = ("init", "seed", "task", "architecture", "git_revision", "data_hash", "dreamteacher_version")


def run(params: Params, *, onnx: Path, evaluation: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Write `out/production` (onnxruntime backend) and `out/local` (python backend) and register the task model.

    Both repositories hold the models NAME and NAME-backbone (NAME is params.publish.name). In MLflow, NAME gets a version with
    alias `challenger`, tagged with revision, data, parity, the evaluation's digest and the exported initialisation's figures.

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
        write_repository(models, stage.tmp / "production", backend="onnxruntime", settings=params.publish)
        write_repository(models, stage.tmp / "local", backend="python", settings=params.publish)
        metadata = read_metadata(models[name])
        parity = read_stage(onnx)["metrics"]["parity_max"]
        figures = json.loads((evaluation / "metrics.json").read_text()).get(metadata["init"], {})
        tags = {key: metadata[key] for key in TOLD} | {key: f"{value:.6g}" for key, value in figures.items()}
        tags |= {"parity_max": f"{parity:.3g}", "evaluation": digest_of(evaluation)}
        register(stage.tracker, models[name], name, tags=tags, scratch=stage.checkpoints / "model")
        stage.metrics = {"models": float(len(models)), "parity_max": parity}
        return stage.metrics
