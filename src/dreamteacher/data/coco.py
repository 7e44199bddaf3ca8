"""COCO's JSON files, streamed element by element into a table on disk, as large ones hold tens of millions of boxes."""

from __future__ import annotations

import io
import json
import posixpath
import re
import sqlite3
from collections import Counter
from typing import Any, Literal, NamedTuple

from dreamteacher.data.items import utf8
from dreamteacher.data.json_elements import elements
from dreamteacher.data.keypoint_labels import bounds_of, count_of, read_body, the_body
from dreamteacher.data.keypoints import Body
from dreamteacher.data.layout import split_and_rest
from dreamteacher.data.names import class_name, is_set, nfc, tidy
from dreamteacher.data.run_lengths import bounds_of_runs
from dreamteacher.data.table import shared_folders
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

PEEKED = 1 << 16
OVERLAP = 64  # characters of a block that are searched again with the next: a key and its bracket may be divided
KEYS = ("images", "annotations", "categories")
_LIST = re.compile(rf'"({"|".join(KEYS)})"\s*:\s*\[')
OR_OTHER_LABELS = "or set ingest.labels to another kind"
MAX_FILES = 100  # JSON files not named after a picture; if there are more, none is taken for COCO
Detail = Literal["", "outlines", "keypoints"]  # what is read besides boxes
ORDER = ("val", "val?", "test", None, "train")  # priority of the split for a picture that is in several files


class Coco(NamedTuple):
    """files: their names. names: of the classes (or keypoints), by id. counts: annotations that are not used, by reason. body: the
    keypoints of an object, if they are read. examples: a name for some of the counts."""

    files: list[str]
    names: list[str]
    counts: dict[str, int]
    examples: dict[str, str]
    body: Body | None


def read_coco(table: sqlite3.Connection, tree: Tree, detail: Detail = "") -> Coco | None:
    """Fill the table `labels` from the source's COCO files: value is {"size", "boxes"}, as `box_labels` reads it, plus the `detail` under
    its name, as `instance_labels` or `keypoint_labels` reads it.

    `file_name` is resolved from the root, from the file's folder, by path suffix, or by base name. A picture whose folders name no split
    takes the split in the file's name, such as instances_val2017.json.

    Returns:
        None if there is no COCO file, or it has no annotation with a box.

    Raises:
        UserError: a file is damaged or not UTF-8 text, two files disagree about a picture, a name matches several pictures, or no object
            has the `detail`.
    """
    candidates = [
        name
        for (name,) in table.execute(
            "SELECT name FROM box_files AS b WHERE suffix = '.json' AND NOT EXISTS (SELECT 1 FROM files AS p WHERE p.key = b.key "
            f"AND p.role = 'picture') ORDER BY name LIMIT {MAX_FILES + 1}"
        )
    ]
    table.execute("CREATE TABLE not_utf8 (name TEXT)")
    found = [name for name in candidates if _is_coco(table, tree, name)] if len(candidates) <= MAX_FILES else []
    # One folder has instances_val2017.json, person_keypoints_val2017.json, and files of stuff and captions.
    word = re.compile(".*keypoints" if detail == "keypoints" else "instances")
    preferred = [name for name in found if word.match(posixpath.basename(name))]
    files = sorted(preferred or found, key=lambda name: (ORDER.index(_split_of(name)), name))
    if not files:
        return None
    table.execute("CREATE TABLE coco_pictures (file INTEGER, id TEXT, name TEXT, size TEXT, PRIMARY KEY (file, id)) WITHOUT ROWID")
    table.execute(
        "CREATE TABLE coco_boxes (file INTEGER, picture TEXT, x REAL, y REAL, w REAL, h REAL, category INTEGER, crowd INTEGER, detail TEXT)"
    )
    table.execute("CREATE TABLE coco_names (file INTEGER, id INTEGER, name TEXT, PRIMARY KEY (file, id)) WITHOUT ROWID")
    categories: dict[tuple[int, int, str], None] = {}
    bodies: dict[str, Body] = {}
    left_out: Counter[str] = Counter()
    used = []
    for number, name in enumerate(files):
        of_file = _import(table, tree, number, name, detail, bodies=bodies, counts=left_out)
        if of_file is not None:
            used.append(name)
            categories |= dict.fromkeys((identity, number, text) for identity, text in of_file.items())
    if not used:
        return None
    if detail and not table.execute("SELECT EXISTS (SELECT 1 FROM coco_boxes WHERE detail NOT NULL)").fetchone()[0]:
        key, what = {"outlines": ("segmentation", "outlines"), "keypoints": ("keypoints", "them")}[detail]
        raise UserError(f"{tree}/{used[0]} has boxes and no `{key}` of an object; add {what}, or set ingest.task to detection")
    body = the_body(bodies, f"{tree}/{used[0]}") if detail == "keypoints" else None
    counts, examples = _find_pictures(table, tree, files, detail, list(bodies))
    if not table.execute("SELECT EXISTS (SELECT 1 FROM labels)").fetchone()[0]:
        (named,) = table.execute("SELECT min(name) FROM coco_pictures").fetchone()
        (there,) = table.execute("SELECT min(name) FROM files WHERE role = 'picture'").fetchone()
        raise UserError(f"{tree}/{used[0]} names none of the pictures: it says {named!r}, and a picture is {there!r}; put them there")
    names = list(body.names) if body else list(dict.fromkeys(text for *_, text in sorted(categories)))
    return Coco(used, names, counts | left_out, examples, body)


