"""Where pictures and labels come from: folders, here or at an address, list files and WebDataset shards; lazily, in a fixed order.

File names are kept in a temporary database on disk, so that memory does not grow with the set. They are plain text here: pathlib interns
every part of a path, and Python 3.12 never frees what is interned.
"""

from __future__ import annotations

import csv
import os
import posixpath
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dreamteacher.data.decode import SUFFIXES
from dreamteacher.data.items import Found, Item, LabelKind, masks_need_classes, parse_classes, utf8
from dreamteacher.data.names import nfc, read_list, row, tidy
from dreamteacher.data.shard_source import are_shards, expand, find_in_shards, tars_in
from dreamteacher.data.trees import NOT_PICTURES, Folder, Prefix, Tree, describe
from dreamteacher.errors import UserError
from dreamteacher.files import digest_in_any_order, sha256_of


def inputs_of(source: str) -> dict[str, Path]:
    """The local files and folders that `source` names (to be digested); empty for an address. For the rest see `fingerprint`.

    Raises:
        UserError: there is nothing at `source`.
    """
    if are_shards(source):
        paths = [Path(url) for url in expand(source) if "://" not in url]
        names = paths[:1] and [path for path in [paths[0].parent / "classes.txt"] if path.exists()]
        return {f"source/{i:06d}/{path.name}": path for i, path in enumerate([*paths, *names])}
    if "://" in source:
        return {}
    path = Path(source)
    if not path.exists():
        raise UserError(f"ingest.source: {source} does not exist; name a folder, an address, a text file of paths, or WebDataset shards")
    if path.is_dir():
        return {"source": path}
    beside = {f"source/{name}": path.parent / name for name in sorted(NOT_PICTURES)}
    return {"source": path} | {key: other for key, other in beside.items() if other.exists()}


def fingerprint(source: str) -> str | None:
    """A digest of what `inputs_of` leaves out: the files that a list names, or what an address says of each object (size, ETag or time).

    Raises:
        UserError: the list is no text, the address cannot be reached.
    """
    if "://" in source:
        addresses = [url for url in expand(source) if "://" in url] if are_shards(source) else [source]
        return digest_in_any_order(line.encode() for address in addresses for line in describe(address))
    if are_shards(source) or Path(source).is_dir():
        return None
    names = (name for name, *_ in read_list(Path(source)))
    return digest_in_any_order(os.fsencode(name) + b"\0" + sha256_of(posixpath.join(Path(source).parent, name)) for name in names)


