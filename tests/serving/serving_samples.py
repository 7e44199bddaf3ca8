"""Small models and the folders that the stages before export would leave."""


import json
from pathlib import Path

import torch

from dreamteacher.params import Export, Params, Publish
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import TaskModel, save_task_model

SIZE = 32
PARAMS = Params(export=Export(size=SIZE), publish=Publish(name="cells", max_batch_size=32))


def make_model(task: str, seed: int = 0) -> TaskModel:
    """A random model whose logits are of the size that trained ones have."""
    torch.manual_seed(seed)
    classes = ["background", "cell", "debris"] if task == "segmentation" else ["early", "middle", "late", "done"]
    model = TaskModel(create_backbone("test_efficientnet"), task, classes, SIZE, 16)
    for parameter in list(model.head.parameters())[-2:]:
        torch.nn.init.normal_(parameter, std=2.0)
    return model.eval()


def make_data(folder: Path, short_side: int | None = 48) -> Path:
    with open_stage("ingest", params={"ingest": {"short_side": short_side}}, inputs={}, out=folder) as stage:
        (stage.tmp / "dataset.json").write_text(json.dumps({"hash": "d" * 64}))
    return folder


def make_finetuned(folder: Path, model: torch.nn.Module) -> Path:
    with open_stage("finetune", params={"init": "mix", "seed": 0}, inputs={}, out=folder) as stage:
        save_task_model(model, stage.tmp)
    return folder


def make_evaluation(folder: Path) -> Path:
    with open_stage("evaluate", params={}, inputs={}, out=folder) as stage:
        stage.metrics = {"mix.miou_mean": 0.8125, "mix.miou_std": 0.01, "scratch.miou_mean": 0.7}
    return folder
