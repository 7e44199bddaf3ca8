"""Where pictures and labels come from: folders, here or at an address, list files and WebDataset shards; lazily, in a fixed order.

File names are kept in a temporary database on disk, so that memory does not grow with the set. They are plain text here: pathlib interns
every part of a path, and Python 3.12 never frees what is interned.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dreamteacher.data.decode import SUFFIXES
from dreamteacher.data.items import MASK_SUFFIXES, SPLITS, Found, Item, LabelKind, masks_need_classes, parse_classes
from dreamteacher.data.shard_source import are_shards, expand, find_in_shards
from dreamteacher.data.trees import NOT_PICTURES, Folder, Prefix, Tree
from dreamteacher.errors import UserError

UNLABELLED = {"unlabelled", "unlabeled"}


def inputs_of(source: str) -> dict[str, Path]:
    """The local files and folders that `source` names (to be digested); empty for an address.

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


def find(source: str, labels: LabelKind, max_bytes: int, may_be_empty: bool = False) -> Found:
    """Look through `source` for pictures and for labels of the kind `labels` ("auto": labels.csv, else masks, else class folders).

    Split: the folder train/ or val/ (also training, valid, validation) decides; pictures below test/ are left out and counted. Of
    shards, a word of their path. Files larger than `max_bytes` are not read. Labels:

    - csv: labels.csv (columns path, label) in the folder or beside the list; a picture that it does not name has no label;
    - masks: images/train/A.jpg has masks/train/A.png; also train/masks/A.png, masks/train/A.png without images/, A_mask.png or
      A.mask.png beside A.jpg;
    - folders: train/CLASS/... or CLASS/... (of a list: the last folder); unlabelled/ has none;
    - shards: KEY.mask.png, KEY.cls, or "label" or "cls" in KEY.json.

    Class names are the lines of classes.txt, else the sorted folder names or csv values.

    Raises:
        UserError: nothing there, no pictures (unless it `may_be_empty`), labels of that kind are missing or cannot be understood.
    """
    if are_shards(source):
        return find_in_shards(source, labels)
    is_list = "://" not in source and Path(source).is_file()
    tree: Tree = Prefix(source) if "://" in source else Folder(Path(source).parent if is_list else Path(source))
    table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
    table.execute("CREATE TABLE files (name TEXT PRIMARY KEY, key TEXT, role TEXT, split TEXT, class TEXT) WITHOUT ROWID")
    table.execute("CREATE TABLE labels (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    table.execute("BEGIN")
    counts = {"ignored_files": 0, "unprintable_names": 0}
    rows = _read_list(Path(source)) if is_list else (_row(name, first=True) for name in tree.pictures(counts))
    table.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?)", rows)
    table.execute("CREATE INDEX by_key ON files (key, role)")
    # `A_mask.png` is a mask only where there is an A to go with it
    table.execute("""UPDATE files SET role = 'picture' WHERE role = 'mask?'
                     AND NOT EXISTS (SELECT 1 FROM files AS p WHERE p.key = files.key AND p.role = 'picture')""")
    table.execute("UPDATE files SET role = 'mask' WHERE role = 'mask?'")
    if not may_be_empty and not _one(table, "SELECT count(*) FROM files WHERE role = 'picture'"):
        there = isinstance(tree, Folder) and not is_list and any(tree.root.glob("*.tar"))
        tars = " (there are .tar files: name shards as FOLDER/NAME-{000000..000009}.tar)" if there else ""
        raise UserError(f"no pictures in {source}{tars}; pictures end in {', '.join(sorted(SUFFIXES))}")
    classes = _read_classes(tree)
    kind = _kind_of_labels(table, labels, tree, classes, is_list=is_list)
    if kind == "csv":
        classes = _read_csv(table, tree, classes)
        counts["labels_without_picture"] = _one(table, "SELECT count(*) FROM labels WHERE name NOT IN (SELECT name FROM files)")
    elif kind == "folders":
        names = [
            name for (name,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != '' ORDER BY class")
        ]
        counts["folders_without_class"] = len(set(names) - set(classes or names))
        classes = classes or names
    elif kind == "masks":
        if classes is None:
            raise masks_need_classes(str(tree))
        pictures = "(SELECT key FROM files WHERE role = 'picture')"
        counts["masks_without_picture"] = _one(table, f"SELECT count(*) FROM files WHERE role = 'mask' AND key NOT IN {pictures}")
    counts["left_out_as_test"] = _one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'test'")
    has_val = bool(_one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'val'"))
    return Found(_read_files(table, tree, kind, classes, max_bytes), classes, kind, has_val, counts)


Row = tuple[str, str, str, str | None, str]


def _read_list(path: Path) -> Iterator[Row]:
    """The pictures that the lines name and, looked for where `find` says, their masks."""
    with path.open(encoding="utf-8") as lines:
        try:
            names = (_tidy(line.strip()) for line in lines if line.strip() and not line.startswith("#"))
            for name in names:
                yield _row(name, first=False)
                folder, file = posixpath.split(name)
                folders = ("/".join("masks" if part == "images" else part for part in folder.split("/")), folder)
                tails = (f"{tail}{suffix}" for tail in ("", ".mask", "_mask") for suffix in MASK_SUFFIXES)
                for mask in (posixpath.join(place, posixpath.splitext(file)[0] + tail) for tail in tails for place in folders):
                    row = _row(mask, first=False)
                    if row[2] != "picture" and os.path.isfile(posixpath.join(path.parent, mask)):  # noqa: PTH113 - see above
                        yield row
        except UnicodeDecodeError as error:
            raise UserError(f"ingest.source: {path} is no text; name a folder, a text file of paths, or WebDataset shards") from error


def _tidy(name: str) -> str:
    """Without `.` and doubled slashes; `..` stays, as a link may stand before it."""
    return name[: name.startswith("/")] + "/".join(part for part in name.split("/") if part not in ("", "."))


def _row(name: str, first: bool) -> Row:
    """Name, the key that picture and mask share, role, split and class of a file; `first`: the split is the topmost such folder."""
    *above, file = name.split("/")
    folders = [part for part in above if part not in ("images", "masks")]
    full_stem = posixpath.splitext(file)[0]
    stem = re.sub(r"[._]mask$", "", full_stem)
    role = "mask" if "masks" in above else "mask?" if stem != full_stem else "picture"
    places = [i for i, part in enumerate(folders) if part.lower() in SPLITS]
    place = (places[0] if first else places[-1]) if places else -1
    below = folders[place + 1 :]
    cls = (below[0] if first else below[-1]) if below else ""
    split = SPLITS[folders[place].lower()] if places else None
    return name, "/".join([*folders, stem]), role, split, "" if cls.lower() in UNLABELLED else cls


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
    elif labels != "none" and not (folders if labels == "folders" else there[labels]):
        expected = {"csv": "labels.csv", "masks": "a mask such as masks/train/A.png for images/train/A.jpg", "folders": "class folders"}
        raise UserError(f"ingest.labels = {labels}, but {tree} has no {expected[labels]}; add it or set ingest.labels to auto")
    return labels


def _read_files(table: sqlite3.Connection, tree: Tree, kind: str, classes: list[str] | None, max_bytes: int) -> Iterator[Item]:
    query = """SELECT p.name, p.split, p.class, labels.value, (SELECT min(name) FROM files WHERE key = p.key AND role = 'mask'),
                      (SELECT count(*) FROM files WHERE key = p.key AND role = 'mask')
               FROM files AS p LEFT JOIN labels ON labels.name = p.name
               WHERE p.role = 'picture' AND p.split IS NOT 'test' ORDER BY p.split IS NOT 'val', p.name"""
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
            cls = {"csv": value, "folders": folder if folder in (classes or []) else None}.get(kind)
            yield Item(name, split, data, mask_data, cls)


def _read_csv(table: sqlite3.Connection, tree: Tree, classes: list[str] | None) -> list[str]:
    file = tree.open_text("labels.csv")
    assert file, "the kind of labels is csv only where there is one"
    with file:
        rows = csv.DictReader(file)
        if not {"path", "label"} <= set(rows.fieldnames or []):
            raise UserError(f"{tree}/labels.csv: its first line must name the columns path and label")
        pairs = ((_tidy(row["path"]), row["label"].strip()) for row in rows if row["label"] and row["label"].strip())
        table.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", pairs)
    values = [value for (value,) in table.execute("SELECT DISTINCT value FROM labels")]
    return classes or sorted(values, key=lambda value: (0, int(value), "") if value.isdecimal() else (1, 0, value))


def _read_classes(tree: Tree) -> list[str] | None:
    text = tree.open_text("classes.txt")
    if text is None:
        return None
    with text:
        return parse_classes(text.read(), f"{tree}/classes.txt")


def _one(table: sqlite3.Connection, query: str) -> int:
    return int(table.execute(query).fetchone()[0])