def find(source: str, labels: LabelKind, max_bytes: int, may_be_empty: bool = False) -> Found:
    """Look through `source` for pictures and for labels of the kind `labels` ("auto": labels.csv, else masks, else class folders).

    Split: the folder train/ or val/ (also training, valid, validation) decides; pictures below test/ are left out and counted. Of
    shards, a word of their path. Files larger than `max_bytes` are not read. Labels:

    - csv: labels.csv (columns path, label) in the folder or beside the list; a picture that it does not name has no label;
    - masks: images/train/A.jpg has masks/train/A.png; also train/masks/A.png, masks/train/A.png without images/, A_mask.png or
      A.mask.png beside A.jpg; labels/ may stand for masks/;
    - folders: train/CLASS/... or CLASS/... (of a list: the last folder); unlabelled/ has none;
    - shards: KEY.mask.png, KEY.cls, or "label" or "cls" in KEY.json.

    Class names are the lines of classes.txt, else the sorted folder names or csv values. A folder without pictures but with .tar files
    is one of shards.

    Raises:
        UserError: nothing there, no pictures (unless it `may_be_empty`), labels of that kind are missing or cannot be understood.
    """
    if are_shards(source):
        return find_in_shards(expand(source), labels)
    is_list = "://" not in source and Path(source).is_file()
    tree: Tree = Prefix(source) if "://" in source else Folder(Path(source).parent if is_list else Path(source))
    table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
    table.execute("CREATE TABLE files (name TEXT PRIMARY KEY, key TEXT, role TEXT, split TEXT, class TEXT) WITHOUT ROWID")
    table.execute("CREATE TABLE labels (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    table.execute("BEGIN")
    counts = {"ignored_files": 0, "unprintable_names": 0}
    table.create_function("nfc", 1, nfc, deterministic=True)
    rows = read_list(Path(source)) if is_list else (row(name) for name in tree.pictures(counts))
    table.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?)", rows)
    table.execute("CREATE INDEX by_key ON files (key, role)")
    pictures = "(SELECT key FROM files WHERE role = 'picture')"
    # `A_mask.png` is a mask only where there is an A to go with it, and all in labels/ are if one is
    table.execute(f"UPDATE files SET role = 'picture' WHERE role = 'mask?' AND key NOT IN {pictures}")
    are_masks = _one(table, f"SELECT count(*) FROM files WHERE role = 'mask??' AND key IN {pictures}")
    table.execute("UPDATE files SET role = ? WHERE role = 'mask??'", ["mask" if are_masks else "picture"])
    table.execute("UPDATE files SET role = 'mask' WHERE role = 'mask?'")
    if not _one(table, "SELECT count(*) FROM files WHERE role = 'picture'"):
        if not is_list and (shards := tars_in(source)):
            return find_in_shards(shards, labels)
        if not may_be_empty:
            raise UserError(f"no pictures in {source}; pictures end in {', '.join(sorted(SUFFIXES))}")
    classes = _read_classes(tree)
    kind = _kind_of_labels(table, labels, tree, classes, is_list=is_list)
    if kind == "csv":
        classes = _read_csv(table, tree, classes)
        counts["labels_without_picture"] = _one(table, "SELECT count(*) FROM labels WHERE name NOT IN (SELECT nfc(name) FROM files)")
        if counts["labels_without_picture"] == _one(table, "SELECT count(*) FROM labels") > 0:
            named, there = (table.execute(f"SELECT min(name) FROM {rows}").fetchone()[0] for rows in ("labels", "files"))
            raise UserError(f"{tree}/labels.csv names none of the pictures: it says {named!r}, and a picture is {there!r}; write paths so")
    elif kind == "folders":
        classes, counts["folders_without_class"] = _classes_of_folders(table, tree, classes)
    elif kind == "masks":
        if classes is None:
            raise masks_need_classes(str(tree))
        counts["masks_without_picture"] = _one(table, f"SELECT count(*) FROM files WHERE role = 'mask' AND key NOT IN {pictures}")
    counts["left_out_as_test"] = _one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'test'")
    has_val = bool(_one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'val'"))
    return Found(_read_files(table, tree, kind, max_bytes), classes, kind, has_val, counts)


def _kind_of_labels(table: sqlite3.Connection, labels: LabelKind, tree: Tree, classes: list[str] | None, is_list: bool) -> str:
    masks = _one(table, "SELECT count(*) FROM files AS p JOIN files AS m ON p.key = m.key AND p.role = 'picture' AND m.role = 'mask'")
    folders = [name for (name,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != ''")]
    # A list's folders are any folders; only classes.txt tells that they are classes.
    named = set(folders) & set(classes) if classes else set() if is_list else set(folders)
    table_file = tree.open_text("labels.csv")
    if table_file:
        table_file.close()
    there = {"csv": table_file is not None, "masks": masks > 0, "folders": len(named) > 1}
    if labels == "auto":
        labels = next((kind for kind in ("csv", "masks", "folders") if there[kind]), "none")
        (lost,) = table.execute("SELECT min(name) FROM files WHERE role = 'mask'").fetchone()
        if labels == "none" and lost:
            raise UserError(f"{tree}: no mask is named as a picture is (such as {lost}); name them alike, or set ingest.labels to none")
    elif labels != "none" and not (folders if labels == "folders" else there[labels]):
        expected = {"csv": "labels.csv", "masks": "a mask such as masks/train/A.png for images/train/A.jpg", "folders": "class folders"}
        raise UserError(f"ingest.labels = {labels}, but {tree} has no {expected[labels]}; add it or set ingest.labels to auto")
    return labels


def _classes_of_folders(table: sqlite3.Connection, tree: Tree, classes: list[str] | None) -> tuple[list[str], int]:
    """The classes, and how many folders are none of them; what lies in such folders has no label from here on."""
    of_pictures = "FROM files WHERE role = 'picture'"
    names = [name for (name,) in table.execute(f"SELECT DISTINCT class {of_pictures} AND class != '' ORDER BY class")]
    mixed = table.execute(f"SELECT name {of_pictures} AND split NOT NULL AND class = '' AND name NOT LIKE '%unlabel%' LIMIT 1").fetchone()
    beside = table.execute(f"SELECT class {of_pictures} AND split IS NULL AND class != '' LIMIT 1").fetchone()
    if mixed and beside:
        raise UserError(
            f"{tree}: {mixed[0]} is read as a picture of that split, but beside it lies the class {beside[0]!r}; "
            "put all classes below train/ and val/, or give the class another name"
        )
    strange = set(names) - set(classes or names)
    table.executemany("UPDATE files SET class = '' WHERE class = ?", [(name,) for name in strange])
    return classes or names, len(strange)


def _read_files(table: sqlite3.Connection, tree: Tree, kind: str, max_bytes: int) -> Iterator[Item]:
    # of copies the first is kept, and that should be one with a label
    unlabelled = {"csv": "labels.value IS NULL", "folders": "p.class = ''", "masks": "mask IS NULL"}.get(kind, "NULL")
    query = f"""SELECT p.name, p.split, p.class, labels.value, (SELECT min(name) FROM files WHERE key = p.key AND role = 'mask') AS mask,
                       (SELECT count(*) FROM files WHERE key = p.key AND role = 'mask')
                FROM files AS p LEFT JOIN labels ON labels.name = nfc(p.name)
                WHERE p.role = 'picture' AND p.split IS NOT 'test' ORDER BY p.split IS NOT 'val', {unlabelled}, p.name"""
    found = table.execute(query)
    while rows := found.fetchmany(tree.at_once):
        wanted = [name for name, *_ in rows] + [row[4] for row in rows if kind == "masks" and row[4]]
        contents = dict(zip(wanted, tree.read(wanted, max_bytes), strict=True))
        for name, split, folder, value, mask, n_masks in rows:
            data, mask_data = contents[name], contents.get(mask)
            problem = f"it has {n_masks} masks (one is {mask})" if kind == "masks" and n_masks > 1 else None
            if isinstance(data, Exception) or isinstance(mask_data, Exception) or problem:
                error = data if isinstance(data, Exception) else mask_data
                yield Item(name, split, problem=f"cannot be read: {problem or getattr(error, 'strerror', None) or type(error).__name__}")
                continue
            cls = {"csv": value, "folders": folder or None}.get(kind)
            yield Item(name, split, data, mask_data, cls)


def _read_csv(table: sqlite3.Connection, tree: Tree, classes: list[str] | None) -> list[str]:
    file, where = tree.open_text("labels.csv"), f"{tree}/labels.csv"
    assert file, "the kind of labels is csv only where there is one"
    with file, utf8(where):
        rows = csv.DictReader(file)
        try:
            if not {"path", "label"} <= set(rows.fieldnames or []):
                raise UserError(f"{where}: its first line must name the columns path and label, with a comma between them")
            for line in rows:
                name, value = (line["path"] or "").strip(), (line["label"] or "").strip()
                if value and not name:
                    raise UserError(f"{where}, line {rows.line_num}: there is a label without a path")
                if not value:
                    continue
                name = nfc(tidy(name))
                if table.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (name, value)).rowcount == 0:
                    (other,) = table.execute("SELECT value FROM labels WHERE name = ?", [name]).fetchone()
                    if other != value:
                        raise UserError(f"{where}, line {rows.line_num}: {name} is {value!r}, and {other!r} in a line before; keep one")
        except csv.Error as error:
            raise UserError(f"{where}, line {rows.line_num}: {error}; write it as comma-separated values") from error
    values = [value for (value,) in table.execute("SELECT DISTINCT value FROM labels")]
    return classes or sorted(values, key=lambda value: (0, int(value), "") if value.isdecimal() else (1, 0, value))


def _read_classes(tree: Tree) -> list[str] | None:
    text, where = tree.open_text("classes.txt"), f"{tree}/classes.txt"
    if text is None:
        return None
    with text, utf8(where):
        return parse_classes(text.read(), where)


def _one(table: sqlite3.Connection, query: str) -> int:
    return int(table.execute(query).fetchone()[0])
