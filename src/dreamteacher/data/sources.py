"""Where pictures and labels come from: folders, list files and WebDataset shards, all read lazily and in a fixed order.

File names are kept in a temporary database on disk, so that memory does not grow with the set.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import braceexpand
import fsspec
from webdataset.tariterators import group_by_keys, tar_file_expander

from dreamteacher.data.decode import SUFFIXES
from dreamteacher.errors import UserError

LabelKind = Literal["auto", "none", "folders", "masks", "csv"]
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
UNLABELLED = {"unlabelled", "unlabeled"}
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
NOT_PICTURES = {"classes.txt", "labels.csv"}


@dataclass(frozen=True)
class Item:
    """One picture as found: its bytes, with a mask's bytes or a class (name or number) if it has a label; or why it is useless."""

    name: str
    split: str | None
    data: bytes = b""
    mask: bytes | None = None
    cls: str | None = None
    problem: str | None = None


@dataclass
class Found:
    """items: the pictures, those of the val split first, then by name. classes: names by id, None if the source does not say.

    has_val: the source has its own validation split. counts: what was seen and left out; complete once the items are read.
    """

    items: Iterator[Item]
    classes: list[str] | None
    labels: str
    has_val: bool
    counts: dict[str, int] = field(default_factory=dict)


def inputs_of(source: str) -> dict[str, Path]:
    """The local files and folders that `source` names (to be digested); empty for an address.

    Raises:
        UserError: there is nothing at `source`.
    """
    if _are_shards(source):
        paths = [Path(url) for url in _expand(source) if "://" not in url]
        names = paths[:1] and [path for path in [paths[0].parent / "classes.txt"] if path.exists()]
        return {f"source/{path.name}": path for path in [*paths, *names]}
    path = Path(source)
    if not path.exists():
        raise UserError(f"ingest.source: {source} does not exist; name a folder, a text file of paths, or WebDataset shards")
    if path.is_dir():
        return {"source": path}
    beside = {f"source/{name}": path.parent / name for name in sorted(NOT_PICTURES)}
    return {"source": path} | {key: other for key, other in beside.items() if other.exists()}


