"""What a source of pictures holds: layout, task, classes, sizes. Huge sources are sampled, so that an answer takes seconds."""

from __future__ import annotations

import io
import posixpath
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from dreamteacher.data.formats import FORMATS, SUFFIXES
from dreamteacher.data.items import PassedOver
from dreamteacher.data.names import read_list
from dreamteacher.data.shard_source import are_shards
from dreamteacher.data.sources import find
from dreamteacher.data.trees import Prefix
from dreamteacher.errors import UserError
from dreamteacher.files import walk
from dreamteacher.params import Params

HEADERS = 1000  # pictures whose size is read where a source is too large to be examined
LAYOUTS = {
    "csv": "labels.csv",
    "masks": "masks of the pictures' names",
    "folders": "a folder for each class",
    "shards": "WebDataset shards",
    "none": "no labels",
}


@dataclass
class Survey:
    """What was found in `source`.

    layout: where labels come from, a key of LAYOUTS; None if the source is too large to be examined in `seconds`.
    task: "segmentation", "classification" or None (no labels, or not examined). classes: their names by id.
    pictures, labelled, val: how many, `val` in the source's own validation split. has_val: it has such a split.
    unreadable: pictures without a readable header. short_sides: how many pictures have which short side, pixels.
    complete: all of the source was seen; otherwise the counts are lower bounds.
    """

    source: str
    layout: str | None = None
    task: str | None = None
    classes: list[str] = field(default_factory=list)
    pictures: int = 0
    labelled: int = 0
    val: int = 0
    has_val: bool = False
    unreadable: int = 0
    short_sides: Counter[int] = field(default_factory=Counter)
    complete: bool = True

    @property
    def train(self) -> int:
        """Pictures outside the source's own validation split."""
        return self.pictures - self.val

    @property
    def short_side(self) -> int:
        """The median short side, pixels."""
        middle, seen = sum(self.short_sides.values()) / 2, 0
        for side in sorted(self.short_sides):
            seen += self.short_sides[side]
            if seen >= middle:
                return side
        raise UserError(f"{self.source}: the size of none of its {self.pictures} pictures can be read; are they pictures?")

    def lines(self) -> list[str]:
        """What was understood, for the user."""
        more = "" if self.complete else "more than "
        sizes = sorted(self.short_sides)
        said = [
            f"pictures: {more}{self.pictures:,} in {self.source}",
            f"sizes: short side {sizes[0]} to {sizes[-1]} px, median {self.short_side} px",
        ]
        if self.unreadable:
            said.append(f"unreadable: {self.unreadable:,}; ingest lists them with the reason")
        if self.layout is None:
            said.append("labels: not looked for, the source is too large; ingest finds them")
        elif not self.task:
            said.append("labels: none; a backbone is pretrained on the pictures alone")
        else:
            named = ", ".join(self.classes[:8]) + (f" and {len(self.classes) - 8} more" if len(self.classes) > 8 else "")
            said.append(f"task: {self.task}, {len(self.classes)} classes: {named}")
            said.append(f"labels: {more}{self.labelled:,} pictures, from {LAYOUTS.get(self.layout, self.layout)}")
            val = f"the source's own, {more}{self.val:,} pictures" if self.has_val else "a share of the pictures, by their content"
            said.append(f"validation: {val}")
        return said


def survey(source: str, seconds: float = 20) -> Survey:
    """Look at `source` (folder, list, shards, or an address of them) for about `seconds`, twice that for a large one.

    Raises:
        UserError: there is nothing, no picture, or labels that ingest would refuse.
    """
    found = Survey(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        if not are_shards(source):
            end = time.monotonic() + seconds
            for count, _ in enumerate(_names(source)):
                if count % 1000 == 999 and time.monotonic() > end:
                    return _headers_only(found, count + 1)
        _examine(found, time.monotonic() + seconds)
    if not found.pictures:
        raise UserError(f"no pictures in {source}; pictures end in {', '.join(sorted(SUFFIXES))}")
    return found


def _names(source: str) -> Iterator[str]:
    """Names of files below a folder or an address, or of the lines of a list."""
    if "://" in source:
        return Prefix(source).pictures(PassedOver())
    return walk(source) if Path(source).is_dir() else (name for name, *_ in read_list(Path(source)))


def _examine(found: Survey, end: float) -> None:
    """Count pictures and labels as ingest would, until `end`."""
    what = find(found.source, "auto", Params().ingest.max_pixels * 8)
    classes: set[str] = set()
    masks = False
    for item in what.items:
        found.pictures += 1
        found.val += item.split == "val"
        found.labelled += item.mask is not None or item.cls is not None
        masks |= item.mask is not None
        if item.cls is not None:
            classes.add(item.cls)
        _count_size(found, item.data)
        if time.monotonic() > end:
            found.complete = False
            break
    found.layout, found.has_val = what.labels, what.has_val
    found.task = "segmentation" if masks else "classification" if classes else None
    names = what.classes and (what.classes.mask_names if masks else what.classes.names)
    found.classes = (names or sorted(classes)) if found.task else []


def _headers_only(found: Survey, count: int) -> Survey:
    found.complete, found.pictures = False, count
    pictures = (name for name in _names(found.source) if posixpath.splitext(name)[1].lower() in SUFFIXES)
    tree = Prefix(found.source) if "://" in found.source else None
    root = found.source if Path(found.source).is_dir() else posixpath.dirname(found.source)
    for name in islice(pictures, HEADERS):
        data = tree.read([name], Params().ingest.max_pixels)[0] if tree else _start(posixpath.join(root, name))
        _count_size(found, data if isinstance(data, bytes) else b"")
    return found


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
    except Exception:  # Pillow's parsers raise almost anything; ingest says what is wrong with which picture
        found.unreadable += 1
