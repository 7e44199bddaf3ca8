"""Find pictures and labels in a source: local or remote folders, list files, WebDataset shards; lazily, in a fixed order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from dreamteacher.data.box_labels import IN_TABLE, WORDS, BoxSource, find_boxes
from dreamteacher.data.class_list import ClassList, parse_classes
from dreamteacher.data.coco import Detail
from dreamteacher.data.formats import SUFFIXES, why_unread
from dreamteacher.data.imagefolder import Metadata, files_of_classes, inspect_files
from dreamteacher.data.imagefolder_boxes import find_objects
from dreamteacher.data.imagefolder_masks import take_listed_masks
from dreamteacher.data.instance_labels import object_classes
from dreamteacher.data.items import AUTO, BoxLabel, Found, Item, LabelKind, Skipped, utf8
from dreamteacher.data.label_notes import label_notes, other_tools, unread_metadata, why_no_labels
from dreamteacher.data.labels import (
    kind_of_labels,
    kinds_of_labels,
    notes_on_cells,
    read_labels,
    require_classes,
    table_has_columns,
)
from dreamteacher.data.lookalike import refuse_unknown_masks
from dreamteacher.data.multilabel_files import class_lists, without_trainval
from dreamteacher.data.names import Row, read_list, row
from dreamteacher.data.numbered_lists import take_numbers
from dreamteacher.data.object_files import parts_of, require_classes_of_objects, take_masks
from dreamteacher.data.places import Place, locate
from dreamteacher.data.shard_source import find_in_shards
from dreamteacher.data.splits import choose_the_val_split, split_by_files, split_by_outer_folders
from dreamteacher.data.table import open_table, respect_classes, scalar
from dreamteacher.data.trees import Tree
from dreamteacher.data.val_annotations import take_val_annotations
from dreamteacher.errors import UserError

KEYPOINTS_ARE_THERE = "{} objects have keypoints, and their boxes are read; to learn the keypoints, set ingest.task to keypoints"


def find(source: str | Place, labels: LabelKind, max_bytes: int, may_be_empty: bool = False, task: str = AUTO) -> Found:
    """Find pictures in `source` and labels of the kind `labels`; "auto": labels.csv, else masks, boxes or class folders.

    `task`, a key of KINDS_OF_TASK, restricts the kinds and determines what masks encode; AUTO: determined by the labels.

    Split: named by the outermost folder with a word for a split (`layout.SPLIT_WORDS`), else by Pascal VOC's image sets; for shards by a
    word of their path. Pictures of the test split are left out and counted. Files larger than `max_bytes` are not read. Labels:

    - csv: labels.csv (columns path, label) in the folder or beside the list, else metadata.csv or metadata.jsonl (see `imagefolder`), else
      `multilabel_files`; other pictures are unlabelled;
    - masks: masks/train/A.png for images/train/A.jpg; also train/masks/A.png, masks/train/A.png without images/, A_mask.png or A.mask.png
      beside A.jpg; folders and suffixes may have any of the names in `layout`;
    - boxes: a COCO file such as annotations/instances_train.json, or A.xml (Pascal VOC), A.txt (YOLO, with the classes in data.yaml) or
      A.json (labelme, Supervisely) where a mask of A.jpg might lie (beside it, labels/, Annotations/); other pictures are unlabelled;
    - folders: train/CLASS/... or CLASS/... (in a list: the last folder); unlabelled/ is not a class; also `val_annotations`,
      `numbered_lists`;
    - shards: KEY.mask.png, KEY.boxes.json, KEY.cls, or "label" or "cls" in KEY.json.

    Class names are the lines of classes.txt, else the sorted folder names or csv values. A folder with .tar files and no pictures is read
    as shards.

    Raises:
        UserError: the source does not exist, has no pictures (unless `may_be_empty`), lacks the labels or they cannot be parsed, or files
            look like masks but are not where masks are looked for.
    """
    place = locate(source) if isinstance(source, str) else source
    kinds = kinds_of_labels(labels, task)
    labels = kinds[0] if len(kinds) == 1 else labels
    if place.urls or place.tree is None:
        return find_in_shards(place.urls, labels, max_bytes, task)
    tree, skipped = place.tree, Skipped()
    rows = read_list(place.listing) if place.listing else (row(name) for name in tree.pictures(skipped))
    table = open_table(_drop_unread_labels(rows, skipped, (".npy",) if task == "depth" else ()))
    class_list = _read_classes(tree)
    names = class_list.names if class_list else None
    respect_classes(table, names)
    task, n_of_parts = take_masks(table, tree, labels, task, max_bytes)
    with_masks = take_listed_masks(table, tree, sorted(skipped.metadata), task)
    split_by_outer_folders(table, tree)
    if not scalar(table, "SELECT EXISTS (SELECT 1 FROM files WHERE role = 'picture')"):
        if not place.listing and (shards := tree.tars()):
            return find_in_shards(shards, labels, max_bytes, task)
        if not may_be_empty:
            raise _no_pictures(table, place, skipped)
    if labels == "boxes":  # pairs of masks are not used, nor Pascal VOC's image sets of segmentation
        table.execute("DELETE FROM pairs")
    with_classes = take_val_annotations(table, tree, sorted(skipped.lists))
    metadata = inspect_files(tree, sorted(skipped.metadata) if labels != "none" else [], class_lists(table))
    splits = split_by_files(table, tree, sorted(set(skipped.lists) - set(with_classes)) or without_trainval(metadata.lists))
    boxes = _find_boxes(table, tree, labels, class_list, metadata, max_bytes=max_bytes, task=task) if "boxes" in kinds else None
    tables = files_of_classes(table, tree, metadata, labels, task=task, boxes=boxes is not None)
    numbered = [] if tables or boxes or "folders" not in kinds else take_numbers(table, tree, splits, class_list)
    has_val = choose_the_val_split(table)
    if labels in ("auto", "none", "masks"):  # folders or a table are an explicit choice
        refuse_unknown_masks(table, tree, max_bytes, names)
    with _with_tool_hints(table, tree, skipped):
        kind = kind_of_labels(
            table,
            labels,
            tree,
            names,
            is_list=place.listing is not None,
            boxes=boxes is not None,
            in_table=bool(tables),
            task=task,
        )
    if task == AUTO and kind == "csv" and _is_multilabel(tree, tables, metadata):
        task = "multilabel"
    if task == "instances" and kind == "masks":
        require_classes_of_objects(table, tree, object_classes(class_list), max_bytes, has_parts=n_of_parts > 0)
    if class_list:
        require_classes(class_list, kind, f"{tree}/classes.txt", task)
    classes, counts, examples = read_labels(table, tree, kind, class_list, task=task, tables=tables, folders_count=labels == "auto")
    if boxes:
        classes, counts, examples = ClassList(boxes.names) if boxes.names else None, boxes.counts, boxes.examples
    read = tables if kind == "csv" else boxes.files if boxes else with_masks if kind == "masks" else []
    _count_unread(table, boxes, [name for name in skipped.metadata if name not in read], skipped)
    counts |= {
        "unprintable_names": skipped.unprintable,
        "beside_masks": scalar(table, "SELECT count(*) FROM files WHERE role = 'extra'"),
        "left_out_as_test": scalar(table, "SELECT count(*) FROM files WHERE role = 'picture' AND split = 'test'"),
    }
    if has_val and kind != "none":
        outside = "SELECT count(*) FROM files WHERE role = 'picture' AND split IS NULL"
        counts["outside_of_splits"] = splits.n_unlisted or scalar(table, outside)
    label_file = tables[0] if kind == "csv" else " and ".join(numbered)
    notes = [
        *([f"the splits are those of {', '.join(splits.used[:4])}"] if splits.used else []),
        *splits.notes,
        *label_notes(
            table,
            kind,
            boxes,
            classes,
            counts,
            task=task,
            label_file=label_file,
            are_several=_is_multilabel(tree, tables, metadata),
            are_listed=class_list is not None,
        ),
        *unread_metadata(metadata, read, kind),
        *([KEYPOINTS_ARE_THERE.format(n)] if task == AUTO and (n := counts.get("objects_with_keypoints")) else ()),
        *(notes_on_cells(table, tables[0]) if kind == "csv" and task == AUTO else ()),
        *(why_no_labels(table, tree, names, skipped) if labels == "auto" and kind == "none" else ()),
    ]
    items = _read_files(table, tree, kind, max_bytes, boxes.form if boxes else "", has_parts=n_of_parts > 0)
    where = _where(table, kind, tree, boxes, tables, listed=numbered or ["class folders", *with_classes])
    return Found(
        items,
        classes,
        kind,
        has_val,
        counts,
        where + (", a file for each object" if n_of_parts and kind == "masks" else ""),
        skipped,
        notes,
        labels != "none",
        task=task,
        body=boxes.body if boxes else None,
        examples=examples,
    )


def _is_multilabel(tree: Tree, tables: list[str], metadata: Metadata) -> bool:
    """Whether label tables have several classes for a picture."""
    if table_has_columns(tree, tables) or tables in (metadata.columns, metadata.lists):
        return True
    return bool(metadata.multilabel and tables == metadata.labels)


@contextmanager
def _with_tool_hints(table: sqlite3.Connection, tree: Tree, skipped: Skipped) -> Iterator[None]:
    """Append skipped files, and the tools that wrote them, to a UserError raised in the block."""
    try:
        yield
    except UserError as error:
        others = [f"passed over: {skipped.words()}"] if skipped.by_suffix else []
        raise UserError("; ".join([str(error), *others, *other_tools(table, tree, skipped)])) from error


def _no_pictures(table: sqlite3.Connection, place: Place, skipped: Skipped) -> UserError:
    others = [f"{n} pictures in folders of masks"] if (n := scalar(table, "SELECT count(*) FROM files")) else []
    others += [words] if (words := skipped.words()) else []
    there = f" (there are {', '.join(others)})" if others else ""
    return UserError(
        f"no pictures in {place.source}{there}; pictures are files that end in .jpg, .png, .tif, .webp and the like: unpack tables and "
        f"arrays (.parquet, .npz, .h5) into such files; all endings: {', '.join(sorted(SUFFIXES))}"
    )


def _drop_unread_labels(rows: Iterator[Row], skipped: Skipped, read: tuple[str, ...]) -> Iterator[Row]:
    """Drop labels in picture formats that cannot be read, such as .npy, as there may be others. read: suffixes that are kept."""
    for each in rows:
        if each.role != "picture" and why_unread(each.name) and not each.name.lower().endswith(read):
            skipped.add(each.name)
        else:
            yield each


def _find_boxes(
    table: sqlite3.Connection, tree: Tree, labels: LabelKind, classes: ClassList | None, metadata: Metadata, *, max_bytes: int, task: str
) -> BoxSource | None:
    """The box labels, if they are requested, or on auto if there are no masks or label table."""
    if labels not in ("auto", "boxes"):
        return None
    if labels == "auto":  # with a task that learns from boxes, a label table is not used
        table_file = tree.open_text("labels.csv")
        if table_file:
            table_file.close()
        if (table_file and task == AUTO) or scalar(table, "SELECT EXISTS (SELECT 1 FROM pairs)"):
            return None
    details: dict[str, Detail] = {"instances": "outlines", "keypoints": "keypoints"}
    has_files = scalar(table, "SELECT EXISTS (SELECT 1 FROM box_files)")
    found = find_boxes(table, tree, classes.names if classes else None, max_bytes, details.get(task, "")) if has_files else None
    if found or not metadata.objects:
        return found
    if labels == task == AUTO and metadata.labels:
        raise UserError(
            f"{tree}/{metadata.objects[0]} gives boxes and {metadata.labels[0]} classes; set ingest.task to detection or classification"
        )
    return find_objects(table, tree, metadata.objects, classes, max_bytes=max_bytes, task=task)


def _count_unread(table: sqlite3.Connection, boxes: BoxSource | None, metadata: list[str], skipped: Skipped) -> None:
    """Count the files that might hold boxes but are not read, and the `metadata` files, as skipped."""
    for name in metadata:
        skipped.add(name)
    used = set(boxes.files) if boxes and boxes.form in IN_TABLE else set()
    paired = "SELECT mask FROM pairs" if boxes and boxes.form not in IN_TABLE else "SELECT NULL WHERE 0"
    for (name,) in table.execute(f"SELECT name FROM box_files WHERE name NOT IN ({paired}) ORDER BY name"):
        if name not in used:
            skipped.add(name)


def _where(table: sqlite3.Connection, kind: str, tree: Tree, boxes: BoxSource | None, tables: list[str], *, listed: list[str]) -> str:
    """Where labels were found, in words. tables: label tables. listed: what gives the classes of the kind folders."""
    if boxes:
        return f"{'keypoints' if boxes.body else 'boxes'} of {WORDS[boxes.form]} (such as {boxes.files[0]})"
    if kind == "masks":
        query = "SELECT picture, mask FROM pairs JOIN files ON name = picture ORDER BY split IS 'test', picture LIMIT 1"
        picture, mask = table.execute(query).fetchone()
        return f"masks (such as {mask} of {picture})"
    if kind == "folders":
        return " and ".join(listed[:2])
    return f"{tree}/{tables[0]}" if kind == "csv" else ""


def _read_files(table: sqlite3.Connection, tree: Tree, kind: str, max_bytes: int, form: str, *, has_parts: bool) -> Iterator[Item]:
    # the first of duplicates is kept, so labelled pictures come first
    unlabelled = {
        "csv": "labels.value IS NULL",
        "folders": "p.class = ''",
        "masks": "pairs.mask IS NULL",
        "boxes": "labels.value IS NULL AND pairs.mask IS NULL",
    }.get(kind, "NULL")
    query = f"""SELECT p.name, p.split, p.class, labels.value, pairs.mask, pairs.n
                FROM files AS p LEFT JOIN labels ON labels.name = nfc(p.name) LEFT JOIN pairs ON pairs.picture = p.name
                WHERE p.role = 'picture' AND p.split IS NOT 'test' ORDER BY p.split IS NOT 'val', {unlabelled}, p.name"""
    found = table.execute(query)
    while rows := found.fetchmany(tree.batch_size):
        rows = [
            (name, split, folder, value, mask if kind in ("masks", "boxes") else None, n) for name, split, folder, value, mask, n in rows
        ]
        unread = {name: words for name, *_ in rows if (words := why_unread(name))}
        wanted = [name for name, *_ in rows if name not in unread] + [row[4] for row in rows if row[4] and row[0] not in unread]
        contents = dict(zip(wanted, tree.read(wanted, max_bytes), strict=True))
        for name, split, folder, value, mask, n_masks in rows:
            if name in unread:
                yield Item(name, split, problem=unread[name])
                continue
            data, mask_data = contents[name], contents.get(mask)
            if mask and n_masks > 1:
                what = "masks" if kind == "masks" else "files of boxes"
                yield Item(
                    name,
                    split,
                    problem=f"{n_masks} {what} belong to it (one is {mask}); keep the folder of one set of {what}"
                    f"{', or, if each shows one object, set ingest.task to instances' if kind == 'masks' else ''}",
                )
                continue
            if error := next((part for part in (data, mask_data) if isinstance(part, Exception)), None):
                yield Item(name, split, problem=f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}")
                continue
            if kind == "boxes":
                label = value.encode() if form in IN_TABLE and value is not None else mask_data
                yield Item(name, split, data, boxes=None if label is None else BoxLabel(form, label))
                continue
            cls = {"csv": value, "folders": folder or None}.get(kind)
            parts = tree.read(parts_of(table, name), max_bytes) if has_parts and mask else []
            if error := next((part for part in parts if isinstance(part, Exception)), None):
                yield Item(name, split, problem=f"a mask of it cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}")
                continue
            yield Item(name, split, data, mask_data, cls, parts=tuple(part for part in parts if isinstance(part, bytes)))


def _read_classes(tree: Tree) -> ClassList | None:
    text, where = tree.open_text("classes.txt"), f"{tree}/classes.txt"
    if text is None:
        return None
    with text, utf8(where):
        return parse_classes(text.read(), where)
