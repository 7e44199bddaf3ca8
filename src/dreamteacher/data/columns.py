"""Columns of a label table: required ones, and ones that hold the split of a picture."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection
from typing import Any

from dreamteacher.data.layout import SPLIT_WORDS
from dreamteacher.data.table import scalar
from dreamteacher.errors import UserError

MAX_VALUES = 20  # distinct values of a column that may hold splits
_IS_OF_SPLIT = re.compile(r"is_?(train(ing)?|valid(ation)?|val|dev|eval|test(ing)?|holdout)(_?(set|split))?", re.IGNORECASE)
_FOLD = re.compile(r"(k_?|cv_?)folds?|folds?_?(id|no|nr|number)", re.IGNORECASE)  # fold alone may be a defect
_SOME_WITHOUT_SPLIT = (
    "SELECT EXISTS (SELECT 1 FROM labels JOIN files ON nfc(files.name) = labels.name WHERE role = 'picture' AND split IS NULL)"
)
_YES_OR_NO = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no"}


class SplitColumns:
    """Detects a column that holds the split of each line, whatever its name."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}

    def add(self, line: dict[Any, Any], labels: set[str]) -> None:
        """Add a line. labels: columns to leave out."""
        for field, cell in line.items():
            seen = self._values.setdefault(str(field), set())
            if field not in labels and cell is not None and len(seen) <= MAX_VALUES:
                seen.add(str(cell).strip().lower())

    def found(self) -> str | None:
        """The name of the column, or None."""
        return next((field for field, seen in self._values.items() if _says_splits(field, seen - {""})), None)

    def refuse(self, table: sqlite3.Connection, where: str) -> None:
        """UserError if there is such a column and the folders of some labelled pictures name no split."""
        if (column := self.found()) and scalar(table, _SOME_WITHOUT_SPLIT):
            raise split_is_not_read(where, column)


def split_among(classes: Collection[str]) -> str | None:
    """The column among class columns that is named like a split (is_valid, kfold); is_train beside is_car and is_bus is a class."""
    if fold := next(filter(_FOLD.fullmatch, classes), None):
        return fold
    found = [column for column in classes if _IS_OF_SPLIT.fullmatch(column)]
    is_class = len(found) == 1 < len(classes) and found[0].lower() == "is_train" and all(name.lower().startswith("is_") for name in classes)
    return found[0] if found and not is_class else None


def _says_splits(column: str, values: set[str]) -> bool:
    if _IS_OF_SPLIT.fullmatch(column):
        return len(values) > 1 and values <= _YES_OR_NO
    return values <= SPLIT_WORDS.keys() and any(SPLIT_WORDS[value] != "train" for value in values)


def split_is_not_read(where: str, column: str) -> UserError:
    """The error for a split column, which is not read, when folders name no split."""
    return UserError(f"{where}: its column {column} is not read; lay the pictures into train/, val/ and test/, or drop the column")


def require_once(fields: list[str], where: str, *names: str) -> None:
    """UserError if two columns have one of these names, as only the last would be read."""
    if repeated := next((name for name in names if fields.count(name) > 1), None):
        raise UserError(f"{where}: two columns are called {repeated} (capitals do not count); keep one")
