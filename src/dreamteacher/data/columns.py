"""Columns of a table of labels: those that must be there once, and those that say the split of a picture."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection
from typing import Any

from dreamteacher.data.layout import SPLIT_WORDS
from dreamteacher.data.table import one
from dreamteacher.errors import UserError

MOST_VALUES = 20  # of a column, beyond which it names no splits
_IS_OF_SPLIT = re.compile(r"is_?(train(ing)?|valid(ation)?|val|dev|eval|test(ing)?|holdout)(_?(set|split))?", re.IGNORECASE)
_SOME_WITHOUT_SPLIT = (
    "SELECT EXISTS (SELECT 1 FROM labels JOIN files ON nfc(files.name) = labels.name WHERE role = 'picture' AND split IS NULL)"
)
_YES_OR_NO = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no"}


class SplitColumns:
    """Looks at the lines of a table for a column that says the split of each, whatever it is called."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}

    def add(self, line: dict[Any, Any], labels: set[str]) -> None:
        """A line by its columns; labels: the columns that do not count."""
        for field, cell in line.items():
            seen = self._values.setdefault(str(field), set())
            if field not in labels and cell is not None and len(seen) <= MOST_VALUES:
                seen.add(str(cell).strip().lower())

    def found(self) -> str | None:
        """The name of the column."""
        return next((field for field, seen in self._values.items() if _says_splits(field, seen - {""})), None)

    def refuse(self, table: sqlite3.Connection, where: str) -> None:
        """UserError where there is one, and folders do not say the split of all pictures that the table `labels` names."""
        if (column := self.found()) and one(table, _SOME_WITHOUT_SPLIT):
            raise split_is_not_read(where, column)


def split_among(classes: Collection[str]) -> str | None:
    """Of columns that are classes, one that is called as a split, such as is_valid; beside is_car and is_bus is_train is none."""
    found = [column for column in classes if _IS_OF_SPLIT.fullmatch(column)]
    is_class = len(found) == 1 < len(classes) and found[0].lower() == "is_train" and all(name.lower().startswith("is_") for name in classes)
    return found[0] if found and not is_class else None


def _says_splits(column: str, values: set[str]) -> bool:
    if _IS_OF_SPLIT.fullmatch(column):
        return len(values) > 1 and values <= _YES_OR_NO
    return values <= SPLIT_WORDS.keys() and any(SPLIT_WORDS[value] != "train" for value in values)


def split_is_not_read(where: str, column: str) -> UserError:
    """What to say of such a column where folders do not say the split."""
    return UserError(f"{where}: its column {column} is not read; lay the pictures into train/, val/ and test/, or drop the column")


def require_once(fields: list[str], where: str, *names: str) -> None:
    """UserError where two columns have one of these names, of which only the last would be read."""
    if repeated := next((name for name in names if fields.count(name) > 1), None):
        raise UserError(f"{where}: two columns are called {repeated} (capitals do not count); keep one")
