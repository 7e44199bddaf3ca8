"""Instances: storage, cropping, assembly from a model's maps, and reading of common masks and outlines."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamteacher.data.class_list import ClassList
from dreamteacher.data.dataset import Sample
from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.instance_labels import is_fragmented, read_instance_mask, read_outlines, read_stored
from dreamteacher.data.instances import MAX_OBJECTS, boxes_of, from_png, group, pack, to_png, unique_by_runs, unpack
from dreamteacher.data.items import IGNORE, BoxLabel
from dreamteacher.data.transforms import AUGMENTATIONS, full_image, object_crop

NUMBERS = np.zeros((20, 30), np.int64)
NUMBERS[2:8, 3:9], NUMBERS[2:8, 9:15], NUMBERS[12:18, 20:30] = 1, 2, 3
PACKED = pack(NUMBERS, np.array([0, 0, 1])).astype(np.int32)


def png(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def read(mask: np.ndarray, names: list[str] | None = None) -> np.ndarray:
    picture = decode(png(np.zeros((*mask.shape[:2], 3), np.uint8)))
    return read_instance_mask(png(mask), picture, ClassList(names) if names else None, 10**6)[0]


def outlines(*entries: tuple[Any, str, int], size: tuple[int, int] = (30, 20)) -> BoxLabel:
    boxes = [[0, 0, 1, 1, name, crowd] for _, name, crowd in entries]
    return BoxLabel("coco", json.dumps({"size": size, "boxes": boxes, "outlines": [outline for outline, *_ in entries]}).encode())


def square(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def test_a_map_is_packed_and_stored_without_loss() -> None:
    unknown = PACKED.copy()
    unknown[0] = IGNORE
    assert np.array_equal(from_png(to_png(unknown)), unknown)
    numbers, classes, scores = unpack(unknown)
    assert np.array_equal(numbers, NUMBERS)
    assert classes.tolist() == [0, 0, 1]
    assert scores.tolist() == [0, 0, 0]
    assert boxes_of(unknown).corners.tolist() == [[3, 2, 9, 8], [9, 2, 15, 8], [20, 12, 30, 18]]
    assert boxes_of(unknown * 0).rows().shape == (0, 6)


def test_predictions_are_numbered_by_their_scores() -> None:
    numbers, classes, scores = unpack(pack(NUMBERS, np.array([4, 5, 6]), np.float32([0.2, 0.9, 0.5])))
    assert classes.tolist() == [5, 6, 4]
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.2], abs=1e-4)
    assert np.array_equal(numbers == 1, NUMBERS == 2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_values_of_areas_are_found_as_numpy_finds_them(values: list[list[int]]) -> None:
    array = np.array(values)
    for found, expected in zip(unique_by_runs(array), np.unique(array, return_index=True, return_inverse=True), strict=True):
        assert (found == expected.reshape(found.shape)).all()


def test_a_map_of_areas_is_unpacked_without_sorting_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_values = []
    unique = np.unique
    monkeypatch.setattr(np, "unique", lambda values, **options: sorted_values.append(values.size) or unique(values, **options))
    unpack(np.kron(PACKED, np.ones((20, 20), np.int32)))
    assert sum(sorted_values) < 400 * 20


@pytest.mark.parametrize(("n_whole", "n_apart", "expected"), [(3, 0, False), (2, 2, False), (2, 3, True), (0, 1, True), (0, 0, False)])
def test_most_numbers_in_several_pieces_are_told_from_objects(n_whole: int, n_apart: int, expected: bool) -> None:
    for order in (1, -1):
        numbers = np.zeros((20, 70), np.int64)
        for number, is_apart in enumerate(([True] * n_apart + [False] * n_whole)[::order], 1):
            numbers[2:8, 10 * number : 10 * number + 6] = number
            numbers[5, 10 * number : 10 * number + 6] = 0 if is_apart else number
        packed = pack(numbers, np.zeros(n_whole + n_apart, np.int64)).astype(np.int32)
        assert is_fragmented(packed) is expected


@pytest.mark.parametrize("augment", ["natural", "overhead", "none"])
def test_objects_are_cut_with_their_picture_and_unknown_outside_of_it(augment: str) -> None:
    image = np.where(NUMBERS[..., None] > 0, 250, 20).repeat(3, 2).astype(np.uint8)
    for seed in range(20):
        torch.manual_seed(seed)
        item = object_crop(32, AUGMENTATIONS[augment])(Sample(image, PACKED, "a"))  # type: ignore[index]
        label, red = item["label"], item["image"][0]
        assert set(label.unique().tolist()) <= {0, IGNORE, *np.unique(PACKED).tolist()}
        assert ((label == IGNORE) <= (red < red.max())).all()
        if (label > IGNORE).any() and (label == 0).any():
            middle = (red[label > IGNORE].median() + red[label == 0].median()) / 2
            assert ((red > middle) == (label > IGNORE))[label != IGNORE].float().mean() > 0.9


def test_whole_pictures_are_padded_by_unknown() -> None:
    label = full_image()(Sample(np.zeros((20, 30, 3), np.uint8), PACKED, "a"))["label"]
    assert label.shape == (32, 32)
    assert torch.equal(label[:20, :30], torch.from_numpy(PACKED).long())
    assert (label[20:] == IGNORE).all()


@given(st.lists(st.integers(0, 65535), min_size=4, max_size=4), st.sampled_from(["I;16", "P", "RGB", "L"]))
def test_any_number_may_stand_for_an_object(values: list[int], mode: str) -> None:
    """16 bits, a palette, grey or colours: equal values are one object of the only class, 0 is none."""
    flat = np.array(values, np.uint16).repeat(12).reshape(4, 12).repeat(4, 0)
    if mode == "RGB":
        found = read(np.stack([flat // 256, flat % 256, flat % 7], axis=2).astype(np.uint8))
    elif mode == "I;16":
        found = read(flat)
    else:
        flat = flat % 256
        found = read(flat.astype(np.uint8))
    numbers, classes, _ = unpack(found)
    assert np.array_equal(numbers > 0, flat > 0)
    assert len(classes) == len({value for value in flat.ravel().tolist() if value})
    assert all(len(np.unique(flat[numbers == number])) == 1 for number in range(1, len(classes) + 1))


@pytest.mark.parametrize(("values", "is_unknown"), [([1, 2, 255], True), ([255, 255, 255], False), ([85, 170, 255], False)])
def test_255_behind_counted_numbers_is_unknown(values: list[int], is_unknown: bool) -> None:
    mask = np.array([0, *values], np.uint8)[NUMBERS]
    picture = decode(png(np.zeros((*mask.shape, 3), np.uint8)))
    packed, warnings = read_instance_mask(png(mask), picture, None, 10**6)
    assert (packed[mask == 255] == IGNORE).all() == is_unknown
    assert len(unpack(packed)[1]) == len(set(values)) - is_unknown
    assert warnings == ("unknown_among_numbers",) * is_unknown


def test_of_several_classes_a_value_is_a_thousand_times_the_line_of_the_class() -> None:
    mask = np.array([[0, 7, 1001, 1002, 2001]], np.uint16).repeat(20, 0).repeat(4, 1)
    numbers, classes, _ = unpack(read(mask, ["background", "car", "bus"]))
    assert classes.tolist() == [0, 0, 1]
    assert np.array_equal(numbers > 0, mask >= 1000)
    with pytest.raises(BadPicture, match=r"holds the value 3001; .* so at most 2999"):
        read(mask + 1000, ["background", "car", "bus"])
    assert (unpack(read(np.full((20, 20), 1003, np.uint16), ["car", "void", "bus"]))[1]).tolist() == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(np.ones((9, 9), np.uint8)), "mask is 9 x 9, its picture 30 x 20"),
        (b"\xff\xd8\xff", "lossy format, such as JPEG"),
        (b"", "mask is empty"),
        (b"no picture", "mask"),
    ],
)
def test_what_is_no_such_mask_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadPicture, match=words):
        read_instance_mask(data, decode(png(np.zeros((20, 30, 3), np.uint8))), None, 10**6)


def test_outlines_are_polygons_and_run_lengths_and_the_smaller_lies_above() -> None:
    from pycocotools.mask import encode

    small = np.zeros((20, 30), np.uint8)
    small[5:7, 5:7] = 1
    compressed = encode(np.asfortranarray(small))
    entries = [
        ({"size": [20, 30], "counts": compressed["counts"].decode()}, "b", 0),
        (square(3, 3, 9, 9), "a", 0),
        ({"size": [20, 30], "counts": [0, 40, 560]}, "a", 1),  # the two columns on the left are a crowd
    ]
    packed, warnings = read_outlines(outlines(*entries), ["a", "b"], (30, 20), 1)
    numbers, classes, _ = unpack(packed)
    assert classes.tolist() == [0, 1]
    assert np.array_equal(numbers == 2, small == 1)
    assert int((numbers == 1).sum()) == 36 - 4
    assert (packed[:, :2] == IGNORE).all()
    assert warnings == ()
    hidden, warnings = read_outlines(outlines((square(4, 4, 6, 6), "a", 0), (square(4, 4, 6, 6), "a", 0)), ["a"], (30, 20), 1)
    assert (len(unpack(hidden)[1]), warnings) == (1, ("objects_hidden",))


def test_objects_of_a_pixel_in_the_corner_have_no_fractions() -> None:
    corner, runs = [[0, 0, 1, 0, 1, 1]], {"size": [20, 30], "counts": [100, 30, 470]}
    for entries in ([corner], [corner, runs], [corner, runs, corner]):
        read_outlines(outlines(*((outline, "a", 0) for outline in entries)), ["a"], (30, 20), 1)
    for entries in ([[[0.1, 0.1, 0.9, 0.2, 0.5, 1]]], [corner, corner]):
        with pytest.raises(BadPicture, match="lie within one pixel, as fractions would"):
            read_outlines(outlines(*((outline, "a", 0) for outline in entries)), ["a"], (30, 20), 1)


def test_outlines_turn_with_a_picture_whose_stored_size_they_name() -> None:
    label = outlines((square(2, 3, 8, 5), "a", 0))
    turned, _ = read_outlines(label, ["a"], (30, 20), 6)  # EXIF: shown as 20 x 30
    assert boxes_of(turned).corners.tolist() == [[15, 2, 17, 8]]


Json = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), lambda each: st.lists(each, max_size=4))
Run = st.fixed_dictionaries(
    {"size": Json | st.just([20, 30]), "counts": Json | st.lists(st.integers(-9, 900), max_size=5) | st.text(max_size=9)}
)


@given(st.lists(Json | Run | st.lists(st.lists(st.floats(-50, 50), max_size=9), max_size=2), min_size=1, max_size=2))
def test_any_outline_is_drawn_or_refused_in_one_line(entries: list[Any]) -> None:
    try:
        packed, _ = read_outlines(outlines(*[(entry, "a", 0) for entry in entries]), ["a"], (30, 20), 1)
    except BadPicture as error:
        assert str(error) == "the outline of a 'a' is neither a polygon nor run lengths of 30 x 20 pixels"
    else:
        assert packed.shape == (20, 30)


@given(st.binary(max_size=40))
def test_a_stored_label_that_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(BadPicture):
        read_stored(data, ["a"])


def maps(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of a perfect model for NUMBERS in the upper left part."""
    probabilities, centres, offsets = np.zeros((3, height, width), np.float32), np.zeros((1, height, width)), np.zeros((2, height, width))
    probabilities[0] = 1
    for number, cls in ((1, 0), (2, 0), (3, 1)):
        rows, columns = np.nonzero(number == NUMBERS)
        probabilities[:, rows, columns] = np.float32([[0.1], [0.1], [0.1]])
        probabilities[1 + cls, rows, columns] = 0.8
        offsets[:, rows, columns] = rows.mean() - rows, columns.mean() - columns
        centres[0, rows, columns] = np.exp(-(offsets[:, rows, columns] ** 2).sum(0) / 8)
    return probabilities, centres.astype(np.float32), offsets.astype(np.float32)


