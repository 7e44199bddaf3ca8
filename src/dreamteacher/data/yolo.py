"""YOLO labels: data.yaml, and one text file of boxes or polygons per picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import yaml

from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import utf8
from dreamteacher.data.names import class_name
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError

YAML = ("data.yaml", "data.yml", "dataset.yaml")
TOLERANCE = 0.01  # fraction by which coordinates may lie outside the picture
BOX, CORNERS = 4, 8  # numbers of a box, and of a rotated box
MIN_LINES = 3  # lines needed to distinguish poses from polygons
POSES = "YOLO's poses, which are not read; convert them to COCO's JSON"
_LIKE_YOLO = re.compile(rb"\d|\S+([ \t]+-?\d?\.?\d+){4}\s")  # a class, perhaps by name, and at least four numbers
Line = tuple[int, list[float]]


def read_yaml(tree: Tree, name: str) -> dict[str, object] | None:
    """The content of a data.yaml with all values as strings, as `no` and 1.0 may be class names; None if there is no such file.

    Raises:
        yaml.YAMLError, ValueError: the file is invalid.
    """
    file = tree.open_text(name)
    if file is None:
        return None
    with file:
        stored = yaml.load(file, yaml.BaseLoader)
    if not isinstance(stored, dict):
        raise ValueError("it holds no names and values")
    return stored


def class_names(tree: Tree, lists: list[str], classes: list[str] | None) -> tuple[list[str] | None, list[str]]:
    """Class names: `classes`, of the root's classes.txt, else those in data.yaml, else the longest list of obj.names and `lists` (files
    beside the labels), None if there are none; those of `lists` that were read. Lists of mere numbers count only where no other is.

    Raises:
        UserError: data.yaml has no classes, or has keypoints; a list has an empty line; two of all these name a class differently.
    """
    found = {"classes.txt": classes} if classes else {}
    found |= _names_in_yaml(tree, is_needed=not classes)
    for name in ("obj.names", *lists):
        file = tree.open_text(name)
        if file is None:
            continue
        with file, utf8(f"{tree}/{name}"):
            names = [class_name(line) for line in file.read().rstrip().splitlines()]
        if "" in names:
            raise UserError(
                f"{tree}/{name}: line {names.index('') + 1} is empty, and lines count as ids from 0; remove it, or name the class"
            )
        found[name] = names
    found = {name: names for name, names in found.items() if not _are_numbers(names)} or found
    first = next((found[name] for name in ("classes.txt", *YAML) if name in found), None)
    longest = max(found, key=lambda name: len(found[name]), default="")
    for name, names in found.items():
        pairs = enumerate(zip(names, found[longest], strict=False))
        number = next((i for i, (one, other) in pairs if one.casefold() != other.casefold()), None)
        if number is not None:
            raise UserError(
                f"{tree}/{name} names class {number} {names[number]!r}, and {longest} {found[longest][number]!r}; keep the list that "
                "numbers the classes in the texts, with all of them, and remove the other"
            )
    return first or found.get(longest) or None, lists


def _are_numbers(names: list[str]) -> bool:
    """Whether each class is called by its number, as tools write for classes that they do not know."""
    return names == [str(number) for number in range(len(names))]


def _names_in_yaml(tree: Tree, *, is_needed: bool) -> dict[str, list[str]]:
    """{file: class names} of data.yaml; empty if there is none, or if it names no classes and these are not needed."""
    for name in YAML:
        try:
            stored = read_yaml(tree, name)
            if stored is None:
                continue
            if "kpt_shape" in stored:  # some such lines would be read as polygons
                raise UserError(f"{tree}/{name} has kpt_shape: its labels are {POSES}")
            return {name: _names_of(stored)}
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            if not is_needed:
                return {}
            raise UserError(
                f"{tree}/{name} does not name the classes ({' '.join(str(error).split())[:100]}); write names: [CLASS, ...]"
            ) from error
    return {}


def _names_of(stored: dict[str, object]) -> list[str]:
    names = stored["names"]
    if isinstance(names, dict):
        if sorted(map(int, names)) != list(range(len(names))):
            raise ValueError("the numbers of names are not 0, 1, 2 and so on")
        names = [name for _, name in sorted(names.items(), key=lambda entry: int(entry[0]))]
    if not names or not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("names is no list of names")
    if stored.get("nc", str(len(names))) != str(len(names)):
        raise ValueError(f"nc is {stored['nc']}, and {len(names)} are named")
    return [class_name(name) for name in names]


def has_polygon(data: bytes) -> bool:
    """Whether a label file has a line that is not a box."""
    return any(len(line.split()) > 1 + BOX for line in data.decode("utf-8", "replace").splitlines())


def why_no_yolo(data: bytes) -> str | None:
    """The error in a file that begins like YOLO labels; None for valid and for other files."""
    try:
        list(read_lines(data))
    except BadPicture as error:
        return error.reason if _LIKE_YOLO.match(data) else None
    return None


def boxes_in(contents: list[bytes]) -> list[list[float]]:
    """The coordinates of all lines that are boxes."""
    return [values for data in contents for values in _numbers(data) if len(values) == BOX]


def refuse_poses(contents: list[bytes], where: str) -> None:
    """Refuse pose labels (a box and keypoints in each line), which would be read as polygons: all lines have the same length, and their
    points lie inside their boxes, or every third number is a visibility flag.

    Raises:
        UserError: the labels are poses.
    """
    lines = [values for data in contents for values in _numbers(data)]
    if len(lines) < MIN_LINES or len({len(values) for values in lines}) > 1 or len(lines[0]) <= CORNERS:
        return
    seen = (len(lines[0]) - BOX) % 3 == 0 and all(value in (0, 1, 2) for values in lines for value in values[BOX + 2 :: 3])
    if seen or ((len(lines[0]) - BOX) % 2 == 0 and all(_is_pose(values) for values in lines)):
        raise UserError(f"{where} and others hold a box and keypoints in each line: {POSES}, or keep the first five numbers of each line")


def _is_pose(values: list[float]) -> bool:
    """Whether all points lie in the box, or at 0, 0 (not labelled)."""
    x, y, w, h = values[:BOX]
    points = zip(values[BOX::2], values[BOX + 1 :: 2], strict=True)
    return all((abs(px - x) <= w / 2 + TOLERANCE and abs(py - y) <= h / 2 + TOLERANCE) or (px, py) == (0, 0) for px, py in points)


def _numbers(data: bytes) -> Iterator[list[float]]:
    """The numbers after the class in each line; stops at a line that is not YOLO."""
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            values = [float(word) for word in line.split()[1:]]
        except ValueError:
            return
        if values:
            yield values


def read_lines(data: bytes) -> Iterator[Line]:
    """(class, coordinates) of the lines `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for polygons, as fractions of the picture.

    Raises:
        BadPicture: naming the first invalid line.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadPicture("its .txt is not UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            number_of_class, values = int(words[0].removesuffix(".0")), [float(word) for word in words[1:]]
        except ValueError as error:
            raise BadPicture(f"its .txt, line {number}: {line[:40]!r} is not a class number and numbers") from error
        if number_of_class < 0:
            raise BadPicture(f"its .txt, line {number} is of class {number_of_class}; classes are numbered from 0")
        if len(values) < 4 or (len(values) > 4 and (len(values) % 2 or len(values) < 6)):
            raise BadPicture(f"its .txt, line {number} has {len(words)} numbers; a line is `class cx cy w h`, or a class and a polygon")
        if wrong := next((value for value in values if math.isfinite(value) and not -TOLERANCE <= value <= 1 + TOLERANCE), None):
            raise BadPicture(f"its .txt, line {number} holds {wrong:g}; numbers are fractions of the picture, from 0 to 1")
        yield number_of_class, values
