"""Survey of a source of pictures: layout, task, classes, sizes. Huge sources are sampled, so that it takes seconds."""

from __future__ import annotations

import io
import posixpath
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path

from PIL import Image

from dreamteacher.data.formats import FORMATS, SUFFIXES
from dreamteacher.data.items import TASKS, Found, Skipped
from dreamteacher.data.names import read_list
from dreamteacher.data.shard_source import are_shards
from dreamteacher.data.sources import find
from dreamteacher.data.summary import LABEL_LIKE, READ
from dreamteacher.data.trees import Prefix
from dreamteacher.errors import UserError
from dreamteacher.files import walk
from dreamteacher.settings.schema import Params

HEADERS = 1000  # pictures whose size is read where a source is too large to be examined


@dataclass
class Survey:
    """What was found in `source`.

    labels: their kind, as `Found.labels` has it: "none" if there are none; None if what was examined does not tell. where: in words.
    task: "segmentation", "classification", "detection" or None (no labels, or not examined). classes: their names by id.
    pictures, labelled, val: how many, `val` in the source's own validation split. has_val: it has such a split.
    unreadable: pictures without a readable header. short_sides: how many pictures have which short side, pixels.
    complete: all of the source was seen; otherwise the counts are lower bounds.
    remarks: what is left out or may be a mistake, a line each.
    """

    source: str
    labels: str | None = None
    where: str = ""
    task: str | None = None
    classes: list[str] = field(default_factory=list)
    pictures: int = 0
    labelled: int = 0
    val: int = 0
    has_val: bool = False
    unreadable: int = 0
    short_sides: Counter[int] = field(default_factory=Counter)
    complete: bool = True
    remarks: list[str] = field(default_factory=list)

    @property
    def train(self) -> int:
        """Pictures outside the source's own validation split."""
        return self.pictures - self.val

    @property
    def may_have_labels(self) -> bool:
        """Whether there are labels, or it is not known yet."""
        return self.labels is None or self.task is not None

    @property
    def short_side(self) -> int:
        """The median short side, pixels."""
        sides = sorted(self.short_sides)
        counts = accumulate(self.short_sides[side] for side in sides)
        return next(side for side, count in zip(sides, counts, strict=True) if 2 * count >= self.short_sides.total())

    def lines(self) -> list[str]:
        """The summary for the user."""
        more = "" if self.complete else "more than "
        sizes = sorted(self.short_sides)
        lines = [
            f"pictures: {more}{self.pictures:,} in {self.source}",
            f"sizes: short side {sizes[0]} to {sizes[-1]} px, median {self.short_side} px",
        ]
        if self.unreadable:
            lines.append(f"unreadable: {self.unreadable:,}; ingest lists them with the reason")
        if self.labels is None:
            lines.append("labels: not known yet, as the source is too large to look through; ingest finds them")
        elif not self.task:
            lines.append("labels: none; a backbone is pretrained on the pictures alone")
        else:
            named = ", ".join(self.classes[:8]) + (f" and {len(self.classes) - 8} more" if len(self.classes) > 8 else "")
            lines.append(f"task: {self.task}, {len(self.classes)} classes: {named}")
            lines.append(f"labels: {more}{self.labelled:,} pictures, by {self.where}")
            val = f"the source's own, {more}{self.val:,} pictures" if self.has_val else "a share of the pictures, by their content"
            lines.append(f"validation: {val}")
        return lines + self.remarks


def survey(source: str, seconds: float = 20) -> Survey:
    """Look at `source` (folder, list, shards, or an address of them) for about `seconds`, twice that for a large one.

    Raises:
        UserError: there is nothing, no picture, or labels that ingest would refuse.
    """
    found = Survey(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        if many := _more_than_can_be_listed(source, seconds):
            _headers_only(found, many)
        else:
            _examine(found, time.monotonic() + seconds)
    if not found.pictures:
        raise UserError(f"no pictures in {source}; pictures end in {', '.join(sorted(SUFFIXES))}")
    if not found.short_sides:
        raise UserError(f"{source}: the size of none of its {found.pictures} pictures can be read; are they pictures?")
    return found


def _more_than_can_be_listed(source: str, seconds: float) -> int:
    """Number of files listed when the time was over; 0 if all were listed."""
    if are_shards(source):
        return 0
    end = time.monotonic() + seconds
    return next((count for count, _ in enumerate(_names(source), 1) if count % 1000 == 0 and time.monotonic() > end), 0)


def _names(source: str) -> Iterator[str]:
    """Names of files below a folder or an address, or of the lines of a list."""
    if "://" in source:
        return Prefix(source).pictures(Skipped())
    return walk(source) if Path(source).is_dir() else (name for name, *_ in read_list(Path(source)))


def _examine(found: Survey, end: float) -> None:
    """Count pictures and labels as ingest would, until `end`."""
    what = find(found.source, "auto", Params().ingest.max_pixels * 8)
    classes: set[str] = set()
    masks = boxes = False
    for item in what.items:
        found.pictures += 1
        found.val += item.split == "val"
        found.labelled += item.mask is not None or item.cls is not None or item.boxes is not None
        masks |= item.mask is not None
        boxes |= item.boxes is not None
        if item.cls is not None:
            classes.add(item.cls)
        _count_size(found, item.data)
        if time.monotonic() > end:
            found.complete = False
            break
    found.task = (
        what.task
        if what.task in TASKS.values() and found.labelled
        else TASKS["mask.png"]
        if masks
        else TASKS["boxes.json"]
        if boxes
        else TASKS["cls"]
        if classes
        else None
    )
    found.labels = None if what.labels == "shards" and not (found.complete or found.task) else what.labels
    found.where, found.has_val = what.where, what.has_val
    names = what.classes and (what.classes.mask_names if masks else what.classes.names)
    found.classes = (names or sorted(classes)) if found.task else []
    found.remarks = list(_remarks(found, what))


def _remarks(found: Survey, what: Found) -> Iterator[str]:
    if not found.task and (like := what.skipped.words(set(LABEL_LIKE))):
        yield f"may be labels in a form that is not read: {like}; {READ}"
    elif others := what.skipped.words():
        yield f"files that are no pictures: {others}"
    if what.counts["left_out_as_test"]:
        yield f"test split: {what.counts['left_out_as_test']:,} pictures, which are left out"
    yield from what.notes


def _headers_only(found: Survey, count: int) -> None:
    """Look at the size of some of a source's pictures, of which there are `count` at least."""
    found.complete, found.pictures = False, count
    pictures = (name for name in _names(found.source) if posixpath.splitext(name)[1].lower() in SUFFIXES)
    tree = Prefix(found.source) if "://" in found.source else None
    root = found.source if Path(found.source).is_dir() else posixpath.dirname(found.source)
    for name in islice(pictures, HEADERS):
        data = tree.read([name], Params().ingest.max_pixels)[0] if tree else _start(posixpath.join(root, name))
        _count_size(found, data if isinstance(data, bytes) else b"")


def _start(path: str) -> bytes:
    """Enough of a file for its header."""
    try:
        with Path(path).open("rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""


def _count_size(found: Survey, data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found.short_sides[min(image.size)] += 1
    except Exception:  # Pillow's parsers raise almost anything; ingest reports the errors of each picture
        found.unreadable += 1
