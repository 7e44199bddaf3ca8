"""Instance segmentation: targets, loss and metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamteacher.data.instances import pack
from dreamteacher.data.items import IGNORE
from dreamteacher.settings.downstream import Finetune
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.base import count_known, of_picture
from dreamteacher.tasks.instances import TASK, targets
from dreamteacher.tasks.model import TaskModel

SIDE = 64


def truth() -> np.ndarray:
    """Two cells that touch, a platelet, and a strip that is unknown."""
    numbers = np.zeros((SIDE, SIDE), np.int64)
    numbers[8:24, 8:22], numbers[8:24, 22:36], numbers[40:56, 30:54] = 1, 2, 3
    packed = pack(numbers, np.array([0, 0, 1]))
    packed[60:] = IGNORE
    return packed


def batch_of(*labels: np.ndarray) -> dict[str, Tensor]:
    label = torch.from_numpy(np.stack(labels))
    images = torch.stack([(label & 0xFFFF == number) & (label > IGNORE) for number in (1, 2, 3)], dim=1).float()
    batch = {"image": images, "label": label}
    return batch | {"count": torch.tensor(count_known(batch))}


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(create_backbone("test_resnet"), "instances", ["cell", "platelet"], SIDE, 16)


def test_targets_lead_from_each_pixel_to_the_middle_of_its_object() -> None:
    labels = torch.from_numpy(np.stack([np.roll(truth(), 3, 1), truth()]))
    classes, heat, offsets = targets(labels)
    assert classes[1].unique().tolist() == [0, 1, 2, IGNORE]
    assert torch.equal((classes > 0) & (classes != IGNORE), labels > IGNORE)
    rows, columns = (labels[1] & 0xFFFF == 2).logical_and(labels[1] > IGNORE).nonzero().T
    assert (rows + offsets[1, 0, rows, columns]).unique().tolist() == [15.5]
    assert (columns + offsets[1, 1, rows, columns]).unique().tolist() == [28.5]
    assert heat[1, 0, 15, 28] > 0.95 > 0.5 > heat[1, 0, 8, 22] > 0
    assert (heat[:, 0][labels <= IGNORE] == 0).all()
    empty = targets(torch.zeros(2, 8, 8, dtype=torch.long))
    assert [values.abs().max().item() for values in empty] == [0, 0, 0]


def test_unknown_pixels_cost_nothing(model: TaskModel) -> None:
    outputs = {name: torch.randn(1, n, 8, 8, requires_grad=True) for name, n in (("logits", 3), ("centres", 1), ("offsets", 2))}
    label = torch.full((1, 8, 8), IGNORE)
    label[:, :4] = 0
    TASK.loss(outputs, {"label": label, "count": torch.tensor(32)}, Finetune())["loss"].backward()
    for values in outputs.values():
        assert (values.grad[:, :, 4:] == 0).all()


def test_the_loss_is_the_same_however_a_batch_is_split(model: TaskModel) -> None:
    model.eval()
    batch = batch_of(truth(), np.zeros_like(truth()))
    together = TASK.loss(model(batch["image"]), batch, Finetune())
    parts = []
    for i in range(2):
        part = {key: value[i : i + 1] for key, value in batch.items() if key != "count"} | {"count": batch["count"] / 2}
        parts.append(TASK.loss(model(part["image"]), part, Finetune()))
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(part[name].item() for part in parts) / 2, rel=1e-5)


def test_it_learns_to_tell_objects_apart(model: TaskModel) -> None:
    optimizer, batch = torch.optim.AdamW(model.parameters(), 5e-3), batch_of(truth(), truth())
    model.train()
    for _ in range(100):
        loss = TASK.loss(model(batch["image"]), batch, Finetune())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = TASK.decode(of_picture(model(batch["image"]), 0), (SIDE, SIDE), (SIDE, SIDE))
    score = TASK.score(model.classes)
    score.update(found, torch.from_numpy(truth()))
    figures = score.compute()
    assert list(figures) == ["ap", "ap50", "ap75", "precision", "ap_cell", "ap_platelet"]
    assert figures["ap50"] == 1
    assert figures["precision"] > 0.6


def test_figures_are_those_of_coco_and_of_the_data_science_bowl() -> None:
    """Of two cells one is found whole (and half an object where the truth is unknown), one is missed; a third is nowhere."""
    score = TASK.score(["cell", "platelet"])
    assert score.compute() == {}
    there, found = np.zeros((40, 40), np.int64), np.zeros((40, 40), np.int64)
    there[:10, :10], there[20:30, :10] = 1, 2
    found[:10, :10], found[:10, 30:40], found[38:, :10] = 1, 2, 3
    label = pack(there, np.array([0, 0]))
    label[38:] = IGNORE
    score.update(torch.from_numpy(pack(found, np.array([0, 0, 1]), np.float32([0.9, 0.4, 0.8]))), torch.from_numpy(label))
    score.update(torch.zeros(8, 8, dtype=torch.long), torch.zeros(8, 8, dtype=torch.long))
    figures = score.compute()
    assert figures["ap"] == figures["ap_cell"] == pytest.approx(51 / 101, abs=1e-4)  # COCO reads precision at 101 recalls
    assert figures["precision"] == pytest.approx(1 / 3)
    assert "ap_platelet" not in figures


def test_an_overlap_counts_at_the_thresholds_below_it() -> None:
    score = TASK.score(["cell"])
    there, found = np.zeros((20, 20), np.int64), np.zeros((20, 20), np.int64)
    there[:10, :10], found[:10, :8] = 1, 1  # overlap 0.8: above 0.5, 0.55 ... 0.75
    score.update(torch.from_numpy(pack(found, np.array([0]), np.float32([1]))), torch.from_numpy(pack(there, np.array([0]))))
    assert score.compute()["precision"] == pytest.approx(0.6)


def test_fp16_agrees_where_class_way_and_heat_stay(model: TaskModel) -> None:
    exact = {"logits": torch.zeros(1, 3, 4, 4), "centres": torch.zeros(1, 1, 4, 4), "offsets": torch.zeros(1, 2, 4, 4)}
    exact["logits"][:, 1, :2] = 5
    exact["logits"][:, 0, 2:] = 5
    assert TASK.agreement(exact, exact) == (16, 16)
    assert TASK.agreement(exact, exact | {"offsets": exact["offsets"] + 3}) == (8, 16)  # where there is no object it says nothing
    assert TASK.agreement(exact, exact | {"logits": exact["logits"].flip(1)}) == (8, 16)
    assert TASK.agreement(exact, exact | {"logits": exact["logits"] * torch.inf}) == (0, 16)


def test_truth_and_predictions_are_drawn_beside_the_picture() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    panels = TASK.draw(image, {"truth": truth(), "mix": truth() * 0}, ["a", "b"])
    assert [name for name, _ in panels] == ["picture", "truth", "mix"]
    assert (panels[1][1].any(2) == (truth() > IGNORE)).all()  # type: ignore[union-attr]
    assert not panels[2][1].any()  # type: ignore[union-attr]
