"""Small models, and the outputs of the stages before export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreamteacher.settings.downstream import Export, Publish
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import TaskModel, save_task_model

SIZE = 32
COUNTS = {"train": 40, "val": 10, "labelled_train": 30, "labelled_val": 10}
# One instance of each model, as each is a process that takes a second to start; as many requests may wait as with the usual two.
PARAMS = Params(
    few_labels=20,
    export=Export(size=SIZE),
    publish=Publish(name="cells", instances=1, max_queue=32, max_batch_size=32, max_request_pixels=5_000_000),
)


def make_model(task: str, seed: int = 0) -> TaskModel:
    """A random model with logits as large as a trained one's, and each class somewhere."""
    torch.manual_seed(seed)
    classes = ["background", "cell", "debris"] if task == "segmentation" else ["early", "middle", "late", "done"]
    model = TaskModel(create_backbone("test_efficientnet"), task, classes, SIZE, 16)
    model.eval()
    weight, bias = list(model.head.parameters())[-2:]
    with torch.no_grad():
        weight.normal_(std=2.0)
        logits = model(torch.nn.functional.interpolate(torch.randn(16, 3, 4, 4), scale_factor=8, mode="bicubic"))
        bias -= logits.transpose(0, 1).flatten(1).mean(1)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def make_data(folder: Path, short_side: int | None = 48, **facts: Any) -> Path:
    with open_stage("ingest", params={"ingest": {"short_side": short_side}}, inputs={}, out=folder) as stage:
        (stage.tmp / "dataset.json").write_text(json.dumps({"hash": "d" * 64, "counts": COUNTS, **facts}))
    return folder


def make_finetuned(folder: Path, model: torch.nn.Module) -> Path:
    params = PARAMS.section("few_labels", "finetune") | {"init": "mix", "seed": 0}
    with open_stage("finetune", params=params, inputs={}, out=folder) as stage:
        save_task_model(model, stage.tmp)
    return folder


def make_evaluation(folder: Path) -> Path:
    with open_stage("evaluate", params={}, inputs={}, out=folder) as stage:
        figures: dict = {
            "mix": {"miou_mean": 0.8125, "miou_std": 0.01, "n_seeds": 3, "iou_cell_mean": 0.5, "iou_cell_std": 0.02},
            "scratch": {"miou_mean": 0.7, "miou_std": 0.02, "n_seeds": 3, "iou_cell_mean": 0.4, "iou_cell_std": 0.0},
        }
        (stage.tmp / "metrics.json").write_text(json.dumps(figures))
    return folder
