"""The files of a source: which are pictures, which masks of which; in a temporary database on disk, so that memory does not grow.

File names are plain text here: pathlib interns every part of a path, and Python 3.12 never frees what is interned.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Iterable

from dreamteacher.data.layout import meaning
from dreamteacher.data.names import UNLABELLED, Row, nfc, without_items

# A mask `m` and a picture `p` belong together if they share a key; the pairs of columns in the order of how telling they are.
KEYS = (("key", "key"), ("key2", "key"), ("key", "key2"), ("key2", "key2"))
FINDS_ITS_PICTURE = " OR ".join(
    f"EXISTS (SELECT 1 FROM files AS p WHERE p.{of_picture} = m.{of_mask} AND p.role = 'picture')" for of_mask, of_picture in KEYS
)
BY_TAIL = " OR ".join(  # A_mask.png is a mask if there is a picture A, and no reason to look for one named A_mask
    f"EXISTS (SELECT 1 FROM files AS p WHERE p.{key} = m.key2 AND p.role = 'picture')" for key in ("key", "key2")
)
MASK_BY_NAME = 9  # rank of a picture whose folder or ending is one of masks, but which belongs to no other picture


def open_table(rows: Iterable[Row]) -> sqlite3.Connection:
    """A table `files` of the rows, each name once, and an empty one `labels`; files that may hold boxes are in a table `box_files`."""
    table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
    table.execute(
        "CREATE TABLE files (name TEXT PRIMARY KEY, key TEXT, key2 TEXT, role TEXT, rank INTEGER, split TEXT, class TEXT, top TEXT, "
        "below TEXT) WITHOUT ROWID"
    )
    table.execute("CREATE TABLE labels (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    table.execute("CREATE TABLE pairs (picture TEXT PRIMARY KEY, mask TEXT, n INTEGER) WITHOUT ROWID")
    table.execute("CREATE INDEX by_mask ON pairs (mask)")
    table.execute("CREATE TABLE elsewhere (label TEXT PRIMARY KEY, picture TEXT) WITHOUT ROWID")
    table.execute("BEGIN")
    table.create_function("nfc", 1, nfc, deterministic=True)
    table.create_function("without_items", 1, without_items, deterministic=True)
    table.create_function("shared", 2, shared_folders, deterministic=True)
    table.create_function("stem", 1, posixpath.basename, deterministic=True)
    table.create_function("folder", 1, posixpath.dirname, deterministic=True)
    table.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", ((*row[:5], *row.place) for row in rows))
    table.execute("CREATE TABLE box_files (name TEXT PRIMARY KEY, key TEXT, suffix TEXT) WITHOUT ROWID")
    table.create_function("suffix", 1, lambda name: posixpath.splitext(name)[1].lower(), deterministic=True)
    table.execute("INSERT INTO box_files SELECT name, key, suffix(name) FROM files WHERE role = 'boxes'")
    table.execute("DELETE FROM files WHERE role = 'boxes'")
    table.execute("CREATE INDEX box_files_by_key ON box_files (key, suffix)")
    table.execute("CREATE INDEX by_key ON files (key, role)")
    table.execute("CREATE INDEX by_key2 ON files (key2, role) WHERE key2 IS NOT NULL")
    return table


def one(table: sqlite3.Connection, query: str) -> int:
    """The number that `query` gives."""
    return int(table.execute(query).fetchone()[0])


def _take_as_masks(table: sqlite3.Connection, words: re.Pattern[str]) -> None:
    """Where files lie beside masks whose folder or ending says what a task learns from, such as instances, they are the masks."""
    table.create_function("says", 1, lambda name: bool(words.search(posixpath.splitext(name)[0])), deterministic=True)
    found = "role IN ('extra', 'extra?', 'extra tail') AND says(name)"
    if one(table, f"SELECT EXISTS (SELECT 1 FROM files WHERE {found})"):
        table.execute("UPDATE files SET role = 'extra' WHERE role IN ('mask', 'mask?', 'tail')")
        roles = "CASE role WHEN 'extra?' THEN 'mask?' WHEN 'extra tail' THEN 'tail' ELSE 'mask' END"
        table.execute(f"UPDATE files SET role = {roles} WHERE {found}")


def tell_masks_from_pictures(table: sqlite3.Connection, words: re.Pattern[str] | None = None) -> None:
    """Give every file its final role, and every picture its masks (table `pairs`: the one that counts, and how many are as good).

    words: that folders or endings have, beside those of masks, where what they hold is wanted.
    """
    if words:
        _take_as_masks(table, words)
    _leave_out_items(table)
    table.execute(f"UPDATE files AS m SET role = 'no mask' WHERE role = 'tail' AND NOT ({BY_TAIL})")
    are_masks = one(table, f"SELECT EXISTS (SELECT 1 FROM files AS m WHERE role = 'mask?' AND ({FINDS_ITS_PICTURE}))")
    table.execute("UPDATE files SET role = 'mask' WHERE role = 'tail' OR (role = 'mask?' AND ?)", [are_masks])
    table.execute(f"UPDATE files SET role = 'picture', key2 = NULL, rank = {MASK_BY_NAME} WHERE role IN ('no mask', 'mask?')")
    of_ranks = ["m.rank >= 0"]
    if one(table, "SELECT EXISTS (SELECT 1 FROM files WHERE role = 'mask' AND rank < 0)"):
        of_ranks.insert(0, "m.rank < 0")
    for of_rank in of_ranks:
        for of_mask, of_picture in KEYS:  # of a picture the first that is inserted stays; a mask is not passed on to a less telling key
            table.execute(
                "INSERT OR IGNORE INTO pairs SELECT p.name, min(m.name), count(*) FROM files AS p "
                f"JOIN files AS m ON m.{of_mask} = p.{of_picture} AND m.role = 'mask' WHERE p.role = 'picture' AND {of_rank} "
                "AND NOT EXISTS (SELECT 1 FROM pairs WHERE pairs.mask = m.name) "
                "GROUP BY p.name, m.rank, shared(p.name, m.name) ORDER BY p.name, m.rank, shared(p.name, m.name) DESC"
            )
    _pair_with_deeper_pictures(table)
    masks = one(table, "SELECT EXISTS (SELECT 1 FROM pairs)")
    table.execute(f"UPDATE files AS m SET role = 'extra' WHERE role = 'extra tail' AND ? AND ({BY_TAIL})", [masks])
    table.execute(f"UPDATE files AS m SET role = 'extra' WHERE role = 'extra?' AND (? OR {FINDS_ITS_PICTURE})", [masks])
    table.execute("UPDATE files SET role = 'picture', key2 = NULL WHERE role IN ('extra tail', 'extra?')")


def _leave_out_items(table: sqlite3.Connection) -> None:
    """Of photo_1/img0.png, whose mask is masks/mask0.png, key2 loses the folder, unless a file in it is the mask."""
    has_mask = "EXISTS (SELECT 1 FROM files AS m WHERE m.role IN ('mask', 'mask?', 'tail') AND (m.key = {0} OR m.key2 = {0}))"
    table.execute(
        "UPDATE files AS p SET key2 = without_items(key2) WHERE role = 'picture' AND key2 != without_items(key2) "
        f"AND NOT {has_mask.format('p.key2')} AND NOT {has_mask.format('p.key')} AND {has_mask.format('without_items(p.key2)')}"
    )


def _pair_with_deeper_pictures(table: sqlite3.Connection) -> None:
    """Give masks that lie flat, masks/A.png, to the one picture A in folders below theirs, such as of classes; see `_find_deeper`."""
    lost = f"role = 'mask' AND name NOT IN (SELECT mask FROM pairs) AND NOT ({FINDS_ITS_PICTURE})"
    if not one(table, f"SELECT EXISTS (SELECT 1 FROM files AS m WHERE {lost})"):
        return
    for key in ("key", "key2"):
        flat = f"SELECT name, {key} AS key FROM files AS m WHERE {key} NOT NULL AND {lost}"
        _find_deeper(table, flat, "SELECT folder(key) FROM files JOIN pairs ON mask = name")
        table.execute("INSERT OR IGNORE INTO pairs SELECT picture, min(name), count(*) FROM deeper GROUP BY picture")


def take_deeper_pictures(table: sqlite3.Connection) -> None:
    """Give files of boxes that lie flat, labels/A.txt, the key of the one picture A in folders below theirs; see `_find_deeper`.

    Files around the folders of pictures, such as notes.txt beside cat/ and dog/, are none of these.
    """
    picture = "SELECT 1 FROM files AS q WHERE q.role = 'picture'"
    around = f"{picture} AND q.name >= place || '/' AND q.name < place || '0'"
    places = f"SELECT place FROM (SELECT DISTINCT folder(name) AS place FROM box_files) WHERE place != '' AND NOT EXISTS ({around})"
    flat = (
        f"SELECT name, key FROM box_files AS b WHERE NOT EXISTS ({picture} AND (q.key = b.key OR q.key2 = b.key)) "
        f"AND folder(name) IN ({places})"
    )
    if not one(table, f"SELECT EXISTS ({flat})"):
        return
    _find_deeper(table, flat, f"SELECT folder(key) FROM box_files AS b WHERE EXISTS ({picture} AND q.key = b.key)")
    taken = "SELECT 1 FROM box_files AS o WHERE o.key = deeper.key AND o.suffix = suffix(deeper.name)"
    table.execute(f"UPDATE box_files SET key = deeper.key FROM deeper WHERE deeper.name = box_files.name AND NOT EXISTS ({taken})")


def _find_deeper(table: sqlite3.Connection, flat: str, beside: str) -> None:
    """Fill a table `deeper` with files that lie flat, and the name and key of the one picture of the same stem in their folder or below.

    None of a folder counts if some have the stem of several pictures below, as names there do not tell pictures apart.

    flat: a query of the names and keys of these files. beside: of folders where others find their picture by their key, so that those
    without one may have lost it; then a folder of pictures below counts if it has several such files and they are those of half its
    pictures, as a picture of that number may be another, and the table `elsewhere` names them.
    """
    table.execute("CREATE INDEX IF NOT EXISTS by_stem ON files (stem(key), key) WHERE role = 'picture'")
    table.execute("DROP TABLE IF EXISTS deeper")
    table.execute(  # x'' is more than any text: below the source itself lies all
        "CREATE TABLE deeper AS SELECT m.name, min(p.name) AS picture, p.key, folder(m.key) AS beside, folder(p.key) AS within, "
        f"count(*) AS n, min(p.key) != max(p.key) AS several FROM ({flat}) AS m JOIN files AS p ON stem(p.key) = stem(m.key) "
        "AND p.key >= CASE folder(m.key) WHEN '' THEN '' ELSE folder(m.key) || '/' END "
        "AND p.key < CASE folder(m.key) WHEN '' THEN x'' ELSE folder(m.key) || '0' END WHERE p.role = 'picture' GROUP BY m.name"
    )
    table.execute("DELETE FROM deeper WHERE beside IN (SELECT beside FROM deeper WHERE several)")
    table.execute("DELETE FROM deeper WHERE n > 1")
    in_folder = "SELECT count(*) FROM files WHERE role = 'picture' AND files.key >= within || '/' AND files.key < within || '0'"
    table.execute(
        "DELETE FROM deeper WHERE (beside, within) IN (SELECT beside, within FROM deeper GROUP BY beside, within "
        f"HAVING beside IN ({beside}) AND (count(*) = 1 OR 2 * count(*) < ({in_folder})))"
    )
    table.execute(f"INSERT OR IGNORE INTO elsewhere SELECT name, picture FROM deeper WHERE beside IN ({beside})")


def shared_folders(one: str, other: str) -> int:
    """How many outermost folders two names share."""
    return len(posixpath.commonprefix([one.split("/")[:-1], other.split("/")[:-1]]))


def respect_classes(table: sqlite3.Connection, classes: list[str] | None) -> None:
    """Where classes.txt lists all the outermost folders, those named as a split or as masks are classes too."""
    tops = {top for (top,) in table.execute("SELECT DISTINCT top FROM files") if not UNLABELLED.fullmatch(top)}
    if classes and len(tops) > 1 and tops <= set(classes):
        named = [(top,) for top in tops if meaning(top).role or meaning(top).split is not None]
        table.executemany("UPDATE files SET role = 'picture', key2 = NULL, split = NULL, class = top WHERE top = ?", named)
