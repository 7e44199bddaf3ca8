"""Instance labels of one picture: from a mask of object numbers, or from outlines."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamteacher.data.box_labels import SMALLEST, class_id, outlines_of
from dreamteacher.data.class_list import ClassList, is_background, is_void
from dreamteacher.data.decode import BadPicture, Picture
from dreamteacher.data.instances import from_png, pack, unique_by_runs, unpack
from dreamteacher.data.items import IGNORE, BoxLabel
from dreamteacher.data.masks import decode_numbers, exif_transpose, to_upright
from dreamteacher.data.run_lengths import decode_runs

THOUSAND = 1000  # Cityscapes encodes class x 1000 + number; smaller values are not objects
LARGEST = 65535  # number of an object
ONLY_CLASS = "object"  # class name if the source has none
MIN_LARGEST_PIECE = 0.9  # share of an object in its largest piece from which the object counts as one piece
MIN_NUMBERS = 8  # numbers from which a mask is checked for interpolation


def object_classes(classes: ClassList | None) -> list[str]:
    """Class names of objects, by id: without names that mean unknown, and without a background in the first line."""
    names = [ONLY_CLASS] if classes is None else classes.names
    return [name for i, name in enumerate(names) if not is_void(name) and not (i == 0 and is_background(name))]


def read_instance_mask(data: bytes, picture: Picture, classes: ClassList | None, max_pixels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The instance map (see `instances`) of a mask, on the upright `picture`, and keys of `decode.WARNINGS`.

    With one class, each value but 0 is an object's number; 255 after consecutive numbers 1, 2, 3 ... is unknown. With several, a value is
    1000 x the line of its class (from 0) + a number, as in Cityscapes' instanceIds; values below 1000 are not objects. The border colour of
    Pascal VOC is unknown.

    Raises:
        BadPicture: as `decode_numbers`; the mask has another size, or a value of no class.
    """
    height, width = picture.image.shape[:2]
    values = decode_numbers(data, max_pixels=max_pixels)
    refuse_interpolated(values)
    values = to_upright(values, picture)
    if values.shape != (height, width):
        raise BadPicture(f"mask is {values.shape[1]} x {values.shape[0]}, its picture {width} x {height}")
    skips_to_255 = len(object_classes(classes)) == 1 and _skips_to_255(values)
    border = (values < 0) | (values == IGNORE) if skips_to_255 else values < 0
    packed = _pack_classes(np.where(border, 0, values), classes)
    packed[border] = IGNORE
    return packed, ("unknown_among_numbers",) * skips_to_255 + ("background_is_object",) * _is_framed(packed)


def _is_framed(packed: np.ndarray) -> bool:
    """Whether no pixel is background, and one of several objects touches all four sides, as a background that is not 0 does."""
    if not packed.all() or len(np.unique(packed[packed > IGNORE])) < 2:
        return False
    sides = [set(side[side > IGNORE].tolist()) for side in (packed[0], packed[-1], packed[:, 0], packed[:, -1])]
    return bool(set.intersection(*sides))


def _skips_to_255(values: np.ndarray) -> bool:
    """Whether the numbers are 1, 2, 3 ... without gaps, and then 255, which class masks use for unknown pixels."""
    numbers = np.unique(values[values > 0])
    return 1 < len(numbers) < IGNORE and bool(numbers[-1] == IGNORE and numbers[-2] == len(numbers) - 1)


def _pack_classes(values: np.ndarray, classes: ClassList | None) -> np.ndarray:
    names = object_classes(classes)
    if len(names) == 1:
        return _pack(values, np.zeros_like(values))
    lines = classes.names if classes else []
    ids = np.array([names.index(name) if name in names else -1 for name in lines])
    line = values // THOUSAND
    if line.max() >= len(lines):
        raise BadPicture(
            f"mask holds the value {int(values.max())}; of several classes an object is 1000 x the line of its class in classes.txt, from "
            f"0, + its number, so at most {len(lines) * THOUSAND - 1}"
        )
    of_class = np.where(values >= THOUSAND, ids[line], -1)
    return _pack(np.where(of_class >= 0, values, 0), of_class)


def refuse_interpolated(values: np.ndarray) -> None:
    """BadPicture if most numbers cover no square of 2 x 2 pixels and touch others, as in photographs or interpolated masks."""
    shown = values > 0
    codes = np.unique(values[shown]) if values.max() >= MIN_NUMBERS else ()
    if len(codes) < MIN_NUMBERS:
        return
    left, right = values[:, :-1], values[:, 1:]
    solid = (left == right)[:-1] & (left == right)[1:] & (left[:-1] == left[1:])
    alone = np.setdiff1d(codes, values[:-1, :-1][solid])
    touching = np.zeros(values.shape, bool)
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = shown[one] & shown[other] & (values[one] != values[other])
        touching[one] |= differ
        touching[other] |= differ
    thin = np.intersect1d(alone, values[touching])
    if 2 * len(thin) > len(codes):
        raise BadPicture(
            f"mask holds {len(codes)} numbers, and {len(thin)} of them form no area, as in a picture or at smoothed edges; give each "
            "object one number, and resize masks with nearest neighbour"
        )


