"""Export a fine-tuned model to two ONNX files: the backbone (pyramid and embedding) and the task model (outputs of `Task.serve`)."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.git_access import output_of
from dreamteacher.onnx_files import BACKBONE_FILE, MODEL_FILE
from dreamteacher.serving.contract import Contract
from dreamteacher.serving.export import MULTIPLE, as_it_is, export
from dreamteacher.settings.downstream import AUTO
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage, read_stage
from dreamteacher.students.backbone import Backbone
from dreamteacher.tasks.half import half_agreement
from dreamteacher.tasks.model import TaskModel, load_task_model

log = logging.getLogger(__name__)

HALF_PICTURES = 64  # pictures for the fp16 check
FINETUNE_SETTINGS = ("steps", "batch_size", "lr", "resolution")  # named in the file's metadata


class PyramidAndEmbedding(nn.Module):
    """A backbone with all its outputs as one flat tuple."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, normalized: Tensor) -> tuple[Tensor, ...]:
        """`(B, 3, H, W)` to one `(B, C_l, H/s_l, W/s_l)` per level, fine to coarse, and the embedding `(B, C_last)`."""
        pyramid = self.backbone(normalized)
        return (*pyramid, self.backbone.embed(pyramid))


class Served(nn.Module):
    """A task model with its served outputs."""

    def __init__(self, model: TaskModel):
        super().__init__()
        self.model = model

    def forward(self, normalized: Tensor) -> tuple[Tensor, ...]:
        """`(B, 3, H, W)` to `Task.serve` of the head's outputs."""
        return self.model.get_task().serve(self.model(normalized))


def run(params: Params, *, data: Path, finetuned: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Write `backbone.onnx` and `model.onnx` into `out`, each with its preprocessing in its metadata.

    Returns `parity_max` (largest |onnxruntime - torch|), `onnx_mb` (size of both files), `dynamic_size` (1: any multiple of
    32 is taken; 0: only params.export.size) and, with params.export.precision fp16, `fp16_agreement` (share of equal decisions).

    Raises:
        UserError: an input is incomplete, a file differs from torch by more than params.export.tolerance, or fp16
            changes more decisions than params.export.agreement allows.
    """
    settings = params.export
    with open_stage(
        "export-onnx", params=params.section("export"), inputs={"data": data, "finetuned": finetuned}, out=out, overwrite=overwrite
    ) as stage:
        if stage.done:
            return stage.metrics
        model = load_task_model(finetuned)
        contract, facts = _contract(model, data, settings.size), _facts(model, finetuned, data)
        metrics = {}
        if settings.precision == "fp16":
            facts["precision"] = settings.precision
            metrics["fp16_agreement"] = _check_half(model, data, settings.agreement)
        outputs = {
            BACKBONE_FILE: [*(f"stride{stride}" for stride in model.backbone.strides), "embedding"],
            MODEL_FILE: list(model.get_task().served),
        }
        exported = {}
        for name, module, task, align in (
            (BACKBONE_FILE, PyramidAndEmbedding(model.backbone), "features", as_it_is),
            (MODEL_FILE, Served(model), model.task, model.get_task().align),
        ):
            done = exported[name] = export(
                module,
                stage.tmp / name,
                outputs[name],
                size=settings.size,
                opset=settings.opset,
                tolerance=settings.tolerance,
                metadata=facts | replace(contract, task=task).to_metadata(),
                align=align,
            )
            sizes = f"only {settings.size} x {settings.size} ({done.fixed_because})" if done.fixed_because else "any picture size"
            log.info("%s: |onnxruntime - torch| <= %.2g, any batch size, %s", name, done.parity, sizes)
        stage.metrics = metrics | {
            "parity_max": max(done.parity for done in exported.values()),
            "onnx_mb": sum((stage.tmp / name).stat().st_size for name in exported) / 1e6,
            "dynamic_size": float(not any(done.fixed_because for done in exported.values())),
        }
        return stage.metrics


def _contract(model: TaskModel, data: Path, size: int) -> Contract:
    """The preprocessing contract of `model`."""
    return Contract(
        task=model.task,
        head="" if model.head_name == AUTO else model.head_name,
        classes=tuple(model.classes),
        mean=tuple(model.mean),
        std=tuple(model.std),
        size=size,
        multiple=MULTIPLE,
        short_side=read_stage(data)["params"]["ingest"]["short_side"],
        scale_to=model.get_task().picture_size(model.size),
        interpolation="bilinear",
        strides=tuple(model.backbone.strides),
        skeleton=tuple((first, second) for first, second in json.loads((data / "dataset.json").read_text()).get("skeleton", ())),
    )


def _facts(model: TaskModel, finetuned: Path, data: Path) -> dict[str, str]:
    """The model's provenance, for the files' metadata."""
    made, found = read_stage(finetuned)["params"], json.loads((data / "dataset.json").read_text())
    settings = {"few_labels": made["few_labels"], "finetune": {key: made["finetune"][key] for key in FINETUNE_SETTINGS}}
    return {
        "architecture": model.backbone.name,
        "init": made["init"],
        "seed": json.dumps(made["seed"]),
        "trained": json.dumps(settings),
        "data_hash": found["hash"],
        "counts": json.dumps(found["counts"]),
        "git_revision": git_revision(),
        "dreamteacher_version": version("dreamteacher"),
    }


def _check_half(model: TaskModel, data: Path, least: float) -> float:
    found = half_agreement(model, ImageSet(data, "val"), model.get_task().picture_size(model.size), HALF_PICTURES)
    log.info("fp16 leaves %.2f %% of the decisions on validation pictures as they are", 100 * found)
    if found < least:
        raise UserError(
            f"fp16 leaves only {found:.2%} of the model's decisions on validation pictures as they are, less than export.agreement = "
            f"{least:g}; set export.precision to fp32, or lower the share if that is acceptable"
        )
    return found


def git_revision() -> str:
    """The commit of the current directory, with `-dirty` when other tracked files differ than those `dvc repro` writes; "" without one."""
    changes = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics", ":!plots")
    commit = output_of("git", "rev-parse", "HEAD")
    return commit + ("-dirty" if commit and changes else "")
