"""Splits that are not named by folders: pairs of outermost folders, lists of pictures, YOLO's data.yaml."""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import yaml

from dreamteacher.data.class_list import NUMBER
from dreamteacher.data.items import utf8
from dreamteacher.data.layout import meaning, split_and_rest
from dreamteacher.data.names import nfc, row, slashes, tidy
from dreamteacher.data.table import scalar
from dreamteacher.data.trees import ALL_PICTURES, SPLIT_LIST, Tree
from dreamteacher.data.yolo import YAML, read_yaml
from dreamteacher.errors import UserError

PROBED = 20  # lines of a list that are tried to find the folder to which its paths are relative
_FOLD = re.compile(r"(.*[-_. ])?k?(fold|cv|crossval)[-_. ]?\d+", re.IGNORECASE)
_VERSION = re.compile(r"\d+$")
ORDER = ("train", "test", "val?", "val")  # the last has priority for a picture in several lists


class Splits(NamedTuple):
    """used: files that define splits. n_unlisted: pictures in none of them, without a split by folder. notes: on unused lists.
    starts: of each list that names pictures, from which folder its paths go and how many folders at their front lead to it."""

    used: list[str]
    n_unlisted: int
    notes: list[str]
    starts: dict[str, tuple[str, int]]


def split_by_outer_folders(table: sqlite3.Connection, tree: Tree) -> None:
    """Set the split of outermost folders that differ only in the word of a split, such as uavid_train and uavid_val.

    Raises:
        UserError: the outermost folders are cross-validation folds, each with splits.
    """
    _refuse_folds(table, tree)
    families: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for (top,) in table.execute("SELECT DISTINCT top FROM files WHERE split IS NULL LIMIT 1000"):
        if meaning(top).split is None and (found := split_and_rest(top)):
            families[found[1]][top] = found[0]
    for family in families.values():
        if "train" in family.values() and len(set(family.values())) > 1:
            table.executemany(
                "UPDATE files SET split = ?, class = CASE class WHEN top THEN below ELSE class END WHERE split IS NULL AND top = ?",
                [(split, top) for top, split in family.items()],
            )


def _refuse_folds(table: sqlite3.Connection, tree: Tree) -> None:
    """UserError for folders of several folds, as val pictures of one fold are train pictures of another."""
    tops = table.execute("SELECT DISTINCT top FROM files WHERE role = 'picture' AND split NOT NULL ORDER BY top LIMIT 100")
    folds = [top for (top,) in tops if _FOLD.fullmatch(top)]
    if len(folds) > 1:
        raise UserError(
            f"{tree}: {folds[0]}, {folds[1]} and so on divide pictures into train and val, each in another way; set ingest.source to one"
        )


def split_by_files(table: sqlite3.Connection, tree: Tree, lists: list[str]) -> Splits:
    """Set the split of pictures whose folders name none from lists (Pascal VOC's ImageSets, train.txt, val.txt), else from data.yaml.

    For pictures in several lists val precedes test, and test train; pictures in none become train. lists: candidate files.
    """
    table.execute("CREATE TABLE listed (key TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID")
    chosen, notes = _choose(table, lists)
    starts = {}
    for name in chosen:
        start = _start_of_paths(table, tree, name)
        if start is None:
            if first := next(_pictures_in(tree, name), None):
                notes.append(f"{name} seems to list pictures, and names none that is here (such as {first!r}), so it is not followed")
            continue
        rows = ((key, split_of_list(name)) for key, _ in pictures_of_list(table, tree, name, start))
        table.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?)", rows)
        starts[name] = start
    changed = table.execute(
        "UPDATE files SET split = (SELECT split FROM listed WHERE listed.key = files.key) "
        "WHERE role = 'picture' AND split IS NULL AND key IN (SELECT key FROM listed)"
    ).rowcount
    table.executemany("DELETE FROM box_files WHERE name = ?", [(name,) for name in starts])
    used = list(starts) if changed else _split_by_yolo(table, tree, notes)
    n_unlisted = table.execute("UPDATE files SET split = 'train' WHERE role = 'picture' AND split IS NULL").rowcount if used else 0
    return Splits(used, n_unlisted, notes, starts)


def choose_the_val_split(table: sqlite3.Connection) -> bool:
    """Whether the source has its own val split. Pictures of dev or eval become val if there is none, else test."""
    has_val = scalar(table, "SELECT EXISTS (SELECT 1 FROM files WHERE role = 'picture' AND split = 'val')")
    changed = table.execute("UPDATE files SET split = ? WHERE split = 'val?'", ["test" if has_val else "val"]).rowcount
    return bool(has_val or changed)


def _choose(table: sqlite3.Connection, lists: list[str]) -> tuple[list[str], list[str]]:
    """(lists to use, in ORDER; notes on others). Of Pascal VOC those of the task; none if several lists divide the data differently."""
    task = "/Segmentation/" if scalar(table, "SELECT EXISTS (SELECT 1 FROM pairs)") else "/Main/"
    chosen = [name for name in lists if task in name] or [name for name in lists if "/Main/" not in name and "/Segmentation/" not in name]
    labels = "SELECT 1 FROM box_files AS b JOIN files AS p ON p.key = b.key AND p.role = 'picture' WHERE b.name = ?"
    chosen = [name for name in chosen if not table.execute(labels, [name]).fetchone()]
    families: dict[str, list[str]] = defaultdict(list)
    for name in chosen:
        families[_VERSION.sub("", posixpath.splitext(name)[0])].append(name)
    several = [sorted(family)[:2] for family in families.values() if len(family) > 1]
    notes = [f"{one} and {other} divide the pictures differently, and none such is followed; keep one of each" for one, other in several]
    chosen = [] if several else chosen
    return sorted(chosen, key=lambda name: (ORDER.index(split_of_list(name)), name)), notes


