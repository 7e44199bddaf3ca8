"""Process one item for storage: check, apply orientation, downscale, encode, hash."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dreamteacher.data.box_labels import names_a_size, read_boxes
from dreamteacher.data.boxes import SUFFIX as BOXES
from dreamteacher.data.boxes import Boxes
from dreamteacher.data.class_list import ClassList
from dreamteacher.data.decode import BadPicture, Picture, decode
from dreamteacher.data.depth import SUFFIX as DEPTH
from dreamteacher.data.depth import read_depth, to_tiff
from dreamteacher.data.instance_labels import is_fragmented, object_classes, read_instance_mask, read_outlines, read_stored
from dreamteacher.data.instances import SUFFIX as INSTANCES
from dreamteacher.data.instances import boxes_of, to_png
from dreamteacher.data.items import AUTO, IGNORE, Item
from dreamteacher.data.keypoint_labels import read_keypoints
from dreamteacher.data.keypoints import SUFFIX as KEYPOINTS
from dreamteacher.data.keypoints import Body, Keypoints
from dreamteacher.data.masks import is_lossy, read_mask, to_upright
from dreamteacher.data.multilabel import SUFFIX as LABELS
from dreamteacher.data.multilabel import to_json, to_label
from dreamteacher.data.object_files import read_object_files
from dreamteacher.data.signs import thin_between, thumbnail

DENSE = {"instances": (INSTANCES, to_png), "depth": (DEPTH, to_tiff)}  # task -> suffix and encoder of its label maps
LARGEST_ID = 65535  # of classes without names


@dataclass(frozen=True)
class Prepared:
    """A processed picture and its label.

    data, suffix, width, height: of the stored picture. mode: of the source, see `decode.Picture`. hashes: sha256 of the file, of the
    decoded and of the stored pixels; equal pictures share at least one. histogram: int64 (3, 256) of the stored RGB values.

    label: (suffix, bytes) of the stored label; the suffix is a key of `items.TASKS`. cls: class id, for class labels. multi_hot: 1, 0 or
    IGNORE for each class, for multilabel. boxes: boxes on the stored picture, bounding boxes of instances, or keypoints as boxes. depth:
    the stored map. mask_values: int64 (256) counts of the stored mask's values; all 0 without a mask.

    frames: number of pictures in the file; this is the first. reduced: it was downscaled to `short_side`. source_size: width and height
    before that. source_mask_values: as mask_values, before that. full_label: mask, instances or depth at full size if the picture was
    reduced, else None. thin, thumbnail: see `signs`, of the full-size mask and of the stored picture. palette: {colour: id} of the mask.
    warnings: keys of `decode.WARNINGS`.
    """

    data: bytes
    suffix: str
    width: int
    height: int
    mode: str
    hashes: tuple[bytes, bytes, bytes]
    histogram: np.ndarray
    label: tuple[str, bytes] | None
    cls: int | None
    multi_hot: tuple[int, ...] | None
    boxes: Boxes | None
    depth: np.ndarray | None
    mask_values: np.ndarray
    frames: int
    reduced: bool
    source_size: tuple[int, int]
    source_mask_values: np.ndarray
    full_label: bytes | None
    thin: np.ndarray
    thumbnail: np.ndarray
    palette: dict[int, int]
    warnings: tuple[str, ...]

    @property
    def label_hash(self) -> bytes | None:
        """Digest of the stored label; None without one."""
        return hashlib.sha256(self.label[1]).digest()[:16] if self.label else None


def prepare(
    item: Item,
    classes: ClassList | None,
    *,
    max_pixels: int,
    min_side: int,
    short_side: int | None,
    task: str = AUTO,
    body: Body | None = None,
) -> Prepared:
    """Decode, check and encode an item; a picture whose shorter side exceeds `short_side` is downscaled to it (antialiased; masks NEAREST).

    `task` and `body`, see `Found`, determine how masks and boxes are read. A mask refers to the upright picture, or to the stored pixels if
    only these have its size. A mask without a known pixel, before or after downscaling, is dropped.

    Raises:
        BadPicture: picture or mask cannot be decoded, their sizes differ, or a class or mask value is not in `classes`; for boxes see
            `read_boxes`.
        MemoryError: an allocation failed.
    """
    if item.problem:
        raise BadPicture(item.problem)
    picture = decode(item.data, max_pixels=max_pixels, min_side=min_side)
    warnings = picture.warnings
    height, width = picture.image.shape[:2]
    boxes: Boxes | None = None
    dense, more = _read_dense(item, picture, classes, max_pixels, task=task) if task in DENSE else (None, ())
    warnings = (*warnings, *more)
    keypoints: Keypoints | None = None
    if item.boxes and body:
        keypoints, more = read_keypoints(item.boxes, body, picture.stored_size, picture.orientation)
        warnings = (*warnings, *more)
    elif item.boxes and task not in DENSE:
        boxes, more = read_boxes(item.boxes, classes.names if classes else None, picture.stored_size, picture.orientation)
        warnings = (*warnings, *more)
    mask: np.ndarray | None = None
    palette: dict[int, int] = {}
    if item.mask is not None and task not in DENSE:
        mask, palette = _read_mask(item.mask, picture, classes or ClassList([]), max_pixels)
    is_class = item.cls is not None and mask is None and task not in (*DENSE, "multilabel")
    cls = _class_id(str(item.cls), classes.names if classes else None) if is_class else None
    multi_hot = _labels(item.cls, classes.names if classes else None) if item.cls is not None and task == "multilabel" else None
    if mask is not None and (mask == IGNORE).all():
        mask, warnings = None, (*warnings, "mask_is_unknown")
    if any(each is not None for each in (mask, dense, boxes, keypoints)):
        warnings += _doubt_turn(item, picture)
    shrink = 1.0 if short_side is None else min(1.0, short_side / min(width, height))
    size = (round(width * shrink), round(height * shrink))
    pixels, full_mask, full_dense = picture.image, mask, dense
    if shrink < 1:
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        boxes = boxes and boxes.scaled(size[0] / width, size[1] / height)
        keypoints = keypoints and keypoints.scaled(size[0] / width, size[1] / height)
        dense = None if dense is None else np.asarray(Image.fromarray(dense).resize(size, Image.Resampling.NEAREST))
        mask = None if mask is None else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        if mask is not None and (mask == IGNORE).all():
            mask, full_mask, warnings = None, None, (*warnings, "mask_vanished")
    full_label = None
    if shrink < 1 and full_mask is not None:
        full_label = _encode_mask(full_mask)
    elif shrink < 1 and full_dense is not None:
        full_label = DENSE[task][1](full_dense)
    boxes = boxes_of(dense) if dense is not None and task == "instances" else boxes
    label = _label(mask, cls, boxes) if task not in DENSE else None if dense is None else (DENSE[task][0], DENSE[task][1](dense))
    label = (LABELS, to_json(multi_hot)) if multi_hot is not None else label
    if keypoints:
        boxes, label = keypoints.as_boxes(), (KEYPOINTS, keypoints.to_json())
    data, suffix = _encode(picture, pixels, item.data)
    decoded = _hash(picture.image)
    return Prepared(
        data=data,
        suffix=suffix,
        width=size[0],
        height=size[1],
        mode=picture.mode,
        hashes=(hashlib.sha256(item.data).digest(), decoded, _hash(pixels) if shrink < 1 else decoded),
        histogram=np.array(Image.fromarray(pixels).histogram(), np.int64).reshape(3, 256),
        label=label,
        cls=cls,
        multi_hot=multi_hot,
        boxes=boxes,
        depth=dense if task == "depth" else None,
        mask_values=_count(mask),
        frames=picture.frames,
        source_size=(width, height),
        reduced=shrink < 1,
        source_mask_values=_count(full_mask),
        full_label=full_label,
        thin=np.zeros(256, np.int64) if full_mask is None else thin_between(full_mask),
        thumbnail=thumbnail(pixels),
        palette=palette,
        warnings=warnings,
    )


def _doubt_turn(item: Item, picture: Picture) -> tuple[str, ...]:
    """A warning if EXIF turns the picture and no size tells whether the label was drawn on the upright or on the stored picture."""
    if picture.orientation == 1:
        return ()
    height, width = picture.image.shape[:2]
    has_no_size = item.boxes is not None and item.boxes.form != "stored" and not names_a_size(item.boxes)
    return ("turned_or_not",) * (picture.stored_size == (width, height) or has_no_size)


def _read_dense(
    item: Item, picture: Picture, classes: ClassList | None, max_pixels: int, *, task: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The instance or depth map on the upright picture, None if it is not labelled; keys of `decode.WARNINGS`."""
    height, width = picture.image.shape[:2]
    if task == "instances" and item.boxes:
        return read_outlines(item.boxes, classes.names if classes else [], picture.stored_size, picture.orientation)
    if task == "instances" and item.parts:
        return read_object_files(item.parts, picture, max_pixels)
    if item.mask is None:
        return None, ()
    if task == "depth":
        depth, warnings = read_depth(item.mask, picture, max_pixels)
        return (depth, warnings) if depth.any() else (None, ("mask_is_unknown",))
    if not item.stored:
        objects, warnings = read_instance_mask(item.mask, picture, classes, max_pixels)
        return objects, warnings + ("one_number_in_pieces",) * is_fragmented(objects)
    objects = read_stored(item.mask, object_classes(classes) if classes else None)
    if objects.shape != (height, width):
        raise BadPicture(f"its objects are on {objects.shape[1]} x {objects.shape[0]} pixels, its picture has {width} x {height}")
    return objects, ()


