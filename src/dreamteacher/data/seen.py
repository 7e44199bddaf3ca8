"""Duplicate detection with a temporary database on disk, in constant memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from dreamteacher.data.origins import LIKE, origin_of


class Kept(NamedTuple):
    """A picture in the data set: split, name, and digest of its label, if it has one."""

    split: str
    name: str
    label: bytes | None


class Seen:
    """Hashes of the pictures in the data set; a context manager."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
        self._table.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY, split TEXT, name TEXT, label BLOB) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._table.close()

    def find(self, hashes: Sequence[bytes]) -> Kept | None:
        """The kept picture that shares one of these hashes; None if there is none."""
        marks = ", ".join("?" * len(hashes))
        row = self._table.execute(f"SELECT split, name, label FROM seen WHERE hash IN ({marks}) ORDER BY name LIMIT 1", hashes).fetchone()
        return Kept(*row) if row else None

    def name_of(self, digest: bytes) -> str:
        """The name of the kept picture with this hash."""
        return str(self._table.execute("SELECT name FROM seen WHERE hash = ?", [digest]).fetchone()[0])

    def shared_origins(self) -> tuple[int, str, str] | None:
        """(number of val pictures whose origin (see `origins`) also occurs in train, the first of them, a train picture of its origin);
        None if there are none. Only origins with more than two pictures count."""
        self._table.create_function("origin", 1, origin_of, deterministic=True)
        of_names = " OR ".join(["name LIKE ?"] * len(LIKE))
        self._table.execute(
            "CREATE TABLE origins AS SELECT split, name, origin(name) AS origin "
            f"FROM (SELECT DISTINCT split, name FROM seen WHERE {of_names})",
            LIKE,
        )
        both = "SELECT origin FROM origins WHERE origin NOT NULL GROUP BY origin HAVING count(*) > 2 AND min(split) != max(split)"
        count, of_val, origin = self._table.execute(
            f"SELECT count(*), min(name), origin FROM origins WHERE split = 'val' AND origin IN ({both})"
        ).fetchone()
        if not count:
            return None
        (of_train,) = self._table.execute("SELECT min(name) FROM origins WHERE split = 'train' AND origin = ?", [origin]).fetchone()
        return count, of_val, of_train

    def keep(self, hashes: Sequence[bytes], kept: Kept) -> None:
        """Store `hashes` for `kept`; hashes that are already stored are left unchanged."""
        self._table.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?)", [(value, *kept) for value in hashes])
