"""Two-stage heads end to end: trained, exported, served, with the answers of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from serving_samples import PARAMS

import dreamteacher
from dreamteacher.data.dataset import Sample
from dreamteacher.data.instances import unpack
from dreamteacher.data.transforms import full_image
from dreamteacher.serving import rendering
from dreamteacher.serving.client import Client, Detections, Instances
from dreamteacher.serving.contract import Contract
from dreamteacher.serving.predict import predict
from dreamteacher.serving.triton_repository import check_repository, write_repository
from dreamteacher.settings.schema import Params
from dreamteacher.stages import evaluate, export_onnx, finetune, ingest
from dreamteacher.tasks import faster_rcnn, mask_rcnn
from dreamteacher.tasks.base import of_picture
from dreamteacher.tasks.model import TaskModel, normalize

HEADS = {"detection": "faster-rcnn", "instances": "mask-rcnn"}


def draw(folder: Path) -> Path:
    """10 train pictures and 2 for validation with one to three bright squares each, as COCO's outlines."""
    generator = np.random.default_rng(5)
    images, annotations = [], []
    for number in range(12):
        split = "train" if number < 10 else "val"
        pixels = generator.integers(0, 30, (48, 64, 3))
        for kind in range(1 + number % 3):
            y, x = int(generator.integers(2, 30)), int(generator.integers(2, 8)) + 20 * kind
            pixels[y : y + 14, x : x + 14] += 200
            outline = [[x, y, x + 14, y, x + 14, y + 14, x, y + 14]]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "segmentation": outline})
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{split}/{number}.png", "width": 64, "height": 48})
    categories = [{"id": 1, "name": "square"}]
    (folder / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def settings(task: str) -> Params:
    return Params.model_validate(
        {
            "ingest": {"task": task},
            "student": {"backbone": "test_resnet", "width": 16},
            "finetune": {"head": HEADS[task], "steps": 25, "batch_size": 4, "accumulate": 2, "lr": 3e-3, "warmup_steps": 2, "log_every": 5},
            "compare": {"inits": ["scratch"], "seeds": [0]},
            "export": {"init": "scratch", "size": 64},
            "evaluate": {"overlays": 1},
            "publish": PARAMS.publish.model_dump(),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each task through the chain, in one repository."""
    folder, models = tmp_path_factory.mktemp("two-stages"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        patch.setattr(faster_rcnn, "CANDIDATES", 200)
        for kind in (faster_rcnn.FasterRcnnHead, mask_rcnn.MaskRcnnHead):
            patch.setattr(kind, "proposals", 50)
        source = draw(folder / "source")
        for task in HEADS:
            place, params = folder / task, settings(task)
            ingest.run(params, source=source, out=place / "data")
            finetune.run(params, data=place / "data", init="scratch", seed=0, out=place / "finetuned/scratch/0")
            options: dict[str, Any] = {"metrics": place / "metrics.json", "plots": place / "plots", "teachers": place, "backbones": place}
            evaluate.run(params, data=place / "data", finetuned=place / "finetuned", out=place / "evaluation", **options)
            export_onnx.run(params, data=place / "data", finetuned=place / "finetuned/scratch/0", out=place / "onnx")
            models[task] = place / "onnx/model.onnx"
        write_repository(models, folder / "triton", backend="python", settings=PARAMS.publish)
        yield folder


def picture(folder: Path) -> Path:
    return folder / "source/val/11.png"


@torch.no_grad()
def by_torch(folder: Path, task: str) -> Any:
    """The prediction of the evaluation."""
    model: TaskModel = dreamteacher.load(folder / task / "finetuned/scratch/0")
    image = np.asarray(Image.open(picture(folder)))
    outputs = model(normalize(full_image()(Sample(image, None, ""))["image"][None], model.mean, model.std))
    size = image.shape[0], image.shape[1]
    return model.get_task().decode(of_picture(outputs, 0), size, size).numpy()


@pytest.mark.parametrize("task", HEADS)
def test_it_is_trained_and_measured_as_the_tasks_own_head(folder: Path, task: str) -> None:
    curve = (folder / task / "finetuned/scratch/0/curves.csv").read_text().splitlines()
    parts = ["objectness", "rpn_box_reg", "classifier", "box_reg", *(["mask"] if task == "instances" else [])]
    assert set(parts) < set(curve[0].split(","))
    figures = json.loads((folder / task / "metrics.json").read_text())["scratch"]
    assert {"ap_mean", "ap50_mean", "ap75_mean", "ap_square_mean"} < set(figures)
    assert 0 <= figures["ap_mean"] <= figures["ap50_mean"]
    assert len(list((folder / task / "evaluation/overlays").iterdir())) == 1


def test_files_say_whose_outputs_they_have(folder: Path) -> None:
    shapes, facts = {}, {}
    for task in HEADS:
        model = onnx.load(folder / task / "onnx/model.onnx")
        shapes[task] = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim][1] for each in model.graph.output}
        facts[task] = Contract.from_metadata({each.key: each.value for each in model.metadata_props}, "")
    assert shapes == {"detection": {"scores": 1, "boxes": 4}, "instances": {"scores": 1, "boxes": 4, "masks": 50}}
    assert {task: (contract.task, contract.head, contract.dynamic_size) for task, contract in facts.items()} == {
        task: (task, head, True) for task, head in HEADS.items()
    }
    assert check_repository(folder / "triton") == ["detection", "detection-pictures", "instances", "instances-pictures"]


@pytest.mark.parametrize("kind", ["", "-pictures"])
def test_the_client_answers_as_evaluation_does(folder: Path, url: str, kind: str) -> None:
    with Client(url, f"detection{kind}") as client:
        boxes = client.predict(picture(folder))
    expected = by_torch(folder, "detection")
    assert isinstance(boxes, Detections)
    assert len(expected) > 0
    assert np.allclose(np.column_stack([boxes.boxes, boxes.labels, boxes.scores]), expected, atol=1e-2)
    with Client(url, f"instances{kind}") as client:
        objects = client.predict(picture(folder))
    numbers, classes, scores = unpack(by_torch(folder, "instances"))
    assert type(objects) is Instances
    assert len(classes) == len(objects.labels) > 0
    assert (numbers == objects.mask).mean() > 0.98
    assert np.allclose(scores, objects.scores, atol=1e-2)


def test_predict_prints_and_draws(
    folder: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "LEAST_SCORE", 0.1)  # after so few steps nothing is sure
    path = picture(folder)
    for task in HEADS:
        predict([path], url, task, tmp_path / task)
        assert capsys.readouterr().out.startswith(f"{path}: square ")
        drawn = Image.open(tmp_path / task / "11.overlay.png")
        plain = Image.open(path).resize(drawn.size, Image.Resampling.NEAREST)
        assert np.abs(np.asarray(drawn, int) - np.asarray(plain)).max() > 50
    assert np.asarray(Image.open(tmp_path / "instances/11.instances.png")).max() > 0
