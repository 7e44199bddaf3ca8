from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_sets import write_masks_set
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.items import IGNORE
from dreamteacher.errors import UserError
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.necks import resize
from dreamteacher.tasks.readout import linear, nearest, pixel_features, read_out, standardize


def test_good_features_are_read_better_than_random_ones() -> None:
    labels, truth = torch.arange(90) % 3, torch.arange(300) % 3
    torch.manual_seed(0)

    def accuracy(predicted: torch.Tensor) -> float:
        return float((predicted == truth).float().mean())

    centres = torch.randn(3, 8)
    good = [centres[of] + 0.1 * torch.randn(len(of), 8) for of in (labels, truth)]
    noise = [torch.randn(len(of), 8) for of in (labels, truth)]
    for read in (linear, lambda *data: nearest(*data, 5)):
        assert accuracy(read(good[0], labels, good[1], 3)) == 1.0
        assert accuracy(read(noise[0], labels, noise[1], 3)) < 0.5


def test_nearest_votes_by_cosine_among_k() -> None:
    support = torch.tensor([[10.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels, queries = torch.tensor([2, 0, 1]), torch.tensor([[0.2, 0.01], [0.0, 5.0]])
    assert nearest(support, labels, queries, 3, 1).tolist() == [2, 0]
    assert nearest(support, torch.tensor([2, 0, 2]), queries, 3, 50).tolist() == [2, 0]


def test_dead_and_nearly_dead_channels_take_no_part() -> None:
    """A ReLU that is 0 on all support pixels, or on all but one, and that some queries wake up."""
    torch.manual_seed(0)
    labels, centres = torch.arange(200) % 3, torch.randn(3, 16)
    support, queries = centres[labels] + torch.randn(200, 16), centres[labels] + torch.randn(200, 16)
    dead, nearly, constant = torch.zeros(200, 1), torch.zeros(200, 1), torch.full((200, 1), 0.3)
    nearly[7] = 0.1
    awake = (torch.rand(200, 1) < 0.3) * 2.0
    more = [torch.cat([support, dead, nearly, constant], 1), torch.cat([queries, awake, awake, constant + awake], 1)]
    clean, mended = standardize(support, queries, [16]), standardize(*more, [16 + 3])
    for without, result in zip(clean, mended, strict=True):
        assert torch.equal(without, result)
    assert mended[1].abs().max() < 10
    for read in (linear, lambda *data: nearest(*data, 5)):
        assert torch.equal(read(mended[0], labels, mended[1], 3), read(clean[0], labels, clean[1], 3))


def test_a_level_of_small_values_is_not_taken_for_dead() -> None:
    torch.manual_seed(0)
    support, queries = torch.randn(50, 8), torch.randn(50, 8)
    scaled = torch.cat([torch.full((4,), 1e-3), torch.ones(4)])
    for plain, result in zip(standardize(support, queries, [8]), standardize(support * scaled, queries * scaled, [4, 4]), strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-4)


def test_a_backbone_that_gives_the_same_for_all_pixels_is_read_as_chance() -> None:
    support, labels = standardize(torch.ones(6, 4), torch.ones(3, 4), [2, 2])[0], torch.tensor([0, 1, 1, 1, 0, 1])
    assert support.shape == (6, 0)
    assert linear(support, labels, torch.ones(3, 0), 2).tolist() == [1, 1, 1]
    assert len(nearest(support, labels, torch.ones(3, 0), 2, 4)) == 3


def test_pixel_features_are_those_of_the_resized_maps() -> None:
    torch.manual_seed(0)
    pyramid = [torch.randn(3, 8, 12), torch.randn(5, 4, 6)]
    pixels = torch.tensor([[0, 0], [15, 23], [7, 3], [0, 23]])
    whole = torch.cat([resize(level[None], (16, 24))[0] for level in pyramid])
    read = pixel_features(pyramid, pixels, torch.Size((16, 24)))
    torch.testing.assert_close(read, whole[:, pixels[:, 0], pixels[:, 1]].T)


def test_a_channel_that_hardly_lives_is_dead_also_where_most_are() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([1.0, 1.0, 1e-7, *[0.0] * 13])
    support, queries = standardize(torch.randn(50, 16) * spread, torch.ones(9, 16), [16])
    assert support.shape == (50, 2)
    assert queries.abs().max() < 10


def test_masks_without_a_known_pixel_are_no_figure(tmp_path: Path) -> None:
    """Sparse masks may lose all they know when ingest reduces them."""
    picture, known = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    unknown = np.full((32, 32), IGNORE, np.uint8)
    sets = [
        ImageSet(write_masks_set(tmp_path / name, ["a", "b"], [(picture, mask)]), "val") for name, mask in (("1", known), ("2", unknown))
    ]
    options = {"size": 32, "k": 1, "batch_size": 1, "device": torch.device("cpu")}
    backbone = create_backbone("test_resnet")
    for train, val, which in ((sets[1], sets[0], "1 labelled pictures"), (sets[0], sets[1], "validation masks")):
        with pytest.raises(UserError, match=rf"no pixel of the {which} has a class .* raise ingest\.short_side or label more"):
            read_out(backbone, train, [0], val, **options)
