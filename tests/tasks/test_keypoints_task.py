"""Keypoints: loss, learning of several objects, and COCO's metrics."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from dreamteacher.data.keypoints import OBJECT
from dreamteacher.data.transforms import AUGMENTATIONS
from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks import keypoints
from dreamteacher.tasks.base import of_picture
from dreamteacher.tasks.keypoints import TASK
from dreamteacher.tasks.model import TaskModel

SIDE, NAMES = 64, ["tip", "left", "right"]


def rows() -> Tensor:
    """Two objects; of the second the tip is not labelled."""
    of_object = [[4, 6, 28, 30, 576, 0, 16, 10, 2, 6, 28, 2, 26, 28, 1], [34, 30, 60, 60, 780, 0, 0, 0, 0, 36, 58, 2, 58, 58, 2]]
    return torch.tensor(of_object, dtype=torch.float32)


def batch(*labels: Tensor) -> dict[str, Tensor]:
    """Pictures that show the keypoints, each in a colour."""
    images = torch.zeros(len(labels), 3, SIDE, SIDE)
    for image, label in zip(images, labels, strict=True):
        for row in label:
            x1, y1, x2, y2 = row[:4].int().tolist()
            image[:, y1:y2, x1:x2] += 0.2
            for number, (x, y, seen) in enumerate(row[OBJECT:].reshape(-1, 3).int().tolist()):
                if seen:
                    image[number, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 1
    return {"image": images, "label": torch.stack(labels)}


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(create_backbone("test_resnet"), "keypoints", NAMES, SIDE, 16)


def test_it_learns_to_find_several_objects_with_their_keypoints(model: TaskModel) -> None:
    inputs = batch(rows(), rows().flip(0))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    model.train()
    for _ in range(120):
        loss = TASK.loss(model(inputs["image"]), inputs, Finetune())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = TASK.decode(of_picture(model(inputs["image"]), 0), (SIDE, SIDE), (SIDE, SIDE))
    sure = found[found[:, 0] >= keypoints.SHOWN]
    assert len(sure) == 2
    score = TASK.score(NAMES)
    score.update(found, rows())
    figures = score.compute()
    assert figures["ap50"] == 1
    assert figures["pck"] == figures["pck_left"] == 1
    by_place = sure[sure[:, 1 + 3 + 1].argsort()]  # by the y of the left one
    assert (by_place[:, 3] > 0.5).tolist() == [True, False]  # the tip of the second is not there


def test_the_loss_is_the_same_however_a_batch_is_split(model: TaskModel) -> None:
    model.eval()
    one = rows()
    other = torch.full_like(one, -1.0)
    other[0] = rows()[1]  # as `collate` fills up
    inputs = batch(one, other.clamp(min=0)) | {"label": torch.stack([one, other])}
    together = TASK.loss(model(inputs["image"]), inputs, Finetune())
    alone = [{"image": inputs["image"][i : i + 1], "label": label[None]} for i, label in enumerate((one, rows()[1:]))]
    parts = [TASK.loss(model(part["image"]), part, Finetune()) for part in alone]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in parts) / 2, rel=1e-5)


def outputs(count: int = 1) -> dict[str, Tensor]:
    places = (torch.arange(16) + 0.5) / 16
    cells = torch.stack(torch.meshgrid(places, places, indexing="xy"))[None].expand(count, -1, -1, -1)
    free = {name: torch.zeros(count, n, 16, 16, requires_grad=True) for name, n in (("centres", 1), ("points", 6), ("seen", 3))}
    return free | {"places": cells}


def test_what_is_not_labelled_costs_nothing() -> None:
    inputs = outputs()
    TASK.loss(inputs, {"image": torch.zeros(1, 3, SIDE, SIDE), "label": rows()[None, 1:]}, Finetune())["loss"].backward()
    assert inputs["points"].grad is not None
    assert not inputs["points"].grad[0, :2].any()
    assert inputs["points"].grad[0, 2:].any()
    inputs = outputs()
    nobody_looked = rows()[None, 1:].clone()
    nobody_looked[..., OBJECT:] = 0
    TASK.loss(inputs, {"image": torch.zeros(1, 3, SIDE, SIDE), "label": nobody_looked}, Finetune())["loss"].backward()
    assert not inputs["points"].grad.any()  # type: ignore[union-attr]
    assert not inputs["seen"].grad.any()  # type: ignore[union-attr]
    assert inputs["centres"].grad.any()  # type: ignore[union-attr]


def test_crowds_are_neither_objects_nor_background() -> None:
    inputs, crowd = outputs(), rows()[None, :1].clone()
    crowd[..., 5] = 1
    TASK.loss(inputs, {"image": torch.zeros(1, 3, SIDE, SIDE), "label": crowd}, Finetune())["loss"].backward()
    gradient = inputs["centres"].grad[0, 0]  # type: ignore[index]
    assert not gradient[2:7, 2:6].any()
    assert gradient[8:].all()


def test_the_figures_are_pycocotools_own(tmp_path: Path) -> None:
    """Of COCO's 17 keypoints, with its own sigmas, through its own files."""
    random = np.random.default_rng(3)
    images, truth, found = [], [], []
    score = TASK.score(keypoints.COCO)
    for number in range(1, 7):
        images.append({"id": number, "width": 200, "height": 200})
        there, guessed = [], []
        for _ in range(number % 4):
            x, y, side = *random.uniform(0, 100, 2), random.uniform(40, 100)
            points = np.column_stack([random.uniform(x, x + side, 17), random.uniform(y, y + side, 17), random.integers(0, 3, 17)])
            points[points[:, 2] == 0] = 0
            area, crowd = side * side * 0.6, int(random.uniform() < 0.15)
            entry = {"id": len(truth) + 1, "image_id": number, "category_id": 1, "iscrowd": crowd, "area": area, "bbox": [x, y, side, side]}
            truth.append(entry | {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())})
            there.append([x, y, x + side, y + side, area, crowd, *points.ravel()])
            near = points + np.column_stack([random.normal(0, side * 0.06, (17, 2)), np.zeros(17)])
            confidence = float(random.uniform(0.2, 1))
            near[:, 2] = 1
            found.append({"image_id": number, "category_id": 1, "keypoints": near.ravel().tolist(), "score": confidence})
            guessed.append([confidence, *near.ravel()])
        score.update(torch.tensor(guessed).reshape(-1, 52), torch.tensor(there).reshape(-1, OBJECT + 51))
    (tmp_path / "gt.json").write_text(json.dumps({"images": images, "annotations": truth, "categories": [{"id": 1, "name": "person"}]}))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "gt.json"))
        evaluation = COCOeval(coco, coco.loadRes(found), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = score.compute()
    assert [figures[name] for name in ("ap", "ap50", "ap75")] == pytest.approx(evaluation.stats[:3].tolist(), abs=1e-6)
    assert 0.2 < figures["ap"] < 0.95


def test_pck_counts_keypoints_within_a_fifth_of_the_box_of_as_many_objects_as_there_are() -> None:
    score = TASK.score(NAMES)
    assert score.compute() == {}
    near = [0.9, 16, 10, 1, 6, 24, 1, 26, 20, 1]  # 0, 4 and 8 px from where they are, of 4.8 px
    far = [0.8, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    late = [0.1, 50, 40, 1, 36, 58, 1, 58, 58, 1]  # right, and the third likeliest of two
    score.update(torch.tensor([near, far, late]), rows())
    figures = score.compute()
    assert {name: value for name, value in figures.items() if name.startswith("pck")} == pytest.approx(
        {"pck": 2 / 5, "pck_tip": 1, "pck_left": 1 / 2, "pck_right": 0}
    )
    assert score.sigmas == pytest.approx([keypoints.COCO_SIGMAS.mean()] * 3)


def test_flips_need_names_that_say_what_they_make_of_a_keypoint(caplog: pytest.LogCaptureFixture) -> None:
    for names in (NAMES, keypoints.COCO):
        TASK.check(names, AUGMENTATIONS["overhead"])
    with pytest.raises(UserError, match="keypoint 'left' has no left or right counterpart among left, tip, so it cannot be swapped"):
        TASK.check(["left", "tip"], AUGMENTATIONS["natural"])
    TASK.check(["left", "tip"], AUGMENTATIONS["no-flip"])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        TASK.check(["1", "2"], AUGMENTATIONS["natural"])
    assert "so flips swap none; if they must be swapped, rename them, or set finetune.augment to no-flip" in caplog.text