def is_fragmented(packed: np.ndarray) -> bool:
    """Whether most objects of a map consist of several disconnected pieces, so that numbers may be classes rather than objects."""
    from scipy.ndimage import find_objects, label

    numbers = unpack(packed)[0].astype(np.int32)
    places = find_objects(numbers)
    in_several, in_one = 0, 0
    for number, place in enumerate(places, 1):
        sizes = np.bincount(label(numbers[place] == number, np.ones((3, 3), int))[0].ravel())[1:]
        is_whole = bool(sizes.max() >= MIN_LARGEST_PIECE * sizes.sum())
        in_several, in_one = in_several + (not is_whole), in_one + is_whole
        if 2 * in_several > len(places) or 2 * in_one >= len(places):
            break
    return 2 * in_several > len(places)


def read_outlines(label: BoxLabel, classes: list[str], stored: tuple[int, int], orientation: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The instance map of polygons or COCO run lengths, on the upright picture, and keys of `decode.WARNINGS`.

    Where objects overlap, the smaller one is on top, as the occluding object is usually smaller; crowds are at the bottom and unknown.

    Args:
        label: with outlines.
        classes: names by id; empty if the label gives numbers.
        stored: (width, height) of the stored pixels.
        orientation: EXIF orientation.

    Raises:
        BadPicture: an outline is missing or invalid, or the label is for another size.
    """
    upright = stored[::-1] if orientation > 4 else stored
    named, objects = outlines_of(label, upright)
    size = tuple(int(side) if side else 0 for side in named or (0, 0))
    turn = orientation > 4 and size == stored != upright
    if all(size) and size != upright and not turn:
        raise BadPicture(f"its outlines are for a picture of {size[0]} x {size[1]}, it has {upright[0]} x {upright[1]}")
    width, height = stored if turn else upright
    drawn: list[tuple[int, int, np.ndarray]] = []  # area, class or -1, mask
    for name, outline, crowd in objects:
        try:
            mask = _drawn(outline, height, width)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise BadPicture(f"the outline of a {name!r} is neither a polygon nor run lengths of {width} x {height} pixels") from error
        drawn.append((int(mask.sum()), -1 if crowd else class_id(name, classes), mask))
    if label.form != "yolo" and min(upright) > SMALLEST and _are_fractions([outline for _, outline, _ in objects]):
        raise BadPicture("its outlines lie within one pixel, as fractions would; write them in pixels")
    result = np.zeros((height, width), np.int32)
    for number, (_, cls, mask) in enumerate(sorted(drawn, key=lambda each: (each[1] >= 0, -each[0])), 1):
        result[mask] = ((cls + 1) << 16 | number) if cls >= 0 else IGNORE
        if number == LARGEST:
            raise BadPicture(f"it has more than {LARGEST} objects")
    shown = len(np.unique(result[result > IGNORE]))
    lost = shown < sum(cls >= 0 for _, cls, _ in drawn)
    return (exif_transpose(result, orientation) if turn else result), ("objects_hidden",) * lost


def _are_fractions(outlines: list[Any]) -> bool:
    """Whether all objects are polygons within one pixel; one object with whole numbers may be of this size, in the corner."""
    if not all(isinstance(outline, list) for outline in outlines):
        return False
    values = [value for outline in outlines for polygon in outline for value in polygon]
    return bool(values) and 0 < max(values) <= 1 and (len(outlines) > 1 or any(value % 1 for value in values))


def _drawn(outline: Any, height: int, width: int) -> np.ndarray:
    """bool (H, W) of polygons or run lengths. Run lengths are decoded here, because pycocotools does not validate them."""
    if isinstance(outline, list):
        from pycocotools import mask as coco

        polygons = [np.array(polygon, np.float64) for polygon in outline]
        most = 2 * max(height, width)
        if not polygons or any(each.ndim != 1 or len(each) < 6 or len(each) % 2 or not (abs(each) <= most).all() for each in polygons):
            raise ValueError
        return coco.decode(coco.frPyObjects([each.tolist() for each in polygons], height, width)).any(2)
    return decode_runs(outline, height, width)


def read_stored(data: bytes, classes: list[str] | None) -> np.ndarray:
    """Read a label that `instances.to_png` wrote; BadPicture if it is something else."""
    try:
        packed = from_png(data)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadPicture("its .instances.png is no PNG of objects") from error
    largest = int(packed.max() >> 16)
    if classes is not None and largest > len(classes):
        raise BadPicture(f"an object is of class {largest - 1}, and there are {len(classes)} classes")
    return packed


def _pack(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The instance map of `values`, renumbered from 1, with the class of each pixel in `classes`."""
    found, first, numbers = unique_by_runs(values)
    objects = len(found) - (found[0] == 0)
    if objects > LARGEST:
        raise BadPicture(f"it has more than {LARGEST} objects")
    return pack(numbers + (found[0] != 0), classes.ravel()[first[len(found) - objects :]]).astype(np.int32)
