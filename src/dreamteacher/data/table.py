"""The files of a source, with roles and pairs of picture and label, in a temporary database on disk (constant memory).

File names are strings here: pathlib interns every part of a path, and Python 3.12 never frees interned strings.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Iterable

from dreamteacher.data.layout import meaning
from dreamteacher.data.names import UNLABELLED, Row, nfc, without_items

# A mask `m` belongs to a picture `p` if they share a key; pairs of columns by decreasing reliability.
KEYS = (("key", "key"), ("key2", "key"), ("key", "key2"), ("key2", "key2"))
HAS_PICTURE = " OR ".join(
    f"EXISTS (SELECT 1 FROM files AS p WHERE p.{of_picture} = m.{of_mask} AND p.role = 'picture')" for of_mask, of_picture in KEYS
)
HAS_PICTURE_BY_SUFFIX = " OR ".join(  # A_mask.png is a mask if there is a picture A
    f"EXISTS (SELECT 1 FROM files AS p WHERE p.{key} = m.key2 AND p.role = 'picture')" for key in ("key", "key2")
)
UNPAIRED_MASK_RANK = 9  # rank of pictures that are named like masks, but match no picture


def open_table(rows: Iterable[Row]) -> sqlite3.Connection:
    """Create a database with the rows in tables `files` and `box_files` (files that may hold boxes), and empty tables `labels` and
    `pairs`."""
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


def scalar(table: sqlite3.Connection, query: str) -> int:
    """The integer that `query` returns."""
    return int(table.execute(query).fetchone()[0])


def _take_as_masks(table: sqlite3.Connection, words: re.Pattern[str]) -> None:
    """Make extra files whose folder or suffix matches `words`, such as instances, the masks, and other masks extra files."""
    table.create_function("says", 1, lambda name: bool(words.search(posixpath.splitext(name)[0])), deterministic=True)
    found = "role IN ('extra', 'extra?', 'extra tail') AND says(name)"
    if scalar(table, f"SELECT EXISTS (SELECT 1 FROM files WHERE {found})"):
        table.execute("UPDATE files SET role = 'extra' WHERE role IN ('mask', 'mask?', 'tail')")
        roles = "CASE role WHEN 'extra?' THEN 'mask?' WHEN 'extra tail' THEN 'tail' ELSE 'mask' END"
        table.execute(f"UPDATE files SET role = {roles} WHERE {found}")


def assign_roles(table: sqlite3.Connection, words: re.Pattern[str] | None = None) -> None:
    """Set the final role of every file, and pair pictures with masks (table `pairs`: the mask, and the number of equally good ones).

    words: in folders or suffixes of the masks that the task needs, if these are not ordinary ones.
    """
    if words:
        _take_as_masks(table, words)
    _leave_out_items(table)
    table.execute(f"UPDATE files AS m SET role = 'no mask' WHERE role = 'tail' AND NOT ({HAS_PICTURE_BY_SUFFIX})")
    are_masks = scalar(table, f"SELECT EXISTS (SELECT 1 FROM files AS m WHERE role = 'mask?' AND ({HAS_PICTURE}))")
    table.execute("UPDATE files SET role = 'mask' WHERE role = 'tail' OR (role = 'mask?' AND ?)", [are_masks])
    table.execute(f"UPDATE files SET role = 'picture', key2 = NULL, rank = {UNPAIRED_MASK_RANK} WHERE role IN ('no mask', 'mask?')")
    of_ranks = ["m.rank >= 0"]
    if scalar(table, "SELECT EXISTS (SELECT 1 FROM files WHERE role = 'mask' AND rank < 0)"):
        of_ranks.insert(0, "m.rank < 0")
    for of_rank in of_ranks:
        for of_mask, of_picture in KEYS:  # the first mask of a picture stays; a paired mask is not tried with less reliable keys
            table.execute(
                "INSERT OR IGNORE INTO pairs SELECT p.name, min(m.name), count(*) FROM files AS p "
                f"JOIN files AS m ON m.{of_mask} = p.{of_picture} AND m.role = 'mask' WHERE p.role = 'picture' AND {of_rank} "
                "AND NOT EXISTS (SELECT 1 FROM pairs WHERE pairs.mask = m.name) "
                "GROUP BY p.name, m.rank, shared(p.name, m.name) ORDER BY p.name, m.rank, shared(p.name, m.name) DESC"
            )
    _pair_with_deeper_pictures(table)
    masks = scalar(table, "SELECT EXISTS (SELECT 1 FROM pairs)")
    table.execute(f"UPDATE files AS m SET role = 'extra' WHERE role = 'extra tail' AND ? AND ({HAS_PICTURE_BY_SUFFIX})", [masks])
    table.execute(f"UPDATE files AS m SET role = 'extra' WHERE role = 'extra?' AND (? OR {HAS_PICTURE})", [masks])
    table.execute("UPDATE files SET role = 'picture', key2 = NULL WHERE role IN ('extra tail', 'extra?')")


def _leave_out_items(table: sqlite3.Connection) -> None:
    """Remove item folders from key2 of pictures whose mask lies outside them: photo_1/img0.png with masks/mask0.png."""
    has_mask = "EXISTS (SELECT 1 FROM files AS m WHERE m.role IN ('mask', 'mask?', 'tail') AND (m.key = {0} OR m.key2 = {0}))"
    table.execute(
        "UPDATE files AS p SET key2 = without_items(key2) WHERE role = 'picture' AND key2 != without_items(key2) "
        f"AND NOT {has_mask.format('p.key2')} AND NOT {has_mask.format('p.key')} AND {has_mask.format('without_items(p.key2)')}"
    )


def _pair_with_deeper_pictures(table: sqlite3.Connection) -> None:
    """Pair masks in a flat folder, masks/A.png, with the only picture A in subfolders, such as class folders; see `_find_deeper`."""
    lost = f"role = 'mask' AND name NOT IN (SELECT mask FROM pairs) AND NOT ({HAS_PICTURE})"
    if not scalar(table, f"SELECT EXISTS (SELECT 1 FROM files AS m WHERE {lost})"):
        return
    for key in ("key", "key2"):
        flat = f"SELECT name, {key} AS key FROM files AS m WHERE {key} NOT NULL AND {lost}"
        _find_deeper(table, flat, "SELECT folder(key) FROM files JOIN pairs ON mask = name")
        table.execute("INSERT OR IGNORE INTO pairs SELECT picture, min(name), count(*) FROM deeper GROUP BY picture")


def take_deeper_pictures(table: sqlite3.Connection) -> None:
    """Set the key of box files in a flat folder, labels/A.txt, to that of the only picture A in subfolders; see `_find_deeper`.

    Files beside folders of pictures, such as notes.txt beside cat/ and dog/, are excluded.
    """
    picture = "SELECT 1 FROM files AS q WHERE q.role = 'picture'"
    around = f"{picture} AND q.name >= place || '/' AND q.name < place || '0'"
    places = f"SELECT place FROM (SELECT DISTINCT folder(name) AS place FROM box_files) WHERE place != '' AND NOT EXISTS ({around})"
    flat = (
        f"SELECT name, key FROM box_files AS b WHERE NOT EXISTS ({picture} AND (q.key = b.key OR q.key2 = b.key)) "
        f"AND folder(name) IN ({places})"
    )
    if not scalar(table, f"SELECT EXISTS ({flat})"):
        return
    _find_deeper(table, flat, f"SELECT folder(key) FROM box_files AS b WHERE EXISTS ({picture} AND q.key = b.key)")
    taken = "SELECT 1 FROM box_files AS o WHERE o.key = deeper.key AND o.suffix = suffix(deeper.name)"
    table.execute(f"UPDATE box_files SET key = deeper.key FROM deeper WHERE deeper.name = box_files.name AND NOT EXISTS ({taken})")


def _find_deeper(table: sqlite3.Connection, flat: str, beside: str) -> None:
    """Fill the table `deeper` with files in flat folders, and the name and key of the only picture of the same stem in subfolders.

    A folder is excluded if one of its files matches several pictures below, as stems are then not unique.

    flat: query of the names and keys of these files. beside: query of folders in which other files match their picture by key. In these, a
    subfolder must have several matches that cover half of its pictures, as a match may be accidental; they are added to `elsewhere`.
    """
    table.execute("CREATE INDEX IF NOT EXISTS by_stem ON files (stem(key), key) WHERE role = 'picture'")
    table.execute("DROP TABLE IF EXISTS deeper")
    table.execute(  # x'' sorts after any text: all pictures are below the root
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
    """Number of leading folders that two paths share."""
    return len(posixpath.commonprefix([one.split("/")[:-1], other.split("/")[:-1]]))


def respect_classes(table: sqlite3.Connection, classes: list[str] | None) -> None:
    """If classes.txt lists all outermost folders, take those named like a split or masks as classes, too."""
    tops = {top for (top,) in table.execute("SELECT DISTINCT top FROM files") if not UNLABELLED.fullmatch(top)}
    if classes and len(tops) > 1 and tops <= set(classes):
        named = [(top,) for top in tops if meaning(top).role or meaning(top).split is not None]
        table.executemany("UPDATE files SET role = 'picture', key2 = NULL, split = NULL, class = top WHERE top = ?", named)
