"""Multilabel labels.csv: one column per class, or several names per cell or over several lines."""

from __future__ import annotations

import ast
import csv
import json
import posixpath
import re
import sqlite3
from contextlib import suppress
from itertools import chain
from typing import IO, Any

from dreamteacher.data.columns import SplitColumns, split_among, split_is_not_read
from dreamteacher.data.items import IGNORE
from dreamteacher.data.names import class_name, nfc, slashes, tidy
from dreamteacher.errors import UserError

SUFFIX = "labels.json"  # of a stored label file
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
UNKNOWN = {"", "-1", "-1.0", "nan", "na", "?"}  # cell values; empty and -1 as in CheXpert
_CONTROLS = re.compile("[\x00-\x1f\x7f]")
SEPARATORS = re.compile("[;|,]")
PATH = re.compile("path")  # the column of labels.csv that names pictures


def rows_of(file: IO[str], path: re.Pattern[str]) -> csv.DictReader:
    """A reader of the table's lines; the delimiter (comma, semicolon or tab) is detected from the header.

    path: pattern of the name of the path column, which must be among the columns for a delimiter to be accepted.
    """
    head = file.readline()
    heads = {mark: [field.strip() for field in next(csv.reader([head], delimiter=mark), [])] for mark in ",;\t"}
    small = {mark: [field.lower() for field in fields] for mark, fields in heads.items()}
    heads = {
        mark: [low if low == "label" or path.fullmatch(low) else field for field, low in zip(fields, small[mark], strict=True)]
        for mark, fields in heads.items()
    }
    mark = next((mark for mark, fields in heads.items() if any(path.fullmatch(field) for field in fields)), ",")
    rows = csv.DictReader(chain([head], file), delimiter=mark, skipinitialspace=True)
    if rows.fieldnames:  # reads the first line
        rows.fieldnames = heads[mark]
    return rows


def has_columns(fields: list[str]) -> bool:
    """Whether the columns of labels.csv are classes."""
    return "path" in fields and "label" not in fields and len(fields) > 1


def read_multilabel(table: sqlite3.Connection, rows: csv.DictReader, where: str, folder: str = "") -> list[str]:
    """Fill the table `labels`: value is {"yes": names, "unknown": names}; returns the classes, in the order of columns.

    folder: to which paths are relative.

    Raises:
        UserError: a class column has an invalid value, or two lines disagree about a picture.
    """
    fields = [field for field in rows.fieldnames or [] if field != "path"]
    columns = {field: class_name(field) for field in fields} if "label" not in fields else None
    if columns and (split := split_among(fields)):
        raise split_is_not_read(where, split)
    if columns and (len(set(columns.values())) < len(fields) or "" in columns.values()):
        raise UserError(f"{where}: two columns have the same name, or one has none; name each by its class")
    splits = SplitColumns()
    for line in rows:
        name = nfc(tidy(slashes((line["path"] or "").strip())))
        name = posixpath.join(folder, name) if name else ""
        at = f"{where}, line {rows.line_num}"
        require_cells(line, at)
        if columns is not None:
            label = _of_columns(line, columns, at)
        else:
            splits.add(line, {"path", "label"})
            names = dict.fromkeys(filter(None, map(class_name, names_in_cell(line["label"] or ""))))
            label = {"yes": sorted(names), "unknown": []} if names else None
        if label is None:
            continue
        if not name:
            raise UserError(f"{at}: there is a label without a path")
        _insert(table, name, label, at if columns is not None else "")
    if columns is not None:
        return list(columns.values())
    splits.refuse(table, where)
    return sorted({name for (value,) in table.execute("SELECT value FROM labels") for name in json.loads(value)["yes"]})


def require_cells(line: dict[str | None, Any], at: str) -> None:
    """UserError if a line has more cells than columns, or control characters."""
    if any(cell.strip() for cell in line.get(None) or ()):
        raise UserError(f"{at}: it has more cells than the first line names columns; put a cell that holds a comma into double quotes")
    if wrong := next((cell for cell in line.values() if isinstance(cell, str) and _CONTROLS.search(cell.strip())), None):
        raise UserError(f"{at}: {wrong.strip()[:40]!r} holds a control character; remove it (is the file saved as UTF-8?)")


def names_in_cell(text: str) -> list[str]:
    """The names in a cell: split at SEPARATORS, or in a list of Python or JSON, or a set or tuple of Python."""
    if text.strip()[:1] in ("[", "(", "{"):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError):
            found = ast.literal_eval(text.strip())
            if isinstance(found, list | tuple | set):
                return sorted(map(str, found))
    return SEPARATORS.split(text)


def _of_columns(line: dict[str, str], columns: dict[str, str], at: str) -> dict[str, list[str]] | None:
    """{"yes": names, "unknown": names} of a line; None if all are unknown."""
    label: dict[str, list[str]] = {"yes": [], "unknown": []}
    for field, name in columns.items():
        value = (line[field] or "").strip().lower()
        if value not in YES | NO | UNKNOWN:
            raise UserError(
                f"{at}: the column {field!r} holds {line[field][:40]!r}, and a class has 1, 0 or nothing (unknown); if it holds names of "
                "classes, call it label"
            )
        if value not in NO:
            label["yes" if value in YES else "unknown"].append(name)
    return None if len(label["unknown"]) == len(columns) else label


def _insert(table: sqlite3.Connection, name: str, label: dict[str, list[str]], at: str) -> None:
    """Insert a label. at: place for messages, if a second line of a picture must agree; else the names of its lines are merged."""
    if table.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (name, json.dumps(label))).rowcount:
        return
    (other,) = table.execute("SELECT value FROM labels WHERE name = ?", [name]).fetchone()
    if at and json.loads(other) != label:
        raise UserError(f"{at}: {name} has other values than in a line before; keep one")
    label["yes"] = sorted({*label["yes"], *json.loads(other)["yes"]})
    table.execute("UPDATE labels SET value = ? WHERE name = ?", (json.dumps(label), name))


def to_label(value: str, classes: list[str] | None) -> tuple[int, ...]:
    """1, 0 or IGNORE (unknown) for each class, from a value of `read_multilabel` or `to_json`, or names separated by SEPARATORS.

    Raises:
        ValueError, KeyError, TypeError, IndexError: the value is invalid, or names a class that is not in `classes`.
    """
    stored = json.loads(value) if value.startswith("{") else {"yes": SEPARATORS.split(value), "unknown": []}
    if "labels" in stored:
        label = from_json(value.encode())
        if classes and len(label) != len(classes):
            raise ValueError
        return label
    if classes is None:
        raise ValueError
    return _by_name(stored, classes)


def _by_name(stored: dict[str, list[str]], classes: list[str]) -> tuple[int, ...]:
    label = [0] * len(classes)
    for kind, number in (("yes", 1), ("unknown", IGNORE)):
        for name in stored[kind]:
            label[classes.index(class_name(name))] = number
    return tuple(label)


def to_json(label: tuple[int, ...]) -> bytes:
    """Encode a label for storage: `{"labels": [class id, ...], "unknown": [class id, ...], "classes": number of classes}`."""
    ids = {key: [i for i, each in enumerate(label) if each == number] for key, number in (("labels", 1), ("unknown", IGNORE))}
    return json.dumps(ids | {"classes": len(label)}).encode()


def from_json(data: bytes) -> tuple[int, ...]:
    """The inverse of `to_json`."""
    stored = json.loads(data)
    label = [0] * int(stored["classes"])
    for key, number in (("labels", 1), ("unknown", IGNORE)):
        for i in stored[key]:
            label[i] = number
    return tuple(label)
