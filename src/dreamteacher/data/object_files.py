"""Masks with one file per object, such as Data Science Bowl 2018's id/masks/HASH.png for id/images/id.png."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from dreamteacher.data.decode import BadPicture, Picture
from dreamteacher.data.instance_labels import LARGEST, THOUSAND, refuse_interpolated
from dreamteacher.data.instances import pack
from dreamteacher.data.items import AUTO
from dreamteacher.data.labels import MASK_WORDS
from dreamteacher.data.layout import meaning, without_image_tail
from dreamteacher.data.masks import decode_numbers, to_upright
from dreamteacher.data.table import HAS_PICTURE, HAS_PICTURE_BY_SUFFIX, assign_roles
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

LOOKED_AT = 8
_NUMBERS = re.compile(r"(instance|segmentation_?object)[^/]*(/.*)?\.(png|tiff?|bmp|gif)$", re.IGNORECASE)
_LAST_WORD = re.compile(r"[\s._-]+[^\s._/-]*$")


def take_masks(table: sqlite3.Connection, tree: Tree, labels: str, task: str, max_bytes: int) -> tuple[str, int]:
    """Assign roles to files and masks to pictures, by `task`.

    Returns:
        The task (instances if AUTO finds only masks of that kind), and the number of pictures with one mask file per object.
    """
    if task == AUTO and labels in ("auto", "masks") and masks_number_objects(table, tree, max_bytes):
        task = "instances"
    if task == "instances":
        take_object_folders(table)
    assign_roles(table, MASK_WORDS.get(task))
    return task, take_object_files(table) if task == "instances" else 0


def masks_number_objects(table: sqlite3.Connection, tree: Tree, max_bytes: int) -> bool:
    """Whether a source has no labels but masks in folders or with suffixes for instances, and the first of them hold object numbers."""
    table.create_function("numbers", 1, lambda name: bool(_NUMBERS.search(name)), deterministic=True)
    mask = (
        f"SELECT 1 FROM files AS m WHERE (role = 'mask' OR (role = 'mask?' AND ({HAS_PICTURE})) "
        f"OR (role = 'tail' AND ({HAS_PICTURE_BY_SUFFIX})))"
    )
    boxes = (
        "SELECT 1 FROM box_files AS b WHERE suffix = '.json' OR EXISTS (SELECT 1 FROM files AS p WHERE p.key = b.key AND role = 'picture')"
    )
    numbered = f"SELECT 1 FROM files AS m WHERE role IN ('extra', 'extra?', 'extra tail') AND numbers(name) AND ({HAS_PICTURE})"
    if not table.execute(f"SELECT EXISTS ({numbered}) AND NOT EXISTS ({mask}) AND NOT EXISTS ({boxes})").fetchone()[0]:
        return False
    other = tree.open_text("labels.csv")
    if other:
        other.close()
        return False
    names = [name for (name,) in table.execute(numbered.replace("SELECT 1", "SELECT name", 1) + f" ORDER BY name LIMIT {LOOKED_AT}")]
    return all(isinstance(data, bytes) and _numbers_objects(data) for data in tree.read(names, max_bytes))


def _numbers_objects(data: bytes) -> bool:
    try:
        refuse_interpolated(decode_numbers(data))
    except BadPicture:
        return False
    return True


def take_object_folders(table: sqlite3.Connection) -> None:
    """Take folders such as mask/ or labels/ as masks if their first files each belong to a picture of another name."""
    table.execute("CREATE INDEX pictures_by_key ON files (key) WHERE role = 'picture'")
    maybe = "SELECT name, key FROM files AS m WHERE role = 'mask?'"
    first = table.execute(f"{maybe} ORDER BY name LIMIT {LOOKED_AT}").fetchall()
    if first and all(_picture_of(table, key) for _, key in first) and not table.execute(f"{maybe} AND ({HAS_PICTURE})").fetchone():
        table.execute("UPDATE files SET role = 'mask' WHERE role = 'mask?'")


def take_object_files(table: sqlite3.Connection) -> int:
    """Fill the table `parts` with masks of one object each, and their pictures. Returns the number of pictures with such masks.

    These are masks of which several match one picture, and masks that match no picture by name: they belong to the picture named by their
    folder (masks/A/7.png) or by a prefix of their name (masks/A_7.png), or to the only picture in their common folder (A/images/A.png,
    A/masks/HASH.png). In `pairs` such a picture has its first mask.
    """
    table.execute("CREATE TABLE parts (mask TEXT PRIMARY KEY, picture TEXT) WITHOUT ROWID")
    table.execute("CREATE INDEX parts_by_picture ON parts (picture, mask)")
    table.execute("DELETE FROM pairs WHERE n > 1")
    for name, key in table.execute("SELECT name, key FROM files WHERE role = 'mask' AND name NOT IN (SELECT mask FROM pairs)"):
        if picture := _picture_of(table, key):
            table.execute("INSERT INTO parts VALUES (?, ?)", (name, picture))
    table.execute("UPDATE files SET role = 'part' WHERE name IN (SELECT mask FROM parts)")
    return table.execute("INSERT INTO pairs SELECT picture, min(mask), 1 FROM parts GROUP BY picture").rowcount


def parts_of(table: sqlite3.Connection, picture: str) -> list[str]:
    """The mask files of one object each of a picture, sorted by name."""
    return [mask for (mask,) in table.execute("SELECT mask FROM parts WHERE picture = ? ORDER BY mask", [picture])]


def require_classes_of_objects(table: sqlite3.Connection, tree: Tree, names: list[str], max_bytes: int, *, has_parts: bool) -> None:
    """UserError if the masks cannot encode the classes in `names`. has_parts: there are masks of one object each."""
    if has_parts and len(names) != 1:
        raise UserError(
            f"{tree}: masks show one object each and no class, and classes.txt names {len(names)} of objects; keep one, drop classes.txt, "
            "or write one mask a picture with 1000 x the line of the class + a number in each pixel"
        )
    if len(names) == 1:
        _refuse_numbers_of_classes(table, tree, max_bytes)


def _refuse_numbers_of_classes(table: sqlite3.Connection, tree: Tree, max_bytes: int) -> None:
    """Refuse Cityscapes' instanceIds with a single class: values below 1000 are classes there, not objects.

    Raises:
        UserError: one of the first such masks holds values both below and above 1000.
    """
    query = f"SELECT mask FROM pairs WHERE mask LIKE '%instanceids%' OR mask LIKE '%instancetrainids%' ORDER BY mask LIMIT {LOOKED_AT}"
    names = [name for (name,) in table.execute(query)]
    for name, data in zip(names, tree.read(names, max_bytes), strict=True):
        try:
            values = decode_numbers(data) if isinstance(data, bytes) else np.zeros(1)
        except BadPicture:  # it is quarantined later
            continue
        if values.max() >= THOUSAND and ((values > 0) & (values < THOUSAND)).any():
            raise UserError(
                f"{tree}/{name} holds values below {THOUSAND}, which are classes, and {values.max()}, which is an object of class "
                f"{values.max() // THOUSAND}, as Cityscapes writes them: name the classes in classes.txt, the first for 0"
            )


def _picture_of(table: sqlite3.Connection, key: str) -> str | None:
    for candidate in _candidates(key):
        query = (
            "SELECT name FROM files WHERE role = 'picture' AND (key = ? OR key2 = ?) AND name NOT IN (SELECT picture FROM pairs) LIMIT 2"
        )
        found = table.execute(query, (candidate, candidate)).fetchall()
        if len(found) == 1:
            return str(found[0][0])
    folder = key.rpartition("/")[0]
    if not folder or meaning(folder.rpartition("/")[2]).split is not None:
        return None
    query = "SELECT name FROM files WHERE role = 'picture' AND key >= ? AND key < ? LIMIT 2"
    found = table.execute(query, (f"{folder}/", f"{folder}0")).fetchall()  # "0" follows "/" in ASCII
    paired = "SELECT EXISTS (SELECT 1 FROM pairs WHERE picture = ?)"
    return str(found[0][0]) if len(found) == 1 and not table.execute(paired, found[0]).fetchone()[0] else None


def _candidates(key: str) -> Iterator[str]:
    """Candidate keys of the picture of a mask: its folder, then its name without the last word, the last two, and so on."""
    folder, _, stem = key.rpartition("/")
    if folder:
        yield folder
    while shorter := _LAST_WORD.sub("", stem, count=1):
        if shorter == stem:
            return
        stem = shorter
        yield f"{folder}/{stem}" if folder else stem
        if short := without_image_tail(stem):
            yield f"{folder}/{short}" if folder else short


def read_object_files(masks: Sequence[bytes], picture: Picture, max_pixels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The instance map (see `instances`) of masks of one object each, on the upright `picture`, and keys of `decode.WARNINGS`.

    Where objects overlap, the smaller one is on top.

    Raises:
        BadPicture: as `decode_numbers`; a mask is of another size, or holds several values.
    """
    height, width = picture.image.shape[:2]
    if len(masks) > LARGEST:
        raise BadPicture(f"it has more than {LARGEST} objects")
    drawn: list[np.ndarray] = []  # flat indices
    for data in masks:
        values = to_upright(decode_numbers(data, max_pixels=max_pixels), picture)
        if values.shape != (height, width):
            raise BadPicture(f"a mask is {values.shape[1]} x {values.shape[0]}, its picture {width} x {height}")
        shown = values > 0
        if shown.any() and (values[shown] != values.max()).any():
            raise BadPicture("of several masks each shows one object, and one of them holds several values besides 0")
        drawn.append(np.flatnonzero(shown))
    numbers = np.zeros(height * width, np.int64)
    for number, places in enumerate(sorted(drawn, key=len, reverse=True), 1):
        numbers[places] = number
    shown, numbers = np.unique(numbers, return_inverse=True)
    numbers = numbers.reshape(height, width) + (shown[0] != 0)
    objects = int((shown > 0).sum())
    packed = pack(numbers, np.zeros(objects, np.int64)).astype(np.int32)
    return packed, ("objects_hidden",) * (objects < len(drawn))
