"""Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) on the neck's levels, with torchvision's modules: `finetune.head: faster-rcnn`.

Training is torchvision's. A served model needs outputs of a fixed size, so `FasterRcnnHead.predict` does for a whole batch what torchvision
does picture by picture; the tests compare both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_iou
from torchvision.ops.poolers import LevelMapper

from dreamteacher.data.boxes import MAX_CANDIDATES, MAX_OVERLAP, MIN_SCORE, select_detections
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks.base import NeckHead, Size
from dreamteacher.tasks.batched_boxes import align_boxes, best_places, not_suppressed, pool_boxes, spans, unknown_share
from dreamteacher.tasks.detection import SAME_BOX, SHOWN, Detection

ANCHOR = 4  # side of the square anchor in strides; torchvision's 8 are for pictures of 800 px, ours have 256
RATIOS = (0.5, 1.0, 2.0)
CANONICAL = 112  # pixels: objects of this side are pooled from stride 16; torchvision's 224 are for pictures of 800 px
CANDIDATES = 1000  # per level, from which proposals are selected
MIN_SIDE = 1.0  # minimum side of a box used in training, pixels
HIDDEN = 0.5  # an anchor or proposal with at least this share in unknown regions is ignored


class Anchors(AnchorGenerator):
    """torchvision's anchors, centred in the cells, for levels with known strides."""

    cell_anchors: list[Tensor]

    def __init__(self, strides: list[int]):
        super().__init__(tuple((ANCHOR * stride,) for stride in strides), (RATIOS,) * len(strides))
        self.strides = strides
        self.cell_anchors = [anchors + stride / 2 for anchors, stride in zip(self.cell_anchors, strides, strict=True)]

    def of_levels(self, levels: list[Tensor]) -> list[Tensor]:
        """`(h * w * ratios, 4)` of each level, row by row: x1, y1, x2, y2 in pixels."""
        self.set_cell_anchors(torch.float32, levels[0].device)
        return self.grid_anchors([level.shape[2:] for level in levels], [[stride, stride] for stride in self.strides])

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """All anchors of each picture, in torchvision's format."""
        return [torch.cat(self.of_levels(feature_maps))] * len(image_list.image_sizes)


