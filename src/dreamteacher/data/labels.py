"""Labels of a source: their kind and their classes."""

from __future__ import annotations

import csv
import posixpath
import re
import sqlite3
from collections.abc import Iterator

from dreamteacher.data.class_folders import classes_of_folders
from dreamteacher.data.class_list import ClassList, require_mask_classes, require_two
from dreamteacher.data.class_values import refuse_values
from dreamteacher.data.columns import SplitColumns, require_once, split_is_not_read
from dreamteacher.data.imagefolder import read_classes, refuse_other_folders, sorted_classes
from dreamteacher.data.instance_labels import ONLY_CLASS, object_classes
from dreamteacher.data.items import AUTO, KINDS_OF_TASK, LabelKind, utf8
from dreamteacher.data.layout import meaning
from dreamteacher.data.multilabel import PATH, has_columns, read_multilabel, require_cells, rows_of
from dreamteacher.data.multilabel_files import COLUMN_FILE, read_class_lists, read_column_files
from dreamteacher.data.names import class_name, nfc, slashes, tidy
from dreamteacher.data.table import HAS_PICTURE, scalar
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

OTHER_LISTS = (
    "Classes.txt",
    "labels.txt",
    "class_names.txt",
    "names.txt",
    "classes.csv",
    "obj.names",
    "class_dict.csv",
    "label_colors.txt",
    "labelmap.txt",
    "_classes.csv",
    "label_class_dict.csv",
    "class_dict_seg.csv",
)

_NUMBERS = re.compile(r"\[?\s*-?\d+(\.\d+)?([\s,;]+-?\d+(\.\d+)?){3,}\s*\]?")  # four or more
MASK_WORDS = {
    task: re.compile(word, re.IGNORECASE) for task, word in (("instances", "instance|segmentation_?object"), ("depth", "depth"))
}  # task -> words in the folders or suffixes of its masks
KINDS: tuple[LabelKind, ...] = ("csv", "masks", "boxes", "folders")  # in order of preference
EXPECTED = {
    "csv": "labels.csv",
    "masks": "mask, such as masks/train/A.png for images/train/A.jpg",
    "boxes": "boxes, neither in a COCO file that names its pictures nor in an .xml (Pascal VOC), .txt (YOLO) or .json (labelme, "
    "Supervisely) for each",
    "folders": "class folders",
}
DEPTH_EXPECTED = "map of depth (16-bit PNG, float TIFF or .npy; no disparity), such as depth/train/A.png for images/train/A.jpg"


def kinds_of_labels(labels: LabelKind, task: str) -> tuple[LabelKind, ...]:
    """The kinds of labels that ingest.labels and ingest.task allow.

    Raises:
        UserError: the task cannot use such labels.
    """
    kinds = KINDS if task == AUTO else KINDS_OF_TASK[task]
    if labels == "auto":
        return kinds
    if labels != "none" and labels not in kinds:
        raise UserError(
            f"ingest.task = {task} learns from labels of the kind {' or '.join(kinds)}, and ingest.labels is {labels}; set one to auto"
        )
    return (labels,)


