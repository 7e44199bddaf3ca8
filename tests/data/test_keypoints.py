"""Keypoints under all transforms, left and right from names, and selection of predicted objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dreamteacher.data.dataset import FORMS, Sample, label_tensor
from dreamteacher.data.decode import ORIENTATION, decode
from dreamteacher.data.holdout import MAX_HELD_OUT, MIN_HELD_OUT
from dreamteacher.data.keypoints import OBJECT, Body, Keypoints, flip_indices, has_sides, select_objects, unpaired_sides
from dreamteacher.data.transforms import AUGMENTATIONS, full_image, object_crop, pretrain_crop

BODY = Body(("middle", "left_eye", "right_eye"), ((0, 1), (0, 2)))
COLOURS = {(255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2}  # of a marked pixel: the keypoint in its middle


def sample(height: int = 40, width: int = 50) -> Sample:
    """A face: its left eye, which is on the picture's right, is green, its right eye blue, the middle red and the tail not labelled."""
    image = np.zeros((height, width, 3), np.uint8)
    places = {0: (25, 20), 1: (34, 12), 2: (16, 12)}
    points = np.zeros((1, 3, 3), np.float32)
    for number, (x, y) in places.items():
        image[y - 2 : y + 2, x - 2 : x + 2] = list(COLOURS)[number]
        points[0, number] = x, y, 2
    label = Keypoints(np.float32([[10, 8, 40, 30]]), np.float32([600]), np.array([False]), points, BODY)
    return Sample(image, label, "face")


def eyes(image: np.ndarray, mirrored: bool) -> dict[int, tuple[float, float]]:
    """Where each keypoint is to be seen; in a mirror the green eye is the right one."""
    found = {}
    for colour, number in COLOURS.items():
        rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 60).all(2))
        if len(rows):
            found[{1: 2, 2: 1}.get(number, number) if mirrored else number] = (columns.mean() + 0.5, rows.mean() + 0.5)
    return found


def is_mirrored(image: np.ndarray) -> bool:
    """Whether the turn from the middle over green to blue is reversed."""
    places = [np.argwhere((np.abs(image.astype(int) - colour) < 60).all(2)).mean(0) for colour in COLOURS]
    (y0, x0), (y1, x1), (y2, x2) = places
    return bool((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0) > 0)


@pytest.mark.parametrize("augment", ["natural", "overhead", "no-flip", "none"])
def test_keypoints_stay_on_what_they_mark_and_sides_change_in_a_mirror(augment: str) -> None:
    transform, seen = object_crop(64, AUGMENTATIONS[augment]), set()  # type: ignore[index]
    for seed in range(60):
        torch.manual_seed(seed)
        item = transform(sample())
        image = (item["image"].permute(1, 2, 0) * 255).byte().numpy()
        image = np.where(image > 60, 255, 0).astype(np.uint8)  # whatever the jitter
        label = Keypoints.of_rows(item["label"].numpy(), BODY)
        if label.labelled().sum() < 3:
            continue
        mirrored = is_mirrored(image)
        seen.add(mirrored)
        for number, place in eyes(image, mirrored).items():
            assert label.points[0, number, :2] == pytest.approx(place, abs=1.2), (seed, number)
        x1, y1, x2, y2 = label.corners[0]
        assert x1 <= label.points[0, :, 0].min() <= label.points[0, :, 0].max() <= x2
        assert y1 <= label.points[0, :, 1].min() <= label.points[0, :, 1].max() <= y2
    assert seen == ({False, True} if augment in ("natural", "overhead") else {False})


def test_what_a_crop_does_not_show_is_not_labelled() -> None:
    label = sample().label
    assert isinstance(label, Keypoints)
    left = label.cropped(0, 0, 40, 30)
    assert left.points[0].tolist() == [[25, 20, 2], [0, 0, 0], [16, 12, 2]]
    assert (left.corners.tolist(), left.ignored.tolist(), left.areas.tolist()) == ([[10, 8, 30, 30]], [False], [600])
    assert label.cropped(0, 0, 40, 15).ignored.tolist() == [True]  # too little of it
    assert label.cropped(0, 41, 40, 9).rows().shape == (0, OBJECT + 9)
    scaled = label.scaled(0.5, 2)
    assert (scaled.points[0, 0].tolist(), scaled.areas.tolist()) == ([12.5, 40, 2], [600])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_turn_with_their_picture(orientation: int) -> None:
    """The stored picture is turned as EXIF says, by the code that decodes it, and so are its keypoints."""
    import io

    stored, file, exif = sample(), io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored.image).save(file, "PNG", exif=exif)
    upright = decode(file.getvalue()).image
    turned = stored.label.exif_transposed(orientation, 50, 40)  # type: ignore[union-attr]
    for number, place in eyes(upright, mirrored=False).items():
        assert tuple(turned.points[0, number, :2]) == place