def test_pixels_join_the_centre_that_they_point_to() -> None:
    numbers, classes, scores = group(*maps(32, 32), (20, 30), (20, 30))
    assert np.array_equal(np.sort(np.unique(numbers)), [0, 1, 2, 3])
    assert np.array_equal(numbers > 0, NUMBERS > 0)
    assert len({int(numbers[4, 5]), int(numbers[4, 12]), int(numbers[15, 25])}) == 3
    assert classes[numbers[15, 25] - 1] == 1
    assert (scores > 0.6).all()


def test_objects_are_wanted_in_the_labels_own_size() -> None:
    numbers, _, _ = group(*maps(32, 32), (20, 30), (80, 120))
    expected = NUMBERS.repeat(4, 0).repeat(4, 1) > 0
    assert numbers.shape == (80, 120)
    assert (expected & (numbers > 0)).sum() / (expected | (numbers > 0)).sum() > 0.9


def test_noise_gives_at_most_the_objects_that_an_answer_holds() -> None:
    noise = np.random.default_rng(0).random((5, 512, 640), np.float32)
    numbers, classes, scores = group(noise[:2] * 0.1, noise[2:3], noise[3:], (512, 640), (512, 640))
    assert 100 < len(classes) == len(scores) == numbers.max() <= MAX_OBJECTS
    nothing = group(noise[:2] * 0, noise[2:3] * 0, noise[3:], (512, 640), (512, 640))
    assert (nothing[0].max(), len(nothing[1]), len(nothing[2])) == (0, 0, 0)
