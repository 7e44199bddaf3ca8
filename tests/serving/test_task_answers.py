"""Each task end to end: the same answer from torch, NAME, NAME-pictures and predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving_samples import PARAMS, SIZE, make_data, make_finetuned, picture
from torch import Tensor

from dreamteacher.data.dataset import Sample
from dreamteacher.data.instances import unpack
from dreamteacher.data.transforms import full_image
from dreamteacher.serving.client import Client, Depth, Instances, Keypoints, MultiLabel, Raw
from dreamteacher.serving.predict import predict
from dreamteacher.serving.triton_repository import check_repository, write_repository
from dreamteacher.stages import export_onnx
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks import base
from dreamteacher.tasks.model import TaskModel, load_task_model, normalize
from dreamteacher.tasks.segmentation import Segmentation

CLASSES = {
    "instances": ["cell", "platelet"],
    "multilabel": ["cat", "dog", "cow"],
    "depth": [],
    "keypoints": ["nose", "left_eye", "right_eye"],
    "edges": ["in", "out"],
}


class Edges(Segmentation):
    """As of another package, which serves two outputs."""

    served = ("edges", "strength")

    def serve(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs.sigmoid(), outputs.amax((2, 3))


TASK = Edges()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random model of each task, exported, in one repository."""
    folder, models = tmp_path_factory.mktemp("tasks"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        patch.setitem(base.BUILT_IN, "edges", f"{__name__}:TASK")
        make_data(folder / "data", short_side=None)
        for name, classes in CLASSES.items():
            torch.manual_seed(0)
            model = TaskModel(create_backbone("test_efficientnet"), name, classes, SIZE, 16).eval()
            if name == "instances":  # which finds much
                with torch.no_grad():
                    model.head.classify.bias[1] += 2
                    model.head.center[-1].weight.normal_(std=1)
            if name == "keypoints":  # likewise
                with torch.no_grad():
                    model.head.center[-1].weight.normal_(std=1)
                    model.head.point[-1].weight.normal_(std=0.1)
            make_finetuned(folder / "finetuned" / name, model)
            data = make_data(folder / "data-of-keypoints", short_side=None, skeleton=[[0, 1]]) if name == "keypoints" else folder / "data"
            export_onnx.run(PARAMS, data=data, finetuned=folder / "finetuned" / name, out=folder / "onnx" / name)
            models[name] = folder / "onnx" / name / "model.onnx"
        write_repository(models, folder / "triton", backend="python", settings=PARAMS.publish)
        yield folder


@torch.no_grad()
def by_torch(folder: Path, name: str, image: np.ndarray) -> Any:
    """The prediction of the evaluation."""
    model, size, task = load_task_model(folder / "finetuned" / name), (image.shape[0], image.shape[1]), base.get_task(name)
    short = task.picture_size(SIZE)
    item = full_image(size=short)(Sample(image, None, ""))["image"]
    outputs = model(normalize(item[None], model.mean, model.std))
    return task.decode(base.of_picture(outputs, 0), size, size).numpy()


def test_a_task_of_another_package_has_no_model_that_takes_files(folder: Path) -> None:
    assert check_repository(folder / "triton") == sorted([*CLASSES, *(f"{name}-pictures" for name in CLASSES if name != "edges")])


@pytest.mark.parametrize("kind", ["", "-pictures"])
def test_the_client_answers_as_evaluation_does(folder: Path, url: str, kind: str) -> None:
    image = picture(40, 56)
    with Client(url, f"instances{kind}") as client:
        found = client.predict(image)
    numbers, classes, scores = unpack(by_torch(folder, "instances", image))
    assert isinstance(found, Instances)
    assert found.mask.shape == (40, 56)
    assert len(classes) == len(found.labels) > 1
    assert (numbers == found.mask).mean() > 0.98
    assert np.allclose(scores, found.scores, atol=1e-2)
    with Client(url, f"depth{kind}") as client:
        answer = client.predict(image)
    assert isinstance(answer, Depth)
    assert np.allclose(answer.depth, by_torch(folder, "depth", image), rtol=1e-3)
    with Client(url, f"multilabel{kind}") as client:
        several = client.predict(picture(SIZE, SIZE))
    assert isinstance(several, MultiLabel)
    expected = by_torch(folder, "multilabel", picture(SIZE, SIZE))
    assert np.allclose(several.probabilities, expected, atol=1e-3)
    assert several.labels == [name for name, value in zip(CLASSES["multilabel"], expected, strict=True) if value >= 0.5]


@pytest.mark.parametrize("kind", ["", "-pictures"])
def test_keypoints_are_those_of_evaluation(folder: Path, url: str, kind: str) -> None:
    image = picture(40, 56)
    with Client(url, f"keypoints{kind}") as client:
        found = client.predict(image)
    expected = by_torch(folder, "keypoints", image)
    assert isinstance(found, Keypoints)
    assert (found.classes, found.skeleton) == (tuple(CLASSES["keypoints"]), ((0, 1),))
    assert len(found.scores) == len(expected) > 1
    assert np.allclose(found.scores, expected[:, 0], atol=1e-3)
    assert np.allclose(found.points, expected[:, 1:].reshape(-1, 3, 3)[:, :, :2], atol=0.05)
    assert np.allclose(found.seen, expected[:, 3::3], atol=1e-3)
    assert found.points.min() >= 0
    assert found.points[:, :, 0].max() <= 56


def test_a_task_of_another_package_answers_with_its_outputs(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(url, "edges") as client:
        answer = client.predict(picture(40, 56))
    assert isinstance(answer, Raw)
    assert {name: values.shape for name, values in answer.outputs.items()} == {"edges": (2, 64, 64), "strength": (2,)}
    assert (answer.prepared, answer.size) == ((40, 56), (40, 56))
    path = tmp_path / "a.png"
    Image.fromarray(picture(40, 56)).save(path)
    predict([path], url, "edges", tmp_path / "out")
    assert capsys.readouterr().out == f"{path}: edges 2 x 64 x 64, strength 2 -> {tmp_path}/out/a.outputs.npz\n"
    with np.load(tmp_path / "out/a.outputs.npz") as stored:
        assert np.array_equal(stored["edges"], answer.outputs["edges"])


def test_predict_prints_and_draws_each_task(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(picture(40, 56)).save(path)
    lines: dict[str, dict[str, Any]] = {}
    text = ""
    for name in ("instances", "depth", "multilabel", "keypoints"):
        predict([path], url, name, out / name, output="jsonl")
        lines[name] = json.loads(capsys.readouterr().out)
        predict([path], url, name, out / name)
        predict([path], url, name, out / name, output="csv")
        text += capsys.readouterr().out
    mask = np.asarray(Image.open(out / "instances/a.instances.png"))
    assert len(lines["instances"]["instances"]) == mask.max()
    assert [each["pixels"] for each in lines["instances"]["instances"]] == np.bincount(mask.ravel())[1:].tolist()
    stored = np.asarray(Image.open(out / "depth/a.depth.tif"))
    assert lines["depth"]["range"]["max"] == pytest.approx(float(stored.max()), abs=1e-3)
    assert set(lines["multilabel"]["probabilities"]) == set(CLASSES["multilabel"])
    assert f"-> {out}/instances/a.instances.png, {out}/instances/a.overlay.png" in text
    assert "picture,error,labels,cat,dog,cow" in text
    assert "picture,error,depth,overlay" in text
    first = lines["keypoints"]["objects"][0]
    assert list(first["keypoints"]) == CLASSES["keypoints"]
    assert set(first["keypoints"]["nose"]) == {"x", "y", "seen"}
    assert f"-> {out}/keypoints/a.overlay.png" in text
    for name in ("instances", "depth", "keypoints"):
        assert np.asarray(Image.open(out / name / "a.overlay.png")).std() > 0
