"""Multilabel data in several files: Roboflow's _classes.csv per split folder, and Pascal VOC's image sets per class."""

from __future__ import annotations

import csv
import json
import posixpath
import re
import sqlite3
from contextlib import suppress
from itertools import groupby

from dreamteacher.data.items import utf8
from dreamteacher.data.multilabel import read_multilabel, rows_of
from dreamteacher.data.names import class_name, row
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

COLUMN_FILE = "_classes.csv"  # columns: filename and one per class; with masks it is a class list
_FILE_NAME = re.compile("filename")
_CLASS_LIST = re.compile(r"(?:(.*)/)?ImageSets/Main/([^/]+)_(train|val|trainval|test)\.txt")
_MEANS = {"1": "yes", "-1": "no", "0": "unknown"}  # Pascal VOC: present, absent, difficult


def has_columns_of_classes(tree: Tree, name: str) -> bool:
    """Whether a _classes.csv has a column filename, and so holds labels."""
    file = tree.open_text(name)
    if file is None:
        return False
    with file, suppress(csv.Error, UnicodeDecodeError):
        fields = rows_of(file, _FILE_NAME).fieldnames or []
        return "filename" in fields and len(fields) > 1
    return False


def read_column_files(table: sqlite3.Connection, tree: Tree, files: list[str]) -> list[str]:
    """Fill the table `labels` as `read_multilabel` does; returns the classes.

    Raises:
        UserError: as `read_multilabel`; the columns of two files differ.
    """
    classes: list[str] = []
    for name in files:
        file, where = tree.open_text(name), f"{tree}/{name}"
        assert file, "it was opened before"
        with file, utf8(where):
            try:
                rows = rows_of(file, _FILE_NAME)
                rows.fieldnames = ["path" if field == "filename" else field for field in rows.fieldnames or []]
                found = read_multilabel(table, rows, where, posixpath.dirname(name))
            except csv.Error as error:
                raise UserError(f"{where}: {error}; write it as comma-separated values") from error
        if classes and found != classes:
            raise UserError(f"{where} has other columns than {tree}/{files[0]}; give both the same classes in one order")
        classes = found
    return classes


def class_lists(table: sqlite3.Connection) -> list[str]:
    """Image sets per class, such as ImageSets/Main/cat_train.txt."""
    query = "SELECT name FROM box_files WHERE suffix = '.txt' AND name LIKE '%ImageSets/Main/%' ORDER BY name"
    return [name for (name,) in table.execute(query) if _CLASS_LIST.fullmatch(name)]


def without_trainval(lists: list[str]) -> list[str]:
    """`class_lists` without those of trainval."""
    return [name for name in lists if not name.endswith("_trainval.txt")]


def read_class_lists(table: sqlite3.Connection, tree: Tree, files: list[str]) -> list[str]:
    """Fill the table `labels` from lists with lines of a picture's stem and 1, -1 or 0 (unknown); returns the sorted classes.

    Raises:
        UserError: a line has another format, two lists disagree about a picture, or no picture is found.
    """
    table.execute("CREATE TABLE class_lists (key TEXT, class TEXT, value TEXT, PRIMARY KEY (key, class)) WITHOUT ROWID")
    classes = sorted({_class_of(name) for name in files})
    for name in files:
        file = tree.open_text(name)
        assert file, "it was listed before"
        folder = posixpath.dirname(posixpath.dirname(posixpath.dirname(name)))
        with file, utf8(f"{tree}/{name}"):
            for number, line in enumerate(file, 1):
                words = line.split()
                if not words:
                    continue
                at = f"{tree}/{name}, line {number}"
                if len(words) != 2 or words[1] not in _MEANS:
                    raise UserError(f"{at}: {line.strip()[:40]!r} is not the name of a picture and 1, -1 or 0; correct it")
                entry = (row(posixpath.join(folder, f"{words[0]}.jpg")).key, _class_of(name), _MEANS[words[1]])
                if table.execute("INSERT OR IGNORE INTO class_lists VALUES (?, ?, ?)", entry).rowcount == 0:
                    (other,) = table.execute("SELECT value FROM class_lists WHERE key = ? AND class = ?", entry[:2]).fetchone()
                    if other != entry[2]:
                        raise UserError(f"{at}: {words[0]} has another value than in a line or list before; keep one")
    table.executemany("DELETE FROM box_files WHERE name = ?", [(name,) for name in files])
    found = table.execute(
        "SELECT nfc(name), c.class, value FROM class_lists AS c JOIN files ON files.key = c.key AND role = 'picture' ORDER BY name"
    ).fetchall()
    if not found:
        raise UserError(f"{tree}/{files[0]} names none of the pictures; put them into JPEGImages/ beside ImageSets/")
    for picture, entries in groupby(found, key=lambda entry: entry[0]):
        values = {cls: value for _, cls, value in entries}
        label = {value: [cls for cls in classes if values.get(cls, "unknown") == value] for value in ("yes", "unknown")}
        table.execute("INSERT INTO labels VALUES (?, ?)", (picture, json.dumps(label)))
    return classes


def _class_of(name: str) -> str:
    found = _CLASS_LIST.fullmatch(name)
    assert found, "it is one of `class_lists`"
    return class_name(found[2])
