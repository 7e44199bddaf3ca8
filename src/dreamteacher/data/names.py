"""What the names of files say: split, class, picture or mask, and which mask belongs to which picture."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from dreamteacher.data.items import MASK_SUFFIXES, SPLITS, utf8

UNLABELLED = {"unlabelled", "unlabeled"}
# Names of folders beside each other, in lower case, that are no part of the key by which picture and mask find each other. Pictures in
# labels/ are masks only where one of them finds its picture: it could be a class of that name.
IMAGE_FOLDERS = {"images"}
MASK_FOLDERS = {"masks": "mask", "labels": "mask??"}
BESIDE_EACH_OTHER = IMAGE_FOLDERS | set(MASK_FOLDERS)
Row = tuple[str, str, str, str | None, str]


def read_list(path: Path) -> Iterator[Row]:
    """The pictures that the lines name and, looked for where `find` says, their masks."""
    above = _folders_of_all(path)
    for name in _lines(path):
        yield row(name, above)
        folder, file = posixpath.split(name)
        folders = {folder, *("/".join(_beside(part, masks) for part in folder.split("/")) for masks in MASK_FOLDERS)}
        tails = (f"{tail}{suffix}" for tail in ("", ".mask", "_mask") for suffix in MASK_SUFFIXES)
        for mask in (posixpath.join(place, posixpath.splitext(file)[0] + tail) for tail in tails for place in folders):
            found = row(mask, above)
            if found[2] != "picture" and os.path.isfile(posixpath.join(path.parent, mask)):  # noqa: PTH113 - pathlib interns names
                yield found


def _lines(path: Path) -> Iterator[str]:
    remedy = "name a folder, a text file of paths, or WebDataset shards"
    with path.open(encoding="utf-8-sig") as lines, utf8(f"ingest.source: {path}", remedy):
        yield from (tidy(line.strip()) for line in lines if line.strip() and not line.startswith("#"))


def _folders_of_all(listing: Path) -> int:
    """How many folders all absolute names have in common, which tell where the set lies and nothing of its splits; 0 if one is relative."""
    common: list[str] | None = None
    for name in _lines(listing):
        folders = name.split("/")[:-1] if name[0] == "/" else []
        common = folders if common is None else list(posixpath.commonprefix([common, folders]))
        if not common:
            return 0
    images = [i for i, folder in enumerate(common or []) if folder.lower() in IMAGE_FOLDERS]  # masks/ may lie beside
    return images[-1] if images else len(common or [])


def _beside(folder: str, masks: str) -> str:
    """The name of the folder of masks beside one of pictures, written as that is; any other folder's name as it is."""
    if folder.lower() not in IMAGE_FOLDERS:
        return folder
    return masks.capitalize() if folder.istitle() else masks.upper() if folder.isupper() else masks


def tidy(name: str) -> str:
    """Without `.` and doubled slashes; `..` stays, as a link may stand before it."""
    return name[: name.startswith("/")] + "/".join(part for part in name.split("/") if part not in ("", "."))


def row(name: str, above: int | None = None) -> Row:
    """Name, the key that picture and mask share, role, split and class of a file.

    above: of a list, how many folders at the front only say where the set lies; then the innermost folder that names a split or a
    class counts. None: the file lies below the source, and the outermost counts.
    """
    *folders, file = name.split("/")
    folders = folders[above or 0 :]
    full_stem = posixpath.splitext(file)[0]
    stem = re.sub(r"[._]mask$", "", full_stem)
    kinds = [MASK_FOLDERS[part.lower()] for part in folders if part.lower() in MASK_FOLDERS]
    role = min(kinds) if kinds else "mask?" if stem != full_stem else "picture"
    places = [i for i, part in enumerate(folders) if part.lower() in SPLITS]
    place = (places[0] if above is None else places[-1]) if places else -1
    split = SPLITS[folders[place].lower()] if places else None
    silent = IMAGE_FOLDERS if role == "mask??" else BESIDE_EACH_OTHER
    below = [part for part in folders[place + 1 :] if part.lower() not in silent]
    cls = (below[0] if above is None else below[-1]) if below else ""
    key = [part for part in folders if part.lower() not in BESIDE_EACH_OTHER]
    return name, nfc("/".join([*key, stem])), role, split, "" if cls.lower() in UNLABELLED else cls


def nfc(name: str) -> str:
    """One spelling of letters with accents: macOS writes them into file names as two characters, most programs as one."""
    return unicodedata.normalize("NFC", name)
