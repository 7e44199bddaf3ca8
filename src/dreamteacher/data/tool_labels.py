"""JSON labels of labelme and Supervisely, one file per picture; and detection of tools whose files are not read."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from dreamteacher.data.formats import BadPicture
from dreamteacher.data.names import class_name

CORNERS = 64  # of the polygon that approximates a circle
_COCO = "export it as COCO"
_OUTLINES = "; it gives boxes or objects (ingest.task detection or instances), so for segmentation export masks"
_TOOLS = (  # pattern of a file's beginning, tool, remedy
    (
        rb'\{.{0,400}"shapes"\s*:',
        "labelme",
        f"put each file beside its picture under its name (A.json for A.jpg){_OUTLINES}",
    ),
    (
        rb'\{.{0,4000}"(classTitle|geometryType)"\s*:',
        "Supervisely",
        f"put each into ann/ under its picture's name (A.jpg.json for img/A.jpg){_OUTLINES}",
    ),
    (rb'\[.{0,4000}"(annotations|completions)"\s*:.{0,20000}"result"\s*:', "Label Studio", _COCO),
    (rb'\[.{0,4000}"(rectangle|polygon|brush|ellipse|keypoint)labels"\s*:', "Label Studio", _COCO),  # its JSON-MIN
    (rb'\[(?=.{0,4000}"original_width"\s*:)(?=.{0,4000}"original_height"\s*:).{0,4000}"x"\s*:', "Label Studio", _COCO),
    (rb'\{.{0,4000}"(regions|shape_attributes|_via_settings)"\s*:', "VGG Image Annotator", _COCO),
    (rb'\[.{0,4000}"coordinates"\s*:', "Create ML", _COCO),
    (rb'\[.{0,4000}"(box2d|poly2d)"\s*:', "BDD100K (Scalabel)", f"{_COCO} (bdd100k.label.to_coco)"),
    (rb'[\[{].{0,4000}"(data_row|Labeled Data)"\s*:', "Labelbox", _COCO),
    (rb"(?s).{0,400}<annotations>.{0,20000}<(image|track)\s", "CVAT", f"{_COCO} 1.0"),
    (rb"imagesource:|gsd:|([\d.]+ ){8}[A-Za-z]", "DOTA", f"{_COCO}, or write YOLO text"),
    (rb"[A-Za-z]+ [\d.]+ -?\d+ -?[\d.]+ ([\d.]+ ){4}", "KITTI", f"{_COCO}, or write YOLO text"),
    (rb"[^\n<]{0,200}\bxmin\b", "TensorFlow or Keras", f"{_COCO}, or write YOLO text"),
    (rb"(-?\d+,){7}-?\d+\s", "VisDrone", f"{_COCO}, or write YOLO text"),
    (rb"[^\n]{0,200}\bEncodedPixels\b", "Kaggle (run lengths)", "draw them into masks (PNG)"),
    (rb".{0,400}<Annotations\b.{0,4000}<Region\b", "Aperio ImageScope", "draw its outlines into masks (PNG)"),
    (rb"ImageID,", "Open Images", f"{_COCO}, or write YOLO text"),
    (rb"filename,file_size,file_attributes", "VGG Image Annotator", _COCO),
    (rb".{0,4000}<robndbox>", "roLabelImg", f"{_COCO}, or write YOLO text of four corners"),
)


def detect_tool(data: bytes) -> tuple[str, str] | None:
    """(tool, remedy) of a label file that is not read, by its beginning; None if no pattern matches."""
    head = data.lstrip(b"\xef\xbb\xbf \r\n\t")
    return next(((tool, remedy) for pattern, tool, remedy in _TOOLS if re.match(pattern, head, re.DOTALL)), None)


class Shape(NamedTuple):
    """An object: class name, and closed polygons as flat lists of x, y."""

    name: str
    polygons: list[list[float]]


def is_labelme(data: bytes) -> bool:
    """Whether the data is a labelme file."""
    return _has_list(data, "shapes")


def is_supervisely(data: bytes) -> bool:
    """Whether the data is a Supervisely file."""
    return _has_list(data, "objects") and b'"classTitle"' in data


def _has_list(data: bytes, key: str) -> bool:
    try:
        stored = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(stored, dict) and isinstance(stored.get(key), list)


def labelme(data: bytes) -> tuple[list[Any], list[Shape]]:
    """([width, height], objects) of a labelme file. Rectangles, also rotated ones, and circles become polygons; shapes with the same label
    and group_id become one object.

    Raises:
        BadPicture: the file is damaged, or has a shape without an area, such as a line.
    """
    try:
        stored = json.loads(data)
        shapes: list[Shape] = []
        groups: dict[tuple[str, Any], Shape] = {}
        for shape in stored["shapes"]:
            kind, points = shape.get("shape_type") or "polygon", [(float(x), float(y)) for x, y in shape["points"]]
            if kind == "rectangle" and len(points) == 2:
                points = _rectangle(*points)
            elif kind == "circle" and len(points) == 2:
                points = _circle(*points)
            elif kind not in ("polygon", "rectangle", "rotation") or len(points) < 3:
                raise BadPicture(f"its .json (labelme) holds a {kind} of {len(points)} points; polygons, rectangles and circles are read")
            found = _shape(shape["label"], points)
            group = shape.get("group_id")
            if group is None or groups.setdefault((found.name, group), found) is found:
                shapes.append(found)
            else:
                groups[found.name, group].polygons.extend(found.polygons)
        return [stored.get("imageWidth"), stored.get("imageHeight")], shapes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadPicture(f"its .json is no file of labelme ({type(error).__name__}: {str(error)[:80]})") from error


def supervisely(data: bytes) -> tuple[list[Any], list[Shape]]:
    """([width, height], objects) of a Supervisely file; holes in polygons are filled.

    Raises:
        BadPicture: the file is damaged, or has a geometry that is neither polygon nor rectangle.
    """
    try:
        stored = json.loads(data)
        shapes = []
        for thing in stored["objects"]:
            kind = thing["geometryType"]
            if kind not in ("polygon", "rectangle"):
                raise BadPicture(f"its .json (Supervisely) holds a {kind}; polygons and rectangles are read, so {_COCO} or as masks")
            points = [(float(x), float(y)) for x, y in thing["points"]["exterior"]]
            shapes.append(_shape(thing["classTitle"], _rectangle(*points) if kind == "rectangle" else points))
        return [stored["size"]["width"], stored["size"]["height"]], shapes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadPicture(f"its .json is no file of Supervisely ({type(error).__name__}: {str(error)[:80]})") from error


def _shape(name: Any, points: list[tuple[float, float]]) -> Shape:
    name = class_name(str(name))
    if not name or len(points) < 3:
        raise ValueError("a shape has no label or fewer than 3 points")
    return Shape(name, [[value for point in points for value in point]])


def _rectangle(one: tuple[float, float], other: tuple[float, float]) -> list[tuple[float, float]]:
    (x1, y1), (x2, y2) = one, other
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _circle(centre: tuple[float, float], edge: tuple[float, float]) -> list[tuple[float, float]]:
    radius = math.dist(centre, edge)
    angles = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]
