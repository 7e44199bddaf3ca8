"""metadata.csv and metadata.jsonl of HuggingFace's imagefolder: classes or boxes of the pictures in their lines.

`file_name` is relative to the metadata file's folder (datasets.packaged_modules.folder_based_builder).
"""

from __future__ import annotations

import csv
import json
import math
import posixpath
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any, NamedTuple

from dreamteacher.data.class_list import NUMBER, ClassList
from dreamteacher.data.columns import SplitColumns, require_once, split_is_not_read
from dreamteacher.data.items import AUTO, LabelKind, utf8
from dreamteacher.data.layout import meaning
from dreamteacher.data.multilabel import names_in_cell, require_cells, rows_of
from dreamteacher.data.multilabel_files import COLUMN_FILE, has_columns_of_classes
from dreamteacher.data.names import class_name, nfc, slashes, tidy
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

LOOKED_AT = 100  # lines of a file that are read to find its columns
MAX_CLASSES = 10_000
FILE_NAME = re.compile(r"(.+_)?file_name")
Line = tuple[str, str, dict[str, Any]]  # its place for messages, the picture, {column: cell}


class Metadata(NamedTuple):
    """Metadata files by their content.

    labels, objects: files with a column of that name. others: why other files are not read. multilabel: labels are lists. columns, lists:
    files of `multilabel_files`.
    """

    labels: list[str]
    objects: list[str]
    others: dict[str, str]
    multilabel: bool
    columns: list[str]
    lists: list[str]

    def names(self) -> list[str]:
        """Names of all files."""
        return sorted({*self.labels, *self.objects, *self.others, *self.columns})

    def of_classes(self, task: str) -> list[str]:
        """The files with class labels for a `task`."""
        return self.labels or ((self.columns or self.lists) if task in (AUTO, "multilabel") else [])


def inspect_files(tree: Tree, names: list[str], lists: list[str]) -> Metadata:
    """Inspect the first lines of the files. lists: as `multilabel_files.class_lists` returns them.

    Raises:
        UserError: one that names pictures cannot be read.
    """
    found = Metadata([], [], {}, multilabel=False, columns=[], lists=lists)
    for name in names:
        if posixpath.basename(name) == COLUMN_FILE:
            found.columns.extend([name] * has_columns_of_classes(tree, name))
            continue
        try:
            cells = list(islice(cells_of(tree, name), LOOKED_AT))
        except UserError as error:
            if _names_pictures(tree, name):
                raise
            found.others[name] = f"{error}; it is not read"
            continue
        fields = dict.fromkeys(chain.from_iterable(line for _, line in cells))
        named = any(FILE_NAME.fullmatch(field) for field in fields)
        for key, files in (("label", found.labels), ("objects", found.objects)):
            if named and key in fields:
                files.append(name)
        if not named or not {"label", "objects"} & fields.keys():
            shown = ", ".join(fields)[:80] or "none"
            found.others[name] = f"{name} gives no labels: it needs the columns file_name and label (or objects), and has {shown}"
        found = found._replace(multilabel=found.multilabel or any(isinstance(line.get("label"), list) for _, line in cells))
    return found


def files_of_classes(table: sqlite3.Connection, tree: Tree, metadata: Metadata, labels: LabelKind, *, task: str, boxes: bool) -> list[str]:
    """labels.csv, else the files of `metadata` with class labels; with all settings on auto only if there are neither masks nor boxes."""
    if file := tree.open_text("labels.csv"):
        file.close()
        return ["labels.csv"]
    others = labels == task == AUTO and (boxes or table.execute("SELECT EXISTS (SELECT 1 FROM pairs)").fetchone()[0])
    return [] if others else metadata.of_classes(task)


def read_classes(table: sqlite3.Connection, tree: Tree, files: list[str], classes: ClassList | None, *, multilabel: bool) -> list[str]:
    """Fill the table `labels` from metadata files; returns the distinct classes, numbers first.

    A number is an index into `classes`, if given; -1 and an empty cell mean no label. multilabel: a picture may have several classes.

    Raises:
        UserError: a file cannot be parsed, or two lines disagree about a picture.
    """
    seen: set[str] = set()
    for at, picture, line in lines_of(table, tree, files):
        value = line.get("label")
        if multilabel and isinstance(value, str) and value.strip():
            value = names_in_cell(value)
        if isinstance(value, list) and not multilabel:
            raise UserError(f"{at}: its label is a list, {str(value)[:40]}; for several labels of a picture set ingest.task to multilabel")
        names = [read_class(each, classes, f"{at}: its label") for each in (value if isinstance(value, list) else [value])]
        known = [name for name in names if name is not None]
        if not known and value != []:
            continue
        seen |= set(known)
        refuse_too_many(seen, at)
        insert(table, picture, json.dumps({"yes": sorted(set(known)), "unknown": []}) if multilabel else known[0], at)
    return sorted_classes(seen)


def other_folder(table: sqlite3.Connection, name: str) -> str | None:
    """A message about a picture in the folder of one class while its line in the file `name` names another; None if there is none."""
    other = table.execute(
        "SELECT f.name, f.class, value FROM labels JOIN files AS f ON f.name = labels.name WHERE role = 'picture' AND class != '' "
        "AND value != class AND class IN (SELECT value FROM labels) ORDER BY f.name LIMIT 1"
    ).fetchone()
    return other and f"{name} says that {other[0]} is {other[2]!r}, and it lies in the folder of the class {other[1]!r}"


