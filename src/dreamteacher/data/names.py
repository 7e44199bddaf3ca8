"""Derive from a file's path its split, class, role and the key that pairs pictures with labels. The words are those of `layout`."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dreamteacher.data.items import BOX_SUFFIXES, MASK_SUFFIXES, utf8
from dreamteacher.data.layout import Meaning, is_item, meaning, without_extra_tail, without_image_tail, without_mask_tail
from dreamteacher.errors import UserError

_PICTURE_SUFFIX = re.compile(r"\.(jpe?g|png|tiff?|bmp|webp)$", re.IGNORECASE)
UNLABELLED = re.compile(  # folders of unlabelled pictures: unlabeled2017, train_unlabelled, unlabeled_images, no_label
    r"[\W_]*((train|all)[\W_]*)?((un|no[nt]?[\W_]?)labell?ed|(no|without)[\W_]?labels?)[\W_\d]*(images?|imgs?|pictures?|data|set|pool|train)?[\W_\d]*",
    re.IGNORECASE,
)
PROBED = 1000  # lines of a list, of which one must name a file
LISTED_TAILS = ("", ".mask", "_mask", "_label", "_labels", "_seg", "_segmentation", "_gt", "_L", "_labelTrainIds", "_labelIds")


class Place(NamedTuple):
    """What the folders of a path say about the files in them.

    split, cls: named by folders. top: the outermost folder. below: the folder inside the class folder.
    """

    split: str | None
    cls: str
    top: str
    below: str


class Row(NamedTuple):
    """A file, as its path describes it.

    key: equal for a picture and its mask or boxes. key2: the key without a prefix or suffix in `layout` (`1_sat.jpg`, `mask_1.png`,
    `1/mask.png`), or, for a picture, without folders such as scan1. role: "picture", "mask", "extra" (neither, beside masks), "boxes" (may
    hold boxes), or, until all files are known, "mask?" (mask, if any file of such folders matches a picture), "tail" (mask, if this file
    does), "extra?" (extra, if there are masks or it matches a picture). rank: of several masks the lowest is used.
    """

    name: str
    key: str
    key2: str | None
    role: str
    rank: int
    place: Place


def row(name: str, above: int | None = None) -> Row:
    """The Row of a file.

    above: for a list of paths, the number of leading folders that are only the data set's location; the innermost folder that names a split
    or a class is then used. None: the path is relative to the source, and the outermost is used.
    """
    folder, _, file = name.rpartition("/")
    inner, role, rank, place = _read_folders(folder, above)
    raw_stem, suffix = posixpath.splitext(file)
    stem = nfc(raw_stem)
    if suffix.lower() in BOX_SUFFIXES:
        if suffix.lower() == ".json":  # Supervisely writes A.jpg.json for A.jpg
            stem = _PICTURE_SUFFIX.sub("", stem)
        return Row(name, f"{inner}/{stem}" if inner else stem, None, "boxes", 0, place)
    short = without_image_tail(stem)
    if role in ("mask", "mask?"):
        if (extra := without_extra_tail(stem)) is not None:
            role, short = "extra", extra
        elif tail := without_mask_tail(stem, in_mask_folder=True):
            short, rank = tail[0], rank + tail[1]
    elif role == "picture":
        if (extra := without_extra_tail(stem)) is not None:
            role, short = "extra tail", extra
        elif tail := without_mask_tail(stem, in_mask_folder=False):
            role, short, rank = "tail", tail[0], tail[1]
    key = f"{inner}/{stem}" if inner else stem
    key2 = None if short is None else "/".join(filter(None, (inner, short))) or None
    if short is None and role == "picture" and (other := without_items(key)) != key:
        key2 = other
    return Row(name, key, key2, role, rank, place)


def without_items(key: str) -> str:
    """A key without item folders such as scan1, which the label's path may lack."""
    *folders, stem = key.split("/")
    return "/".join([*(part for part in folders if not is_item(part)), stem])


@lru_cache(maxsize=1024)
def _read_folders(folder: str, above: int | None) -> tuple[str, str, int, Place]:
    """(prefix of the key, role, rank, Place) of a folder; see Row."""
    folders = [nfc(part) for part in folder.split("/")[above or 0 :]] if folder else []
    meanings = [meaning(part) for part in folders]
    if above is not None:  # in a list of paths, folders may be arbitrary, such as /data/test_of_new_labels
        meanings = [each if each.sure else Meaning() for each in meanings]
    roles = [each.role for each in meanings if each.role]
    # A strong name applies to everything below; of the others the innermost is used: segmentation_data/images holds pictures.
    role = next((strong for strong in ("extra", "mask") if strong in roles), roles[-1] if roles else "")
    role = role if role in ("extra", "extra?", "mask", "mask?") else "picture"
    places = [i for i, each in enumerate(meanings) if each.split]
    places = [i for i in places if meanings[i].split != "trainval"] or places
    place = (places[0] if above is None else places[-1]) if places else -1
    silent = {"image", ""} if role in ("mask?", "extra?") else {"image", "mask", "mask?", "extra", "extra?"}
    split = meanings[place].split if places else None
    split = "train" if split == "trainval" else split
    if places and place + 2 < len(folders) and folders[place + 1].lower() == folders[place].lower():
        place += 1  # train/train/cat: an archive unpacked into a folder of the same name
    rest = [
        class_name(part)
        for part, each in zip(folders[place + 1 :], meanings[place + 1 :], strict=True)
        if not (each.role in silent if each.role else each.split == "")
    ]
    cls = (rest[0] if above is None else rest[-1]) if rest else ""
    key = [each.split or part for part, each in zip(folders, meanings, strict=True) if each.split or not (each.role or each.split == "")]
    ranks = [each.rank for each in meanings]
    return (
        "/".join(key),
        role,
        min(ranks) if min(ranks, default=0) < 0 else max(ranks, default=0),
        Place(
            split,
            "" if UNLABELLED.fullmatch(cls) else cls,
            class_name(folders[0]) if folders and above is None else "",
            rest[1] if len(rest) > 1 else "",
        ),
    )


