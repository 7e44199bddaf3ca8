"""Detection: target assignment, loss and metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dreamteacher.data.boxes import Boxes
from dreamteacher.data.transforms import AUGMENTATIONS
from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import of_picture
from dreamteacher.tasks.detection import BACKGROUND, TASK, UNCOUNTED, assign
from dreamteacher.tasks.model import TaskModel

SIDE = 64
NONE = [-1.0] * 6
ROWS = torch.tensor([[[8.0, 8, 24, 24, 0, 0], [30, 34, 60, 62, 1, 0]], [[40.0, 4, 56, 20, 1, 0], NONE]])


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(create_backbone("test_resnet"), "detection", ["cell", "platelet"], SIDE, 16)


def images(count: int) -> Tensor:
    """Each object a square of its class' colour."""
    pictures = torch.zeros(count, 3, SIDE, SIDE)
    for picture, rows in zip(pictures, ROWS, strict=False):
        for x1, y1, x2, y2, cls, _ in rows[rows[:, 4] >= 0].long().tolist():
            picture[cls, y1:y2, x1:x2] = 1.0
    return pictures


def loss_of(model: TaskModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return TASK.loss(model(batch["image"]), batch, Finetune())


def test_places_of_a_level_are_the_middles_of_its_cells(model: TaskModel) -> None:
    places = model.eval()(images(1))["places"][0]
    sizes = [SIDE // stride for stride in model.backbone.strides]
    assert places.shape[1] == sum(size**2 for size in sizes)
    x, y, width, height = places[:, sizes[0] ** 2 + 1]  # the second cell of the second level
    assert [value.item() for value in (x, y, width, height)] == pytest.approx([1.5 / sizes[1], 0.5 / sizes[1], 1 / sizes[1], 1 / sizes[1]])


def test_a_place_predicts_the_smallest_box_around_it_of_its_level() -> None:
    places = torch.tensor([[10.0, 10, 8], [30, 30, 8], [33, 33, 8], [60, 60, 8], [34, 34, 32]]).T
    rows = torch.tensor([[0.0, 0, 20, 20, 0, 0], [10, 10, 50, 50, 1, 0], [26, 26, 40, 40, 0, 0], [55, 55, 64, 64, 0, 1], NONE])
    assert assign(places, rows).tolist() == [0, 2, 2, UNCOUNTED, BACKGROUND]  # the last is of a level for larger boxes
    assert assign(places, rows[:0]).tolist() == [BACKGROUND] * 5
    large = torch.tensor([[0.0, 0, 200, 200, 0, 0]])  # its sides are more than 8 x 8 pixels away
    assert assign(torch.tensor([[100.0, 100, 8], [100, 100, 32]]).T, large).tolist() == [BACKGROUND, 0]


def test_the_loss_is_the_same_however_a_batch_is_split(model: TaskModel) -> None:
    model.eval()
    batch = {"image": images(2), "label": ROWS}
    together = loss_of(model, batch)
    parts = [loss_of(model, {key: value[i : i + 1] for key, value in batch.items()}) for i in range(2)]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in parts) / 2, rel=1e-5)


def test_regions_to_ignore_are_no_mistake(model: TaskModel) -> None:
    """A detection there costs nothing: with all of the picture ignored no place is counted."""
    everything = torch.tensor([[[-1.0, -1, SIDE + 1, SIDE + 1, 0, 1]]])
    losses = loss_of(model.eval(), {"image": images(1), "label": everything})
    assert [losses[name].item() for name in ("focal", "box", "centre")] == [0, 0, 0]
    assert loss_of(model, {"image": images(1), "label": torch.tensor([[NONE]])})["focal"] > 0


