"""Pascal VOC boxes: one .xml per picture."""

from __future__ import annotations

from xml.etree import ElementTree

from dreamteacher.data.formats import BadPicture
from dreamteacher.data.names import class_name, is_set

ROOT = b"<annotation"
Row = tuple[float, float, float, float, str | int, bool]  # x1, y1, x2, y2, name of the class, ignored


def read(data: bytes) -> tuple[list[float], list[Row]]:
    """([width, height], boxes). Pixels are 1-based and inclusive (as in detectron2), so that 1..W is the full width.

    Raises:
        BadPicture: the file cannot be parsed.
    """
    if b"<!ENTITY" in data:
        raise BadPicture("its .xml declares entities, which are not read")
    try:
        root = ElementTree.fromstring(data)
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        rows: list[Row] = []
        for thing in root.iter("object"):
            box, name = thing.find("bndbox"), class_name(thing.findtext("name") or "")
            if box is None or not name:
                raise ValueError("an object has no bndbox or no name")
            x1, y1, x2, y2 = (float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
            (x1, x2), (y1, y2) = _between_pixels(x1, x2), _between_pixels(y1, y2)
            rows.append((x1, y1, x2, y2, name, is_set(thing.findtext("difficult"))))
    except (ElementTree.ParseError, ValueError) as error:
        raise BadPicture(f"its .xml is no Pascal VOC annotation: {error}") from error
    return size, rows


def why_no_voc(data: bytes) -> str | None:
    """The error in a file that begins as an annotation of Pascal VOC; None for valid and for other files."""
    try:
        read(data)
    except BadPicture as error:
        return error.reason if ROOT in data else None
    return None


def _between_pixels(first: float, last: float) -> tuple[float, float]:
    """The 0-based, half-open interval of an inclusive, 1-based span in either order; empty if both ends are equal."""
    if first == last:
        return first, first
    return (first - 1, last) if first < last else (first, last - 1)
