"""The models that the serving benchmarks serve: of a project's default size, untrained, exported by the real stage."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import torch
from PIL import Image

from dreamteacher.onnx_files import BACKBONE_FILE, MODEL_FILE
from dreamteacher.settings.downstream import Export, Publish
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.stages import export_onnx
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import TaskModel, save_task_model

NAME = "nuclei"
SAMPLES = Path(__file__).parents[1] / "samples/nuclei/images"
COUNTS = {"train": 1, "val": 1, "labelled_train": 1, "labelled_val": 1}


def make_models(folder: Path, publish: Publish) -> dict[str, Path]:
    """{NAME: ONNX file, NAME-backbone: ONNX file} of a segmentation model of nuclei with random weights; written once into `folder`.

    Speed does not depend on the weights' values.
    """
    os.environ["DREAMTEACHER_TRACKING"] = "off"
    params = Params(export=Export(size=128), publish=publish)
    torch.manual_seed(0)
    model = TaskModel(create_backbone("resnet18", finest=2), "segmentation", ["background", "nucleus"], 64, 32).eval()
    with torch.no_grad():  # or one class fills each mask
        list(model.head.parameters())[-2].normal_(std=1.0)
    folder.mkdir(parents=True, exist_ok=True)
    with open_stage("ingest", params={"ingest": {"short_side": 256}}, inputs={}, out=folder / "data") as stage:
        if not stage.done:
            (stage.tmp / "dataset.json").write_text(json.dumps({"hash": "0" * 64, "counts": COUNTS}))
    made = params.section("few_labels", "finetune") | {"init": "scratch", "seed": 0}
    with open_stage("finetune", params=made, inputs={}, out=folder / "finetuned") as stage:
        if not stage.done:
            save_task_model(model, stage.tmp)
    export_onnx.run(params, data=folder / "data", finetuned=folder / "finetuned", out=folder / "onnx")
    return {NAME: folder / "onnx" / MODEL_FILE, f"{NAME}-backbone": folder / "onnx" / BACKBONE_FILE}


def sample_pictures(short_side: int | None = None) -> list[bytes]:
    """The files of the sample, whose sizes differ: 128 x 128 to 128 x 270; or all enlarged to a short side."""
    files = [path.read_bytes() for path in sorted(SAMPLES.rglob("*.jpg"))]
    return files if short_side is None else [_enlarged(data, short_side) for data in files]


def _enlarged(data: bytes, short_side: int) -> bytes:
    picture, file = Image.open(io.BytesIO(data)), io.BytesIO()
    scale = short_side / min(picture.size)
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(file, "JPEG", quality=90)
    return file.getvalue()
