"""Bottom-up instance segmentation (Panoptic-DeepLab, Cheng et al. 2020, arXiv 1911.10194): classes of pixels, a centre heatmap, and offsets
from each pixel to the centre of its object.

Three dense maps need no proposals, sizes or anchors, learn from few pictures, export to ONNX unchanged, and separate hundreds of small
touching objects. A pixel belongs to one object, so where objects overlap only the upper one is represented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.instances import MAX_OBJECTS, group, pack, unpack
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import Augmentation, Transform, object_crop
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.students.necks import resize
from dreamteacher.tasks.base import NeckHead, Size, Task, at_finest, convolved, count_known
from dreamteacher.tasks.coco_figures import average_precision, coco_precision

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

UNIT = 16.0  # scale of the head's offsets, pixels, so that outputs are about 1
SPREAD = 0.5  # std of a centre's heat, in radii of a circle of the object's area
SAME_VOTE = 1.0  # tolerance of fp16 offsets, pixels
THRESHOLDS = np.linspace(0.5, 0.95, 10)


class InstancesHead(NeckHead):
    """The neck's levels at the finest resolution, fused by one 3x3 convolution as in UPerNet, then a branch for each map."""

    def __init__(self, channels: list[int], width: int, classes: int):
        super().__init__(channels, width)
        self.fuse = nn.Sequential(*convolved(width * len(channels), width))
        self.classify = nn.Conv2d(width, classes + 1, 1)
        self.center = nn.Sequential(*convolved(width, width), nn.Conv2d(width, 1, 1))
        self.point = nn.Sequential(*convolved(width, width), nn.Conv2d(width, 2, 1))

    def from_neck(self, levels: list[Tensor], size: Size) -> dict[str, Tensor]:
        """The neck's outputs to `logits` (B, K + 1, H, W) of background and each class, `centres` (B, 1, H, W), also logits, and
        `offsets` (B, 2, H, W), pixels down and to the right."""
        fused = self.fuse(at_finest(levels))
        maps = {"logits": self.classify(fused), "centres": self.center(fused), "offsets": self.point(fused) * UNIT}
        return {name: resize(values, size) for name, values in maps.items()}


