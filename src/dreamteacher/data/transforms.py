"""Transforms from samples to tensors. Random draws come from torch's global generator, which `Samples` seeds for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dreamteacher.data.boxes import Boxes
from dreamteacher.data.dataset import Label, Sample, label_tensor, nearest
from dreamteacher.data.items import IGNORE
from dreamteacher.data.keypoints import Keypoints
from dreamteacher.settings.section import Augment

if TYPE_CHECKING:
    from torchvision.transforms import v2

Transform = Callable[[Sample], dict[str, Tensor]]
GREY = 114  # padding of `object_crop`


@dataclass(frozen=True)
class Augmentation:
    """Augmentations that preserve the label.

    mirror: horizontal flips. turn: also vertical flips and quarter turns, so that all eight orientations are equally likely. scale: random
    scale. jitter: largest relative change of brightness, contrast and saturation.
    """

    mirror: bool = True
    turn: bool = False
    scale: bool = True
    jitter: float = 0.3


# finetune.augment, the domain of the pictures -> augmentations.
AUGMENTATIONS: dict[Augment, Augmentation] = {
    "natural": Augmentation(),
    "overhead": Augmentation(turn=True),
    "no-flip": Augmentation(mirror=False),
    "none": Augmentation(mirror=False, scale=False, jitter=0.0),
}


def pretrain_crop(size: int, mirror: bool = True) -> Transform:
    """A random crop of `size` x `size` (smaller pictures are first padded by reflection); with `mirror` a horizontal flip with probability
    0.5.

    Returns a function Sample -> {"image": float32 (3, size, size) in [0, 1], "label": see `label_tensor`, if there is one}.
    It slices arrays, which at 64 px takes a fraction of the time of torchvision's v2.
    """

    def transform(sample: Sample) -> dict[str, Tensor]:
        down, across, flip = torch.rand(3).tolist()
        image = _pad(sample.image, size, size)
        top, left = int(down * (image.shape[0] - size + 1)), int(across * (image.shape[1] - size + 1))
        step = -1 if mirror and flip < 0.5 else 1
        image = image[top : top + size, left : left + size][:, ::step]
        label = sample.label
        if isinstance(label, np.ndarray):
            label = _pad(label, size, size)[top : top + size, left : left + size][:, ::step]
        elif isinstance(label, (Boxes, Keypoints)):
            label = label.cropped(top, left, size, size)
            label = label.hflipped(size) if step < 0 else label
        return _tensors(image, label)

    return transform


def with_class(crop: Transform, none: int) -> Transform:
    """A transform Sample -> {"image": of `crop`, "class": class id, int64 `()`; `none` for unlabelled pictures}."""

    def transform(sample: Sample) -> dict[str, Tensor]:
        cls = none if sample.label is None else int(sample.label)  # type: ignore[arg-type]
        return {"image": crop(replace(sample, label=None))["image"], "class": torch.tensor(cls)}

    return transform


def pixel_crop(size: int, augmentation: Augmentation) -> Transform:
    """For dense labels: a random crop, padded by reflection, with `scale` at a log-uniform scale from 0.5 to 2.

    Returns a function Sample -> {"image", "label"}, see `pretrain_crop`.
    """
    augment = _augment(augmentation)

    def transform(sample: Sample) -> dict[str, Tensor]:
        image, label = sample.image, sample.label
        scale, down, across = torch.rand(3).tolist()
        # Crop before resizing, which saves most of the work.
        side = round(size / 2 ** (2 * scale - 1)) if augmentation.scale else size
        image = _pad(image, side, side)
        top, left = int(down * (image.shape[0] - side + 1)), int(across * (image.shape[1] - side + 1))
        image = _scale(image[top : top + side, left : left + side], size, size)
        if isinstance(label, np.ndarray):
            label = nearest(_pad(label, side, side)[top : top + side, left : left + side], size, size)
        return augment(image, label)

    return transform


def object_crop(size: int, augmentation: Augmentation) -> Transform:
    """For labels of objects: as `pixel_crop`, but padded with grey, since a reflection would duplicate objects or show them without labels.
    Maps are unknown there.

    Returns a function Sample -> {"image": float32 (3, size, size) in [0, 1], "label": float32 (N, ROW) or int64 (size, size)}.
    """
    augment = _augment(augmentation)

    def transform(sample: Sample) -> dict[str, Tensor]:
        image, label = sample.image, sample.label
        scale, down, across = torch.rand(3).tolist()
        side = round(size / 2 ** (2 * scale - 1)) if augmentation.scale else size
        # A picture smaller than the window is placed randomly inside it.
        top, left = (int(drawn * (abs(length - side) + 1)) for drawn, length in zip((down, across), image.shape[:2], strict=True))
        top, left = (start if length >= side else -start for start, length in zip((top, left), image.shape[:2], strict=True))

        def cut(array: np.ndarray, outside: int) -> np.ndarray:
            window = np.full((side, side, *array.shape[2:]), outside, array.dtype)
            shown = array[max(top, 0) : top + side, max(left, 0) : left + side]
            window[max(-top, 0) :, max(-left, 0) :][: shown.shape[0], : shown.shape[1]] = shown
            return window

        window = cut(image, GREY)
        if isinstance(label, np.ndarray):
            label = nearest(cut(label, unknown_value(label)), size, size)
        elif isinstance(label, (Boxes, Keypoints)):
            label = label.cropped(top, left, side, side).scaled(size / side, size / side)
        return augment(_scale(window, size, size), label)

    return transform


def picture_crop(size: int, augmentation: Augmentation) -> Transform:
    """For labels of pictures: RandomResizedCrop (8 to 100 % of the area) with `scale`, else a random crop of the picture resized to a
    shorter side of `size`, as in evaluation.

    Returns a function Sample -> {"image", "label"}, see `pretrain_crop`.
    """
    from torchvision.transforms import v2

    scaled = [v2.RandomResizedCrop((size, size), antialias=True)]
    augment = _augment(augmentation, scaled if augmentation.scale else [v2.Resize(size, antialias=True), v2.RandomCrop(size)])
    return lambda sample: augment(sample.image, sample.label)


def _augment(augmentation: Augmentation, first: Sequence[v2.Transform] = ()) -> Callable[[np.ndarray, Label], dict[str, Tensor]]:
    """Flips, turns and colour jitter after the transforms `first`; without hue, whose jitter takes four times as long as all others."""
    from torchvision.transforms import v2

    steps: list[v2.Transform] = [*first]
    steps += [v2.RandomHorizontalFlip()] if augmentation.mirror else []
    steps += [v2.RandomVerticalFlip()] if augmentation.turn else []
    steps += [v2.ToDtype(torch.float32, scale=True)]
    if jitter := augmentation.jitter:
        steps += [v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter)]
    composed = v2.Compose(steps)

    def augment(image: np.ndarray, label: Label) -> dict[str, Tensor]:
        if isinstance(label, Keypoints):
            return _apply_to_keypoints(composed, image, label, turn=augmentation.turn)
        item = _apply(composed, image, label)
        # With both flips, a transposition gives all eight orientations.
        if augmentation.turn and torch.rand(()) < 0.5:
            item = {key: _transposed(value, label) for key, value in item.items()}
        return item

    return augment


def _transposed(value: Tensor, label: Label) -> Tensor:
    """Transpose a picture, a mask or the rows of boxes; a class id is unchanged."""
    if value.ndim == 2 and isinstance(label, Boxes):
        return value[:, [1, 0, 3, 2, 4, 5]]
    return value.mT.contiguous() if value.ndim > 1 else value


def full_image(multiple: int = 32, size: int | None = None) -> Transform:
    """The whole picture, for evaluation; with `size` first resized (antialiased) to that shorter side.

    Returns a function Sample -> {"image": float32 (3, H, W) in [0, 1], "label"}, padded on the bottom and the right to a multiple of
    `multiple`: the picture by reflection, a map with its unknown value.
    """

    def transform(sample: Sample) -> dict[str, Tensor]:
        image, label = sample.image, sample.label
        if size is not None:
            short = min(image.shape[:2])
            height, width = (round(side * size / short) for side in image.shape[:2])
            image = _scale(image, height, width)
            if isinstance(label, np.ndarray):
                label = nearest(label, height, width)
            elif isinstance(label, (Boxes, Keypoints)):
                label = label.scaled(width / sample.image.shape[1], height / sample.image.shape[0])
        height, width = (-(-side // multiple) * multiple for side in image.shape[:2])
        if isinstance(label, np.ndarray):
            label = np.pad(label, [(0, height - label.shape[0]), (0, width - label.shape[1])], constant_values=unknown_value(label))
        return _tensors(_pad(image, height, width), label)

    return transform


def two_views(size: int, augmentation: Augmentation) -> Transform:
    """Two random views of a picture, for contrastive methods (Chen et al. 2020b, MoCo v2).

    Both are cropped from one window of at most twice `size`: 20 to 100 % of its area with `scale`, else a crop of `size`. So views of large
    pictures overlap and keep about the original scale; a smaller picture is the window itself, as published. Then flips and turns by
    `augmentation`; with a `jitter`, MoCo v2's colour jitter of 40 % in 80 % of the views (without hue, see `_augment`) and grey in 20 %;
    half of the views are blurred.

    Returns a function Sample -> {"image", "other"}, float32 (3, size, size) in [0, 1] each, without the label.
    """
    from torchvision.transforms import v2

    cut = v2.RandomResizedCrop((size, size), scale=(0.2, 1.0), antialias=True) if augmentation.scale else v2.RandomCrop(size)
    augment = _augment(replace(augmentation, jitter=0.0), [cut])
    blur = v2.GaussianBlur(size // 10 | 1, sigma=(0.1, 2.0))  # SimCLR: a kernel of a tenth of the side
    changes: list[v2.Transform] = [v2.RandomApply([blur])]
    if augmentation.jitter:
        changes = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.8), v2.RandomGrayscale(0.2), *changes]
    change = v2.Compose(changes)

    def transform(sample: Sample) -> dict[str, Tensor]:
        image = _pad(sample.image, size, size)
        down, across = torch.rand(2).tolist()
        top, left = (int(r * (max(0, length - 2 * size) + 1)) for r, length in zip((down, across), image.shape[:2], strict=True))
        window = image[top : top + 2 * size, left : left + 2 * size]
        return {name: change(augment(window, None)["image"]) for name in ("image", "other")}

    return transform


def unknown_value(label: np.ndarray) -> int:
    """The value of unknown pixels in a map: 0 for depth, else IGNORE."""
    return 0 if label.dtype.kind == "f" else IGNORE


def _scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3), bilinear with antialiasing."""
    from torchvision.transforms.v2 import functional as F

    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return F.resize(planes, [height, width], antialias=True).numpy().transpose(1, 2, 0)


