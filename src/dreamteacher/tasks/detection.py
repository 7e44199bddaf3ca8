"""Detection: the heads of FCOS (Tian et al. 2019, arXiv 1904.01355) on the neck's levels, COCO's average precision.

FCOS needs no anchors tuned to object sizes, and has one prediction per location, few enough to be served as they are.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.boxes import MAX_DETECTIONS, Boxes, select_detections
from dreamteacher.data.dataset import ROW
from dreamteacher.data.transforms import Augmentation, Transform, object_crop
from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks.base import NeckHead, Size, Task
from dreamteacher.tasks.coco_figures import Annotations, average_precision, coco_precision
from dreamteacher.training.transfer import constant

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

MULTIPLE = 32  # of the sides of crops, and of pictures as padded by `transforms.whole`, so that cells are square
RADIUS = 1.5  # radius around a box' centre in strides; locations inside predict the box (center sampling)
REACH = 8  # maximum distance in strides from a location to the sides of its box; larger boxes belong to the next coarser level
SHOWN = 0.5  # minimum score of detections that are drawn and compared with fp16
SAME_BOX = 0.9  # minimum IoU of a box with its counterpart in fp16
BACKGROUND, UNCOUNTED = -1, -2


class FcosHead(NeckHead):
    """At each location of each level: a logit per class, a box, and centre-ness."""

    def __init__(self, channels: list[int], width: int, classes: int):
        from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

        super().__init__(channels, width)
        groups = gcd(32, width)  # as torchvision's, but with at least two channels per group: one channel of a one-cell map has no variance
        norm = partial(nn.GroupNorm, groups if groups < width else max(width // 2, 1))
        self.classify = FCOSClassificationHead(width, 1, classes, norm_layer=norm)
        self.regress = FCOSRegressionHead(width, 1, norm_layer=norm)
        nn.init.ones_(self.regress.bbox_reg.bias)  # in strides; with torchvision's 0, half of the following ReLUs would have no gradient

    def from_neck(self, levels: list[Tensor], size: Size) -> dict[str, Tensor]:
        """The neck's levels to predictions at their A locations, of all levels in order, each row by row.

        Returns:
            `logits` (B, K, A). `middle` (B, 1, A): logits. `boxes` (B, 4, A): x1, y1, x2, y2. `places` (B, 4, A): x, y of a location, width
            and height of its cell. Boxes and locations are in fractions of the picture.
        """
        logits = self.classify(levels).transpose(1, 2)
        distances, middle = self.regress(levels)  # in cells, from the location to left, top, right, bottom
        places = torch.cat([places_of(level) for level in levels]).t().expand(logits.shape[0], -1, -1)
        x, y, width, height = places.unbind(1)
        left, top, right, bottom = distances.float().unbind(2)
        boxes = torch.stack([x - left * width, y - top * height, x + right * width, y + bottom * height], dim=1)
        return {"logits": logits, "middle": middle.transpose(1, 2), "boxes": boxes, "places": places}


def crop_of_whole_cells(size: int, augmentation: Augmentation, task: str) -> Transform:
    """`object_crop` of a size for which cells of the neck's levels are square.

    Raises:
        UserError: with this size they are not.
    """
    if size % MULTIPLE:
        raise UserError(f"{task} needs crops of a multiple of {MULTIPLE} pixels, and finetune.resolution is {size}; set it to a multiple")
    return object_crop(size, augmentation)


def places_of(level: Tensor) -> Tensor:
    """`(h * w, 4)`: x, y, width and height of each cell of a level `(B, C, h, w)`, x and y of its middle, as fractions of the picture."""
    y = (torch.arange(level.shape[2], device=level.device) + 0.5) / level.shape[2]
    x = (torch.arange(level.shape[3], device=level.device) + 0.5) / level.shape[3]
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x) / level.shape[3], torch.ones_like(y) / level.shape[2]], dim=2).reshape(-1, 4)


def assign(places: Tensor, rows: Tensor) -> Tensor:
    """Assign a box to each location of a picture (Sec 3.1 and 3.2 of FCOS).

    Args:
        places: (3, A) of x, y and stride in pixels, fine to coarse.
        rows: (N, ROW) of boxes, as `dataset.label_tensor` makes them.

    Returns:
        int64 (A,): the row of the smallest matching box, else BACKGROUND, or UNCOUNTED in a region to ignore.
    """
    if not len(rows):
        return torch.full_like(places[0], BACKGROUND, dtype=torch.long)
    x, y, stride = places[:, :, None]
    x1, y1, x2, y2, classes, ignored = rows.T
    distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y])  # (4, A, N)
    inside, farthest = distances.amin(0) > 0, distances.amax(0)
    near = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs()) < RADIUS * stride
    before = torch.cat([torch.zeros_like(stride[:1]), stride[:-1]])
    finer = torch.where(stride > before, before, 0).cummax(0).values  # the stride of the next finer level
    reached = (farthest > REACH * finer) & ((farthest <= REACH * stride) | (stride == stride[-1]))
    fits = inside & near & reached & (classes >= 0) & (ignored == 0)
    areas, chosen = torch.where(fits, (x2 - x1) * (y2 - y1), torch.inf).min(1)
    uncounted = (inside & (ignored > 0) & (classes >= 0)).any(1)
    return torch.where(areas.isfinite(), chosen, torch.where(uncounted, UNCOUNTED, BACKGROUND))


def _losses(logits: Tensor, middle: Tensor, boxes: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Focal, box and centre-ness loss of one picture, each a mean over the positive locations; boxes and locations in pixels."""
    from torchvision.ops import sigmoid_focal_loss

    rows = rows if len(rows) else rows.new_full((1, ROW), -1.0)
    chosen = assign(places, rows)
    # Computed for every location and masked in the sums, because selecting the positive ones would synchronise with the host.
    positive = chosen >= 0
    own = rows[chosen.clamp(min=0)]
    target = (torch.arange(len(logits), device=logits.device)[:, None] == own[:, 4]) & positive
    focal = sigmoid_focal_loss(logits, target.to(logits)).where(chosen != UNCOUNTED, 0)
    box = giou_loss(boxes, own[:, :4].T).where(positive, 0)
    x, y, _ = places
    sides = torch.stack([x - own[:, 0], own[:, 2] - x, y - own[:, 1], own[:, 3] - y]).reshape(2, 2, -1)
    centered = (sides.amin(1) / sides.amax(1)).prod(0).sqrt().where(positive, 0)
    centre = F.binary_cross_entropy_with_logits(middle[0], centered, reduction="none").where(positive, 0)
    return torch.stack([focal.sum(), box.sum(), centre.sum()]) / positive.sum().clamp(min=1)


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - generalised intersection over union (Rezatofighi et al. 2019) of boxes `(4, A)` each: `(A,)` in [0, 2].

    torchvision's version indexes by a mask, which synchronises with the host.
    """
    inner = torch.minimum(boxes[2:], truth[2:]) - torch.maximum(boxes[:2], truth[:2])
    outer = torch.maximum(boxes[2:], truth[2:]) - torch.minimum(boxes[:2], truth[:2])
    shared, enclosing = inner.clamp(min=0).prod(0), outer.prod(0)
    union = (boxes[2:] - boxes[:2]).prod(0) + (truth[2:] - truth[:2]).prod(0) - shared
    return 1 - shared / (union + 1e-7) + (enclosing - union) / (enclosing + 1e-7)


class AveragePrecision:
    """COCO's `ap` (mean over overlaps of 0.5 to 0.95 and classes), `ap50`, `ap75`, and `ap_CLASS` of each class that occurs."""

    def __init__(self, classes: list[str]):
        self.classes = classes
        self._truth: Annotations = []
        self._found: Annotations = []
        self._pictures = 0

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Detections (D, 6) as `boxes.select_detections` returns them, and rows of boxes (N, ROW); detections in regions to ignore are not
        counted."""
        self._pictures += 1
        for x1, y1, x2, y2, number, score in predicted.tolist():
            self._found.append(self._annotation(len(self._found), [x1, y1, x2 - x1, y2 - y1], number) | {"score": score})
        for x1, y1, x2, y2, number, ignored in truth.tolist():
            self._truth.append(self._annotation(len(self._truth), [x1, y1, x2 - x1, y2 - y1], number) | {"iscrowd": int(ignored)})

    def _annotation(self, before: int, box: list[float], number: float) -> dict[str, Any]:
        """COCO's annotation of the last picture, without what differs between labels and detections."""
        return {"image_id": self._pictures, "id": before + 1, "category_id": int(number), "bbox": box, "area": box[2] * box[3]}

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        if all(annotation["iscrowd"] for annotation in self._truth):
            return {}
        sizes: list[tuple[int, ...]] = [(0, 0)] * self._pictures  # only masks need them
        precision = coco_precision("bbox", self._truth, self._found, sizes, classes=len(self.classes), most=MAX_DETECTIONS)
        return average_precision(precision, self.classes)