def test_keypoints_are_stored_without_loss_and_reach_a_batch_as_rows() -> None:
    label = sample().label
    assert isinstance(label, Keypoints)
    assert np.array_equal(Keypoints.from_json(label.to_json(), BODY).rows(), label.rows())
    none = label.cropped(0, 0, 2, 2)
    assert Keypoints.from_json(none.to_json(), BODY).points.shape == (0, 3, 3)
    assert torch.equal(label_tensor(label), torch.from_numpy(label.rows()))  # type: ignore[arg-type]
    item = full_image(size=20)(sample())
    assert item["label"][0, :4].tolist() == [5, 4, 20, 15]
    torch.manual_seed(0)
    assert pretrain_crop(32)(sample())["label"].shape == (1, OBJECT + 9)


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (("nose", "left_eye", "right_eye"), [0, 2, 1]),
        (("L_Eye", "R_Eye", "Tail"), [1, 0, 2]),
        (("LShoulder", "RShoulder"), [1, 0]),
        (("lefteye", "righteye"), [1, 0]),
        (("LEFT EAR", "RIGHT EAR"), [1, 0]),
        (("f_l", "f_r", "r_l", "r_r"), [1, 0, 3, 2]),  # of a car, front and rear
        (("left_r1", "right_r1"), [1, 0]),
        (("bright spot", "x"), [0, 1]),
    ],
)
def test_sides_are_known_from_names(names: tuple[str, ...], partners: list[int]) -> None:
    assert flip_indices(names) == partners
    assert unpaired_sides(names) == []
    assert has_sides(names) == (partners != [0, 1])


def test_a_side_without_the_other_is_known_as_such() -> None:
    assert unpaired_sides(("left_eye", "nose", "R_ear")) == ["left_eye", "R_ear"]
    assert not has_sides(("1", "2", "3"))


def maps(height: int = 8, width: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two objects of two keypoints each in an input of 32 x 64, at cells of 4 px; beside the better one a duplicate."""
    centres, points, seen = np.zeros((1, height, width), np.float32), np.zeros((4, height, width), np.float32), np.zeros((2, height, width))
    centres[0, 2, 3], centres[0, 2, 5], centres[0, 5, 10] = 0.9, 0.7, 0.6
    for row, column in ((2, 3), (2, 5)):
        points[:, row, column] = [8 / 64, 8 / 32, 20 / 64, 8 / 32]
    points[:, 5, 10] = [40 / 64, 20 / 32, 70 / 64, 20 / 32]
    seen[:, 2, 3], seen[:, 5, 10] = [1, 0.5], [0.25, 1]
    return centres, points, seen


def test_objects_are_the_peaks_that_say_different_things() -> None:
    found = select_objects(*maps(), (32, 64), (30, 60), size=(60, 120))
    assert found.shape == (2, 7)
    assert found[:, 0].tolist() == pytest.approx([0.9, 0.6])
    assert found[0, 1:].tolist() == [16, 16, 1, 40, 16, 0.5]
    assert found[1, 1:].tolist() == [80, 40, 0.25, 120, 40, 1]  # cut at the picture's border
    assert select_objects(*maps(), (32, 64), (30, 20), size=(30, 20)).shape == (1, 7)  # the padding is ignored
    assert select_objects(maps()[0] * 0, *maps()[1:], (32, 64), (30, 60), size=(30, 60)).shape == (0, 7)


def test_every_form_of_labels_can_be_held_out() -> None:
    assert set(MAX_HELD_OUT) == set(MIN_HELD_OUT) == {"class", *FORMS}
