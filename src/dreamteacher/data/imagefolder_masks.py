"""Masks and depth maps named in HuggingFace's metadata.csv or metadata.jsonl, as in `mask_file_name`."""

from __future__ import annotations

import posixpath
import sqlite3
from contextlib import suppress
from itertools import islice
from typing import Any

from dreamteacher.data.imagefolder import FILE_NAME, cells_of, lines_of
from dreamteacher.data.labels import MASK_WORDS
from dreamteacher.data.layout import meaning
from dreamteacher.data.names import nfc, slashes, tidy
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

OUTPUTS = {"output", "outputs", "target", "targets"}  # ambiguous: often pictures


def take_listed_masks(table: sqlite3.Connection, tree: Tree, files: list[str], task: str) -> list[str]:
    """Pair pictures with the masks that metadata files name, replacing pairs by file name; returns the metadata files that name masks.

    A column holds masks if the word before `_file_name` means masks (see `layout`) or is what `task` learns from. Overlays and the like in
    other columns are not taken as pictures.

    Raises:
        UserError: the mask of a picture is missing, or two columns name masks.
    """
    used: list[str] = []
    for name in files:
        first: list[dict[str, Any]] = []
        with suppress(UserError):  # an unreadable file is reported where its labels are read
            first = [cells for _, cells in islice(cells_of(tree, name), 1)]
        if not any(_roles(cells, task) for cells in first):
            continue
        for at, picture, cells in lines_of(table, tree, [name]):
            roles = _roles(cells, task)
            masks = [field for field, role in roles.items() if role == "mask" and cells[field]]
            if len(masks) > 1:
                raise UserError(f"{at}: the columns {' and '.join(masks)} both name masks; keep one, or set ingest.task")
            for field, role in roles.items():
                if not cells[field]:
                    continue
                there = _named(table, name, str(cells[field]))
                has_picture = _named(table, "", picture) is not None
                if there is None and (role != "mask" or not has_picture):
                    continue  # only part of a data set may be present
                if there is None:
                    raise UserError(
                        f"{at}: there is no file {cells[field]!r}, which its {field} names; name it from the folder of this file"
                    )
                table.execute("UPDATE files SET role = ?, key2 = NULL WHERE name = ?", (role, there))
                table.execute("DELETE FROM pairs WHERE picture = ?", [there])
                if role == "mask" and has_picture:
                    table.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?, 1)", (picture, there))
                    used = used if name in used else [*used, name]
    return used


def _roles(cells: dict[str, Any], task: str) -> dict[str, str]:
    """{column: role} of the columns that name masks or other files that are not pictures."""
    words = {field: field.removesuffix("_file_name") for field in cells if FILE_NAME.fullmatch(field)}
    return {field: role for field, word in words.items() if (role := _role(word, task))}


def _role(word: str, task: str) -> str | None:
    """The role of the files in a column; None for pictures and unknown words."""
    if word in OUTPUTS:
        return None
    if task in MASK_WORDS and MASK_WORDS[task].search(word):
        return "mask"
    role = meaning(word).role.removesuffix("?")
    return role if role in ("mask", "extra") else None


def _named(table: sqlite3.Connection, file: str, path: str) -> str | None:
    place = nfc(posixpath.normpath(posixpath.join(posixpath.dirname(file), tidy(slashes(path.strip())))))
    found = table.execute("SELECT name FROM files WHERE name = ?", [place]).fetchone()
    return str(found[0]) if found else None
