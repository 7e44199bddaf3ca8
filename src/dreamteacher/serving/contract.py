"""The contract of pre- and postprocessing. Export writes it to the ONNX metadata and Triton's configuration; clients and NAME-pictures
follow it. Needs numpy and Pillow only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from dreamteacher.data.boxes import select_detections
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.keypoints import select_objects
from dreamteacher.errors import UserError

VERSION = 1  # version of the contract; increased if an older reader would preprocess pictures wrongly
VERSION_KEY = "contract_version"
MAX_PIXELS = 100_000_000  # maximum after preprocessing: thin pictures grow when scaled or padded
DESCRIPTION = {  # what version 1 always does, for readers without this module
    "layout": "NCHW",
    "channel_order": "RGB",
    "value_range": "[0, 1], then (value - mean) / std per channel",
    "padding": "reflect, right and bottom",
}


@dataclass(frozen=True)
class Contract:
    """The preprocessing of one exported model.

    task: its name, which may be that of another package, "features" for a backbone. classes: names by class id. mean, std: of each channel
    of RGB in [0, 1].
    size: side of the example input, and the only valid size if `dynamic_size` is false. multiple: height and width must be multiples of it.
    short_side: larger pictures are downscaled to it, as in ingest; None: they are not. scale_to: short side at which the task is evaluated;
    None: unscaled. interpolation: name of a Pillow filter. strides: of the backbone's pyramid, fine to coarse. skeleton: pairs of keypoints
    to connect in drawings. head: name of the head if it is not the task's own, since its outputs may differ.
    """

    task: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    multiple: int
    short_side: int | None
    scale_to: int | None
    interpolation: str
    strides: tuple[int, ...]
    dynamic_size: bool = True
    skeleton: tuple[tuple[int, int], ...] = ()
    head: str = ""

    def to_metadata(self) -> dict[str, str]:
        """The contract as strings for ONNX metadata and Triton parameters; `from_metadata` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) or field.name not in _LATER}
        return {
            VERSION_KEY: str(VERSION),
            **{name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()},
            **DESCRIPTION,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Contract:
        """Read the contract from the metadata of a file or the parameters of a served model; `where` names it in messages.

        Metadata without a version come from older exports, with the same keys.

        Raises:
            UserError: there is no contract, it has a later version, or a value is invalid.
        """
        if metadata.get(VERSION_KEY, "1") != str(VERSION):
            raise UserError(
                f"{where} has version {metadata[VERSION_KEY][:20]} of the preprocessing contract and this dreamteacher reads up to "
                f"{VERSION}; update dreamteacher here (pip install --upgrade dreamteacher)"
            )
        metadata = {**_LATER, **metadata}
        missing = [field.name for field in fields(cls) if field.name not in metadata]
        if missing:
            raise UserError(f"{where} does not say how pictures are prepared (no {missing[0]!r}); serve what `dreamteacher publish` wrote")
        values = {}
        for name, (read, fits) in _KINDS.items():
            try:
                values[name] = read(metadata[name])
                good = fits(values[name])
            except (ValueError, TypeError):
                good = False
            if not good:
                raise UserError(f"{where} says that {name!r} is {metadata[name][:80]!r}, which cannot be; export and publish it again")
        return cls(**values)


def _tuple(text: str) -> tuple[Any, ...]:
    return tuple(json.loads(text))


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in json.loads(text))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_channels(values: Any) -> bool:
    return len(values) == 3 and all(isinstance(value, (int, float)) for value in values)


_LATER = {"skeleton": "[]", "head": ""}  # optional keys -> their default text
_KINDS: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool]]] = {  # field -> parser of its text, and its valid values
    "task": (str, lambda value: bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,99}", value))),
    "classes": (_tuple, lambda values: all(isinstance(value, str) for value in values)),
    "mean": (_tuple, _are_channels),
    "std": (_tuple, lambda values: _are_channels(values) and all(value > 0 for value in values)),
    "size": (json.loads, _is_count),
    "multiple": (json.loads, _is_count),
    "short_side": (json.loads, lambda value: value is None or _is_count(value)),
    "scale_to": (json.loads, lambda value: value is None or _is_count(value)),
    "interpolation": (str, lambda value: value.upper() in Image.Resampling.__members__),
    "strides": (_tuple, lambda values: all(map(_is_count, values))),
    "dynamic_size": (json.loads, lambda value: isinstance(value, bool)),
    "head": (str, lambda value: bool(re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]{0,99})?", value))),
    "skeleton": (_pairs, lambda pairs: all(end >= 0 for pair in pairs for end in pair)),
}


