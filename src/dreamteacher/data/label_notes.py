"""Notes on probable mistakes in a source, and on why no labels were found."""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress

from dreamteacher.data.box_labels import BoxSource
from dreamteacher.data.class_list import NUMBER, ClassList, is_void, similar_names
from dreamteacher.data.class_values import MIN_LABELS, notes_on_values
from dreamteacher.data.imagefolder import Metadata, other_folder
from dreamteacher.data.items import Skipped
from dreamteacher.data.labels import MASK_WORDS
from dreamteacher.data.layout import meaning
from dreamteacher.data.multilabel_files import COLUMN_FILE
from dreamteacher.data.names import UNLABELLED
from dreamteacher.data.table import scalar
from dreamteacher.data.tool_labels import detect_tool
from dreamteacher.data.trees import Tree
from dreamteacher.data.voc import is_xml, why_no_voc
from dreamteacher.data.yolo import why_no_yolo

LOOKED_INTO = 1 << 15  # characters of a file that are read to detect its tool
MAX_XML = 1 << 22  # bytes of a file that is read to see whether it is XML in its own encoding
_NO_CLASS_FOLDER = re.compile(
    r"[\W_]*(trash|deleted|rejected|discarded|todo|unsorted|unknown|ambiguous|te?mp|backup|bak|old|new|cache|thumbs?|thumbnails?|previews?"
    r"|duplicates?|copies|archive)[\W_\d]*",
    re.IGNORECASE,
)
_NUMBERED_CLASS = re.compile(
    r"(class|label|cls|category|cat|grade|level|type|stage|group|person|subject|id|digit|score|kl|[a-z])?[\W_]?0", re.I
)
_RECORDING = re.compile(
    r"patient|case|study|visit|scan|slide|vid|movie|clip|scene|seq|session|run|drive|flight|cam|day|date|^[\W\d_]*$", re.I
)
_VIEW = re.compile(  # folders of views, bands or versions of the same scenes
    r"left|right|rgb|bgr|gr[ae]y|nir|t?ir|infrared|thermal|vis(ible)?|d[est]m|[lh]r|[hv][hv]", re.IGNORECASE
)
_WORD_AND_NUMBER = re.compile(r"(.*[^\W\d_])[-_. (]*\d+\)?")  # cat.0, cat_001, cat (1)
MIN_OF_NAME = 3  # pictures, from which names tell something
NOT_UTF8 = "{} is not UTF-8 text; if it holds labels, save it as UTF-8"
NO_CLASSES = ("nan", "<na>", "n/a", "#n/a", "null", "?")  # what tools write for a missing value


def label_notes(
    table: sqlite3.Connection,
    kind: str,
    boxes: BoxSource | None,
    classes: ClassList | None,
    counts: dict[str, int],
    *,
    task: str,
    label_file: str,
    are_several: bool,
    are_listed: bool,
) -> Iterator[str]:
    """Notes on the labels that were found.

    Args:
        table: of the source's files.
        kind: as `labels.kind_of_labels` returns it.
        boxes: box labels, if there are any.
        classes: of the labels.
        counts: as `labels.read_labels` returns them.
        task: see `Found`.
        label_file: the file, or the lists of pictures, that give classes; empty where folders do.
        are_several: it has a column for each class, or lists of classes.
        are_listed: classes.txt names the classes.
    """
    if kind != "none":  # without labels `other_tools` names them
        yield from map(NOT_UTF8.format, _not_utf8(table)[:3])
    yield from _numbered_classes(table, boxes)
    yield from _shared_labels(table)
    yield from _labels_of_pictures_elsewhere(table)
    names = boxes.names if boxes and not boxes.body else classes.names if classes and kind in ("csv", "folders") else None
    if names:
        for name, other, how in similar_names(names)[:3]:
            yield f"classes {name!r} and {other!r} {how}; are they one?"
    if boxes and (void := next(filter(is_void, names or ()), None)):
        yield (
            f"class {void!r} is learnt like the others; if its objects are to be ignored, mark them instead (difficult in Pascal VOC, "
            "iscrowd in COCO), or take them away"
        )
    if classes and kind in ("csv", "folders") and label_file and not are_listed:
        yield from notes_on_values(classes.names, label_file)
    elif classes and kind == "folders" and not are_listed:
        yield from _folder_notes(table, classes.names)
    if classes and kind == "csv":
        yield from _table_notes(table, classes.names, counts, label_file)
        if posixpath.basename(label_file) == COLUMN_FILE:
            yield from _unread_class_folders(table, label_file)
        if task == "multilabel" and len(classes.names) > 1:
            yield from _one_class_each(table, label_file, are_several=are_several)