def _pad(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pad an (H, W, ...) array by reflection on the bottom and the right to at least height x width."""
    down, right = max(0, height - array.shape[0]), max(0, width - array.shape[1])
    if not down and not right:
        return array
    return np.pad(array, [(0, down), (0, right)] + [(0, 0)] * (array.ndim - 2), mode="reflect")


def _tensors(image: np.ndarray, label: Label) -> dict[str, Tensor]:
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    item = {"image": torch.from_numpy(planes).to(torch.float32).div_(255)}
    if (tensor := label_tensor(label)) is not None:
        item["label"] = tensor
    return item


def _apply(transform: v2.Transform, image: np.ndarray, label: Label) -> dict[str, Tensor]:
    """Apply a v2 transform to the picture and its mask or boxes together."""
    from torchvision import tv_tensors

    picture = tv_tensors.Image(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if isinstance(label, np.ndarray):
        picture, mask = transform(picture, tv_tensors.Mask(np.ascontiguousarray(label)))
        values = mask.as_subclass(Tensor)
        return {"image": picture.as_subclass(Tensor), "label": values if values.is_floating_point() else values.long()}
    if isinstance(label, Boxes):
        size = picture.shape[-2:]
        corners = tv_tensors.BoundingBoxes(torch.from_numpy(label.corners), format="XYXY", canvas_size=size)
        picture, corners = transform(picture, corners)
        changed = Boxes(corners.numpy(), label.classes, label.ignored)
        return {"image": picture.as_subclass(Tensor), "label": torch.from_numpy(changed.rows())}
    item = {"image": transform(picture).as_subclass(Tensor)}
    if (tensor := label_tensor(label)) is not None:
        item["label"] = tensor
    return item


def _apply_to_keypoints(transform: v2.Transform, image: np.ndarray, label: Keypoints, *, turn: bool) -> dict[str, Tensor]:
    """As `_apply`, for flips and with `turn` a random transposition; left and right keypoints are swapped accordingly."""
    from torchvision import tv_tensors

    picture = tv_tensors.Image(np.ascontiguousarray(image.transpose(2, 0, 1)))
    height, width = picture.shape[-2:]
    corner = tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), format="XYXY", canvas_size=(height, width))  # detects flips
    picture, corner = transform(picture, corner)
    left, top = corner[0, :2].tolist()
    label = label.hflipped(width) if left else label
    label = label.vflipped(height) if top else label
    changed = picture.as_subclass(Tensor)
    if turn and torch.rand(()) < 0.5:
        changed, label = changed.mT.contiguous(), label.transposed()
    return {"image": changed, "label": torch.from_numpy(label.rows())}
