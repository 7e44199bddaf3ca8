from __future__ import annotations

import math

import pytest
import torch

from dreamteacher.tasks.classification import loss, metrics


def test_the_loss_is_cross_entropy() -> None:
    """ln(1 + 1/3) and ln 2: softmax of (ln 3, 0) is (3/4, 1/4)."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert loss(logits, torch.tensor([0, 1]))["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert loss(logits.bfloat16(), torch.tensor([0, 1]))["loss"].dtype == torch.float32


def test_accuracy_is_of_pictures_and_of_classes() -> None:
    counted = metrics(3)
    one_hot = torch.eye(3)
    counted.update(one_hot[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 2]))
    counted.update(one_hot[[1, 2]], torch.tensor([1, 2]))
    figures = counted.compute()
    assert figures["top1"].item() == pytest.approx(5 / 6)
    assert figures["class_accuracy"].tolist() == pytest.approx([1, 1, 1 / 2])