def unread_metadata(metadata: Metadata, read: list[str], kind: str) -> Iterator[str]:
    """A note on metadata files of HuggingFace's imagefolder that are not among those `read`; kind: of the labels."""
    name = next((name for name in metadata.names() if name not in read), None)
    if name:
        yield (
            metadata.others.get(name) or f"{name} is not read, as there are labels of the kind {kind}; ingest.labels and ingest.task choose"
        )


def why_no_labels(table: sqlite3.Connection, tree: Tree, names: list[str] | None, skipped: Skipped) -> Iterator[str]:
    """Notes on files and folders that may be labels, when none were found. names: in classes.txt."""
    yield from _lost_classes(table, names)
    yield from _classes_in_names(table)
    yield from other_tools(table, tree, skipped)
    yield from _numbers_in_lists(tree, skipped.lists)
    yield from _other_tasks(table)


def _lost_classes(table: sqlite3.Connection, names: list[str] | None) -> Iterator[str]:
    """Notes on why folders are not taken as classes. names: in classes.txt."""
    of_pictures = "FROM files WHERE role = 'picture'"
    if wrapper := _only_folder(table):
        yield f"all pictures lie below {wrapper}/; if the folders in it are classes, set ingest.source to it"
    (folder,) = table.execute(f"SELECT min(class) {of_pictures} AND class != ''").fetchone()
    if names and folder:
        yield f"no folder has the name of a class: classes.txt says {names[0]!r}, and a folder is {folder!r}"
    tops = table.execute(f"SELECT DISTINCT top {of_pictures} AND split NOT NULL AND class = '' ORDER BY top LIMIT 100")
    around = [top for (top,) in tops if meaning(top).split is None and not UNLABELLED.fullmatch(top)]
    if len(around) > 1:
        yield f"if {around[0]} and {around[1]} are classes, put them inside train/ and val/, not around them"


def _only_folder(table: sqlite3.Connection) -> str | None:
    """The one folder that contains all pictures in several subfolders; None if there is no such folder."""
    inside = table.execute("SELECT DISTINCT class, below FROM files WHERE role = 'picture' LIMIT 1000").fetchall()
    return inside[0][0] if len(inside) > 1 and len({cls for cls, _ in inside}) == 1 else None


def other_tools(table: sqlite3.Connection, tree: Tree, skipped: Skipped) -> list[str]:
    """Notes on label files of known tools that cannot be read as they are."""
    names = [name for (name,) in table.execute("SELECT min(name) FROM box_files GROUP BY suffix")]
    names += [skipped.by_suffix[".csv"][1]] if ".csv" in skipped.by_suffix else []
    found = []
    for name in dict.fromkeys(names + _not_utf8(table)[:3]):
        file = tree.open_text(name)
        if file is None:
            continue
        with file:
            try:
                head = file.read(LOOKED_INTO).encode()
            except UnicodeDecodeError:
                (whole,) = tree.read([name], MAX_XML) if name.lower().endswith(".xml") else (None,)
                if not isinstance(whole, bytes) or not is_xml(whole):
                    found.append(NOT_UTF8.format(name))
                    continue
                head = whole
        if tool := detect_tool(head):
            found.append(f"{name} is of {tool[0]}, and is not read: {tool[1]}")
        elif name.lower().endswith(".txt") and (reason := why_no_yolo(head)):
            found.append(f"{name} is no label of YOLO: {reason}")
        elif name.lower().endswith(".xml") and len(head) < LOOKED_INTO and (reason := why_no_voc(head)):
            found.append(f"{name} is no label of Pascal VOC: {reason}")
    return found


def _not_utf8(table: sqlite3.Connection) -> list[str]:
    """JSON files that `read_coco` passed over as they are not UTF-8 text."""
    was_called = scalar(table, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'not_utf8')")
    return [name for (name,) in table.execute("SELECT name FROM not_utf8 ORDER BY name")] if was_called else []