def refuse_other_folders(table: sqlite3.Connection, tree: Tree, name: str) -> None:
    """UserError if a picture lies in the folder of one class, and its line names another."""
    if other := other_folder(table, f"{tree}/{name}"):
        raise UserError(f"{other}; correct one, or set ingest.labels to csv (the file counts) or folders")


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Classes sorted by number, then by name."""
    return sorted(names, key=lambda name: (0, float(name), name) if NUMBER.fullmatch(name) else (1, 0, name))


def cells_of(tree: Tree, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, {column: cell}) of each line."""
    where = f"{tree}/{name}"
    file = tree.open_text(name)
    if file is None:
        return
    with file, utf8(where):
        if name.lower().endswith(".jsonl"):
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}, line {number}: it is no JSON ({error}); write one object on each line") from error
                if not isinstance(line, dict):
                    raise UserError(f"{where}, line {number}: it is no JSON object; write one on each line")
                yield f"{where}, line {number}", line
            return
        try:
            rows = rows_of(file, FILE_NAME)
            require_once(list(rows.fieldnames or []), where, "label", "file_name")
            for cells in rows:
                at = f"{where}, line {rows.line_num}"
                require_cells(cells, at)
                yield at, {str(key): value for key, value in cells.items() if key}
        except csv.Error as error:
            raise UserError(f"{where}: {error}; write it as comma-separated values") from error


def _names_pictures(tree: Tree, name: str) -> bool:
    file = tree.open_text(name)
    with suppress(UnicodeDecodeError):
        if file:
            with file:
                return "file_name" in file.read(1 << 12)
    return False


def lines_of(table: sqlite3.Connection, tree: Tree, files: list[str]) -> Iterator[Line]:
    """The lines of the files that name a picture.

    Raises:
        UserError: a line has a label and no picture, or gives the split of a picture whose folders name none.
    """
    for name in files:
        splits, is_needed = SplitColumns(), False
        for at, cells in cells_of(tree, name):
            path = cells.get(_path_column(list(cells), at))
            if not isinstance(path, str) or not path.strip():
                if cells.get("label") or cells.get("objects"):
                    raise UserError(f"{at}: there is a label without a file_name")
                continue
            picture = nfc(posixpath.normpath(posixpath.join(posixpath.dirname(name), tidy(slashes(path.strip())))))
            has_none = _is_of_no_split(table, picture)
            if cells.get("split") and has_none:
                raise split_is_not_read(at, "split")
            splits.add(cells, {"label", "objects"})
            is_needed |= has_none
            yield at, picture, cells
        if is_needed and (column := splits.found()):
            raise split_is_not_read(f"{tree}/{name}", column)


def _path_column(fields: list[str], at: str) -> str:
    """`file_name`, else the only column NAME_file_name, else the only one whose NAME is a word for pictures."""
    others = [field for field in fields if FILE_NAME.fullmatch(field)]
    pictures = [field for field in others if meaning(field.removesuffix("_file_name")).role in ("image", "image?")]
    chosen = next((some for some in (["file_name"] if "file_name" in others else [], others, pictures) if len(some) == 1), None)
    if chosen:
        return chosen[0]
    named = f"the columns {', '.join(others)[:80]}, of which one must be called file_name" if others else "no column file_name"
    raise UserError(f"{at}: it has {named}; name each picture there, from the folder of this file")


def _is_of_no_split(table: sqlite3.Connection, picture: str) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM files WHERE name = ? AND role = 'picture' AND split IS NULL)"
    return bool(table.execute(query, [picture]).fetchone()[0])


def read_class(value: Any, classes: ClassList | None, what: str) -> str | None:
    """The name of a class given by name or number; None for an empty value or -1."""
    if isinstance(value, float) and not math.isnan(value) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        raise UserError(f"{what} is {str(value)[:40]!r}; give the name or the number of a class")
    name = class_name(str(value))
    if name in ("", "-1"):
        return None
    if classes and name not in classes.names and re.fullmatch("[0-9]{1,6}", name):
        if classes.is_numbered_from_one:
            raise UserError(f"{what} is {name}, which counts from 0, and classes.txt is numbered from 1; write names in both")
        return classes.names[int(name)] if int(name) < len(classes.names) else name
    return name


def refuse_too_many(seen: set[str], at: str) -> None:
    """UserError for more than MAX_CLASSES classes."""
    if len(seen) > MAX_CLASSES:
        raise UserError(f"{at}: there are more than {MAX_CLASSES} classes, such as {min(seen)!r}; write classes, or drop the column")


def insert(table: sqlite3.Connection, picture: str, value: str, at: str) -> None:
    """Add a label; UserError if the picture has another."""
    if table.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (picture, value)).rowcount == 0:
        (other,) = table.execute("SELECT value FROM labels WHERE name = ?", [picture]).fetchone()
        if other != value:
            raise UserError(f"{at}: {picture} has another label than in a line before; keep one")
