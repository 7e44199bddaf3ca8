"""Two augmented views of a picture."""

import numpy as np
import pytest
import torch

from dreamteacher.data.dataset import Sample
from dreamteacher.data.transforms import AUGMENTATIONS, two_views

SIZE = 32


def picture(height: int, width: int) -> Sample:
    """Red encodes the row, green the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Sample(np.stack([rows, columns, np.full_like(rows, 99)], axis=2), None, "x")


def views(source: Sample, seed: int, augment: str = "natural") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return two_views(SIZE, AUGMENTATIONS[augment])(source)


@pytest.mark.parametrize(("height", "width"), [(200, 150), (40, 33), (9, 60)])
def test_views_differ_and_follow_from_the_seed_alone(height: int, width: int) -> None:
    source = picture(height, width)
    first, again, other = views(source, 1), views(source, 1), views(source, 2)
    assert set(first) == {"image", "other"}
    for name in first:
        assert first[name].shape == (3, SIZE, SIZE) and first[name].dtype == torch.float32
        assert first[name].min() >= 0 and first[name].max() <= 1
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert not torch.equal(first["image"], first["other"])


def test_both_views_lie_in_one_window_of_twice_their_side() -> None:
    """Without change of size and colour pixels say where they come from, but for the blur."""
    source, apart = picture(250, 250), 0
    for seed in range(40):
        both = views(source, seed, "none")
        corners = torch.stack([each[:2].amin((1, 2)) * 255 for each in both.values()])
        spread = torch.stack([each[:2].amax((1, 2)) * 255 for each in both.values()]).amax(0) - corners.amin(0)
        assert (spread <= 2 * SIZE).all()
        apart += int((corners[0] - corners[1]).abs().max() > 2)
    assert apart > 30


def test_scaled_views_keep_about_the_pictures_scale() -> None:
    steps = []
    for seed in range(60):
        view = views(picture(250, 250), seed, "no-flip")["image"]
        if view[0].std() > 0 and not torch.allclose(view[0], view[1]):  # not grey
            rows = view[0].mean(1)
            steps.append(float((rows[-8] - rows[8]) / (SIZE - 16) * 255))
    assert 0.5 < np.median(steps) < 2


@pytest.mark.parametrize(("augment", "orientations"), [("natural", 2), ("overhead", 8), ("no-flip", 1), ("none", 1)])
def test_views_are_turned_only_as_the_domain_allows(augment: str, orientations: int) -> None:
    seen = set()
    for seed in range(80):
        red, green = views(picture(200, 200), seed, augment)["image"][:2]
        if torch.allclose(red, green):  # without colour
            continue
        down, across = (
            [(channel[-1] - channel[0]).mean() for channel in (red, green)],
            [(channel[:, -1] - channel[:, 0]).mean() for channel in (red, green)],
        )
        turned = bool(abs(across[0]) > abs(down[0]))
        seen.add((turned, bool((across if turned else down)[0] > 0), bool((down if turned else across)[1] > 0)))
    assert len(seen) == orientations


def test_colours_change_only_where_labels_allow_it() -> None:
    blue = {
        augment: [float(views(picture(200, 200), seed, augment)["image"][2].mean()) for seed in range(20)]
        for augment in ("natural", "none")
    }
    assert np.ptp(blue["none"]) < 1e-5
    assert np.ptp(blue["natural"]) > 0.1
