import io

import numpy as np
import pytest
from picture_files import encoded, tiff
from PIL import Image

from dreamteacher.data.class_list import ClassList
from dreamteacher.data.decode import WARNINGS, BadPicture
from dreamteacher.data.items import Item
from dreamteacher.data.prepare import Prepared, prepare

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 255, (64, 96, 3), np.uint8)
PICTURE = encoded(Image.fromarray(PIXELS), "PNG")
CLASSES = ClassList(["sky", "road", "crack"])
MASK = np.zeros((64, 96), np.uint8)
MASK[32:] = 1
MASK[41:42] = 2  # thinner than a reduced pixel


def png(mask: np.ndarray) -> bytes:
    return encoded(Image.fromarray(mask), "PNG")


def prepared(mask: bytes | None = None, data: bytes = PICTURE, short_side: int | None = None, classes: ClassList = CLASSES) -> Prepared:
    return prepare(Item("a", None, data, mask), classes, max_pixels=10**6, min_side=8, short_side=short_side)


def test_a_reduced_picture_keeps_the_counts_and_the_label_of_its_full_size():
    small = prepared(png(MASK), short_side=16)
    assert (small.reduced, small.width, small.height) == (True, 24, 16)
    assert np.array_equal(small.source_mask_values, np.bincount(MASK.ravel(), minlength=256))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(small.full_label))), MASK)
    assert small.source_mask_values[2] > 0
    assert small.mask_values[2] == 0
    assert small.mask_values.sum() == 24 * 16
    assert np.asarray(Image.open(io.BytesIO(small.label[1]))).shape == (16, 24)


def test_a_picture_of_its_own_size_has_one_label_only():
    for full in (prepared(png(MASK)), prepared(png(MASK), short_side=64)):
        assert (full.reduced, full.full_label, full.frames, full.warnings) == (False, None, 1, ())
        assert np.array_equal(full.source_mask_values, full.mask_values)
    bare = prepared(short_side=16)
    assert (bare.reduced, bare.full_label, bare.label) == (True, None, None)
    assert not bare.source_mask_values.any()


def test_a_mask_without_one_known_pixel_is_no_label():
    unknown = prepared(png(np.full((64, 96), 255, np.uint8)), short_side=16)
    assert (unknown.label, unknown.full_label, unknown.warnings) == (None, None, ("mask_is_unknown",))
    assert not unknown.mask_values.any()
    one = np.full((64, 96), 255, np.uint8)
    one[0, 0] = 1
    assert prepared(png(one)).label is not None


def test_a_mask_whose_known_pixels_vanish_when_it_is_reduced_is_no_label():
    one = np.full((64, 96), 255, np.uint8)
    one[0, 0] = 1
    small = prepared(png(one), short_side=16)
    assert (small.label, small.full_label, small.warnings) == (None, None, ("mask_vanished",))
    assert not small.mask_values.any()
    assert not small.source_mask_values.any()


def test_ids_and_colours_that_mean_unknown_become_255():
    void = ClassList(["void", "sky", "road"])
    assert np.array_equal(mask_in(prepared(png(MASK), classes=void)), np.array([255, 0, 1], np.uint8)[MASK])
    colours = [(0, 0, 0), (128, 64, 128), (255, 0, 0)]
    painted = prepared(png(np.array(colours, np.uint8)[MASK]), classes=ClassList(["sky", "Void", "road"], colours))
    assert np.array_equal(mask_in(painted), np.array([0, 255, 1], np.uint8)[MASK])


def mask_in(picture: Prepared) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.label[1])))


def test_masks_in_the_colours_of_a_list():
    colours = [(0, 0, 0), (128, 64, 128), (255, 0, 0)]
    painted = prepared(png(np.array(colours, np.uint8)[MASK]), classes=ClassList(CLASSES.names, colours))
    assert np.array_equal(mask_in(painted), MASK)


def test_a_lossy_mask_is_refused_with_its_reason():
    blurred = encoded(Image.fromarray(MASK * 100), "JPEG", quality=50)
    with pytest.raises(BadPicture, match=r"mask holds the value .* \(its format is lossy, such as JPEG"):
        prepared(blurred)


def test_what_is_odd_of_the_picture_comes_along():
    stack = tiff(*[PIXELS] * 3, photometric=2)
    assert prepared(data=stack).frames == 3
    infrared = tiff(np.dstack([PIXELS, PIXELS[..., 0] // 2 + 60]), photometric=2, extra=(2,))
    assert prepared(data=infrared).warnings == ("alpha_is_not_transparency",)
    of_boxes = {
        "box_of_a_pixel",
        "boxes_turned",
        "boxes_empty",
        "boxes_from_zero",
        "boxes_outside",
        "boxes_repeated",
        "objects_hidden",
        "one_number_in_pieces",
        "unknown_among_numbers",
        "depth_of_8_bits",
        "keypoints_outside",
        "keypoints_away",
        "keypoints_at_origin",
        "background_is_object",
        "turned_or_not",
    }  # see test_ingest_boxes, test_instances, test_multilabel_and_depth, test_ingest_variants
    assert {"bands_left_out", "alpha_is_not_transparency", "wholly_transparent", "mask_is_unknown", "mask_vanished"} == set(
        WARNINGS
    ) - of_boxes
    deep = prepared(data=tiff(PIXELS.astype(np.uint16) * 3, photometric=2))
    assert (deep.suffix, deep.mode) == ("png", "uint16x3")
    assert deep.histogram.sum() == 3 * 64 * 96


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_a_tiff_as_it_lies_in_the_file_is_turned_with_it(orientation):
    for values in (PIXELS, PIXELS.astype(np.uint16)):
        lying = tiff(values, photometric=2, tags={274: (3, (orientation,))})
        turned = prepared(png(MASK), data=lying)
        assert (turned.width, turned.height) == (64, 96)
        expected = prepared(png(MASK), data=encoded(Image.fromarray(PIXELS), "PNG", exif=exif(orientation)))
        assert turned.label == expected.label


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x112] = orientation
    return block
