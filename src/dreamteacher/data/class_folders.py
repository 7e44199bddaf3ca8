"""Class folders: their classes, and folders that are not classes."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict

from dreamteacher.data.layout import WITH_LABELS
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

PARTS = re.compile(r"(.*[-_. ])?(fold|split|part|subset|chunk|batch|cv|archive)[-_. ]?\d+", re.IGNORECASE)


def classes_of_folders(table: sqlite3.Connection, tree: Tree, classes: list[str] | None) -> tuple[list[str], list[str]]:
    """The classes, and the folders that are not among them; pictures in such folders lose their label."""
    of_pictures = "FROM files WHERE role = 'picture'"
    names = [name for (name,) in table.execute(f"SELECT DISTINCT class {of_pictures} AND class != '' ORDER BY class")]
    if not classes:
        _refuse_unknown_splits(table, tree, names)
    strange = sorted(set(names) - set(classes or names))
    table.executemany("UPDATE files SET class = '' WHERE class = ?", [(name,) for name in strange])
    return classes or names, strange


def _refuse_unknown_splits(table: sqlite3.Connection, tree: Tree, names: list[str]) -> None:
    """UserError if folders look like splits or parts of the data set under unknown names rather than like classes."""
    of_pictures = "FROM files WHERE role = 'picture'"
    way_out = "or, if they are classes, list all classes in classes.txt"
    mixed = table.execute(f"SELECT name {of_pictures} AND split NOT NULL AND class = '' AND name NOT LIKE '%unlabel%' LIMIT 1").fetchone()
    inside = table.execute(f"SELECT name {of_pictures} AND split NOT NULL AND class != '' LIMIT 1").fetchone()
    beside = table.execute(f"SELECT class {of_pictures} AND split IS NULL AND class != '' LIMIT 1").fetchone()
    if beside and (mixed or inside):
        raise UserError(
            f"{tree}: {(mixed or inside)[0]} is read as a picture of that split, but beside it lies the class {beside[0]!r}; "
            f"put all classes below train/ and val/, give the class another name, {way_out}"
        )
    tops = ", ".join(f"'{name}'" for name in WITH_LABELS)
    around = table.execute(f"SELECT top {of_pictures} AND class != '' AND lower(top) IN ({tops}) LIMIT 1").fetchone()
    beside = table.execute(f"SELECT class {of_pictures} AND class != '' AND lower(top) NOT IN ({tops}) LIMIT 1").fetchone()
    if around and beside:
        raise UserError(
            f"{tree}: classes lie below {around[0]}/, and the folder {beside[0]!r} beside it would be one more; if its pictures have no "
            f"label, call it unlabelled, {way_out}"
        )
    if len(names) > 1 and all(PARTS.fullmatch(name) for name in names):
        raise UserError(
            f"{tree}: the folders {_few(names)} look like parts of one set, not like classes; name them train and val, set ingest.labels "
            f"to none, {way_out}"
        )
    if inside:
        return
    inner: dict[str, set[str]] = defaultdict(set)
    for cls, below in table.execute(f"SELECT DISTINCT class, below {of_pictures} AND class != '' LIMIT 1000"):
        inner[cls].add(below)
    sets = list(inner.values())
    if len(sets) > 1 and all(len(each) > 1 and "" not in each and len(each & sets[0]) > 0.8 * len(each | sets[0]) for each in sets):
        raise UserError(
            f"{tree}: the folders {_few(list(inner))} hold the same folders ({_few(sorted(sets[0]))}), as splits do; name them train, "
            f"val and test, {way_out}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
