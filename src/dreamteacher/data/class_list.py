"""classes.txt: a class name per line, with its colour if masks hold colours; names such as void mean unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dreamteacher.data.items import IGNORE
from dreamteacher.data.names import class_name
from dreamteacher.errors import UserError

Colour = tuple[int, int, int]
_HEX = re.compile(r"(.*[^\s,;])[\s,;]+#([0-9a-fA-F]{6})")
_NUMBERS_BEHIND = re.compile(r"(.*?[^\s,;])[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})")
_NUMBERS_BEFORE = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(.*\S)")
_TWO_NUMBERS = re.compile(r"\d{1,3}[\s,;]+\d{1,3}[\s,;]+\D")  # of three, the first of which is no number of a class
NUMBER = re.compile(r"-?\d+(\.\d+)?")
_NUMBERED = re.compile(r"(-1|\d+)[\s:,;]+(.*\S)")
_LABEL_MAP = re.compile(r"([^#:]+):(\d{1,3},\d{1,3},\d{1,3}):[^:]*:[^:]*")  # of CVAT
_HEADS = re.compile(r"name\s*,\s*r\s*,\s*g\s*,\s*b|pixel value\s*,\s*class|# label:color_rgb:parts:actions", re.IGNORECASE)
_OTHER_HEADS = re.compile(
    r"((id|index|class_?id|label_?id)[\s,;]+)?(class|label|category)?[_ ]?(name|label|classes|class)s?:?", re.IGNORECASE
)
# Names, without spaces and punctuation, that CamVid, Cityscapes, Mapillary, DeepGlobe, LoveDA and others use for pixels without a class.
VOID_NAMES = {
    "void", "unlabelled", "unlabeled", "unknown", "undefined", "ignore", "ignored", "ignoreregion", "nodata", "dontcare", "outofroi",
    "rectificationborder",
}  # fmt: skip
BACKGROUND = {"background", "bg", "_background_", "__background__"}  # as the first name of a list
MAX_CLASSES = 255  # of masks: ids 0 to 254


class ClassList(NamedTuple):
    """names: by id. colours: RGB by id; None if the list has none.

    In masks, names in VOID_NAMES are not classes: their pixels are unknown, and the ids of the other classes are compacted.
    """

    names: list[str]
    colours: list[Colour] | None = None

    @property
    def mask_names(self) -> list[str]:
        """Class names of masks, by id."""
        return [name for name in self.names if not is_void(name)]

    def mask_ids(self) -> np.ndarray:
        """uint8 (256): the class id, or IGNORE, for each value (line of classes.txt) in a mask."""
        ids = np.full(256, IGNORE, np.uint8)
        known = [i for i, name in enumerate(self.names) if not is_void(name)]
        ids[known] = np.arange(len(known))
        return ids

    @property
    def is_numbered_from_one(self) -> bool:
        """Whether the lines begin with 1, 2, 3 ..., so that the line of id 0 is probably missing."""
        numbered = [_NUMBERED.fullmatch(name) for name in self.names]
        return [int(found[1]) for found in numbered if found] == list(range(1, len(self.names) + 1))


def is_background(name: str) -> bool:
    """Whether a first class of this name is the background."""
    return name.lower() in BACKGROUND


def is_void(name: str) -> bool:
    """Whether the name is one of pixels without a class."""
    return re.sub(r"[\W_]", "", name).lower() in VOID_NAMES


def require_mask_classes(classes: ClassList | None, where: str, other_list: str | None = None) -> ClassList:
    """The classes, if masks can hold their ids. other_list: a class list of another tool, suggested in the error.

    Raises:
        UserError: there are no classes, too many, or the list is numbered from 1.
    """
    if classes is None:
        remedy = f"if {other_list} there lists the classes, copy it to classes.txt; else " if other_list else ""
        raise UserError(
            f"there are masks but no classes.txt in {where}; {remedy}write one class name on each line, the first for mask value 0"
        )
    if len(classes.names) > MAX_CLASSES:
        raise UserError(
            f"classes.txt in {where} lists {len(classes.names)} classes, and masks hold {MAX_CLASSES} at most (ids 0 to 254, 255 is "
            "unknown); merge rare classes, in the list and in the masks"
        )
    if classes.is_numbered_from_one:
        raise UserError(
            f"classes.txt in {where} is numbered from 1, and masks from 0; add the line of id 0 (0 void, if its pixels have no class)"
        )
    if len(classes.mask_names) < 2:
        raise UserError(f"classes.txt in {where} names {len(classes.mask_names)} classes besides those that mean unknown; two are needed")
    return classes


def parse_classes(text: str, where: str) -> ClassList:
    """Parse classes.txt, the first line for id 0: `road`, or with its colour `road #804080`, `road 128 64 128`, `128 64 128 road`.

    Ids 0, 1, 2 ... before the names give the order and are dropped, as is a line for 255 or -1. The class lists of CVAT (labelmap.txt),
    Roboflow (_classes.csv) and Kaggle (class_dict.csv) may be copied with their header.

    Raises:
        UserError: naming `where`, if names repeat, colours repeat, or only some lines have a colour.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if lines and _HEADS.fullmatch(lines[0]):
        del lines[0]
    _refuse_other_lines(lines, where)
    maps = [_LABEL_MAP.fullmatch(line) for line in lines]
    if all(maps):
        lines = [f"{found[1]},{found[2]}" for found in maps if found]
    lines, n_unknown = _in_order(lines)
    names, colours = _colours_of(lines, where)
    if n_unknown:  # ids 255 and -1 need no line, but their colours do
        names = names[:-n_unknown] + ["void"] * (n_unknown if colours else 0)
    names = [class_name(name) for name in names]
    classes = [name for name in names if not is_void(name)]
    if not names or "" in names:
        raise _not_two(where)
    if repeated := next((name for i, name in enumerate(classes) if name in classes[:i]), None):
        raise UserError(f"{where} names the class {repeated!r} twice; give each line a name of its own")
    if colours and len(set(colours)) < len(colours):
        shared = next(colour for colour in colours if colours.count(colour) > 1)
        one, other, *rest = (name for name, colour in zip(names, colours, strict=True) if colour == shared)
        if not all(is_void(name) for name in (one, other, *rest)):
            raise UserError(f"{where}: {one!r} and {other!r} have the same colour {shared}; give each class its own")
    return ClassList(names, colours)