def targets(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The head's targets for instance maps `(B, H, W)` (see `data.instances`).

    Returns:
        Classes, int64 `(B, H, W)`: 0 for background, IGNORE for unknown. Heat `(B, 1, H, W)` in [0, 1]. Offsets `(B, 2, H, W)`, 0 outside
        of objects.
    """
    real = labels > IGNORE
    classes = torch.where(real, labels >> 16, labels)
    place, row, column = real.nonzero(as_tuple=True)
    _, which = (labels[real] + (place << 32)).unique(return_inverse=True)
    points = torch.stack([row, column], dim=1).float()
    area = which.bincount().float()
    middle = torch.zeros(len(area), 2, device=labels.device).index_add_(0, which, points) / area[:, None]
    offset = middle[which] - points
    sigma = SPREAD * (area / torch.pi).sqrt().clamp(min=1)
    heat, offsets = torch.zeros_like(classes, dtype=torch.float32), torch.zeros(2, *labels.shape, device=labels.device)
    heat[real] = (-offset.square().sum(1) / (2 * sigma[which].square())).exp()
    offsets[:, place, row, column] = offset.T
    return classes, heat[:, None], offsets.transpose(0, 1)


class MaskPrecision:
    """COCO's `ap`, `ap50` and `ap75` of masks, `precision`, and `ap_CLASS` of each class that occurs.

    `precision` is the Data Science Bowl 2018's: TP / (TP + FP + FN) of a picture, ignoring classes, averaged over IoU thresholds of 0.5 to
    0.95 and pictures. All objects of a picture count (for AP up to 1000, COCO's tool: 100). Detections in unknown regions are ignored.
    """

    def __init__(self, classes: list[str]):
        self.classes = classes
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._sizes: list[tuple[int, ...]] = []
        self._precision: list[float] = []

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Instance maps of one shape (see `data.instances`)."""
        there, labels, _ = unpack(truth.cpu().numpy())
        found, classes, scores = unpack(np.where(truth.cpu().numpy() == IGNORE, 0, predicted.cpu().numpy()))
        self._sizes.append(there.shape)
        self._truth += self._annotations(there, labels, {"iscrowd": 0}, len(self._truth))
        self._found += self._annotations(found, classes, {}, len(self._found))
        for annotation, score in zip(self._found[len(self._found) - len(classes) :], scores.tolist(), strict=True):
            annotation["score"] = score
        if len(labels) or len(classes):
            shared = np.bincount((there * (len(classes) + 1) + found).ravel(), minlength=(len(labels) + 1) * (len(classes) + 1))
            table = shared.reshape(len(labels) + 1, -1)
            overlaps = table[1:, 1:] / np.maximum(table[1:].sum(1)[:, None] + table[:, 1:].sum(0) - table[1:, 1:], 1)
            hits = np.array([(overlaps > threshold).any(1).sum() for threshold in THRESHOLDS])  # above 0.5 at most one matches
            self._precision.append(float((hits / (len(labels) + len(classes) - hits)).mean()))

    def _annotations(self, numbers: np.ndarray, classes: np.ndarray, facts: dict[str, Any], before: int) -> list[dict[str, Any]]:
        """COCO's annotations of the last picture."""
        from pycocotools.mask import area, encode

        found = []
        for index, label in enumerate(classes.tolist()):
            rle = encode(np.asfortranarray(numbers == index + 1, np.uint8))
            found.append({"image_id": len(self._sizes), "id": before + index + 1, "category_id": label, "segmentation": rle, **facts})
            found[-1]["area"] = float(area(rle))
        return found

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        if not self._truth:
            return {}
        precision = coco_precision("segm", self._truth, self._found, self._sizes, classes=len(self.classes), most=MAX_OBJECTS)
        by_class = average_precision(precision, self.classes)
        figures = {name: by_class.pop(name) for name in ("ap", "ap50", "ap75")}
        return figures | {"precision": float(np.mean(self._precision))} | by_class


class Instances(Task):
    """Instance segmentation: objects with classes and masks."""

    figure, title, classifies = "ap", "mask AP", None
    served = ("probabilities", "centres", "offsets")
    count: Callable[[dict[str, Tensor]], int] | None = staticmethod(count_known)

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """See `InstancesHead.from_neck`."""
        return InstancesHead(channels, width, classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of the picture, at about its own scale."""
        return object_crop(size, augmentation)

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Cross entropy of the classes, binary cross entropy of the heat, and smooth L1 of the offsets in UNIT inside of objects; each a
        mean over the labelled pixels."""
        classes, heat, offsets = targets(batch["label"])
        known, inside = (classes != IGNORE)[:, None], (classes != IGNORE) & (classes > 0)
        ce = F.cross_entropy(outputs["logits"].float(), classes, ignore_index=IGNORE, reduction="sum")
        centre = F.binary_cross_entropy_with_logits(outputs["centres"].float(), heat, known.float(), reduction="sum")
        ways = F.smooth_l1_loss(outputs["offsets"].float() / UNIT, offsets / UNIT, reduction="none", beta=1 / UNIT)
        parts = {"ce": ce, "centre": centre, "offset": (ways * inside[:, None]).sum()}
        parts = {name: part / batch["count"] for name, part in parts.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def serve(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """`probabilities` (B, K + 1, H, W) of background and each class, `centres` (B, 1, H, W) in [0, 1], `offsets` (B, 2, H, W)."""
        return outputs["logits"].softmax(1), outputs["centres"].sigmoid(), outputs["offsets"]

    def decode(self, output: dict[str, Tensor], own: Size, size: Size) -> Tensor:
        """An instance map with scores, int64 `(H, W)` of `size`: see `data.instances`."""
        served = self.serve({name: part[None] for name, part in output.items()})
        probabilities, centres, offsets = (values[0].float().cpu().numpy() for values in served)
        return torch.from_numpy(pack(*group(probabilities, centres, offsets, (own[0], own[1]), (size[0], size[1]))))

    def score(self, classes: list[str]) -> MaskPrecision:
        """Of objects."""
        return MaskPrecision(classes)

    def agreement(self, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> tuple[int, int]:
        """Over the pixels: the same class and, inside objects, about the same offset and centre heat."""
        classes, others = exact["logits"].argmax(1), rounded["logits"].nan_to_num().argmax(1)
        moved = (exact["offsets"] - rounded["offsets"]).abs().amax(1)
        warmer = (exact["centres"].sigmoid() - rounded["centres"].sigmoid()).abs().amax(1)
        same = (classes == others) & ((moved <= SAME_VOTE) & (warmer <= 0.05) | (classes == 0)) & rounded["logits"].isfinite().all(1)
        return int(same.sum()), same.numel()

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture, and for each map its objects, outlined and coloured by id."""
        from dreamteacher.data.drawing import draw_objects

        return [("picture", image), *((name, draw_objects(image, unpack(label)[0])) for name, label in labels.items())]


TASK = Instances()
