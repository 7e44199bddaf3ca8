"""What every source of pictures yields."""

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
KINDS_OF_TASK: dict[str, tuple[LabelKind, ...]] = {  # of labels that a task learns from, the first that is there counts
    "segmentation": ("masks",),
    "classification": ("csv", "folders"),
    "detection": ("boxes",),
    "instances": ("masks", "boxes"),
    "multilabel": ("csv",),
    "depth": ("masks",),
    "keypoints": ("boxes",),
}
AUTO = "auto"  # ingest.task: what the labels that are found are most often for
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
BOX_SUFFIXES = {".json", ".txt", ".xml"}  # of files that may hold boxes
MOST_SUFFIXES = 50


class BoxLabel(NamedTuple):
    """The boxes of a picture as they are in the source, of "coco" also the outlines or keypoints.

    form: "coco", "voc", "yolo" (see `box_labels`), or "stored" (see `boxes.Boxes`, `keypoints.Keypoints`).
    """

    form: str
    data: bytes


@dataclass(frozen=True)
class Item:
    """One picture as found: its bytes, with a mask's bytes, boxes or a class (name or number) if it has a label; or why it is useless.

    incoming: it arrived by itself, beside the source: for training only, without a label. stored: the mask is as ingest stores it.
    parts: masks that show one object each, in place of `mask`.
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


class PassedOver:
    """Files and folders that were passed over: of each kind how many, and the first by name.

    by_suffix: kinds of files; beyond MOST_SUFFIXES of them "other", so that memory does not grow, in any order of files the same.
    folders: "system", "unreadable" and "empty". unprintable: files whose names cannot be written down. lists: text files that say which
    picture is of which split. metadata: files of HuggingFace's imagefolder, and Roboflow's _classes.csv.
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
        if len(self.by_suffix) > MOST_SUFFIXES + 1:
            last = max(kind for kind in self.by_suffix if kind != "other")
            _count(self.by_suffix, "other", *self.by_suffix.pop(last))

    def add_folder(self, kind: str, name: str) -> None:
        """Count a folder."""
        _count(self.folders, kind, 1, name)

    def note_folder(self, kind: str, name: str) -> None:
        """Count a folder each of whose files is met, in the order of names."""
        if self._last_folder != name:
            self._last_folder = name
            self.add_folder(kind, name)

    def words(self, kinds: set[str] | None = None) -> str:
        """Such as `200 .heic (IMG_0001.HEIC), 12 .txt (labels/train/0.txt)`, the most first; of these `kinds` only."""
        chosen = [(-count, kind, name) for kind, (count, name) in self.by_suffix.items() if kinds is None or kind in kinds]
        parts = [f"{-count} {kind} ({name})" for count, kind, name in sorted(chosen)]
        return ", ".join(parts[:6]) + (f" and {len(parts) - 6} other kinds" if len(parts) > 6 else "")


def _count(counts: dict[str, tuple[int, str]], kind: str, count: int, name: str) -> None:
    before, example = counts.get(kind, (0, name))
    counts[kind] = (before + count, min(example, name))


@dataclass
class Found:
    """items: the pictures, those of the val split first, then those with a label, then by name (of shards: as they lie).

    classes: None if the source does not say. labels: their kind; wanted: they were looked for. where: where they lie, in words. has_val:
    the source has its own validation split.
    counts, passed_over: what was seen and left out; notes: what else may be a mistake, a line each; complete once the items are read.
    arrived: of the second place, whose pictures are among the items. examples: the first of what `counts` counts. task: a key of
    KINDS_OF_TASK, or AUTO. body: of keypoints.
    """

    items: Iterator[Item]
    classes: ClassList | None
    labels: str
    has_val: bool
    counts: dict[str, int] = field(default_factory=dict)
    where: str = ""
    passed_over: PassedOver = field(default_factory=PassedOver)
    notes: list[str] = field(default_factory=list)
    wanted: bool = True
    arrived: Found | None = None
    task: str = AUTO
    body: Body | None = None
    examples: dict[str, str] = field(default_factory=dict)


@contextmanager
def utf8(where: str, remedy: str = "save it as UTF-8") -> Iterator[None]:
    """Text that is read inside is UTF-8, or the UserError says `where` it is not and what to do."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text; {remedy}") from error
