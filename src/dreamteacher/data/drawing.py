"""Draw classes, boxes, instances and keypoints on pictures, and depth as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dreamteacher.data.class_list import is_background

# Tableau 10.
COLOURS = bytes.fromhex("1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf")
NEAR_TO_FAR = bytes.fromhex("fde725 5ec962 21918c 3b528b 440154")  # viridis, reversed
MIN_SIDE = 400  # pixels; smaller pictures are enlarged, so that lines do not hide small objects


def cycled_colours(count: int) -> np.ndarray:
    """uint8 (count, 3): the ten colours, repeated, by class id."""
    return np.resize(np.frombuffer(COLOURS, np.uint8), (count, 3))


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """uint8 (256, 3): the colour of each class id in a mask, ten colours repeated. Unknown pixels and a first class that is named as the
    background are black."""
    first = int(bool(classes) and is_background(classes[0]))
    colours: np.ndarray = np.zeros((256, 3), np.uint8)
    colours[first : len(classes)] = cycled_colours(len(classes) - first)
    return colours


def draw_classes(picture: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The picture, uint8 (H, W, 3), tinted by the class ids of a mask, uint8 (H, W), in the colours of `class_colours`."""
    colours = class_colours(classes)
    return np.where(colours[mask].any(-1)[..., None], picture // 2 + colours[mask] // 2, picture)


def draw_boxes(picture: np.ndarray, corners: np.ndarray, classes: np.ndarray, captions: Sequence[str] = ()) -> np.ndarray:
    """The picture, perhaps enlarged, with boxes (N, 4) in the colours of their class ids (N,) and captions."""
    image, factor = _enlarged(picture)
    draw = ImageDraw.Draw(image)
    width = max(1, min(image.size) // 250)
    palette = np.frombuffer(COLOURS, np.uint8).reshape(-1, 3)
    for index, (x1, y1, x2, y2) in enumerate((corners * factor).tolist()):
        colour = tuple(palette[int(classes[index]) % len(palette)].tolist())
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
        if captions:
            draw.text((x1 + width + 1, y1 + width), captions[index], fill=colour)
    return np.asarray(image)


def draw_keypoints(picture: np.ndarray, points: np.ndarray, skeleton: Sequence[tuple[int, int]], least: float) -> np.ndarray:
    """The picture, perhaps enlarged, with the keypoints (N, P, 3) of N objects: x, y and a score; drawn if the score is at least `least`.

    Lines of the skeleton are coloured by object, keypoints by their index.
    """
    image, factor = _enlarged(picture)
    draw = ImageDraw.Draw(image)
    palette = [tuple(colour) for colour in np.frombuffer(COLOURS, np.uint8).reshape(-1, 3).tolist()]
    width = max(1, min(image.size) // 200)
    for number, of_object in enumerate(points):
        places = [(x * factor, y * factor) if seen >= least else None for x, y, seen in of_object.tolist()]
        for first, second in skeleton:
            ends = places[first], places[second]
            if ends[0] and ends[1]:
                draw.line((*ends[0], *ends[1]), fill=palette[number % len(palette)], width=width)
        for which, place in enumerate(places):
            if place:
                x, y = place
                box = (x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width)
                draw.ellipse(box, fill=palette[which % len(palette)], outline=(255, 255, 255))
    return np.asarray(image)


def draw_objects(picture: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The picture tinted by the objects of `numbers` (H, W), in ten colours by number, with outlines in full colour."""
    palette = np.frombuffer(COLOURS, np.uint8).reshape(-1, 3)
    colours = palette[(numbers.astype(np.int64) - 1) % len(palette)]
    around = np.pad(numbers, 1, mode="edge")
    inner = np.ones(numbers.shape, bool)
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= around[down : down + numbers.shape[0], across : across + numbers.shape[1]] == numbers
    tinted = np.where(inner[..., None], picture // 2 + colours // 2, colours)
    return np.where(numbers[..., None] > 0, tinted, picture).astype(np.uint8)


def draw_depth(depth: np.ndarray, span: tuple[float, float] | None = None) -> np.ndarray:
    """Colours, uint8 (H, W, 3), of a depth map, float (H, W): from yellow (near) to violet (far), logarithmic over `span` (default: the
    map's own range); unknown pixels (0) are black."""
    known = depth > 0
    if not known.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    low, high = np.log(span or (depth[known].min(), depth[known].max()))
    share = ((np.log(np.where(known, depth, 1)) - low) / max(high - low, 1e-6)).clip(0, 1)
    stops = np.frombuffer(NEAR_TO_FAR, np.uint8).reshape(-1, 3)
    places = np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(share, places, stops[:, channel]) for channel in range(3)], axis=2)
    return np.where(known[..., None], colours, 0).astype(np.uint8)


def _enlarged(picture: np.ndarray) -> tuple[Image.Image, int]:
    """The picture, enlarged by an integer factor if it is small, and the factor."""
    factor = max(1, -(-MIN_SIDE // min(picture.shape[:2])))
    size = picture.shape[1] * factor, picture.shape[0] * factor
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), factor