def find(source: str, labels: LabelKind, max_bytes: int) -> Found:
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
        UserError: nothing there, no pictures, labels of that kind are missing or cannot be understood.
    """
    if _are_shards(source):
        return _find_in_shards(source, labels)
    path = Path(source)
    root = path if path.is_dir() else path.parent
    table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
    table.execute("CREATE TABLE files (name TEXT PRIMARY KEY, key TEXT, role TEXT, split TEXT, class TEXT) WITHOUT ROWID")
    table.execute("CREATE TABLE labels (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    table.execute("BEGIN")
    counts = {"ignored_files": 0}
    rows = _walk(root, counts) if path.is_dir() else _read_list(path)
    table.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?)", rows)
    table.execute("CREATE INDEX by_key ON files (key, role)")
    # `A_mask.png` is a mask only where there is an A to go with it
    table.execute("""UPDATE files SET role = 'picture' WHERE role = 'mask?'
                     AND NOT EXISTS (SELECT 1 FROM files AS p WHERE p.key = files.key AND p.role = 'picture')""")
    table.execute("UPDATE files SET role = 'mask' WHERE role = 'mask?'")
    if not _one(table, "SELECT count(*) FROM files WHERE role = 'picture'"):
        tars = (
            " (there are .tar files: name shards as FOLDER/NAME-{000000..000009}.tar)" if path.is_dir() and any(root.glob("*.tar")) else ""
        )
        raise UserError(f"no pictures in {source}{tars}; pictures end in {', '.join(sorted(SUFFIXES))}")
    classes = _read_classes(root / "classes.txt")
    kind = _kind_of_labels(table, labels, root, classes, is_list=path.is_file())
    if kind == "csv":
        classes = _read_csv(table, root / "labels.csv", classes)
        counts["labels_without_picture"] = _one(table, "SELECT count(*) FROM labels WHERE name NOT IN (SELECT name FROM files)")
    elif kind == "folders":
        names = [
            name for (name,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != '' ORDER BY class")
        ]
        counts["folders_without_class"] = len(set(names) - set(classes or names))
        classes = classes or names
    elif kind == "masks":
        if classes is None:
            raise _masks_need_classes(str(root))
        pictures = "(SELECT key FROM files WHERE role = 'picture')"
        counts["masks_without_picture"] = _one(table, f"SELECT count(*) FROM files WHERE role = 'mask' AND key NOT IN {pictures}")
    counts["left_out_as_test"] = _one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'test'")
    has_val = bool(_one(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'val'"))
    return Found(_read_files(table, root, kind, classes, max_bytes), classes, kind, has_val, counts)


Row = tuple[str, str, str, str | None, str]


def _walk(root: Path, counts: dict[str, int]) -> Iterator[Row]:
    """All files below `root`, entry by entry: os.walk would hold the names of a folder of a million pictures."""
    waiting, visited = [root], set()  # a folder may be a link, even to one above it
    while waiting:
        folder = waiting.pop()
        here = folder.stat()
        if (here.st_dev, here.st_ino) in visited:
            continue
        visited.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if entry.is_dir():
                    waiting.append(path)
                elif path.suffix.lower() in SUFFIXES:
                    yield _row(PurePosixPath(path.relative_to(root)), first=True)
                elif entry.name not in NOT_PICTURES:
                    counts["ignored_files"] += 1


def _read_list(path: Path) -> Iterator[Row]:
    for line in path.open(encoding="utf-8"):
        if line.strip() and not line.startswith("#"):
            name = PurePosixPath(line.strip())
            yield _row(name, first=False)
            folders = [PurePosixPath(*("masks" if part == "images" else part for part in name.parent.parts)), name.parent]
            for mask in (
                folder / f"{name.stem}{tail}{suffix}" for folder in folders for tail in ("", ".mask", "_mask") for suffix in MASK_SUFFIXES
            ):
                if mask != name and _row(mask, first=False)[2] != "picture" and (path.parent / mask).is_file():
                    yield _row(mask, first=False)


def _row(name: PurePosixPath, first: bool) -> Row:
    """Name, the key that picture and mask share, role, split and class of a file; `first`: the split is the topmost such folder."""
    folders = [part for part in name.parent.parts if part not in ("images", "masks")]
    stem = re.sub(r"[._]mask$", "", name.stem)
    role = "mask" if "masks" in name.parent.parts else "mask?" if stem != name.stem else "picture"
    places = [i for i, part in enumerate(folders) if part.lower() in SPLITS]
    place = (places[0] if first else places[-1]) if places else -1
    below = folders[place + 1 :]
    cls = (below[0] if first else below[-1]) if below else ""
    split = SPLITS[folders[place].lower()] if places else None
    return str(name), str(PurePosixPath(*folders, stem)), role, split, "" if cls.lower() in UNLABELLED else cls


def _kind_of_labels(table: sqlite3.Connection, labels: LabelKind, root: Path, classes: list[str] | None, is_list: bool) -> str:
    masks = _one(table, "SELECT count(*) FROM files AS p JOIN files AS m ON p.key = m.key AND p.role = 'picture' AND m.role = 'mask'")
    folders = [name for (name,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != ''")]
    # A list's folders are any folders; only classes.txt tells that they are classes.
    named = set(folders) & set(classes) if classes else set() if is_list else set(folders)
    there = {"csv": (root / "labels.csv").is_file(), "masks": masks > 0, "folders": len(named) > 1}
    if labels == "auto":
        labels = next((kind for kind in ("csv", "masks", "folders") if there[kind]), "none")
    elif labels != "none" and not (folders if labels == "folders" else there[labels]):
        expected = {"csv": "labels.csv", "masks": "a mask such as masks/train/A.png for images/train/A.jpg", "folders": "class folders"}
        raise UserError(f"ingest.labels = {labels}, but {root} has no {expected[labels]}; add it or set ingest.labels to auto")
    return labels


def _read_files(table: sqlite3.Connection, root: Path, kind: str, classes: list[str] | None, max_bytes: int) -> Iterator[Item]:
    query = """SELECT p.name, p.split, p.class, labels.value, (SELECT min(name) FROM files WHERE key = p.key AND role = 'mask'),
                      (SELECT count(*) FROM files WHERE key = p.key AND role = 'mask')
               FROM files AS p LEFT JOIN labels ON labels.name = p.name
               WHERE p.role = 'picture' AND p.split IS NOT 'test' ORDER BY p.split IS NOT 'val', p.name"""
    for name, split, folder, value, mask, n_masks in table.execute(query):
        try:
            if kind == "masks" and n_masks > 1:
                raise OSError(0, f"it has {n_masks} masks (one is {mask})")
            data = _read(root / name, max_bytes)
            mask_data = _read(root / mask, max_bytes) if kind == "masks" and mask else None
        except OSError as error:
            yield Item(name, split, problem=f"cannot be read: {error.strerror}")
            continue
        cls = {"csv": value, "folders": folder if folder in (classes or []) else None}.get(kind)
        yield Item(name, split, data, mask_data, cls)


def _read(path: Path, max_bytes: int) -> bytes:
    size = path.stat().st_size
    if size > max_bytes:
        raise OSError(0, f"{size} bytes are more than a picture of ingest.max_pixels needs")
    return path.read_bytes()


def _read_csv(table: sqlite3.Connection, path: Path, classes: list[str] | None) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"path", "label"} <= set(rows.fieldnames or []):
            raise UserError(f"{path}: its first line must name the columns path and label")
        pairs = ((str(PurePosixPath(row["path"])), row["label"].strip()) for row in rows if row["label"] and row["label"].strip())
        table.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", pairs)
    values = [value for (value,) in table.execute("SELECT DISTINCT value FROM labels")]
    return classes or sorted(values, key=lambda value: (0, int(value), "") if value.isdecimal() else (1, 0, value))


def _read_classes(path: Path) -> list[str] | None:
    if not path.exists():
        return None
    return _classes(path.read_text(encoding="utf-8-sig"), str(path))


def _classes(text: str, where: str) -> list[str]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise UserError(f"{where} must hold at least two different class names, one on each line, the first for id 0")
    return names


def _masks_need_classes(where: str) -> UserError:
    return UserError(f"there are masks but no classes.txt in {where}; write one class name on each line, the first for mask value 0")


def _one(table: sqlite3.Connection, query: str) -> int:
    return int(table.execute(query).fetchone()[0])


def _are_shards(source: str) -> bool:
    return "://" in source or bool(re.search(r"\.(tar|tar\.gz|tgz)$", source))


def _expand(source: str) -> list[str]:
    """Braces and * of a path or an address."""
    urls: list[str] = []
    for url in braceexpand.braceexpand(source):
        if "*" in url:
            files, paths = fsspec.core.url_to_fs(url)
            urls += sorted(files.unstrip_protocol(path) if "://" in url else path for path in files.glob(paths))
        else:
            urls.append(url)
    missing = [url for url in urls if "://" not in url and not Path(url).exists()]
    if missing or not urls:
        raise UserError(f"ingest.source: there is no shard {missing[0] if missing else source}")
    return urls


def _find_in_shards(source: str, labels: LabelKind) -> Found:
    urls = _expand(source)
    common = os.path.commonpath([url.rpartition("/")[0] for url in urls])
    names = {url: url[len(common) :].lstrip("/") if url.startswith(common) else url.rpartition("/")[2] for url in urls}
    splits = {url: next((SPLITS[word] for word in re.split(r"\W|_", names[url].lower()) if word in SPLITS), None) for url in urls}
    counts = {"ignored_files": 0, "left_out_as_test": 0}
    try:
        with fsspec.open(urls[0].rpartition("/")[0] + "/classes.txt", "r", encoding="utf-8-sig") as file:
            classes = _classes(file.read(), f"classes.txt beside {urls[0]}")
    except FileNotFoundError:
        classes = None
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _cannot_open(urls[0], error) from error

    def items() -> Iterator[Item]:
        for url in sorted(urls, key=lambda url: (splits[url] != "val", names[url])):
            if splits[url] == "test":
                counts["left_out_as_test"] += 1
            else:
                for item in _read_shard(url, names[url], splits[url], labels, counts):
                    if item.mask is not None and classes is None:
                        raise _masks_need_classes("the folder of the shards")
                    yield item

    return Found(items(), classes, "shards" if labels != "none" else "none", "val" in splits.values(), counts)


def _read_shard(url: str, shard: str, split: str | None, labels: LabelKind, counts: dict[str, int]) -> Iterator[Item]:
    try:
        opened = fsspec.open(url, "rb").open()
    except Exception as error:
        raise _cannot_open(url, error) from error
    with opened as stream:
        try:
            for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
                suffix = next((key for key in sample if f".{key}" in SUFFIXES), None)
                if suffix is None:
                    counts["ignored_files"] += 1
                    continue
                name = f"{shard}/{sample['__key__']}.{suffix}"
                mask = next((sample[key] for key in sample if key.startswith("mask.") and f".{key[5:]}" in MASK_SUFFIXES), None)
                try:
                    cls = _class_of(sample)
                except (ValueError, TypeError):
                    yield Item(name, split, problem="its .cls or .json cannot be read")
                    continue
                mask, cls = (mask if labels in ("auto", "masks") else None), (cls if labels in ("auto", "folders", "csv") else None)
                yield Item(name, split, sample[suffix], mask, cls)
        except Exception as error:  # a damaged archive or a lost connection, in the words of any of five libraries
            yield Item(shard, split, problem=f"damaged shard, what follows is lost: {type(error).__name__}")


def _class_of(sample: dict[str, bytes]) -> str | None:
    """The class as text, from KEY.cls or KEY.json ("label" or "cls")."""
    if "cls" in sample:
        return sample["cls"].decode("utf-8").strip()
    facts = json.loads(sample["json"]) if "json" in sample else {}
    value = facts.get("label", facts.get("cls")) if isinstance(facts, dict) else None
    return None if value is None else str(value)


def _cannot_open(url: str, error: Exception) -> UserError:
    words = " ".join(str(error).split())[:200]
    return UserError(f"cannot open {url}: {type(error).__name__}: {words}; check the address, the credentials and AWS_ENDPOINT_URL")