def _numbers_in_lists(tree: Tree, lists: list[str]) -> Iterator[str]:
    """A note on split lists with a number after each name, which may be classes."""
    for name in sorted(lists):
        file = tree.open_text(name)
        if file is None:
            continue
        with file, suppress(UnicodeDecodeError):
            words = next((line.split() for line in file if line.strip() and not line.startswith("#")), [])
            if len(words) > 1 and all(map(NUMBER.fullmatch, words[1:])):
                shown = " ".join(words)[:60]
                yield f"the numbers in {name} ({shown}) are not read; if they are classes, write labels.csv (columns path, label)"
                return


def _other_tasks(table: sqlite3.Connection) -> Iterator[str]:
    """Notes on instance maps, depth maps or visualised masks beside unlabelled pictures."""
    table.create_function("of_any_task", 1, lambda name: any(words.search(name) for words in MASK_WORDS.values()))
    for task, words in MASK_WORDS.items():
        table.create_function("of_task", 1, lambda name, words=words: bool(words.search(name)))
        n, first = table.execute("SELECT count(*), min(name) FROM files WHERE role = 'extra' AND of_task(name)").fetchone()
        if n:
            yield f"{n} files, such as {first}, are passed over; if they are labels of {task}, set ingest.task to {task}"
    n, first = table.execute("SELECT count(*), min(name) FROM files WHERE role = 'extra' AND NOT of_any_task(name)").fetchone()
    if n:
        yield f"{n} files, such as {first}, are passed over as drawings of masks; if they are the masks, call their folder masks/"


def _shared_labels(table: sqlite3.Connection) -> Iterator[str]:
    """A note on masks or box files that match several pictures, as for A.jpg and A.png."""
    shared = "SELECT mask, min(picture) AS one, max(picture) AS other FROM pairs GROUP BY mask HAVING count(*) > 1"
    n, label, first, other = table.execute(f"SELECT count(*), min(mask), one, other FROM ({shared})").fetchone()
    if n:
        yield f"{n} masks or files of boxes belong to several pictures (such as {label} to {first} and {other}); give each another name"


def _labels_of_pictures_elsewhere(table: sqlite3.Connection) -> Iterator[str]:
    """A note on masks or box files matched to the only picture of their name in another folder than their neighbours' pictures."""
    found = "SELECT count(*), min(label), e.picture FROM elsewhere AS e JOIN pairs ON mask = label AND pairs.picture = e.picture"
    n, label, picture = table.execute(found).fetchone()
    if n:
        yield (
            f"{n} masks or files of boxes were taken for the one picture of their name in another folder than their neighbours' pictures "
            f"(such as {label} for {picture}); if they are of others, rename them"
        )


def _numbered_classes(table: sqlite3.Connection, boxes: BoxSource | None) -> Iterator[str]:
    if boxes and not boxes.names:
        n = scalar(table, "SELECT count(*) FROM pairs")
        yield f"{n} files of boxes (such as {boxes.files[0]}) give classes by number; name them in data.yaml or classes.txt"


def _folder_notes(table: sqlite3.Connection, names: list[str]) -> Iterator[str]:
    """Notes on folders taken as classes that may not be classes; folders that occur in several splits are taken as intended."""
    several = "SELECT class FROM files WHERE role = 'picture' GROUP BY class HAVING count(DISTINCT split) > 1"
    meant = {name for (name,) in table.execute(several)}
    if strange := [name for name in names if _NO_CLASS_FOLDER.fullmatch(name) and name not in meant]:
        yield f"the folder {strange[0]} was taken as a class; if its pictures have none, call it unlabelled, or take it away"
    yield from _views(table, names)
    pattern, *others = {re.sub(r"\d+", "0", name) for name in names}
    are_meant = meant.issuperset(names) and not _RECORDING.search(pattern)
    if len(names) > 2 and not others and not are_meant and not _NUMBERED_CLASS.fullmatch(pattern):
        yield (
            f"the classes are folders that differ in numbers alone ({names[0]}, {names[1]} ...); if they are parts of the set, such as "
            "patients, videos or days, set ingest.labels to none"
        )