def _split_of(name: str) -> str | None:
    """val for `instances_val2017.json`; None if the name contains no split."""
    found = split_and_rest(posixpath.splitext(posixpath.basename(name))[0])
    return found[0] if found else None


def _is_coco(table: sqlite3.Connection, tree: Tree, name: str) -> bool:
    """Whether a file begins as one of COCO. One that is not UTF-8 text is refused if it has two of COCO's lists; with one it cannot have
    boxes, and is named in the table `not_utf8`."""
    file = tree.open_text(name)
    if file is None:
        return False
    with file:
        try:
            return _begins_as_coco(file.read(PEEKED).lstrip())
        except UnicodeDecodeError:
            lists = _lists_in(tree, name)
    if len(lists) > 1:
        raise UserError(f"{tree}/{name} is not UTF-8 text; save it as UTF-8, {OR_OTHER_LABELS}")
    table.executemany("INSERT INTO not_utf8 VALUES (?)", [(name,)] * len(lists))
    return False


def _begins_as_coco(start: str) -> bool:
    return start.startswith("{") and any(f'"{key}"' in start for key in KEYS)


def _lists_in(tree: Tree, name: str) -> set[str]:
    """The keys of COCO that have a list in a file of any encoding, read until there are two; none if it does not begin as one of COCO."""
    file, found = tree.open_text(name), set[str]()
    assert isinstance(file, io.TextIOWrapper), "it was opened before"
    with file:
        file.reconfigure(encoding="latin-1")  # reads any bytes; UTF-16 has zeros between letters
        text = file.read(PEEKED).replace("\0", "").lstrip("\xef\xbb\xbf\xff\xfe \t\r\n")
        while text and len(found) < 2 and (found or _begins_as_coco(text)):
            found |= set(_LIST.findall(text))
            more = file.read(PEEKED).replace("\0", "")
            text = more and text[-OVERLAP:] + more
    return found