def kind_of_labels(
    table: sqlite3.Connection,
    labels: LabelKind,
    tree: Tree,
    classes: list[str] | None,
    *,
    is_list: bool,
    boxes: bool,
    in_table: bool,
    task: str = AUTO,
) -> str:
    """The kind of labels that is used: csv, masks, boxes, folders or none.

    Args:
        table: of the source's files.
        labels: ingest.labels.
        tree: of the source.
        classes: names in classes.txt.
        is_list: the source is a list of paths.
        boxes: boxes were found.
        in_table: label tables were found.
        task: ingest.task.

    Raises:
        UserError: the requested labels are missing, or no mask matches a picture by name.
    """
    masks = scalar(table, "SELECT EXISTS (SELECT 1 FROM pairs)")
    folders = [name for (name,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != ''")]
    # Folders in a list of paths are classes only if classes.txt names them.
    named = set(folders) & set(classes) if classes else set() if is_list or all(meaning(name).split for name in folders) else set(folders)
    there = {
        "csv": in_table,
        "masks": masks > 0 and not boxes,
        "boxes": boxes,
        "folders": len(named) > 1 or bool(classes and named),
    }
    if labels == "auto":
        wanted = KINDS if task == AUTO else KINDS_OF_TASK[task]
        labels = next((kind for kind in wanted if there[kind]), "none")
        (lost,) = table.execute("SELECT min(name) FROM files WHERE role = 'mask'").fetchone()
        if labels in ("none", "folders") and lost:
            raise UserError(
                f"{tree}: no mask is named as a picture is (such as {lost}); call the mask of images/A.jpg "
                "masks/A.png (of several of one picture: merge them or, if each shows one object, set ingest.task to instances), or set "
                "ingest.labels to none"
            )
        if labels == "none" and task != AUTO:
            expected = DEPTH_EXPECTED if task == "depth" else " and no ".join(EXPECTED[kind] for kind in wanted)
            others = ", ".join(kind for kind in KINDS if there[kind])
            found = f" (there are labels of the kind {others})" if others else ""
            raise UserError(f"ingest.task = {task}, but {tree} has no {expected}{found}; add labels, or set ingest.task to auto")
    elif labels != "none" and not (folders if labels == "folders" else there[labels]):
        setting = f"ingest.labels = {labels}" if task == AUTO else f"ingest.task = {task}"
        expected = DEPTH_EXPECTED if task == "depth" else EXPECTED[labels]
        raise UserError(f"{setting}, but {tree} has no {expected}; add it or set {setting.partition(' ')[0]} to auto")
    return labels


def read_labels(
    table: sqlite3.Connection, tree: Tree, kind: str, classes: ClassList | None, *, task: str, tables: list[str], folders_count: bool
) -> tuple[ClassList | None, dict[str, int], dict[str, str]]:
    """Fill the table `labels`. Returns the classes, counts of unused labels, and the first unused one by kind.

    tables: label files, see `files_of_classes`. folders_count: class folders must agree with them.

    Raises:
        UserError: labels cannot be parsed, or folders look like splits rather than classes.
    """
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    names = classes.names if classes else None
    if kind == "csv":
        classes, counts["labels_without_picture"] = _read_table(table, tree, classes, tables, multilabel=task == "multilabel")
        if tables[0] != "labels.csv" and folders_count and task != "multilabel":
            refuse_other_folders(table, tree, tables[0])
    elif kind == "folders":
        names, strange = classes_of_folders(table, tree, names)
        classes, counts["folders_without_class"] = ClassList(names), len(strange)
        examples |= {"folders_without_class": strange[0]} if strange else {}
    elif kind == "masks":
        if task == "instances":
            classes = classes or ClassList([ONLY_CLASS])
            if not object_classes(classes):
                raise UserError(f"{tree}/classes.txt names no class of objects; write one name on each line, or drop it")
        elif task == "depth":
            classes = None
        else:
            classes = require_mask_classes(classes, str(tree), _other_list(tree))
        lost = (
            "SELECT count(*), min(name) FROM files AS m WHERE role = 'mask' AND name NOT IN (SELECT mask FROM pairs) "
            f"AND NOT ({HAS_PICTURE})"
        )
        counts["masks_without_picture"], first = table.execute(lost).fetchone()
        examples |= {"masks_without_picture": first} if first else {}
    return classes, counts, examples


def _read_table(
    table: sqlite3.Connection, tree: Tree, classes: ClassList | None, tables: list[str], *, multilabel: bool
) -> tuple[ClassList, int]:
    """The classes in labels.csv, HuggingFace's metadata files or `multilabel_files`, and the number of lines without a picture."""
    file = tables[0]
    if file == "labels.csv":
        values = _read_csv(table, tree, multilabel=multilabel)
    elif posixpath.basename(file) == COLUMN_FILE:
        values = read_column_files(table, tree, tables)
    elif file.endswith(".txt"):
        values = read_class_lists(table, tree, tables)
    else:
        values = read_classes(table, tree, tables, classes, multilabel=multilabel)
    n_labels = scalar(table, "SELECT count(*) FROM labels")
    if not multilabel and (numbers := next(filter(_NUMBERS.fullmatch, values), None)):
        raise UserError(
            f"{tree}/{file}: the label {numbers[:40]!r} is a list of numbers, as a box or the run lengths of a mask are, which are not "
            "read there; write the class of each picture (masks are PNG files, boxes COCO, VOC or YOLO), or, "
            "if it stands for several classes, as 1;2;3 with ingest.task multilabel"
        )
    if not multilabel:
        refuse_values(values, n_labels, f"{tree}/{file}", are_named=classes is not None)
    if classes and classes.is_numbered_from_one and any(value.isdecimal() for value in values):
        raise UserError(f"{tree}/classes.txt is numbered from 1, and the numbers in {file} count from 0; write names in both")
    if classes and multilabel and (strange := [value for value in values if value not in classes.names]):
        raise UserError(f"{tree}/{file} names the class {strange[0]!r}, which classes.txt lacks; add it, or drop classes.txt")
    classes = classes or ClassList(values)
    lost = scalar(table, "SELECT count(*) FROM labels WHERE name NOT IN (SELECT nfc(name) FROM files)")
    if lost == scalar(table, "SELECT count(*) FROM labels") > 0:
        named, there = (table.execute(f"SELECT min(name) FROM {rows}").fetchone()[0] for rows in ("labels", "files"))
        raise UserError(f"{tree}/{file} names none of the pictures: it says {named!r}, and a picture is {there!r}; write paths so")
    return classes, lost


def _other_list(tree: Tree) -> str | None:
    """The class list of another tool in the source, which may be copied to classes.txt; None if there is none."""
    for folder in ("", "train/"):
        for name in OTHER_LISTS:
            if text := tree.open_text(folder + name):
                text.close()
                return folder + name
    return None


def require_classes(classes: ClassList, kind: str, where: str, task: str) -> None:
    """UserError for fewer than two classes, if the task distinguishes classes."""
    if kind != "boxes" and task not in ("instances", "depth", "multilabel"):
        require_two(classes.names, where)


def table_has_columns(tree: Tree, tables: list[str]) -> bool:
    """Whether the labels are in labels.csv and its columns are classes (multilabel)."""
    file = tree.open_text("labels.csv")
    if tables != ["labels.csv"] or file is None:
        return False
    with file, utf8(f"{tree}/labels.csv"):
        try:
            return has_columns(list(rows_of(file, PATH).fieldnames or []))
        except csv.Error:  # reported when it is read
            return False


def notes_on_cells(table: sqlite3.Connection, file: str) -> Iterator[str]:
    """A note on labels such as `cat;dog`, which may be multilabel."""
    multilabel = "value LIKE '%;%' OR value LIKE '%|%' OR value LIKE '%,%' OR value LIKE '[%]'"
    found = table.execute(f"SELECT count(*), min(value) FROM labels WHERE {multilabel}").fetchone()
    if found[0]:
        yield f"{found[0]} labels of {file}, such as {found[1]!r}, may be several in one; if so, set ingest.task to multilabel"


def _read_csv(table: sqlite3.Connection, tree: Tree, *, multilabel: bool) -> list[str]:
    """Fill the table `labels` from labels.csv; returns the distinct labels, numbers first. For multilabel see `read_multilabel`."""
    file, where = tree.open_text("labels.csv"), f"{tree}/labels.csv"
    assert file, "the kind of labels is csv only where there is one"
    with file, utf8(where):
        try:
            rows = rows_of(file, PATH)
            fields = list(rows.fieldnames or [])
            require_once(fields, where, "path", "label")
            if "split" not in fields and multilabel and (has_columns(fields) or {"path", "label"} <= set(fields)):
                return read_multilabel(table, rows, where)
            if not {"path", "label"} <= set(fields) and not ("split" in fields and has_columns(fields)):
                shown = f"; it is {','.join(fields)[:80]!r}" if fields else ""
                raise UserError(f"{where}: its first line must name the columns path and label, with a comma between them{shown}")
            if "split" in fields:
                raise split_is_not_read(where, "split")
            splits = SplitColumns()
            for line in rows:
                require_cells(line, f"{where}, line {rows.line_num}")
                name, value = (line["path"] or "").strip(), class_name(line["label"] or "")
                if value and not name:
                    raise UserError(f"{where}, line {rows.line_num}: there is a label without a path")
                if not value:
                    continue
                name = nfc(tidy(slashes(name)))
                splits.add(line, {"path", "label"})
                if table.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (name, value)).rowcount == 0:
                    (other,) = table.execute("SELECT value FROM labels WHERE name = ?", [name]).fetchone()
                    if other != value:
                        raise UserError(f"{where}, line {rows.line_num}: {name} is {value!r}, and {other!r} in a line before; keep one")
            splits.refuse(table, where)
        except csv.Error as error:
            raise UserError(f"{where}: {error}; write it as comma-separated values") from error
    return sorted_classes(value for (value,) in table.execute("SELECT DISTINCT value FROM labels"))