class Proposals(RegionProposalNetwork):
    """torchvision's RPN, ignoring anchors in unknown regions."""

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """See torchvision; `unknown` of a target is bool (H, W)."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for of_picture, target, places in zip(labels, targets, anchors, strict=True):
            of_picture[(of_picture == 0) & (unknown_share(places, target["unknown"]) >= HIDDEN)] = -1
            of_picture[:1] *= (of_picture >= 0).any()  # a mean over no anchors would not be finite
        return labels, boxes


class FasterRcnnHead(NeckHead):
    """A region proposal network, and RoI heads that predict class and box of each proposal from its pooled 7 x 7 map.

    Attributes:
        proposals: number per picture.
        classes: without the background, which torchvision counts as class 0.
    """

    proposals = 300  # as Ren et al.

    def __init__(self, channels: list[int], width: int, classes: int):
        super().__init__(channels, width)
        self.classes = classes
        most = {"training": CANDIDATES, "testing": CANDIDATES}, {"training": self.proposals, "testing": self.proposals}
        self.rpn = Proposals(
            Anchors([4 << level for level in range(len(channels) + 1)]), RPNHead(width, len(RATIOS)), 0.7, 0.3, 256, 0.5, *most, 0.7
        )
        # 128 regions per picture, as Ren et al.; torchvision's 512 are for 800 px.
        predictor = FastRCNNPredictor(4 * width, classes + 1)
        self.roi = RoIHeads(
            self.pooling(channels, 7), TwoMLPHead(width * 7**2, 4 * width), predictor,
            0.5, 0.5, 128, 0.25, None, MIN_SCORE, MAX_OVERLAP, 100,
        )  # fmt: skip
        for module in (self.rpn.head, predictor):
            module.register_forward_hook(in_float32)

    @staticmethod
    def pooling(channels: list[int], side: int) -> MultiScaleRoIAlign:
        """RoI pooling to maps of `side` x `side` from the neck's levels."""
        return MultiScaleRoIAlign([str(i) for i in range(len(channels))], side, 2, canonical_scale=CANONICAL)

    def see_strides(self, strides: list[int]) -> None:
        """Set anchor sizes and RoI pooling levels by the strides."""
        self.rpn.anchor_generator = Anchors([*strides, 2 * strides[-1]])
        for module in self.modules():
            if isinstance(module, MultiScaleRoIAlign):
                module.scales = [1 / stride for stride in strides]
                module.map_levels = LevelMapper(*(stride.bit_length() - 1 for stride in (strides[0], strides[-1])), CANONICAL)

    def forward(self, pyramid: list[Tensor], size: Size, labels: Tensor | None = None) -> dict[str, Tensor]:
        """A pyramid of pictures of `size` (H, W) to the outputs of `predict` or, in training with labels, to the losses by name."""
        levels = [level.float() for level in self.neck(pyramid)]  # in bf16 a coordinate would be some pixels off
        coarser = [*levels, F.max_pool2d(levels[-1], 1, stride=2)]  # as torchvision's FPN
        if not self.training or labels is None:
            return self.predict(levels, coarser, size)
        targets = self.targets(labels, size)
        images = ImageList(torch.empty(0), [(int(size[0]), int(size[1]))] * len(targets))
        proposals, first = self.rpn(images, dict(enumerate(coarser)), targets)
        for i, target in enumerate(targets):
            known = unknown_share(proposals[i], target["unknown"]) < HIDDEN
            proposals[i] = proposals[i][known] if known.any() else proposals[i][:1]
        _, second = self.roi({str(i): level for i, level in enumerate(levels)}, proposals, images.image_sizes, targets)
        return {name.removeprefix("loss_"): loss for name, loss in {**first, **second}.items()}

    def targets(self, labels: Tensor, size: Size) -> list[dict[str, Tensor]]:
        """torchvision's targets from rows of boxes `(B, N, ROW)`, with `unknown`, bool (H, W)."""
        found = []
        for rows in labels:
            ignored = rows[rows[:, 5] > 0]
            known = rows[(rows[:, 5] == 0) & ((rows[:, 2:4] - rows[:, :2]).amin(1) >= MIN_SIDE)]
            found.append({"boxes": known[:, :4], "labels": known[:, 4].long() + 1, "unknown": spans(ignored[:, :4], size)})
        return found

    def predict(self, levels: list[Tensor], coarser: list[Tensor], size: Size) -> dict[str, Tensor]:
        """`scores` (B, K, A) in [0, 1], non-zero for one class per box, and `boxes` (B, 4, A): x1, y1, x2, y2, fractions of the picture.
        A does not depend on the size of pictures; padding has score 0."""
        limits = torch.stack([torch.as_tensor(side, device=levels[0].device) for side in (size[1], size[0])]).float().repeat(2)
        boxes, found = self.propose(coarser, limits)
        pooled = pool_boxes(self.roi.box_roi_pool, levels, boxes)
        logits, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        shape = boxes.shape[0], self.proposals * self.classes
        corners = self.roi.box_coder.decode_single(deltas, boxes.flatten(0, 1)).reshape(-1, self.proposals, self.classes + 1, 4)
        corners = within(corners[:, :, 1:].reshape(*shape, 4), limits)
        likely = logits.softmax(1).reshape(-1, self.proposals, self.classes + 1)[:, :, 1:] * (found > 0)[:, :, None]
        likely = likely.reshape(shape)
        best = best_places(likely, min(shape[1], MAX_CANDIDATES))
        scores = likely.gather(1, best)
        corners = corners.gather(1, best[:, :, None].expand(-1, -1, 4))
        of_class = torch.arange(self.classes, device=scores.device)[:, None] == (best % self.classes)[:, None]
        return {"scores": scores[:, None] * of_class, "boxes": (corners / limits).transpose(1, 2)}

    def propose(self, coarser: list[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes `(B, proposals, 4)` in pixels, the best first, and their objectness `(B, proposals)`; 0 for padding."""
        boxes, scores = [], []
        for objectness, deltas, anchors in zip(*self.rpn.head(coarser), self.rpn.anchor_generator.of_levels(coarser), strict=True):
            # Padded by CANDIDATES, so that even the smallest picture has enough to select from.
            likely = F.pad(objectness.permute(0, 2, 3, 1).flatten(1).sigmoid(), (0, CANDIDATES))
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # noqa: PLW2901
            places = best_places(likely, CANDIDATES)
            deltas = F.pad(deltas, (0, 0, 0, CANDIDATES)).gather(1, places[:, :, None].expand(-1, -1, 4))  # noqa: PLW2901
            chosen = F.pad(anchors, (0, 0, 0, CANDIDATES))[places]
            decoded = self.rpn.box_coder.decode_single(deltas.flatten(0, 1), chosen.flatten(0, 1)).reshape(chosen.shape)
            decoded = within(decoded, limits)
            best = likely.gather(1, places) * ((decoded[:, :, 2:] - decoded[:, :, :2]).amin(2) >= self.rpn.min_size)
            boxes.append(decoded)
            scores.append(best * not_suppressed(decoded, best[:, None], self.rpn.nms_thresh)[:, 0])
        found = torch.cat(scores, 1)
        best = best_places(found, self.proposals)
        return torch.cat(boxes, 1).gather(1, best[:, :, None].expand(-1, -1, 4)), found.gather(1, best)


def in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A forward hook that converts predicted coordinates and scores to float32."""
    return outputs.float() if isinstance(outputs, Tensor) else type(outputs)(in_float32(module, inputs, each) for each in outputs)


def _chosen(scores: Tensor, boxes: Tensor) -> Tensor:
    """See `boxes.select_detections`, in fractions of the input."""
    values, corners = (part.nan_to_num().cpu().numpy() for part in (scores, boxes))
    return torch.from_numpy(select_detections(values, corners, (1, 1), (1, 1), (1, 1)))


def within(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) clipped at the borders; limits: width, height, width, height."""
    return torch.minimum(boxes.clamp(min=0), limits)


class FasterRcnn(Detection):
    """Boxes with classes, in two stages."""

    of, with_labels = "detection", True

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """See `FasterRcnnHead`."""
        return FasterRcnnHead(channels, width, classes)

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """The sum of the head's losses: `objectness` and `rpn_box_reg` of proposals, `classifier` and `box_reg` of regions; means over the
        samples of an accumulation part."""
        return {"loss": torch.stack(list(outputs.values())).sum(), **outputs}

    def serve(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See `FasterRcnnHead.predict`."""
        return tuple(outputs[name] for name in self.served)

    def align(self, theirs: list[np.ndarray], ours: list[np.ndarray]) -> list[np.ndarray]:
        """See `batched_boxes.align_boxes`."""
        return align_boxes(theirs, ours)

    def agreement(self, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> tuple[int, int]:
        """Over the objects that either finds: the same class, and about the same box."""
        same = found = 0
        for place in range(len(exact["scores"])):
            one, other = (_chosen(side["scores"][place], side["boxes"][place]) for side in (exact, rounded))
            one, other = one[one[:, 5] >= SHOWN], other[other[:, 5] >= SHOWN]
            fits = (box_iou(one[:, :4], other[:, :4]) >= SAME_BOX) & (one[:, None, 4] == other[None, :, 4])
            pairs = min(int(fits.any(0).sum()), int(fits.any(1).sum()))
            same, found = same + pairs, found + len(one) + len(other) - pairs
        return same, found


TASK = FasterRcnn()
