"""Detects masks in unknown layouts by content, so that they are not trained on as pictures."""

from __future__ import annotations

import io
import posixpath
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from dreamteacher.data.formats import FORMATS
from dreamteacher.data.items import MASK_SUFFIXES
from dreamteacher.data.table import UNPAIRED_MASK_RANK
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

WINDOW = 600  # names that are compared with each other, in each of three windows of the sorted names
MAX_PAIRS = 8  # pairs of folders, and pairs of files of each, that are opened
MAX_VALUES = 64  # distinct values over all masks
ALIKE_SIDES = 20  # files of one stem in a window that are compared
_TAIL = re.compile(r"(?<=.)[._-](?=[A-Za-z0-9])")  # the start of each suffix
_NUMBER = re.compile(r"(?<=[._-])\d+$")
Pair = tuple[str, str]
Look = tuple[tuple[int, int], set[float], float]  # as _look returns it


def refuse_unknown_masks(table: sqlite3.Connection, tree: Tree, max_bytes: int, classes: list[str] | None) -> None:
    """Refuse a source in which files of one folder or suffix match others by name and size, and look like their masks.

    Two classes with equal file names have similar content; pictures and masks have not. The number of names and opened files is bounded.

    Raises:
        UserError: naming both, and how to name them.
    """
    pairs: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    for window in _windows(table, "ending"):
        _collect(window, pairs)
    likely = sorted(pairs.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    for (one, other, tail), files in likely[:MAX_PAIRS]:
        if len(files) < 3 or (classes and {posixpath.basename(one), posixpath.basename(other)} <= set(classes)):
            continue
        for pictures, masks, chosen in ((one, other, files), (other, one, [(b, a) for a, b in files])):
            if _are_masks_of(tree, chosen[:MAX_PAIRS], max_bytes):
                raise UserError(_advice(tree, pictures, masks, tail if masks == other else ""))
    _refuse_masks_of_other_stems(table, tree, max_bytes)
    _refuse_masks_without_pictures(table, tree, max_bytes)


def _refuse_masks_of_other_stems(table: sqlite3.Connection, tree: Tree, max_bytes: int) -> None:
    """Refuse files that look like masks of others in their folder, such as scan1/lesion.png for scan1/t1.png, or y1.png for x1.png."""
    pairs: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for window in _windows(table, "place"):
        _collect_in_folders(window, pairs)
    likely = sorted(pairs.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    for _, files in likely[:MAX_PAIRS]:
        if len(files) < 3:
            continue
        for chosen in (files, [(b, a) for a, b in files]):
            if _are_masks_of(tree, chosen[:MAX_PAIRS], max_bytes):
                picture, mask = chosen[0]
                name = posixpath.splitext(posixpath.basename(picture))[0]
                raise UserError(
                    f"{tree}: {mask} and others look like masks of the pictures beside them, such as {picture}; name them so "
                    f"({name}_mask.png), or, if they are pictures too, put them into folders of their own"
                )


def _refuse_masks_without_pictures(table: sqlite3.Connection, tree: Tree, max_bytes: int) -> None:
    """Refuse files that are named and look like masks, if none matches a picture by name."""
    query = f"SELECT name FROM files WHERE role = 'picture' AND rank {{}} {UNPAIRED_MASK_RANK} ORDER BY name LIMIT {MAX_PAIRS}"
    by_name, others = ([name for (name,) in table.execute(query.format(sign))] for sign in ("=", "<"))
    if not all(posixpath.splitext(name)[1].lower() in MASK_SUFFIXES for name in by_name):
        return
    looks, other_looks = ([_look(data) for data in tree.read(names, max_bytes) if isinstance(data, bytes)] for names in (by_name, others))
    if _look_like_masks([look for look in looks if look]) and not _look_like_masks([look for look in other_looks if look]):
        raise UserError(
            f"{tree}: {by_name[0]} and others are named and look like masks, but not one has the name of a picture; call the one mask of "
            "images/A.jpg masks/A.png (merge several of one picture), or take them away"
        )


def _advice(tree: Tree, pictures: str, masks: str, tail: str) -> str:
    if pictures == masks:
        return (
            f"{tree}: files whose names end in {tail!r} look like masks of the pictures beside them; name them A_mask.png for A.jpg "
            "(A_mask_0.png, A_mask_1.png and so on where each shows one object, and set ingest.task to instances), or take them away"
        )
    where = f"in {pictures}/" if pictures else "beside it"
    return (
        f"{tree}: {masks}/ looks like masks of the pictures {where}; call the folders masks/ and images/, or, if both are classes, "
        "list all classes in classes.txt"
    )


def _windows(table: sqlite3.Connection, order: Literal["ending", "place"]) -> Iterator[list[str]]:
    """Windows of picture names sorted by `order`: at the start, in the middle, at the end."""
    table.create_function(order, 1, {"ending": _ending, "place": _place}[order], deterministic=True)
    table.execute(f"CREATE INDEX by_{order} ON files ({order}(name)) WHERE role = 'picture'")
    of_pictures, order_by = "SELECT name FROM files WHERE role = 'picture'", f"ORDER BY {order}(name)"
    yield [name for (name,) in table.execute(f"{of_pictures} {order_by} LIMIT {WINDOW}")]
    (n,) = table.execute("SELECT count(*) FROM files WHERE role = 'picture'").fetchone()
    if n > WINDOW:
        yield [name for (name,) in table.execute(f"{of_pictures} {order_by} LIMIT {WINDOW} OFFSET {n // 2}")]
        yield [name for (name,) in table.execute(f"{of_pictures} {order_by} DESC LIMIT {WINDOW}")]


def _ending(name: str) -> str:
    """The path reversed: stem, folder, parent folder ..."""
    return "/".join(reversed(posixpath.splitext(name)[0].split("/")))


def _place(name: str) -> str:
    """Folder and numbers of a name, so that img1.png and mask1.png are neighbours."""
    folder, file = posixpath.split(name)
    return f"{folder}/{'-'.join(_numbers(file))}"


def _numbers(file: str) -> list[str]:
    return [number.lstrip("0") for number in re.findall(r"\d+", posixpath.splitext(file)[0])]


def _collect_in_folders(names: list[str], pairs: dict[tuple[str, str], list[Pair]]) -> None:
    """Add pairs of files in one folder whose letters differ: keyed by name in small folders, and by letters for equal numbers."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    by_place: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[posixpath.dirname(name)].append(name)
        by_place[_place(name)].append(name)
    for groups, key_of in ((by_folder, posixpath.basename), (by_place, _letters)):
        for files in groups.values():
            if len(files) > ALIKE_SIDES:
                continue
            for i, one in enumerate(sorted(files)):
                for other in sorted(files)[i + 1 :]:
                    if _letters(one) != _letters(other) and len(pairs[key_of(one), key_of(other)]) < WINDOW:
                        pairs[key_of(one), key_of(other)].append((one, other))


def _letters(name: str) -> str:
    return re.sub(r"\d+", "#", posixpath.splitext(posixpath.basename(name))[0])


def _collect(names: list[str], pairs: dict[tuple[str, str, str], list[Pair]]) -> None:
    """Add pairs of files that differ in one folder or in a suffix of their names, keyed by the difference."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_stem[posixpath.splitext(posixpath.basename(name))[0]].append(name)
    for stem, files in by_stem.items():
        for i, one in enumerate(files[:ALIKE_SIDES]):
            for other in files[i + 1 : ALIKE_SIDES]:
                _add(one, other, "", pairs)
        starts = [found.start() for found in _TAIL.finditer(stem)]
        for start in starts:
            tail = _NUMBER.sub("0", stem[start:])
            for one in by_stem.get(stem[:start], [])[:ALIKE_SIDES]:
                for other in files[:ALIKE_SIDES]:
                    if start == starts[-1] or posixpath.dirname(one) == posixpath.dirname(other):
                        _add(one, other, tail, pairs)


def _add(one: str, other: str, tail: str, pairs: dict[tuple[str, str, str], list[Pair]]) -> None:
    folders, others = one.split("/")[:-1], other.split("/")[:-1]
    same = len(posixpath.commonprefix([folders, others]))
    key = "/".join(folders[: same + 1]), "/".join(others[: same + 1]), tail
    if len(pairs[key]) < WINDOW:
        pairs[key].append((one, other))


def _are_masks_of(tree: Tree, pairs: list[Pair], max_bytes: int) -> bool:
    """Whether the second files look like masks of the first: equal sizes, few distinct values over all files, in large uniform areas.

    Values are counted over all files, because each drawing may have as few as a mask, but different ones.
    """
    if not all(posixpath.splitext(mask)[1].lower() in MASK_SUFFIXES for _, mask in pairs):
        return False
    contents = tree.read([name for pair in pairs for name in pair], max_bytes)
    looks = [_look(data) if isinstance(data, bytes) else None for data in contents]
    both = [(picture, mask) for picture, mask in zip(looks[::2], looks[1::2], strict=True) if picture and mask]
    if len(both) < 3 or sum(picture[0] == mask[0] for picture, mask in both) <= 0.8 * len(both):
        return False
    return _look_like_masks([mask for _, mask in both]) and len(set().union(*(picture[1] for picture, _ in both))) > MAX_VALUES


def _look_like_masks(looks: list[Look]) -> bool:
    """Whether three or more files have few distinct values together, in large uniform areas."""
    return (
        len(looks) > 2
        and len(set().union(*(look[1] for look in looks))) <= MAX_VALUES
        and sum(look[2] for look in looks) > 0.8 * len(looks)
    )


def _look(data: bytes) -> Look | None:
    """Size, distinct values (at most MAX_VALUES + 1), and the share of pixels equal to their right neighbour; None if unreadable."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > 50_000_000:
                return None
            pixels = np.asarray(image)[:1024, :1024]
    except MemoryError:
        raise
    except Exception:  # what cannot be read is quarantined later, with its reason
        return None
    values = pixels @ 256 ** np.arange(pixels.shape[2]) if pixels.ndim == 3 else pixels
    level = float((values[:, 1:] == values[:, :-1]).mean()) if values.shape[1] > 1 else 0.0
    return image.size, set(np.unique(values)[: MAX_VALUES + 1].tolist()), level