def _read_mask(data: bytes, picture: Picture, classes: ClassList, max_pixels: int) -> tuple[np.ndarray, dict[int, int]]:
    """The checked mask on the upright picture, in the ids of `classes.mask_names`; the palette of `read_mask`."""
    height, width = picture.image.shape[:2]
    try:
        mask, palette = read_mask(data, max_pixels=max_pixels, colours=classes.colours)
        mask = to_upright(mask, picture)
        _check(mask, width, height, classes.names)
    except BadPicture as error:
        if is_lossy(data):
            raise BadPicture(
                f"{error.reason} (its format is lossy, such as JPEG, which changes ids and colours; store masks as PNG)"
            ) from error
        raise
    if classes.colours is None and is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes ids; store masks as PNG")
    return classes.mask_ids()[mask], palette


def _check(mask: np.ndarray, width: int, height: int, classes: list[str]) -> None:
    if mask.shape != (height, width):
        raise BadPicture(
            f"mask is {mask.shape[1]} x {mask.shape[0]}, its picture {width} x {height}; make them equal (masks with nearest neighbour)"
        )
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    strange = [int(value) for value in values if value >= len(classes) and value != IGNORE]
    if strange:
        raise BadPicture(f"mask holds the value {strange[0]}; classes are 0 to {len(classes) - 1}, and {IGNORE} for unknown")


