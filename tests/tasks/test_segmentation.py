"""Eq 4 against numpy and worked examples; ignored pixels; head and metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dreamteacher.data.items import IGNORE
from dreamteacher.settings.downstream import Finetune
from dreamteacher.tasks import segmentation
from dreamteacher.tasks.base import count_known
from dreamteacher.tasks.segmentation import TASK, IntersectionOverUnion, SegmentationHead, dice_loss, resized_argmax


def loss(logits: torch.Tensor, labels: torch.Tensor, weight: float, count: int) -> torch.Tensor:
    return TASK.loss(logits, {"label": labels, "count": torch.tensor(count)}, Finetune(dice_weight=weight))["loss"]


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (2, 6, 5), generator=generator)
    labels[:, :2, :3] = IGNORE
    return torch.randn(2, 4, 6, 5, generator=generator) * 3, labels


def numpy_eq4(logits: torch.Tensor, labels: torch.Tensor, weight: float) -> float:
    """Cross entropy of all pixels that count, and soft Dice of those of each picture, pixel by pixel."""
    scores = np.exp(logits.double().numpy())
    scores /= scores.sum(1, keepdims=True)
    everywhere, dice = [], []
    for picture, rows in enumerate(labels.numpy()):
        pixels = [(scores[picture, :, y, x], k) for y, row in enumerate(rows) for x, k in enumerate(row) if k != IGNORE]
        everywhere += pixels
        for c in range(scores.shape[1]):
            overlap = sum(p[c] for p, k in pixels if k == c)
            total = sum(p[c] for p, _ in pixels) + sum(k == c for _, k in pixels)
            dice.append((2 * overlap + 1) / (total + 1))
    return -np.mean([math.log(p[k]) for p, k in everywhere]) + weight * (1 - np.mean(dice))


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_equation_4_is_that_of_numpy(weight: float) -> None:
    logits, labels = case()
    count = count_known({"label": labels})
    assert loss(logits, labels, weight, count).item() == pytest.approx(numpy_eq4(logits, labels, weight), rel=1e-5)


def test_dice_by_hand() -> None:
    """Two pixels of classes 0 and 1, predicted 1/2 each: overlap 1/2, total 2 for either class; 1 - (2 * 1/2 + 1) / (2 + 1) = 1/3."""
    assert dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item() == pytest.approx(1 / 3)
    sure = torch.tensor([[[[99.0, -99.0]], [[-99.0, 99.0]]]])
    assert dice_loss(sure, torch.tensor([[[0, 1]]])).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(sure, torch.tensor([[[1, 0]]])).item() == pytest.approx(1 - 1 / 3)


def test_dice_is_of_each_picture() -> None:
    """A picture that is right and one that is wrong: the mean of 0 and 2/3, while Dice over both at once would be 2/5."""
    sure = torch.tensor([[[99.0, -99.0]], [[-99.0, 99.0]]]).expand(2, 2, 1, 2)
    assert dice_loss(sure, torch.tensor([[[0, 1]], [[1, 0]]])).item() == pytest.approx(1 / 3)


def test_ignored_pixels_count_nowhere() -> None:
    logits, labels = case()
    logits.requires_grad_()
    value = loss(logits, labels, 3.0, 48)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :2, :3].any()
    assert logits.grad[:, :, 2:].any()
    with torch.no_grad():
        changed = logits.detach().clone()
        changed[:, :, :2, :3] = 50
        assert loss(changed, labels, 3.0, 48).item() == pytest.approx(value.item())


def test_a_batch_of_which_every_pixel_is_ignored_is_no_disaster() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), IGNORE), 3.0, 1)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_extreme_and_bf16_logits_give_finite_gradients() -> None:
    labels = torch.tensor([[[0, 1]]])
    for logits in (torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]]), torch.zeros(1, 2, 1, 2).bfloat16()):
        logits.requires_grad_()
        value = loss(logits, 1 - labels, 3.0, 2)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_the_metric_is_the_intersection_over_union_of_the_whole_split() -> None:
    total, score = IntersectionOverUnion(["a", "b", "c", "d"]), np.zeros((4, 4), int)
    for seed in range(3):
        logits, labels = case(seed)
        total.update(logits.argmax(1), labels)
        for truth, guess in zip(labels.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
            if truth != IGNORE:
                score[truth, guess] += 1
    hits = np.diag(score)
    expected = hits / (score.sum(0) + score.sum(1) - hits)
    named = {f"iou_{name}": value for name, value in zip("abcd", expected, strict=True)}
    assert total.compute() == pytest.approx({"miou": expected.mean(), "accuracy": hits.sum() / score.sum(), **named})


def test_classes_that_do_not_occur_do_not_lower_the_mean() -> None:
    truth = torch.tensor([[0, 0, 1, IGNORE]])
    total = IntersectionOverUnion(["a", "b", "never"])
    total.update(torch.tensor([[0, 1, 1, 2]]), truth)
    assert total.compute() == pytest.approx({"miou": 0.5, "accuracy": 2 / 3, "iou_a": 0.5, "iou_b": 0.5})


def test_classes_are_found_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[3] = logits[1]  # of equal logits the first counts
    expected = F.interpolate(logits[None], size=(20, 25), mode="bilinear", align_corners=False)[0].argmax(0)
    for values in (1, 1100, 1 << 20):
        monkeypatch.setattr(segmentation, "RESIZED", values)
        assert torch.equal(resized_argmax(logits, (20, 25)), expected)
    assert torch.equal(resized_argmax(logits, (5, 6)), logits.argmax(0))


def test_the_head_is_upernets() -> None:
    """All levels at the finest resolution, fused by a 3x3 convolution, classified by a 1x1; every parameter learns."""
    torch.manual_seed(0)
    head = SegmentationHead([3, 5, 7], 8, 4)
    pyramid = [torch.randn(2, c, 32 // s, 48 // s) for c, s in zip((3, 5, 7), (4, 8, 16), strict=True)]
    logits = head(pyramid, (32, 48))
    assert logits.shape == (2, 4, 32, 48)
    loss(logits, torch.randint(0, 4, (2, 32, 48)), 1.0, 2 * 32 * 48).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters())
    head.eval()
    levels = [F.interpolate(level, size=(8, 12), mode="bilinear", align_corners=False) for level in head.neck(pyramid)]
    expected = F.interpolate(head.classify(head.fuse(torch.cat(levels, 1))), size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(pyramid, (32, 48)), expected, rtol=1e-5, atol=1e-6)