def _import(
    table: sqlite3.Connection, tree: Tree, number: int, name: str, detail: Detail, *, bodies: dict[str, Body], counts: Counter[str]
) -> dict[int, str] | None:
    """Copy pictures and boxes of a file into the tables. Returns its categories by id, or None if no annotation has a box.

    bodies: extended by the keypoints of categories, by name. counts: increased by the annotations that are dropped.
    """
    where = f"{tree}/{name}"
    categories: dict[int, str] = {}
    boxed, without = False, 0
    file = tree.open_text(name)
    assert file, "it was opened before"
    try:
        with file, utf8(where, f"save it as UTF-8, {OR_OTHER_LABELS}"):
            for key, element in elements(file):
                if key == "categories":
                    category = class_name(str("" if element["name"] is None else element["name"]))
                    if not category:
                        raise ValueError("a category has no name")
                    counts["categories_of_one_name"] += category in categories.values()
                    categories[int(element["id"])] = category
                    if detail == "keypoints" and (body := read_body(element)) and bodies.setdefault(category, body) != body:
                        raise UserError(f"{where}: the category {category!r} has other keypoints than in a file before; make them alike")
                elif key == "images":
                    path = tidy(str(element["file_name"]).replace("\\", "/"))
                    row = (number, _identity(element["id"]), nfc(path), json.dumps([element.get("width"), element.get("height")]))
                    if table.execute("INSERT OR IGNORE INTO coco_pictures VALUES (?, ?, ?, ?)", row).rowcount == 0:
                        raise UserError(f"{where}: two pictures have the id {element['id']}; give each its own")
                elif key == "annotations":
                    box = _box(element, detail)
                    if box is None:
                        without += 1
                        continue
                    boxed = True
                    points = element.get("keypoints")
                    counts["objects_with_keypoints"] += not detail and isinstance(points, list) and count_of(element) > 0
                    crowd = is_set(element.get("iscrowd")) or is_set(element.get("ignore"))
                    box_row = (number, _identity(element["image_id"]), *box, int(element["category_id"]), crowd)
                    table.execute("INSERT INTO coco_boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*box_row, _detail(element, detail)))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where} is no COCO file of boxes ({what}); fix it, {OR_OTHER_LABELS}") from error
    counts["annotations_without_box"] += without if boxed else 0
    if not boxed:  # captions, or a list of test pictures
        table.execute("DELETE FROM coco_pictures WHERE file = ?", [number])
        return None
    table.executemany("INSERT INTO coco_names VALUES (?, ?, ?)", [(number, *entry) for entry in categories.items()])
    unnamed = table.execute(
        "SELECT category FROM coco_boxes WHERE file = :file AND category NOT IN (SELECT id FROM coco_names WHERE file = :file) LIMIT 1",
        {"file": number},
    ).fetchone()
    if unnamed:
        raise UserError(f"{where}: a box has category_id {unnamed[0]}, which `categories` does not name; add it")
    return categories