def read_list(path: Path) -> Iterator[Row]:
    """Rows of the pictures in a list of paths, and of their masks and box files where `sources.find` looks for them."""
    above = _folders_of_all(path)
    for name in _lines(path):
        yield row(name, above)
        folder, file = posixpath.split(name)
        stem = posixpath.splitext(file)[0]
        tails = [f"{each}{tail}" for each in {stem, without_image_tail(stem) or stem} for tail in LISTED_TAILS]
        for place in (folder, *_mask_folders(str(path.parent), folder)):
            for mask in (posixpath.join(place, tail + suffix) for tail in tails for suffix in MASK_SUFFIXES):
                if mask != name and os.path.isfile(posixpath.join(path.parent, mask)):  # noqa: PTH113 - pathlib interns names
                    found = row(mask, above)
                    if found.role != "picture":
                        yield found
            for boxes in (posixpath.join(place, stem + suffix) for suffix in (".xml", ".txt", ".json")):
                if os.path.isfile(posixpath.join(path.parent, boxes)):  # noqa: PTH113 - as above
                    yield row(boxes, above)


@lru_cache(maxsize=1024)
def _mask_folders(root: str, folder: str) -> list[str]:
    """Folders that may hold masks of the pictures in `folder`: one component of the path replaced by a sibling."""
    found, parts = [], folder.split("/")
    for i, part in enumerate(parts):
        if meaning(part).role not in ("image", "image?") and not meaning(part).split:
            continue
        above = "/".join(parts[:i])
        try:
            with os.scandir(posixpath.join(root, above)) as entries:
                beside = [entry.name for entry in entries if meaning(entry.name).role in ("mask", "mask?") and entry.is_dir()]
        except OSError:
            continue
        found += ["/".join([*parts[:i], name, *parts[i + 1 :]]) for name in sorted(beside)]
    return found


def require_files(path: Path, setting: str) -> None:
    """UserError if none of the first lines of a list, the value of `setting`, names a file."""
    first = list(islice(_lines(path), PROBED))
    places = (posixpath.join(path.parent, name) for name in first)
    if first and not any(os.path.lexists(place) and not os.path.isdir(place) for place in places):  # noqa: PTH112 - as above
        raise UserError(
            f"{setting}: none of the first {len(first)} lines of {path} names a file that exists, such as {first[0]!r}; make the files "
            f"available (is their disk mounted?), and write one path on each line, absolute or from {path.parent}, and nothing else "
            "(classes go into labels.csv beside the list)"
        )


def _lines(path: Path) -> Iterator[str]:
    """The paths in a list. Lines that begin with # are comments unless there is such a file."""
    for text in _written(path):
        name = _on_disk(path.parent, text)
        if not text.startswith("#") or os.path.lexists(posixpath.join(path.parent, name)):
            yield name


def _written(path: Path) -> Iterator[str]:
    """The lines of a list that are not empty, as paths, without the quotes in which some tools write them; the disk is not asked."""
    remedy = "name a folder, a text file of paths, or WebDataset shards"
    with path.open(encoding="utf-8-sig") as lines, utf8(f"ingest.source: {path}", remedy):
        for line in lines:
            text = line.strip()
            if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
                text = text[1:-1]
            if text:
                yield tidy(slashes(text)) or "."


def _on_disk(folder: Path, name: str) -> str:
    """The name in the Unicode normal form in which there is such a file, since lists are often written on another system."""
    if name.isascii():
        return name
    forms = dict.fromkeys((name, nfc(name), unicodedata.normalize("NFD", name)))
    return next((form for form in forms if os.path.lexists(posixpath.join(folder, form))), name)


def _folders_of_all(listing: Path) -> int:
    """Number of leading folders that all absolute paths share, the data set's location; 0 if a path is relative."""
    common: list[str] | None = None
    for name in _written(listing):
        if name.startswith("#"):
            continue
        folders = name.split("/")[:-1] if name[0] == "/" else []
        common = folders if common is None else list(posixpath.commonprefix([common, folders]))
        if not common:
            return 0
    images = [i for i, folder in enumerate(common or []) if meaning(folder).role == "image"]  # masks/ may lie beside
    return images[-1] if images else len(common or [])


def tidy(name: str) -> str:
    """The path without `.` and double slashes; `..` stays, because of links."""
    return name[: name.startswith("/")] + "/".join(part for part in name.split("/") if part not in ("", "."))


def slashes(name: str) -> str:
    """The path with slashes, if it has only backslashes."""
    return name if "/" in name else name.replace("\\", "/")


def nfc(name: str) -> str:
    """Unicode NFC, because macOS writes decomposed file names."""
    return unicodedata.normalize("NFC", name)


def is_set(flag: object) -> bool:
    """Whether a flag of a label file is set: a number, a truth value, or the text of one, as some tools write `"0"` or `True`."""
    return flag.strip().lower() in ("1", "1.0", "true", "yes") if isinstance(flag, str) else bool(flag)


def class_name(text: str) -> str:
    """Normalise a class name: NFC, stripped, without zero-width characters, each whitespace a single space."""
    return " ".join(re.sub("[\u200b\u2060\ufeff]", "", nfc(text)).split())
