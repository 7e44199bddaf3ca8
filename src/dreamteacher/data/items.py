"""What every source of pictures yields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from dreamteacher.errors import UserError

LabelKind = Literal["auto", "none", "folders", "masks", "csv"]
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
IGNORE = 255  # mask value that no loss or metric counts
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True)
class Item:
    """One picture as found: its bytes, with a mask's bytes or a class (name or number) if it has a label; or why it is useless.

    incoming: it arrived by itself, beside the source: for training only, without a label.
    """

    name: str
    split: str | None
    data: bytes = b""
    mask: bytes | None = None
    cls: str | None = None
    problem: str | None = None
    incoming: bool = False


@dataclass
class Found:
    """items: the pictures, those of the val split first, then those with a label, then by name (of shards: as they lie).

    classes: names by id, None if the source does not say.

    has_val: the source has its own validation split. counts: what was seen and left out; complete once the items are read.
    """

    items: Iterator[Item]
    classes: list[str] | None
    labels: str
    has_val: bool
    counts: dict[str, int] = field(default_factory=dict)


@contextmanager
def utf8(where: str, remedy: str = "save it as UTF-8") -> Iterator[None]:
    """Text that is read inside is UTF-8, or the UserError says `where` it is not and what to do."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text; {remedy}") from error


def parse_classes(text: str, where: str) -> list[str]:
    """The lines of a classes.txt; UserError, naming `where`, unless they are at least two different names."""
    names = [line.strip() for line in text.rstrip().splitlines()]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise UserError(f"{where} must hold at least two different class names, one on each line, the first for id 0")
    return names


def masks_need_classes(where: str) -> UserError:
    """What to say when mask values have no names."""
    return UserError(f"there are masks but no classes.txt in {where}; write one class name on each line, the first for mask value 0")
