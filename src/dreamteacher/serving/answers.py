"""Typed predictions of served models: one class per task, found in ANSWERS by the task's name.

Needs numpy and Pillow only; `dreamteacher publish` copies it into NAME-pictures.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from dreamteacher.data.boxes import MAX_DETECTIONS
from dreamteacher.data.instances import MAX_OBJECTS, group, paste
from dreamteacher.data.keypoints import MAX_OBJECTS as MAX_BODIES
from dreamteacher.data.keypoints import Skeleton
from dreamteacher.serving.contract import (
    Contract,
    padded_size,
    to_depth,
    to_detections,
    to_keypoints,
    to_likelihoods,
    to_mask,
    to_probabilities,
    to_shares,
)

if TYPE_CHECKING:
    from typing import Self  # not in the Python of some servers, to which this file is copied

Outputs = Mapping[str, np.ndarray]
Size = tuple[int, int]


def _to_png(mask: np.ndarray) -> np.ndarray:
    """A mask of uint8 or uint16 (H, W) as the bytes of a PNG, uint8 (length,)."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


def _of_png(file: np.ndarray) -> np.ndarray:
    """The inverse of `_to_png`."""
    return np.asarray(Image.open(io.BytesIO(file.tobytes()), formats=("PNG",)))


def _padded(rows: np.ndarray, most: int) -> np.ndarray:
    """`rows` (D, C) padded with zeros to (most, C)."""
    return np.pad(rows, [(0, most - len(rows)), (0, 0)])


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A class for each pixel. mask: uint8 (H, W) of class ids, at the picture's own size. shares: float32 (K,), the share of each class."""

    OUTPUTS: ClassVar = ("logits",)

    mask: np.ndarray
    shares: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Segmentation:
        """See `to_answer`."""
        mask = to_mask(outputs["logits"], prepared, size)
        return cls(mask, to_shares(mask, len(contract.classes)), contract.classes)

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """Name -> (Triton's data type, sizes, -1: any) of the tensors of `to_tensors`."""
        return {"mask": ("TYPE_UINT8", [-1]), "shares": ("TYPE_FP32", [classes])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures; the mask is a PNG."""
        return {"mask": _to_png(self.mask), "shares": self.shares}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Segmentation:
        """The inverse of `to_tensors`."""
        return cls(_of_png(tensors["mask"]), tensors["shares"], contract.classes)


@dataclass(frozen=True, eq=False)
class _OfThePicture:
    """A probability for each class. probabilities: float32 (K,)."""

    OUTPUTS: ClassVar = ("logits",)

    probabilities: np.ndarray
    classes: tuple[str, ...]

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """See `Segmentation.tensors`."""
        return {"probabilities": ("TYPE_FP32", [classes])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures."""
        return {"probabilities": self.probabilities}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Self:
        """The inverse of `to_tensors`."""
        return cls(tensors["probabilities"], contract.classes)


class Classification(_OfThePicture):
    """A class for the picture. probabilities: float32 (K,), the sum is 1."""

    @property
    def best(self) -> str:
        """The most likely class."""
        return self.classes[int(self.probabilities.argmax())]

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Classification:
        """See `to_answer`."""
        return cls(to_probabilities(outputs["logits"]), contract.classes)


class MultiLabel(_OfThePicture):
    """Any number of classes for the picture. probabilities: float32 (K,), independent, each in [0, 1]."""

    @property
    def labels(self) -> list[str]:
        """The classes with a probability of 0.5 or more."""
        return [self.classes[i] for i in np.flatnonzero(self.probabilities >= 0.5)]

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> MultiLabel:
        """See `to_answer`."""
        return cls(to_likelihoods(outputs["logits"]), contract.classes)


@dataclass(frozen=True, eq=False)
class Depth:
    """A distance for each pixel. depth: float32 (H, W) in the picture's own size, in the unit of the labels that the model learned from."""

    OUTPUTS: ClassVar = ("depth",)

    depth: np.ndarray

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Depth:
        """See `to_answer`."""
        return cls(to_depth(outputs["depth"], prepared, size))

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """See `Segmentation.tensors`."""
        return {"depth": ("TYPE_FP32", [-1, -1])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures."""
        return {"depth": self.depth}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Depth:
        """The inverse of `to_tensors`."""
        return cls(np.array(tensors["depth"]))


@dataclass(frozen=True, eq=False)
class Detections:
    """Detected objects, by descending score.

    boxes: float32 (D, 4) of x1, y1, x2, y2 in pixels of the original picture, which spans (0, 0) to (W, H). labels: int64 (D,) of class
    ids. scores: float32 (D,) in [0, 1]; apply a threshold, as up to 100 objects with low scores are included.
    """

    OUTPUTS: ClassVar = ("scores", "boxes")

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Detections:
        """See `to_answer`."""
        return cls._of_rows(to_detections(outputs["scores"], outputs["boxes"], prepared, size, contract), contract.classes)

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """See `Segmentation.tensors`. Of fixed size, since servers and clients lose the shape of a tensor without rows."""
        return {"detections": ("TYPE_FP32", [MAX_DETECTIONS, 6])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures: rows of box, class id and score, padded with rows of score 0."""
        rows = np.column_stack([self.boxes, self.labels, self.scores]).astype(np.float32)
        return {"detections": _padded(rows, MAX_DETECTIONS)}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Detections:
        """The inverse of `to_tensors`."""
        rows = tensors["detections"]
        return cls._of_rows(rows[rows[:, 5] > 0], contract.classes)

    @classmethod
    def _of_rows(cls, rows: np.ndarray, classes: tuple[str, ...]) -> Detections:
        return cls(rows[:, :4], rows[:, 4].astype(np.int64), rows[:, 5], classes)


@dataclass(frozen=True, eq=False)
class Instances:
    """Instance segmentation: objects with masks, by descending score.

    mask: uint16 (H, W) at the picture's own size: object ids from 1, 0 for background. labels: int64 (D,) of class ids, and scores: float32
    (D,) in [0, 1], of object 1, 2 and so on.
    """

    OUTPUTS: ClassVar = ("probabilities", "centres", "offsets")

    mask: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Instances:
        """See `to_answer`."""
        return cls(*group(outputs["probabilities"], outputs["centres"], outputs["offsets"], prepared, size), contract.classes)

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """See `Segmentation.tensors` and `Detections.tensors`."""
        return {"mask": ("TYPE_UINT8", [-1]), "objects": ("TYPE_FP32", [MAX_OBJECTS, 2])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures: the mask as a 16-bit PNG; rows of class id and score, padded with rows of score 0."""
        rows = np.column_stack([self.labels, np.maximum(self.scores, 1e-6)]).astype(np.float32)
        return {"mask": _to_png(self.mask.astype(np.uint16)), "objects": _padded(rows, MAX_OBJECTS)}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Instances:
        """The inverse of `to_tensors`."""
        rows = tensors["objects"][tensors["objects"][:, 1] > 0]
        return cls(_of_png(tensors["mask"]).astype(np.uint16), rows[:, 0].astype(np.int64), rows[:, 1], contract.classes)


class MaskedInstances(Instances):
    """Output of Mask R-CNN: boxes, each with a small mask."""

    OUTPUTS: ClassVar = ("scores", "boxes", "masks")

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Instances:
        """See `to_answer`."""
        found = outputs["scores"], outputs["boxes"], outputs["masks"]
        return Instances(*paste(found, padded_size(prepared, contract), prepared, size), contract.classes)


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Keypoints of the objects in the picture, by descending score.

    points: float32 (D, P, 2) of x and y in pixels of the original picture, which spans (0, 0) to (W, H). seen: float32 (D, P) in [0, 1],
    how likely each is in the picture. scores: float32 (D,) in [0, 1]; apply a threshold, as up to 100 objects with low scores are included.
    classes: names of the P keypoints; skeleton: pairs of keypoint indices to connect in drawings.
    """

    OUTPUTS: ClassVar = ("centres", "points", "seen")

    points: np.ndarray
    seen: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]
    skeleton: Skeleton

    @classmethod
    def of_outputs(cls, contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Keypoints:
        """See `to_answer`."""
        return cls._of_rows(to_keypoints(outputs, prepared, size, contract), contract)

    @staticmethod
    def tensors(classes: int) -> dict[str, tuple[str, list[int]]]:
        """See `Segmentation.tensors` and `Detections.tensors`."""
        return {"objects": ("TYPE_FP32", [MAX_BODIES, 1 + 3 * classes])}

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The answer of NAME-pictures: rows of score and of x, y and `seen` of each keypoint, padded with rows of score 0."""
        of_points = np.concatenate([self.points, self.seen[:, :, None]], axis=2).reshape(len(self.scores), 3 * len(self.classes))
        rows = np.column_stack([self.scores, of_points]).astype(np.float32)
        return {"objects": _padded(rows, MAX_BODIES)}

    @classmethod
    def of_tensors(cls, tensors: Outputs, contract: Contract) -> Keypoints:
        """The inverse of `to_tensors`."""
        return cls._of_rows(tensors["objects"][tensors["objects"][:, 0] > 0], contract)

    @classmethod
    def _of_rows(cls, rows: np.ndarray, contract: Contract) -> Keypoints:
        of_points = rows[:, 1:].reshape(len(rows), len(contract.classes), 3)
        return cls(of_points[:, :, :2], of_points[:, :, 2], rows[:, 0], contract.classes, contract.skeleton)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a picture.

    maps: `strideS` -> float32 (C, H'/S, W'/S), of the picture as prepared (padded to H' x W'), fine to coarse. embedding: float32 (C,).
    size: (h, w) of the prepared picture without its padding.
    """

    maps: dict[str, np.ndarray]
    embedding: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Raw:
    """Raw outputs of a model of another package's task.

    outputs: by the names in its `Task.served`, of the prepared picture, which may be padded. prepared: (h, w) of it without the padding;
    size: (H, W) of the picture itself.
    """

    outputs: dict[str, np.ndarray]
    prepared: tuple[int, int]
    size: tuple[int, int]


Prediction = Segmentation | Classification | MultiLabel | Depth | Detections | Instances | Keypoints
Answer = Prediction | Raw | Features
ANSWERS: dict[str, type[Prediction]] = {
    "segmentation": Segmentation,
    "classification": Classification,
    "detection": Detections,
    "instances": Instances,
    "multilabel": MultiLabel,
    "depth": Depth,
    "keypoints": Keypoints,
}
OF_HEADS: dict[str, type[Prediction]] = {"mask-rcnn": MaskedInstances}  # heads whose outputs differ from those of the task's own head


def kind_of(contract: Contract) -> type[Prediction]:
    """Converts the outputs of a model of a built-in task to an answer."""
    return OF_HEADS.get(contract.head, ANSWERS[contract.task])


def to_answer(contract: Contract, outputs: Outputs, prepared: Size, size: Size) -> Answer:
    """The result for one picture of `size` (H, W), prepared as (h, w), from a model's outputs for it (without the batch dimension)."""
    if contract.task in ANSWERS:
        return kind_of(contract).of_outputs(contract, outputs, prepared, size)
    if contract.task != "features":
        return Raw({name: np.array(values) for name, values in outputs.items()}, prepared, size)
    maps = {name: np.array(outputs[name]) for name in outputs if name != "embedding"}  # copies: views would keep the whole batch
    return Features(maps, np.array(outputs["embedding"]), prepared)