def _refuse_other_lines(lines: list[str], where: str) -> None:
    """UserError for empty lines, comments and headers: line numbers are ids, so such a line would shift all others."""
    for i, line in enumerate(lines):
        if not line:
            raise UserError(f"{where}: line {i + 1} is empty, and lines count as ids from 0; remove it, or name the class of id {i} in it")
        if line.startswith("#") or (i == 0 and len(lines) > 2 and _OTHER_HEADS.fullmatch(line)):
            what = "a comment" if line.startswith("#") else "the head of a table"
            raise UserError(f"{where}: line {i + 1}, {line[:40]!r}, looks like {what}, and would be the class of id {i}; remove it")
    if len(lines) == 1 and re.search(r"[,;\t]", lines[0]):
        raise UserError(f"{where} has one line, {lines[0][:60]!r}; write each class on a line of its own, the first for id 0")


def require_two(names: list[str], where: str) -> None:
    """UserError if there are fewer than two classes."""
    if len(names) < 2:
        raise _not_two(where)


def _not_two(where: str) -> UserError:
    return UserError(f"{where} must hold at least two different class names, one on each line, the first for id 0")


def _in_order(lines: list[str]) -> tuple[list[str], int]:
    """The lines sorted by id and without it, if all begin with ids; and how many at the end are for ids that mean unknown."""
    numbered = [(int(found[1]), found[2]) for line in lines if (found := _NUMBERED.fullmatch(line))]
    if len(numbered) < len(lines) or any(_TWO_NUMBERS.match(rest) for _, rest in numbered):
        return lines, 0
    n_unknown = sum(number in (-1, IGNORE) for number, _ in numbered) if len(lines) <= MAX_CLASSES else 0
    known = sorted(numbered, key=lambda entry: (n_unknown > 0 and entry[0] in (-1, IGNORE), entry[0]))
    if [number for number, _ in known[: len(lines) - n_unknown]] != list(range(len(lines) - n_unknown)):
        return lines, 0
    return [rest for _, rest in known], n_unknown


def _colours_of(lines: list[str], where: str) -> tuple[list[str], list[Colour] | None]:
    hexes = [_HEX.fullmatch(line) for line in lines]
    if any(hexes):
        if not all(hexes):
            line = next(i for i, found in enumerate(hexes) if not found)
            raise UserError(f"{where}: line {line + 1}, {lines[line]!r}, has no colour and others have; give each line one such as #804080")
        pairs = [(found[1], bytes.fromhex(found[2])) for found in hexes if found]
        return [name for name, _ in pairs], [(r, g, b) for _, (r, g, b) in pairs]
    for pattern, name, first in ((_NUMBERS_BEHIND, 1, 2), (_NUMBERS_BEFORE, 4, 1)):
        found = [each for line in lines if (each := pattern.fullmatch(line))]
        colours = [(int(each[first]), int(each[first + 1]), int(each[first + 2])) for each in found]
        if found and len(found) == len(lines) and max(max(colour) for colour in colours) < 256:
            return [each[name] for each in found], colours
    return lines, None


def similar_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """(name, other name, how they differ) of names that probably mean the same class."""
    seen: dict[str, str] = {}
    pairs = []
    for name in sorted(names):
        is_number = NUMBER.fullmatch(name)
        other = seen.setdefault(str(float(name)) if is_number else re.sub(r"[\s_-]", "", name.casefold()) or name, name)
        if other != name:
            are_equal = name.casefold() == other.casefold()
            how = "are the same number" if is_number else "differ in capitals only" if are_equal else "differ in blanks and strokes only"
            pairs.append((other, name, how))
    return pairs
