"""Data types that all sources of pictures yield."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from dreamteacher.errors import UserError

if TYPE_CHECKING:
    from dreamteacher.data.class_list import ClassList
    from dreamteacher.data.keypoints import Body

LabelKind = Literal["auto", "none", "folders", "masks", "csv", "boxes"]
IGNORE = 255  # mask value that no loss or metric counts
TASKS = {
    "mask.png": "segmentation",
    "cls": "classification",
    "boxes.json": "detection",
    "instances.png": "instances",
    "labels.json": "multilabel",
    "depth.tif": "depth",
    "keypoints.json": "keypoints",
}  # suffix of a stored label -> the task that dataset.json names
KINDS_OF_TASK: dict[str, tuple[LabelKind, ...]] = {  # kinds of labels that a task learns from, in order of preference
    "segmentation": ("masks",),
    "classification": ("csv", "folders"),
    "detection": ("boxes",),
    "instances": ("masks", "boxes"),
    "multilabel": ("csv",),
    "depth": ("masks",),
    "keypoints": ("boxes",),
}
AUTO = "auto"  # ingest.task: the usual task for the labels that are found
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
BOX_SUFFIXES = {".json", ".txt", ".xml"}  # files that may hold boxes
MAX_SUFFIXES = 50


class BoxLabel(NamedTuple):
    """The box label of a picture as in the source; with "coco" also outlines or keypoints.

    form: "coco", "voc", "yolo" (see `box_labels`), or "stored" (see `boxes.Boxes`, `keypoints.Keypoints`).
    """

    form: str
    data: bytes


@dataclass(frozen=True)
class Item:
    """One picture as found: its bytes and its label (mask bytes, boxes, or class name or number), or the problem why it cannot be used.

    incoming: from the incoming folder: for training only, without a label. stored: the mask has ingest's own format. parts: masks of one
    object each, in place of `mask`.
    """

    name: str
    split: str | None
    data: bytes = b""
    mask: bytes | None = None
    cls: str | None = None
    boxes: BoxLabel | None = None
    problem: str | None = None
    incoming: bool = False
    stored: bool = False
    parts: tuple[bytes, ...] = ()


class Skipped:
    """Files and folders that are not read: {kind: (count, first name)}.

    by_suffix: files; beyond MAX_SUFFIXES kinds "other", to bound memory, independent of the order of files. folders: "system", "unreadable"
    and "empty". unprintable: number of files whose names cannot be stored. lists: text files that may list the pictures of a split.
    metadata: files of HuggingFace's imagefolder, and Roboflow's _classes.csv.
    """

    def __init__(self) -> None:
        self.by_suffix: dict[str, tuple[int, str]] = {}
        self.folders: dict[str, tuple[int, str]] = {}
        self.unprintable = 0
        self._last_folder = ""
        self.lists: list[str] = []
        self.metadata: list[str] = []

    def add(self, name: str) -> None:
        """Count a file."""
        suffix = posixpath.splitext(name)[1].lower()[:12] or "without a suffix"
        _count(self.by_suffix, suffix, 1, name)
        if len(self.by_suffix) > MAX_SUFFIXES + 1:
            last = max(kind for kind in self.by_suffix if kind != "other")
            _count(self.by_suffix, "other", *self.by_suffix.pop(last))

    def add_folder(self, kind: str, name: str) -> None:
        """Count a folder."""
        _count(self.folders, kind, 1, name)

    def note_folder(self, kind: str, name: str) -> None:
        """Count a folder once, called for each of its files in the order of names."""
        if self._last_folder != name:
            self._last_folder = name
            self.add_folder(kind, name)

    def words(self, kinds: set[str] | None = None) -> str:
        """Such as `200 .heic (IMG_0001.HEIC), 12 .txt (labels/train/0.txt)`, by descending count; only `kinds`, if given."""
        chosen = [(-count, kind, name) for kind, (count, name) in self.by_suffix.items() if kinds is None or kind in kinds]
        parts = [f"{-count} {kind} ({name})" for count, kind, name in sorted(chosen)]
        return ", ".join(parts[:6]) + (f" and {len(parts) - 6} other kinds" if len(parts) > 6 else "")


def _count(counts: dict[str, tuple[int, str]], kind: str, count: int, name: str) -> None:
    before, example = counts.get(kind, (0, name))
    counts[kind] = (before + count, min(example, name))


@dataclass
class Found:
    """The pictures and labels of a source.

    items: the pictures, sorted by split (val first), labelled before unlabelled, then name (shards: in their order). classes: None if the
    source does not name them. labels: their kind. wanted: labels were looked for. where: location of the labels, in words. has_val: the
    source has its own validation split. counts, skipped: what was left out; notes: probable mistakes, a line each; all complete once the
    items are read. arrived: of the incoming folder, whose pictures are among the items. examples: first name for some of the counts. task:
    a key of KINDS_OF_TASK, or AUTO. body: of keypoints.
    """

    items: Iterator[Item]
    classes: ClassList | None
    labels: str
    has_val: bool
    counts: dict[str, int] = field(default_factory=dict)
    where: str = ""
    skipped: Skipped = field(default_factory=Skipped)
    notes: list[str] = field(default_factory=list)
    wanted: bool = True
    arrived: Found | None = None
    task: str = AUTO
    body: Body | None = None
    examples: dict[str, str] = field(default_factory=dict)


@contextmanager
def utf8(where: str, remedy: str = "save it as UTF-8") -> Iterator[None]:
    """Turn a UnicodeDecodeError in the block into a UserError that says `where` and the remedy."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text; {remedy}") from error
