"""Mask R-CNN (He et al. 2017, arXiv 1703.06870) on the neck's levels, with torchvision's modules: `finetune.head: mask-rcnn`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import masks_to_boxes

from dreamteacher.data.boxes import MAX_OVERLAP, MIN_SCORE
from dreamteacher.data.instances import pack, paste
from dreamteacher.data.items import IGNORE
from dreamteacher.data.transforms import Augmentation, Transform
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks.base import Size
from dreamteacher.tasks.batched_boxes import best_places, not_suppressed, pool_regions
from dreamteacher.tasks.detection import MULTIPLE, crop_of_whole_cells
from dreamteacher.tasks.faster_rcnn import TASK as FASTER_RCNN
from dreamteacher.tasks.faster_rcnn import FasterRcnnHead, in_float32
from dreamteacher.tasks.instances import Instances

SIDE = 28  # of a mask
DETECTIONS = 200  # per picture; COCO counts 100, but a picture may have hundreds of cells


class MaskRcnnHead(FasterRcnnHead):
    """Faster R-CNN's head with a mask branch: a 28 x 28 mask per class from each region's pooled 14 x 14 map."""

    proposals = 600

    def __init__(self, channels: list[int], width: int, classes: int):
        super().__init__(channels, width, classes)
        self.roi.mask_roi_pool = self.pooling(channels, SIDE // 2)
        self.roi.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
        self.roi.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
        self.roi.mask_predictor.register_forward_hook(in_float32)

    def targets(self, labels: Tensor, size: Size) -> list[dict[str, Tensor]]:
        """See `FasterRcnnHead.targets`; labels are maps of objects `(B, H, W)` (see `data.instances`)."""
        found = []
        for label in labels:
            codes = label[label > IGNORE].unique()
            masks = label == codes[:, None, None]
            boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1], device=label.device)
            found.append({"boxes": boxes, "labels": codes >> 16, "masks": masks.to(torch.uint8), "unknown": label == IGNORE})
        return found

    def predict(self, levels: list[Tensor], coarser: list[Tensor], size: Size) -> dict[str, Tensor]:
        """As `FasterRcnnHead.predict`, but after NMS the best DETECTIONS D, with score 0 below MIN_SCORE, and `masks` (B, D, 28, 28) in
        [0, 1], each relative to its box."""
        found = super().predict(levels, coarser, size)
        kept = found["scores"] * not_suppressed(found["boxes"].transpose(1, 2), found["scores"], MAX_OVERLAP)
        likely = kept.amax(1)
        best = best_places(likely, min(DETECTIONS, int(kept.shape[2])))
        values = likely.gather(1, best)
        kept = kept.gather(2, best[:, None].expand(-1, self.classes, -1))
        boxes = found["boxes"].gather(2, best[:, None].expand(-1, 4, -1))
        sides = torch.stack([torch.as_tensor(side, device=values.device) for side in (size[1], size[0])]).float().repeat(2)
        pictures = torch.arange(values.shape[0], device=values.device).to(values)[:, None, None].expand(-1, values.shape[1], 1)
        regions = torch.cat([pictures, boxes.transpose(1, 2) * sides], 2).flatten(0, 1)
        # Masks only of boxes above the threshold, plus the best box of each picture, since not all runtimes accept an empty batch.
        there = (F.pad(values[:, 1:], (1, 0), value=1.0).flatten() > MIN_SCORE).nonzero()[:, 0]
        logits = self.roi.mask_predictor(self.roi.mask_head(pool_regions(self.roi.mask_roi_pool, levels, regions[there])))
        classes = kept.argmax(1).flatten()[there] + 1
        of_class = logits.gather(1, classes[:, None, None, None].expand(-1, 1, SIDE, SIDE))[:, 0].sigmoid()
        masks = torch.zeros(regions.shape[0], SIDE, SIDE, device=values.device).index_put((there,), of_class)
        masks, scores = masks.reshape(-1, values.shape[1], SIDE, SIDE), kept * (kept > MIN_SCORE)
        return {"scores": scores, "boxes": boxes, "masks": masks}


class MaskRcnn(Instances):
    """Instance segmentation in two stages."""

    of, with_labels = "instances", True
    served = ("scores", "boxes", "masks")
    count = None

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """See `MaskRcnnHead`."""
        return MaskRcnnHead(channels, width, classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of the picture, at about its own scale."""
        return crop_of_whole_cells(size, augmentation, "mask-rcnn")

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """As Faster R-CNN's, and `mask`: binary cross entropy in the boxes that show an object."""
        return FASTER_RCNN.loss(outputs, batch, settings)

    def serve(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See `MaskRcnnHead.predict`."""
        return tuple(outputs[name] for name in self.served)

    align = staticmethod(FASTER_RCNN.align)

    def decode(self, output: dict[str, Tensor], own: Size, size: Size) -> Tensor:
        """An instance map with scores, int64 `(H, W)` of `size`: see `data.instances`."""
        scores, boxes, masks = (output[name].float().cpu().numpy() for name in self.served)
        padded = -(-own[0] // MULTIPLE) * MULTIPLE, -(-own[1] // MULTIPLE) * MULTIPLE
        return torch.from_numpy(pack(*paste((scores, boxes, masks), padded, (own[0], own[1]), (size[0], size[1]))))

    def agreement(self, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> tuple[int, int]:
        """Over the objects that either finds: the same class, and about the same box."""
        return FASTER_RCNN.agreement(exact, rounded)


TASK = MaskRcnn()