class Detection(Task):
    """Boxes with classes."""

    figure, title, classifies = "ap", "AP", None
    served = ("scores", "boxes")

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """See `FcosHead.from_neck`."""
        return FcosHead(channels, width, classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of the picture, at about its own scale."""
        return crop_of_whole_cells(size, augmentation, "detection")

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Focal + generalised IoU + centre-ness loss (Eq 2 of FCOS), a mean over the pictures.

        Each picture's is a mean over its own positive locations, as in torchvision's RetinaNet, so that the loss does not depend on how a
        batch is split.
        """
        sides = constant(batch["image"].shape[:1:-1], outputs["boxes"].device)[:, None]  # (W, H)
        places = outputs["places"] * sides.repeat(2, 1)
        places = torch.stack([places[:, 0], places[:, 1], places[:, 3]], dim=1)
        boxes = outputs["boxes"] * sides.repeat(2, 1)
        pictures = zip(outputs["logits"].float(), outputs["middle"].float(), boxes, places, batch["label"], strict=True)
        focal, box, centre = torch.stack([_losses(*of_one) for of_one in pictures]).mean(0)
        return {"loss": focal + box + centre, "focal": focal, "box": box, "centre": centre}

    def serve(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """`scores` (B, K, A) in [0, 1], the root of class times centre-ness, and `boxes` (B, 4, A), fractions of the input."""
        return (outputs["logits"].sigmoid() * outputs["middle"].sigmoid()).sqrt(), outputs["boxes"]

    def decode(self, output: dict[str, Tensor], own: Size, size: Size) -> Tensor:
        """Detections, float32 (D, 6): see `boxes.select_detections`."""
        scores, boxes = (values[0].float().cpu().numpy() for values in self.serve({name: part[None] for name, part in output.items()}))
        padded = -(-own[0] // MULTIPLE) * MULTIPLE, -(-own[1] // MULTIPLE) * MULTIPLE
        return torch.from_numpy(select_detections(scores, boxes, padded, (own[0], own[1]), (size[0], size[1])))

    def score(self, classes: list[str]) -> AveragePrecision:
        """Of boxes."""
        return AveragePrecision(classes)

    def agreement(self, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> tuple[int, int]:
        """Over the locations where either finds an object: the same class, and about the same box."""
        from torchvision.ops import box_iou

        (scores, boxes), (others, other_boxes) = self.serve(exact), self.serve(rounded)
        (best, classes), (other_best, other_classes) = scores.max(1), others.nan_to_num().max(1)
        found = (best >= SHOWN) | (other_best >= SHOWN)
        both = (best >= SHOWN) & (other_best >= SHOWN) & (classes == other_classes) & other_boxes.isfinite().all(1)
        pairs = zip(boxes.mT[both], other_boxes.mT[both], strict=True)
        return sum(float(box_iou(one[None], other[None])) >= SAME_BOX for one, other in pairs), int(found.sum())

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture with the boxes of each, one panel each."""
        from dreamteacher.data.drawing import draw_boxes

        panels: list[Panel] = []
        for name, label in labels.items():
            if isinstance(label, Boxes):
                corners, numbers = label.corners[~label.ignored], label.classes[~label.ignored]
            else:
                corners, numbers = label[label[:, 5] >= SHOWN, :4], label[label[:, 5] >= SHOWN, 4]
            panels.append((name, draw_boxes(image, corners, numbers)))
        return panels


TASK = Detection()