def split_of_list(name: str) -> str:
    """The split that a list's name says."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    found = split_and_rest(stem)
    return found[0] if found else "train" if stem.lower().startswith("train") else "val"


def _pictures_in(tree: Tree, name: str) -> Iterator[str]:
    """The paths or stems of pictures in a list; a class or a mask after them is ignored."""
    return (picture for picture, _ in lines_of_list(tree, name))


def pictures_of_list(table: sqlite3.Connection, tree: Tree, name: str, start: tuple[str, int]) -> Iterator[tuple[str, list[str]]]:
    """The key (see names.Row) of the picture that each line of a list names, and the words behind it. start: as in Splits."""
    return ((_existing_key(table, _key(start, picture)), words) for picture, words in lines_of_list(tree, name))


def lines_of_list(tree: Tree, name: str) -> Iterator[tuple[str, list[str]]]:
    """The path or stem of a picture that each line of a list names, and the words behind it: numbers, or its mask."""
    lines = tree.open_text(name)
    if lines is None:
        return
    with lines, utf8(f"{tree}/{name}"):
        for line in lines:
            words = re.split(r"[\s,;]+", line.strip())
            alone = len(words) == 1 or not (all(map(NUMBER.fullmatch, words[1:])) or (len(words) == 2 and _is_picture(words[0])))
            picture = tidy(slashes(line.strip() if alone else words[0]).lstrip("/"))
            if picture and not picture.startswith("#"):
                yield picture, [] if alone else words[1:]


def _is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in ALL_PICTURES


def _key(start: tuple[str, int], picture: str) -> str:
    """The key (see names.Row) of a picture in a list. start: (folder, number of leading folders of the path to replace by it)."""
    folder, left_out = start
    path = posixpath.join(folder, *picture.split("/")[left_out:])
    return row(f"{posixpath.splitext(path)[0] if _is_picture(path) else path}.jpg").key


def _existing_key(table: sqlite3.Connection, key: str) -> str:
    """The key, or, if no picture has it, that of the only picture with this key in an item folder such as scan_1."""
    of_pictures = "FROM files WHERE role = 'picture'"
    if table.execute(f"SELECT 1 {of_pictures} AND key = ? LIMIT 1", [key]).fetchone():
        return key
    others = table.execute(f"SELECT key {of_pictures} AND key2 = ? AND key2 = without_items(key) LIMIT 2", [key]).fetchall()
    return str(others[0][0]) if len(others) == 1 else key


def _start_of_paths(table: sqlite3.Connection, tree: Tree, name: str) -> tuple[str, int] | None:
    """(folder to which paths of a list are relative, number of leading folders to drop) that finds most pictures; None if none finds
    any."""
    found = SPLIT_LIST.search(name)
    here = posixpath.dirname(name)
    places = dict.fromkeys([name[: found.start(2)].rstrip("/") if found and found[2] else here, here, posixpath.dirname(here), ""])
    probes = [picture for picture, _ in zip(_pictures_in(tree, name), range(PROBED), strict=False)]
    query = "SELECT EXISTS (SELECT 1 FROM files WHERE key = ? AND role = 'picture')"
    best, start = 0, None
    for left_out in range(max((picture.count("/") for picture in probes), default=0) + 1):
        for place in places:
            keys = [_key((place, left_out), picture) for picture in probes if picture.count("/") >= left_out]
            hits = sum(table.execute(query, [_existing_key(table, key)]).fetchone()[0] for key in keys)
            if hits > best:
                best, start = hits, (place, left_out)
    return start


def _split_by_yolo(table: sqlite3.Connection, tree: Tree, notes: list[str]) -> list[str]:
    """Set splits from the folders in data.yaml; returns its name if any picture was found."""
    for name in YAML:
        try:
            stored = read_yaml(tree, name)
        except (yaml.YAMLError, ValueError):  # reported when its names are read
            continue
        folders = {split: _folders(stored.get(split)) for split in ("train", "test", "val")} if stored else {}
        if set(folders.get("train", ())) & set(folders.get("val", ())):
            notes.append(f"{name} names the same pictures for train and val, so it is not followed")
            continue
        inner_first = sorted(((folder, split) for split in folders for folder in folders[split]), key=lambda pair: -pair[0].count("/"))
        if sum(_take_folder(table, folder, split) for folder, split in inner_first):
            return [name]
    return []


def _folders(value: object) -> list[str]:
    """Paths in data.yaml without leading ../ and /."""
    values = value if isinstance(value, list) else [value]
    paths = [nfc(tidy(slashes(each.strip()))) for each in values if isinstance(each, str)]
    return [re.sub(r"^(\.\./|/)+", "", path) for path in paths if path and not path.lower().endswith(".txt")]


def _take_folder(table: sqlite3.Connection, folder: str, split: str) -> int:
    """Set the split of a folder's pictures that have none; returns their number. The longest existing suffix of the path is used."""
    parts = folder.split("/")
    for i in range(len(parts)):
        place = "/".join(parts[i:])
        if place:
            below = "role = 'picture' AND name >= ? AND name < ?"
            where = (f"{place}/", f"{place}0")  # "0" follows "/" in ASCII
            if table.execute(f"SELECT EXISTS (SELECT 1 FROM files WHERE {below})", where).fetchone()[0]:
                return table.execute(f"UPDATE files SET split = ? WHERE split IS NULL AND {below}", (split, *where)).rowcount
    return 0