def _class_id(cls: str, classes: list[str] | None) -> int:
    if classes and cls in classes:
        return classes.index(cls)
    if len(cls) < 9 and cls.isascii() and cls.isdecimal() and int(cls) < (len(classes) if classes else LARGEST_ID):
        return int(cls)
    known = f"the {len(classes)} classes" if classes else "a class number (names need a classes.txt)"
    raise BadPicture(f"class {cls[:80]!r} is not {'one of ' if classes else ''}{known}")


def _labels(value: str, classes: list[str] | None) -> tuple[int, ...]:
    try:
        return to_label(value, classes)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        known = f"the {len(classes)} classes" if classes else "the classes, which a classes.txt must name"
        raise BadPicture(f"its labels {value[:80]!r} are not all of {known}") from error


def _label(mask: np.ndarray | None, cls: int | None, boxes: Boxes | None) -> tuple[str, bytes] | None:
    if boxes is not None:
        return BOXES, boxes.to_json()
    if mask is not None:
        return "mask.png", _encode_mask(mask)
    return None if cls is None else ("cls", str(cls).encode())


def _encode_mask(mask: np.ndarray) -> bytes:
    return _save(Image.fromarray(mask), "PNG", optimize=True)


def _count(mask: np.ndarray | None) -> np.ndarray:
    return np.zeros(256, np.int64) if mask is None else np.bincount(mask.ravel(), minlength=256)


def _encode(picture: Picture, pixels: np.ndarray, original: bytes) -> tuple[bytes, str]:
    """The source's bytes if they can be stored unchanged, else PNG for lossless sources, else JPEG of quality 95 in 4:4:4."""
    if picture.suffix and pixels is picture.image:
        return original, picture.suffix
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if picture.grey else pixels)
    if picture.lossless:
        return _save(image, "PNG"), "png"
    return _save(image, "JPEG", quality=95, subsampling=0), "jpg"


def _save(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _hash(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
