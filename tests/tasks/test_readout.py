from __future__ import annotations

import pytest
import torch

from dreamteacher.data.items import IGNORE
from dreamteacher.students.neck import resize
from dreamteacher.tasks.readout import linear, nearest, pixel_features
from dreamteacher.tasks.scoring import Score


def test_good_features_are_read_better_than_random_ones() -> None:
    labels, truth = torch.arange(90) % 3, torch.arange(300) % 3
    torch.manual_seed(0)

    def accuracy(predicted: torch.Tensor) -> float:
        return float((predicted == truth).float().mean())

    centres = torch.randn(3, 8)
    good = [centres[of] + 0.1 * torch.randn(len(of), 8) for of in (labels, truth)]
    noise = [torch.randn(len(of), 8) for of in (labels, truth)]
    for read in (linear, lambda *given: nearest(*given, 5)):
        assert accuracy(read(good[0], labels, good[1], 3)) == 1.0
        assert accuracy(read(noise[0], labels, noise[1], 3)) < 0.5


def test_nearest_votes_by_cosine_among_k() -> None:
    known = torch.tensor([[10.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels, asked = torch.tensor([2, 0, 1]), torch.tensor([[0.2, 0.01], [0.0, 5.0]])
    assert nearest(known, labels, asked, 3, 1).tolist() == [2, 0]
    assert nearest(known, torch.tensor([2, 0, 2]), asked, 3, 50).tolist() == [2, 0]


def test_pixel_features_are_those_of_the_resized_maps() -> None:
    torch.manual_seed(0)
    pyramid = [torch.randn(3, 8, 12), torch.randn(5, 4, 6)]
    pixels = torch.tensor([[0, 0], [15, 23], [7, 3], [0, 23]])
    whole = torch.cat([resize(level[None], (16, 24))[0] for level in pyramid])
    read = pixel_features(pyramid, pixels, torch.Size((16, 24)))
    torch.testing.assert_close(read, whole[:, pixels[:, 0], pixels[:, 1]].T)


def test_classes_that_do_not_occur_do_not_lower_the_mean() -> None:
    truth = torch.tensor([[0, 0, 1, IGNORE]])
    total = Score("segmentation", ["a", "b", "never"])
    total.update(torch.tensor([[0, 1, 1, 2]]), truth)
    assert total.compute() == pytest.approx({"miou": 0.5, "accuracy": 2 / 3, "iou_a": 0.5, "iou_b": 0.5})
