from __future__ import annotations

import math

import pytest
import torch

from dreamteacher.settings.downstream import Finetune
from dreamteacher.tasks.classification import TASK, Accuracy


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return TASK.loss(logits, {"label": labels}, Finetune())["loss"]


def test_the_loss_is_cross_entropy() -> None:
    """ln(1 + 1/3) and ln 2: softmax of (ln 3, 0) is (3/4, 1/4)."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert loss(logits.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


def test_accuracy_is_of_pictures_and_of_classes() -> None:
    total = Accuracy(["a", "b", "c", "never"])
    total.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 2]))
    for label in (1, 2):
        total.update(torch.tensor(label), torch.tensor(label))  # of one picture
    assert total.compute() == pytest.approx({"top1": 5 / 6, "accuracy_a": 1, "accuracy_b": 1, "accuracy_c": 1 / 2})


def test_class_255_of_many_counts_like_any_other() -> None:
    """255 means unknown only in masks."""
    total = Accuracy([f"c{i}" for i in range(300)])
    total.update(torch.tensor([255, 255, 7, 299]), torch.tensor([255, 255, 255, 299]))
    assert total.compute() == pytest.approx({"top1": 3 / 4, "accuracy_c255": 2 / 3, "accuracy_c299": 1.0})


def test_the_decision_is_the_largest_logit() -> None:
    assert TASK.decode(torch.tensor([0.1, 2.0, -1.0]), (5, 6), torch.Size()).item() == 1