def prepare(picture: np.ndarray, contract: Contract, *, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, tuple[int, int]]:
    """Preprocess uint8 RGB (H, W, 3) as in the evaluation: scale, pad by reflection to the multiple, normalise.

    Scaling: downscaled to `short_side` as in ingest, then, if the task is evaluated at one scale, to the short side `scale_to`. For a model
    of fixed input size, scaled to that size. Returns float32 (1, 3, H', W') and the size (h, w) without padding.

    Raises:
        BadPicture: it would have more than `max_pixels` after scaling and padding.
    """
    check_size(picture.shape[0], picture.shape[1], contract, max_pixels=max_pixels)
    sizes = _sizes(picture.shape[0], picture.shape[1], contract)
    height, width = sizes[-1]
    down, right = (-side % contract.multiple for side in (height, width))
    interpolation = Image.Resampling[contract.interpolation.upper()]
    for size in sizes:
        if size != picture.shape[:2]:
            picture = np.asarray(Image.fromarray(picture).resize(size[::-1], interpolation))
    padded = np.pad(picture, ((0, down), (0, right), (0, 0)), mode="reflect")
    normalized = (padded / np.float32(255) - np.array(contract.mean, np.float32)) / np.array(contract.std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]), (height, width)


def check_size(height: int, width: int, contract: Contract, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture of (height, width) that would have more than `max_pixels` after preprocessing.

    Raises:
        BadPicture: it would.
    """
    tall, wide = (-(-side // contract.multiple) * contract.multiple for side in _sizes(height, width, contract)[-1])
    if tall * wide > max_pixels:
        raise BadPicture(f"too thin or too large: {width} x {height} is prepared as {wide} x {tall}, more than {max_pixels} pixels")


def _sizes(height: int, width: int, contract: Contract) -> list[tuple[int, int]]:
    """The successive sizes (h, w) of a picture of (height, width); the last is that of the model's input without padding."""
    if not contract.dynamic_size:
        return [(contract.size, contract.size)]
    sizes = [(height, width)]
    if contract.short_side:
        sizes.append(_scaled(sizes[-1], min(contract.short_side, height, width)))
    if contract.scale_to:
        sizes.append(_scaled(sizes[-1], contract.scale_to))
    return sizes


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    scale = short / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def padded_size(prepared: tuple[int, int], contract: Contract) -> tuple[int, int]:
    """(H, W) of the model's input for a picture scaled to `prepared` (h, w)."""
    height, width = (-(-side // contract.multiple) * contract.multiple for side in prepared)
    return height, width


def to_mask(logits: np.ndarray, prepared: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W) of class ids in the picture's own `size` (H, W): the inverse of `prepare`.

    logits: (K, H', W') of the padded input; `prepared` (h, w): size without padding. As in the evaluation, logits are resized (bilinear),
    not classes.
    """
    own = logits[:, : prepared[0], : prepared[1]]
    if own.shape[1:] == size:
        return own.argmax(0).astype(np.uint8)
    best, mask = np.full(size, -np.inf, np.float32), np.zeros(size, np.uint8)
    for index, plane in enumerate(own):  # one class at a time to save memory: there may be hundreds, and the picture may be large
        values = np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(size[::-1], Image.Resampling.BILINEAR))
        better = values > best
        mask[better] = index
        np.maximum(best, values, out=best)
    return mask


def to_detections(
    scores: np.ndarray, boxes: np.ndarray, prepared: tuple[int, int], size: tuple[int, int], contract: Contract
) -> np.ndarray:
    """float32 (D, 6): x1, y1, x2, y2 in pixels of the picture's own `size` (H, W), class id and score; see `boxes.select_detections`.

    scores (K, A) and boxes (4, A): of the padded input, of which `prepared` (h, w) is the picture.
    """
    return select_detections(scores, boxes, padded_size(prepared, contract), prepared, size)


def to_keypoints(outputs: Mapping[str, np.ndarray], prepared: tuple[int, int], size: tuple[int, int], contract: Contract) -> np.ndarray:
    """float32 (D, 1 + 3 P) of objects in the picture's own `size` (H, W); see `keypoints.select_objects`."""
    maps = outputs["centres"], outputs["points"], outputs["seen"]
    return select_objects(*maps, padded_size(prepared, contract), prepared, size=size)


def to_shares(mask: np.ndarray, classes: int) -> np.ndarray:
    """float32 (K,): the share of each class in a mask of class ids."""
    return (np.bincount(mask.ravel(), minlength=classes)[:classes] / mask.size).astype(np.float32)


def to_likelihoods(logits: np.ndarray) -> np.ndarray:
    """float32 (K,): the sigmoid of logits (K,)."""
    return (1 / (1 + np.exp(-logits.astype(np.float64).clip(-500, 500)))).astype(np.float32)


def to_depth(depth: np.ndarray, prepared: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """float32 (H, W) in the picture's own `size` (H, W); depth: (1, H', W') of the padded input, of which `prepared` (h, w) is it."""
    own = np.ascontiguousarray(depth[0, : prepared[0], : prepared[1]], np.float32)
    return own if own.shape == size else np.asarray(Image.fromarray(own).resize(size[::-1], Image.Resampling.BILINEAR))


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """float32 (K,): the softmax of logits (K,)."""
    shares = np.exp(logits - logits.max())
    return (shares / shares.sum()).astype(np.float32)