def _identity(value: Any) -> str:
    """The id of a picture as text; tables write whole numbers as 7.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _outline(element: dict[str, Any]) -> Any:
    """`segmentation`: run lengths, or a list of polygons, each a flat list x, y, x, y ..., as which a lone flat list and pairs are read."""
    found = element.get("segmentation")
    if not isinstance(found, list) or not found:
        return found
    if isinstance(found[0], int | float) or _are_points(found):
        found = [found]
    return [[value for point in polygon for value in point] if _are_points(polygon) else polygon for polygon in found]


def _are_points(values: Any) -> bool:
    """Whether these are pairs of numbers."""
    return isinstance(values, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(value, int | float) for value in point) for point in values
    )


def _detail(element: dict[str, Any], detail: Detail) -> str | None:
    """The outline or keypoints of an annotation as JSON; None if it has none."""
    if detail == "outlines" and (outline := _outline(element)):
        return json.dumps(outline)
    if detail == "keypoints" and count_of(element):
        return json.dumps({"points": element["keypoints"], "area": element.get("area")})
    return None


def _box(element: dict[str, Any], detail: Detail = "") -> list[float] | None:
    """x, y, width, height: bbox, else the bounds of the outline or of the keypoints; None without any of these."""
    box = element.get("bbox")
    if box and len(box) != 4:
        raise ValueError(f"a bbox has {len(box)} numbers")
    if box and (None in box or (float(box[2]) and float(box[3]))):
        return [float(value) for value in box]
    outline = _outline(element)
    polygons = outline if isinstance(outline, list) and all(isinstance(each, list) for each in outline) else []
    xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
    if xs and ys:
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if isinstance(outline, dict):
        return bounds_of_runs(outline)
    if box:
        return [float(value) for value in box]
    return bounds_of(element) if detail == "keypoints" else None


def _find_pictures(
    table: sqlite3.Connection, tree: Tree, files: list[str], detail: Detail, with_keypoints: list[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Insert a row into `labels` for each picture in the files, also without boxes, and set the split of pictures that have none.

    For keypoints, objects of categories that are not in `with_keypoints` are dropped. Returns counts of what has no picture or no entry,
    and examples.
    """
    table.create_function("basename", 1, lambda name: nfc(posixpath.basename(name)), deterministic=True)
    table.execute("CREATE INDEX by_basename ON files (basename(name)) WHERE role = 'picture'")
    table.execute("CREATE INDEX coco_by_picture ON coco_boxes (file, picture)")
    missing, examples = 0, dict[str, str]()
    listed = table.execute("SELECT file, id, name, size FROM coco_pictures ORDER BY file, name")
    for number, identity, name, size in listed:
        there = _the_picture(table, tree, files[number], name)
        if there is None:
            missing += 1
            examples.setdefault("boxes_without_picture", name)
            continue
        boxes = table.execute(
            "SELECT x, y, w, h, n.name, crowd, detail FROM coco_boxes AS b JOIN coco_names AS n ON n.file = b.file AND n.id = category "
            "WHERE b.file = ? AND picture = ? ORDER BY b.rowid",
            (number, identity),
        ).fetchall()
        if detail == "keypoints":
            boxes = [(*row[:-1], row[-1] or '{"points": null, "area": null}') for row in boxes if row[4] in with_keypoints]
        entry = {"size": json.loads(size), "boxes": [row[:-1] for row in boxes]}
        value = json.dumps(entry | ({detail: [json.loads(row[-1] or "null") for row in boxes]} if detail else {}))
        if table.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (nfc(there), value)).rowcount == 0:
            (other,) = table.execute("SELECT value FROM labels WHERE name = ?", [nfc(there)]).fetchone()
            if _objects(other) != _objects(value):
                raise UserError(
                    f"{tree}: the boxes of {there} in {files[number]} are not those that an earlier entry has; keep one of them"
                )
        elif split := _split_of(files[number]):
            table.execute("UPDATE files SET split = ? WHERE name = ?", (split, there))
    orphans = "FROM coco_boxes AS b WHERE NOT EXISTS (SELECT 1 FROM coco_pictures WHERE file = b.file AND id = picture)"
    n_orphans, first, file = table.execute(f"SELECT count(*), min(picture), file {orphans}").fetchone()
    if n_orphans and n_orphans == table.execute("SELECT count(*) FROM coco_boxes").fetchone()[0]:
        known = table.execute("SELECT min(id) FROM coco_pictures WHERE file = ?", [file]).fetchone()[0]
        if known is None:
            raise UserError(f"{tree}/{files[file]} has boxes and no `images`; put images and annotations into one file")
        raise UserError(
            f"{tree}/{files[file]}: no box names an image_id that `images` has: one is {first!r}, and an id there is {known!r}; write both "
            "alike"
        )
    return {"boxes_without_picture": missing, "boxes_of_no_entry": n_orphans}, examples


def _objects(value: str) -> list[str]:
    """The objects of an entry, independent of their order."""
    entry = json.loads(value)
    details = entry.get("outlines") or entry.get("keypoints") or entry["boxes"]
    return sorted(str(each) for each in zip(entry["boxes"], details, strict=True))


def _the_picture(table: sqlite3.Connection, tree: Tree, file: str, name: str) -> str | None:
    """The picture that a `file_name` refers to: by path from the COCO file's folder or the root, by path suffix, or by base name. Among
    several that of the file's split, or the nearest to the file."""
    folder, split = posixpath.dirname(file), _split_of(file)
    query = "SELECT name, split FROM files WHERE role = 'picture' AND basename(name) = ? ORDER BY name"
    rows = table.execute(query, [posixpath.basename(name)]).fetchall()
    for path in (posixpath.normpath(posixpath.join(folder, name)), name):
        for place, _ in rows:
            if nfc(place) == path:
                return place
    by_end = [row for row in rows if nfc(row[0]).endswith("/" + name.lstrip("/"))] or rows
    fitting = [row for row in by_end if row[1] == split] or [row for row in by_end if None in (row[1], split)] or by_end
    nearest = max((shared_folders(place, file) for place, _ in fitting), default=0)
    fitting = [row for row in fitting if shared_folders(row[0], file) == nearest]
    if len(fitting) > 1:
        raise UserError(
            f"{tree}/{file}: {name!r} may be {fitting[0][0]} or {fitting[1][0]}; write paths from the folder {tree} into file_name"
        )
    return fitting[0][0] if fitting else None
