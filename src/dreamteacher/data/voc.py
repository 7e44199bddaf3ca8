"""Pascal VOC boxes: one .xml per picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dreamteacher.data.formats import BadPicture
from dreamteacher.data.names import class_name, is_set

ROOT = "annotation"
_ENCODING = re.compile(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)")
Row = tuple[float, float, float, float, str | int, bool]  # x1, y1, x2, y2, name of the class, ignored


def read(data: bytes) -> tuple[list[float], list[Row]]:
    """([width, height], boxes). Pixels are 1-based and inclusive (as in detectron2), so that 1..W is the full width.

    Raises:
        BadPicture: the file cannot be parsed.
    """
    try:
        root = _annotation(_parse(data))
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        rows: list[Row] = []
        for thing in root.iter("object"):
            box, name = thing.find("bndbox"), class_name(thing.findtext("name") or "")
            if box is None or not name:
                raise ValueError("an object has no bndbox or no name")
            x1, y1, x2, y2 = (float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
            (x1, x2), (y1, y2) = _between_pixels(x1, x2), _between_pixels(y1, y2)
            rows.append((x1, y1, x2, y2, name, is_set(thing.findtext("difficult"))))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadPicture(f"its .xml is no Pascal VOC annotation: {error}") from error
    return size, rows


def _parse(data: bytes) -> ElementTree.Element:
    """The root; namespaces are removed from tags, as elements would not be found by their names. Raises ParseError, ValueError or
    LookupError."""
    declared = _ENCODING.match(data)
    text = data.decode(declared[1].decode()) if declared else data  # expat lacks multi-byte encodings such as GBK
    if "<!ENTITY" in (text if isinstance(text, str) else text.replace(b"\0", b"").decode("latin-1")):  # UTF-16 has zeros between letters
        raise BadPicture("its .xml declares entities, which are not read")
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _annotation(root: ElementTree.Element) -> ElementTree.Element:
    """The root, or the one annotation that it wraps; ValueError if there is none, or several."""
    found = [root] if root.tag == ROOT else list(root.iter(ROOT))
    if not found:
        raise ValueError(f"it holds <{root.tag[:40]}>, not <{ROOT}>")
    if len(found) > 1:
        raise ValueError(f"it holds {len(found)} <{ROOT}>; write a file for each")
    return found[0]


def is_xml(data: bytes) -> bool:
    """Whether the data can be parsed, in the encoding that it declares."""
    try:
        _parse(data)
    except (ElementTree.ParseError, ValueError, LookupError, BadPicture):
        return False
    return True


def why_no_voc(data: bytes) -> str | None:
    """The error in a file that begins as an annotation of Pascal VOC; None for valid and for other files."""
    try:
        read(data)
    except BadPicture as error:
        return error.reason if f"<{ROOT}".encode() in data.replace(b"\0", b"") else None
    return None


def _between_pixels(first: float, last: float) -> tuple[float, float]:
    """The 0-based, half-open interval of an inclusive, 1-based span in either order; empty if both ends are equal."""
    if first == last:
        return first, first
    return (first - 1, last) if first < last else (first, last - 1)
