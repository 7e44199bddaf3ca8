import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from dreamteacher.data.dataset import Sample
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import AUGMENTATIONS, full_image, picture_crop, pixel_crop, pretrain_crop
from dreamteacher.settings.section import Augment

NATURAL, OVERHEAD = AUGMENTATIONS["natural"], AUGMENTATIONS["overhead"]


def sample(height: int, width: int, label: bool | int = True) -> Sample:
    """Red encodes the row, green the column; the mask is 1 where blue is bright."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    mask = ((rows // 8 + columns // 8) % 2).astype(np.uint8)
    return Sample(np.stack([rows, columns, mask * 255], axis=2), mask if label is True else None if label is False else label, "x")


def places(item: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    red, green = (item["image"][:2] * 255).round().numpy()
    return red, green


@pytest.mark.parametrize(("height", "width"), [(40, 60), (16, 16), (9, 30), (5, 5)])
def test_pretrain_crops_are_unchanged_windows_and_masks_move_along(height, width):
    transform, source = pretrain_crop(16), sample(height, width)
    for seed in range(20):
        torch.manual_seed(seed)
        item = transform(source)
        assert (item["image"].shape, item["image"].dtype) == ((3, 16, 16), torch.float32)
        assert (item["label"].shape, item["label"].dtype) == ((16, 16), torch.int64)
        red, green = places(item)
        y, x = red.astype(int), green.astype(int)
        assert np.array_equal(item["image"][2].numpy() * 255, source.image[y, x, 2])  # each pixel is one of the picture
        assert torch.equal(item["label"], (item["image"][2] > 0.5).long())
        assert set(np.unique(np.abs(np.diff(x, axis=1)))) == {1}
        assert (y == y[:, :1]).all()


def test_pretrain_crops_are_mirrored_only_where_that_is_wanted():
    transform, source = pretrain_crop(16, mirror=False), sample(16, 16)
    for seed in range(20):
        torch.manual_seed(seed)
        item = transform(source)
        assert torch.equal(item["image"], torch.from_numpy(source.image).permute(2, 0, 1) / 255)
        assert torch.equal(item["label"], torch.from_numpy(source.label).long())


def test_pretrain_crops_reach_every_place_and_flip_half_of_the_time():
    transform, source = pretrain_crop(16), sample(20, 24)
    torch.manual_seed(0)
    starts, flips = set(), 0
    for _ in range(600):
        red, green = places(transform(source))
        starts.add((red[0, 0], min(green[0, 0], green[0, -1])))
        flips += bool(green[0, 0] > green[0, -1])
    assert starts == {(y, x) for y in range(5) for x in range(9)}
    assert 240 < flips < 360


def test_classes_and_missing_labels_pass_through():
    for transform in (pretrain_crop(16), picture_crop(16, NATURAL), full_image(32)):
        assert "label" not in transform(sample(40, 40, label=False))
        label = transform(sample(40, 40, label=7))["label"]
        assert (label.shape, label.dtype, label.item()) == ((), torch.int64, 7)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (20, 20)])
def test_segmentation_augmentation_keeps_mask_and_picture_together(height, width):
    transform, source = pixel_crop(32, OVERHEAD), sample(height, width)
    scales, first_rows = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        item = transform(source)
        assert (item["image"].shape, item["image"].dtype, item["label"].shape) == ((3, 32, 32), torch.float32, (32, 32))
        assert type(item["image"]) is type(item["label"]) is torch.Tensor
        assert set(item["label"].unique().tolist()) <= {0, 1}
        blue = item["image"][2]
        bright = blue > (blue.min() + blue.max()) / 2
        assert (bright == item["label"].bool()).float().mean() > 0.85  # they differ at edges only: one is antialiased
        changes = (item["label"][:, 1:] != item["label"][:, :-1]).sum(1).float().mean().item()
        scales.add(round(changes))
        first_rows.add(tuple(item["label"][0].tolist()))
    assert {1, 2} & scales
    assert max(scales) >= 5  # 8 px squares seen at half size: a change every 4 px
    assert len(first_rows) > 20


def orientation(down: torch.Tensor, right: torch.Tensor) -> tuple[bool, bool, bool]:
    """Of a crop, from its values that grew downwards and to the right: is it transposed, and does either grow the other way."""
    along_rows, along_columns = float((down[-1] - down[0]).mean()), float((down[:, -1] - down[:, 0]).mean())
    transposed = abs(along_columns) > abs(along_rows)
    other = right[-1] - right[0] if transposed else right[:, -1] - right[:, 0]
    return transposed, (along_columns if transposed else along_rows) < 0, float(other.mean()) < 0


UPRIGHT, MIRRORED = {(False, False, False)}, {(False, False, False), (False, False, True)}
ALL = set(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("crop", [pixel_crop, picture_crop])
@pytest.mark.parametrize(("name", "expected"), [("natural", MIRRORED), ("overhead", ALL), ("no-flip", UPRIGHT), ("none", UPRIGHT)])
def test_pictures_are_turned_as_their_domain_allows(crop, name, expected):
    rows, columns = np.mgrid[:100, :100].astype(np.uint8)
    source = Sample(np.stack([2 * rows, 2 * columns, rows], axis=2), rows if crop is pixel_crop else 1, "x")
    transform = crop(24, AUGMENTATIONS[name])
    seen = set()
    for seed in range(100):
        torch.manual_seed(seed)
        item = transform(source)
        red, green = item["image"][:2]
        seen.add(orientation(red, green))
        if crop is pixel_crop:
            assert orientation(item["label"].float(), green) == orientation(red, green)
    assert seen == expected


def test_without_augmentation_crops_are_windows_of_the_picture():
    source = sample(40, 60)
    torch.manual_seed(0)
    item = pixel_crop(16, AUGMENTATIONS["none"])(source)
    red, green = places(item)
    top, left = int(red[0, 0]), int(green[0, 0])
    assert np.array_equal(red, np.mgrid[top : top + 16, :16][0])
    assert np.array_equal(green, np.mgrid[:16, left : left + 16][1])
    assert np.array_equal(item["label"], source.label[top : top + 16, left : left + 16])
    item = picture_crop(40, AUGMENTATIONS["none"])(sample(40, 60, label=1))
    assert np.array_equal(places(item)[0][:, 0], np.arange(40))  # the shorter side is whole


def test_every_domain_has_its_augmentation():
    assert set(AUGMENTATIONS) == set(get_args(Augment))


def test_a_fixed_seed_gives_a_fixed_item():
    for transform in (pixel_crop(16, OVERHEAD), picture_crop(16, NATURAL), pretrain_crop(16)):
        items = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            items.append(transform(sample(40, 40))["image"])
        assert torch.equal(items[0], items[1])
        assert not torch.equal(items[0], items[2])
        assert items[0].min() >= 0
        assert items[0].max() <= 1


def test_whole_pictures_are_padded_on_the_bottom_and_the_right():
    item = full_image(32)(sample(40, 64))
    assert item["image"].shape == (3, 64, 64)
    red, green = places(item)
    assert np.array_equal(red[:, 0], [*range(40), *range(38, 14, -1)])  # reflected
    assert np.array_equal(green[0], range(64))
    assert (item["label"][40:] == IGNORE).all()
    assert torch.equal(item["label"][:40], torch.from_numpy(sample(40, 64).label).long())
    assert full_image(32)(sample(3, 5))["image"].shape == (3, 32, 32)  # reflected more than once
    assert full_image(16)(sample(32, 48))["image"].shape == (3, 32, 48)


def test_whole_pictures_can_be_scaled_first():
    item = full_image(32, size=20)(sample(40, 64))
    assert item["image"].shape == (3, 32, 32)
    assert (item["label"][:20] != IGNORE).all()
    assert (item["label"][20:] == IGNORE).all()
    assert abs(item["image"][0, 19, 0].item() * 255 - 38.5) < 1


def test_the_picture_in_the_cache_is_not_changed():
    source = sample(40, 40)
    before = source.image.copy(), source.label.copy()
    for transform in (
        pretrain_crop(16),
        pretrain_crop(40),
        pixel_crop(16, OVERHEAD),
        pixel_crop(40, OVERHEAD),
        full_image(8),
        full_image(32),
    ):
        transform(source)["image"].mul_(0)
    assert np.array_equal(source.image, before[0])
    assert np.array_equal(source.label, before[1])
