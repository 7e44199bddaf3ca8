"""Classes, boxes, objects and keypoints drawn on pictures, and depth in colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dreamteacher.data.class_list import is_background

# Tableau's ten colours.
COLOURS = bytes.fromhex("1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf")
NEAR_TO_FAR = bytes.fromhex("fde725 5ec962 21918c 3b528b 440154")  # viridis, backwards
LEAST_SIDE = 400  # pixels; smaller pictures are enlarged, so that thin lines do not hide small objects


def colours_in_turn(count: int) -> np.ndarray:
    """uint8 (count, 3): the ten colours over and over, as boxes have them by class id."""
    return np.resize(np.frombuffer(COLOURS, np.uint8), (count, 3))


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """uint8 (256, 3): the colours of masks' class ids, ten in turn. Black, which stands for none: unknown pixels, and a background in the
    first line of the classes. A first class of any other name has a colour, or what is of it would look as if nothing was known."""
    first = int(bool(classes) and is_background(classes[0]))
    colours: np.ndarray = np.zeros((256, 3), np.uint8)
    colours[first : len(classes)] = colours_in_turn(len(classes) - first)
    return colours


def draw_classes(picture: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """uint8 (H, W, 3) tinted by the class ids of uint8 (H, W), in the colours of `class_colours`."""
    colours = class_colours(classes)
    return np.where(colours[mask].any(-1)[..., None], picture // 2 + colours[mask] // 2, picture)


def draw_boxes(picture: np.ndarray, corners: np.ndarray, classes: np.ndarray, captions: Sequence[str] = ()) -> np.ndarray:
    """uint8 (H, W, 3), perhaps enlarged, with the outlines of boxes (N, 4) in the colours of their class ids (N,), and captions in them."""
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
    """uint8 (H, W, 3), perhaps enlarged, with the keypoints (N, P, 3) of N objects: x, y, and drawn where the third is `least` or more.

    Lines of the skeleton have the colour of their object, keypoints that of their number.
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
    """uint8 (H, W, 3) tinted by the objects of `numbers` (H, W), in ten colours by their number, with their outlines in full colour."""
    palette = np.frombuffer(COLOURS, np.uint8).reshape(-1, 3)
    colours = palette[(numbers.astype(np.int64) - 1) % len(palette)]
    around = np.pad(numbers, 1, mode="edge")
    inner = np.ones(numbers.shape, bool)
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= around[down : down + numbers.shape[0], across : across + numbers.shape[1]] == numbers
    tinted = np.where(inner[..., None], picture // 2 + colours // 2, colours)
    return np.where(numbers[..., None] > 0, tinted, picture).astype(np.uint8)


def draw_depth(depth: np.ndarray, span: tuple[float, float] | None = None) -> np.ndarray:
    """uint8 (H, W, 3) of float (H, W): yellow is near and violet far, by the logarithm between the ends of `span` (default: its own); what
    is unknown, 0, is black."""
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
    """The picture, whole times as large if it is small, and how many."""
    factor = max(1, -(-LEAST_SIDE // min(picture.shape[:2])))
    size = picture.shape[1] * factor, picture.shape[0] * factor
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), factor
