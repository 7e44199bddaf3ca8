"""A detector from its weights to the client: the same objects from torch, from the ONNX file, from NAME and from NAME-pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from serving_samples import PARAMS, SIZE, make_data, make_finetuned, picture

from dreamteacher.data.dataset import Sample
from dreamteacher.data.transforms import full_image
from dreamteacher.serving.client import Client, Detections
from dreamteacher.serving.predict import predict
from dreamteacher.serving.triton_repository import check_repository, write_repository
from dreamteacher.stages import export_onnx
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import get_task, of_picture
from dreamteacher.tasks.model import TaskModel, load_task_model, normalize

CLASSES = ["cell", "platelet", "other"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random detector with many detections, fine-tuned and exported."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    model = TaskModel(create_backbone("test_efficientnet"), "detection", CLASSES, SIZE, 16).eval()
    with torch.no_grad():
        model.head.classify.cls_logits.weight.normal_(std=0.5)
        model.head.classify.cls_logits.bias.zero_()
        model.head.regress.bbox_reg.weight.normal_(std=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        make_finetuned(folder / "finetuned", model)
        make_data(folder / "data", short_side=None)
        # Weights as large as these amplify rounding errors a thousand times.
        loose = PARAMS.export.model_copy(update={"tolerance": 1e-3})
        export_onnx.run(
            PARAMS.model_copy(update={"export": loose}), data=folder / "data", finetuned=folder / "finetuned", out=folder / "onnx"
        )
        models = {"things": folder / "onnx/model.onnx", "things-backbone": folder / "onnx/backbone.onnx"}
        write_repository(models, folder / "triton", backend="python", settings=PARAMS.publish)
    return folder


@torch.no_grad()
def by_torch(folder: Path, image: np.ndarray) -> np.ndarray:
    """Detections (D, 6) of the evaluation."""
    model, size = load_task_model(folder / "finetuned"), (image.shape[0], image.shape[1])
    outputs = model(normalize(full_image()(Sample(image, None, ""))["image"][None], model.mean, model.std))
    return get_task("detection").decode(of_picture(outputs, 0), size, size).numpy()


def rows_of(answer: Detections) -> np.ndarray:
    return np.column_stack([answer.boxes, answer.labels, answer.scores])


def test_the_file_has_scores_and_boxes_of_any_picture_size(folder: Path) -> None:
    outputs = onnx.load(folder / "onnx/model.onnx").graph.output
    shapes = {output.name: [dim.dim_value or dim.dim_param for dim in output.type.tensor_type.shape.dim] for output in outputs}
    assert shapes == {"scores": ["N", 3, "scores_H"], "boxes": ["N", 4, "boxes_H"]}
    assert check_repository(folder / "triton") == ["things", "things-backbone", "things-pictures"]


@pytest.mark.parametrize("model", ["things", "things-pictures"])
def test_the_client_answers_as_evaluation_does(folder: Path, url: str, model: str) -> None:
    pictures = [picture(40, 56), picture(64, 33, 1), picture(40, 56, 2)]
    with Client(url, model) as client:
        for image, answer in zip(pictures, client.predict_batch(pictures), strict=True):
            expected = by_torch(folder, image)
            assert isinstance(answer, Detections)
            assert answer.classes == tuple(CLASSES)
            assert len(expected) > 3
            assert np.allclose(rows_of(answer), expected, atol=1e-2)
            assert (answer.boxes[:, 2:] <= np.float32([image.shape[1], image.shape[0]])).all()


def test_predict_counts_lists_and_draws(folder: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(40, 56)).save(path)
    expected = by_torch(folder, picture(40, 56))
    sure = np.bincount(expected[expected[:, 5] >= 0.5, 4].astype(int), minlength=3).tolist()

    predict([path], url, "things", tmp_path / "out")
    assert capsys.readouterr().out == (
        f"{path}: {', '.join(f'{name} {count}' for name, count in zip(CLASSES, sure, strict=True))} -> {tmp_path}/out/a.overlay.png\n"
    )
    assert np.asarray(Image.open(tmp_path / "out/a.overlay.png")).std() > 0
    predict([path], url, "things", output="jsonl")
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)["detections"]
    assert [CLASSES.index(each["class"]) for each in found] == expected[:, 4].tolist()
    assert np.allclose([each["box"] for each in found], expected[:, :4], atol=2e-2)
    predict([path], url, "things", output="csv")
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [int(row[name]) for name in CLASSES] == sure