def _views(table: sqlite3.Connection, names: list[str]) -> Iterator[str]:
    """A note on folders of the same file names: bands or views of the same scenes, unless the names merely count the pictures."""
    table.create_function("file", 1, posixpath.basename, deterministic=True)
    table.create_function("number", 1, lambda file: int(re.sub(r"\D", "", posixpath.splitext(file)[0])[:15] or 0), deterministic=True)
    of_classes = "FROM files WHERE role = 'picture' AND class != ''"
    n, n_different = table.execute(f"SELECT count(*), count(DISTINCT coalesce(split, '') || '/' || file(name)) {of_classes}").fetchone()
    if len(names) < 2 or n != n_different * len(names) or n_different < MIN_OF_NAME:
        return
    first, n_files, n_numbers = table.execute(
        f"SELECT min(file(name)), count(DISTINCT file(name)), count(DISTINCT number(file(name))) {of_classes}"
    ).fetchone()
    steps = f"SELECT number - lag(number) OVER (ORDER BY number) AS step FROM (SELECT DISTINCT number(file(name)) AS number {of_classes})"
    n_steps = scalar(table, f"SELECT count(DISTINCT step) FROM ({steps})")
    if n_files != n_numbers or n_steps > 1 or all(map(_VIEW.fullmatch, names)):
        yield (
            f"the classes are folders of the same file names ({names[0]} and {names[1]} have {first}), as views, bands or versions of "
            "the same scenes have; if they are, keep one of them, or set ingest.labels to none"
        )


def _classes_in_names(table: sqlite3.Connection) -> Iterator[str]:
    """A note on file names such as cat.0.jpg and dog_1.jpg, whose words may be classes."""
    table.create_function("word", 1, _word_of, deterministic=True)
    query = "SELECT word(name) AS word, count(*) FROM files WHERE role = 'picture' GROUP BY word ORDER BY word LIMIT 1000"
    words = dict(table.execute(query).fetchall())
    if len(words) > 1 and None not in words and min(words.values()) >= MIN_OF_NAME and not all(map(str.isupper, words)):
        first, second, *_ = words
        yield f"file names begin with {first!r} and {second!r}; if these are classes, put the pictures of each into a folder of its name"


def _word_of(name: str) -> str | None:
    found = _WORD_AND_NUMBER.fullmatch(posixpath.splitext(posixpath.basename(name))[0])
    return found[1] if found else None


def _unread_class_folders(table: sqlite3.Connection, file: str) -> Iterator[str]:
    """Class folders beside the label table `file`, which is read instead."""
    query = "SELECT DISTINCT class FROM files WHERE role = 'picture' AND class != '' ORDER BY class LIMIT 3"
    folders = [name for (name,) in table.execute(query)]
    if len(folders) > 1:
        shown = ", ".join(folders)
        yield f"labels are read from {file}, and the folders {shown} are not; if these are the classes, set ingest.task to classification"


def _one_class_each(table: sqlite3.Connection, file: str, *, are_several: bool) -> Iterator[str]:
    """A note on labels of several classes of which each picture has exactly one, as if they excluded each other."""
    others = "json_array_length(value, '$.yes') != 1 OR json_array_length(value, '$.unknown') != 0"
    n, n_others = table.execute(f"SELECT count(*), total({others}) FROM labels").fetchone()
    if n >= MIN_LABELS and not n_others:
        instead = (
            "write its name into a table labels.csv of the columns path and label, which is learnt as classification"
            if are_several
            else "set ingest.task to classification"
        )
        yield f"each picture in {file} has exactly one of the classes; if they exclude each other, {instead}"


def _table_notes(table: sqlite3.Connection, names: list[str], counts: dict[str, int], file: str) -> Iterator[str]:
    """Notes on lines of labels.csv, or another `file`, without a picture, and on values that may not be classes."""
    if not scalar(table, "SELECT EXISTS (SELECT 1 FROM labels)"):
        yield f"{file} has no line with a label"
    if counts["labels_without_picture"]:
        (lost,) = table.execute("SELECT min(name) FROM labels WHERE name NOT IN (SELECT nfc(name) FROM files)").fetchone()
        yield f"{file} names {lost!r}, for one, and there is no such picture (capitals count)"
    if file == "labels.csv" and (other := other_folder(table, file)):
        yield f"{other}; the table counts"
    no_classes = NO_CLASSES if set(names) <= {"-1", "1"} else (*NO_CLASSES, "-1")
    if wrong := [name for name in names if name.lower() in no_classes]:
        yield f"{wrong[0]!r} in {file} was taken as a class; leave the label of pictures without one empty"