def test_it_learns_where_objects_are(model: TaskModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    batch = {"image": images(2), "label": ROWS}
    model.train()
    for _ in range(60):
        losses = loss_of(model, batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    score = TASK.score(model.classes)
    with torch.no_grad():
        outputs = model(batch["image"])
    for i, rows in enumerate(ROWS):
        score.update(TASK.decode(of_picture(outputs, i), (SIDE, SIDE), (SIDE, SIDE)), rows[rows[:, 4] >= 0])
    figures = score.compute()
    assert list(figures) == ["ap", "ap50", "ap75", "ap_cell", "ap_platelet"]
    assert figures["ap50"] > 0.9


def test_detections_are_in_the_pixels_that_are_wanted(model: TaskModel) -> None:
    """The picture fills 40 x 50 of the padded 64 x 64, and was twice as large in the source."""
    outputs = {
        "logits": torch.full((2, 3), -20.0).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(9.0)),
        "middle": torch.full((1, 3), 9.0),
        "boxes": torch.tensor([[0.0, 0, 0.25], [0, 0, 0.5], [1, 1, 0.5], [1, 1, 1.0]]),
        "places": torch.zeros(4, 3),
    }
    (found,) = TASK.decode(outputs, (40, 50), (80, 100))
    assert found.tolist() == pytest.approx([32, 64, 64, 80, 1, 1], abs=1e-3)


def test_the_score_is_that_of_coco() -> None:
    """One of two cells found, one of a crowd not counted, and one where none is."""
    score = TASK.score(["cell", "platelet"])
    assert score.compute() == {}
    truth = torch.tensor([[0.0, 0, 10, 10, 0, 0], [20, 20, 30, 30, 0, 0], [40, 40, 60, 60, 0, 1]])
    found = torch.tensor([[0.0, 0, 10, 10, 0, 0.9], [45, 45, 55, 55, 0, 0.8], [70, 0, 80, 10, 0, 0.3]])
    score.update(found, truth)
    score.update(torch.empty(0, 6), torch.empty(0, 6))
    figures = score.compute()
    assert set(figures) == {"ap", "ap50", "ap75", "ap_cell"}
    assert figures["ap50"] == pytest.approx(51 / 101, abs=1e-4)  # COCO reads precision at 101 recalls


def test_the_score_is_that_of_torchmetrics() -> None:
    """Three classes, of which one is never labelled, on pictures with and without objects, crowds and detections."""
    generator = torch.Generator().manual_seed(0)
    score = TASK.score(["cell", "platelet", "dust"])
    reference = MeanAveragePrecision(class_metrics=True, backend="pycocotools", sync_on_compute=False)
    reference.warn_on_many_detections = False
    for objects, detections in [(12, 30), (0, 4), (7, 0), (9, 140), (3, 8)]:
        corners = 60 * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([corners, corners + 4 + 30 * torch.rand(objects, 2, generator=generator)], dim=1)
        classes = torch.randint(2, (objects, 1), generator=generator).float()
        truth = torch.cat([boxes, classes, (torch.rand(objects, 1, generator=generator) < 0.2).float()], dim=1)
        near = truth[torch.randint(max(objects, 1), (detections if objects else 0,), generator=generator)]
        found = near + torch.cat([3 * torch.randn(len(near), 4, generator=generator), torch.zeros(len(near), 2)], dim=1)
        found = found if objects else torch.tensor([[1.0, 2, 30, 40, 2, 0]] * detections)
        found[:, 5] = torch.rand(len(found), generator=generator)
        score.update(found, truth)
        reference.update(
            [{"boxes": found[:, :4], "labels": found[:, 4].long(), "scores": found[:, 5]}],
            [{"boxes": truth[:, :4], "labels": truth[:, 4].long(), "iscrowd": truth[:, 5].long()}],
        )
    figures, theirs = score.compute(), reference.compute()
    assert 0.1 < figures["ap"] < 0.9
    assert figures == pytest.approx(
        {
            "ap": float(theirs["map"]),
            "ap50": float(theirs["map_50"]),
            "ap75": float(theirs["map_75"]),
            "ap_cell": float(theirs["map_per_class"][0]),
            "ap_platelet": float(theirs["map_per_class"][1]),
        },
        abs=1e-6,
    )


def test_crops_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"multiple of 32 pixels, and finetune.resolution is 100; set it to a multiple"):
        TASK.crop(100, AUGMENTATIONS["natural"])


def test_fp16_agrees_where_boxes_and_classes_stay(model: TaskModel) -> None:
    boxes = torch.tensor([[[0.1, 0.5, 0.0], [0.1, 0.5, 0.0], [0.4, 0.9, 0.1], [0.4, 0.9, 0.1]]])
    exact = {"logits": torch.tensor([[[9.0, 9, -9], [-9, -9, -9]]]), "middle": torch.full((1, 1, 3), 9.0), "boxes": boxes}
    assert TASK.agreement(exact, exact) == (2, 2)
    moved = {**exact, "boxes": boxes + torch.tensor([0, 0.2, 0])}
    assert TASK.agreement(exact, moved) == (1, 2)
    assert TASK.agreement(exact, {**exact, "logits": exact["logits"].flip(1)}) == (0, 2)
    assert TASK.agreement(exact, {**exact, "boxes": boxes * torch.inf}) == (0, 2)


def test_truth_and_predictions_are_drawn_in_panels_of_one_size() -> None:
    truth = Boxes(np.float32([[5, 5, 20, 20]]), np.array([1]), np.array([False]))
    image = np.zeros((40, 50, 3), np.uint8)
    panels = TASK.draw(image, {"truth": truth, "mix": np.float32([[5, 5, 20, 20, 1, 0.9], [0, 0, 9, 9, 0, 0.1]])}, ["a", "b"])
    assert [name for name, _ in panels] == ["truth", "mix"]
    assert np.array_equal(panels[0][1], panels[1][1])  # type: ignore[arg-type]
    assert panels[0][1].any()  # type: ignore[union-attr]
