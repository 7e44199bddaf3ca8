"""classes.txt: a name on each line, and the colour of each class where masks hold colours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from dreamteacher.data.items import IGNORE
from dreamteacher.data.names import class_name
from dreamteacher.errors import UserError

Colour = tuple[int, int, int]
_HEX = re.compile(r"(.*[^\s,;])[\s,;]+#([0-9a-fA-F]{6})")
_NUMBERS_BEHIND = re.compile(r"(.*?[^\s,;])[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})")
_NUMBERS_BEFORE = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(.*\S)")
_TWO_NUMBERS = re.compile(r"\d{1,3}[\s,;]+\d{1,3}[\s,;]+\D")  # of three, the first of which is no number of a class
_NUMBERED = re.compile(r"(\d+)[\s:,;]+(.*\S)")


class ClassList(NamedTuple):
    """names: by id. colours: RGB by id, None if the list has none."""

    names: list[str]
    colours: list[Colour] | None


def parse_classes(text: str, where: str) -> ClassList:
    """The lines of a classes.txt, the first for id 0: `road`, or with its colour `road #804080`, `road 128 64 128`, `128 64 128 road`.

    A head `name,r,g,b` is left out, and so are numbers before the names if they are 0, 1, 2 and so on (they give the order), with the line
    of 255, which means unknown in masks.

    Raises:
        UserError: naming `where`, unless they are at least two different names, with different colours on all lines or on none.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if re.fullmatch(r"name\s*,\s*r\s*,\s*g\s*,\s*b", lines[0] if lines else "", re.IGNORECASE):
        del lines[0]
    numbered = [(int(found[1]), found[2]) for line in lines if (found := _NUMBERED.fullmatch(line))]
    ids = sorted(number for number, _ in numbered)
    if len(ids) <= IGNORE and ids[-1:] == [IGNORE]:
        ids.pop()
    if len(numbered) == len(lines) and ids == list(range(len(ids))) and not any(_TWO_NUMBERS.match(rest) for _, rest in numbered):
        lines = [rest for _, rest in sorted(numbered)[: len(ids)]]
    names, colours = _colours_of(lines, where)
    names = [class_name(name) for name in names]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise UserError(f"{where} must hold at least two different class names, one on each line, the first for id 0")
    if colours and len(set(colours)) < len(colours):
        twice = next(colour for colour in colours if colours.count(colour) > 1)
        one, other, *_ = (name for name, colour in zip(names, colours, strict=True) if colour == twice)
        raise UserError(f"{where}: {one!r} and {other!r} have the same colour {twice}; give each class its own")
    return ClassList(names, colours)


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


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in capitals only."""
    seen: dict[str, str] = {}
    pairs = []
    for name in sorted(names):
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            pairs.append((other, name))
    return pairs
