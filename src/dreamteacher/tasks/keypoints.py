"""Keypoints of several objects: a centre heatmap, and at each location offsets to every keypoint of the object there, as in CenterNet
(Zhou et al. 2019, arXiv 1904.07850, Sec 4.2).

One forward pass finds and groups the keypoints of any number of objects, without crops or grouping. The maps are exported unchanged, and
decoding needs numpy only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamteacher.data.keypoints import MAX_OBJECTS, OBJECT, Keypoints, has_sides, select_objects, similarity, unpaired_sides
from dreamteacher.data.transforms import Augmentation, Transform
from dreamteacher.errors import UserError
from dreamteacher.settings.downstream import Finetune
from dreamteacher.settings.pretraining import Interpreter
from dreamteacher.tasks.base import NeckHead, Size, Task, at_finest, convolved
from dreamteacher.tasks.coco_figures import coco_precision
from dreamteacher.tasks.detection import MULTIPLE, crop_of_whole_cells, places_of
from dreamteacher.training.transfer import constant

if TYPE_CHECKING:
    from dreamteacher.report.figures import Panel

log = logging.getLogger(__name__)

UNIT = 4.0  # scale of the head's offsets, cells, so that outputs are about 1
PRIOR = -2.19  # initial logit of a centre (0.1), as in CenterNet, since centres are rare
SPREAD = 0.1  # std of a centre's heat, in sides of a square of the box' area
NEAR = 0.5  # minimum heat of locations that also learn the object's keypoints
POINTS_WEIGHT = 5.0  # weight of the keypoint error, which is relative to the object's side
MIN_SIDE = 8.0  # minimum side of an object for this, pixels
SHOWN = 0.3  # minimum score of objects that are drawn and compared with fp16
LIKELY = 0.5  # minimum probability of a keypoint that is drawn
CLOSE = 0.2  # of PCK: share of the longer side of an object's box
_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO = ["nose", *(f"{side}_{part}" for part in _PAIRS for side in ("left", "right"))]
COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000  # pycocotools, Params.setKpParams


class KeypointsHead(NeckHead):
    """The neck's levels at the finest resolution, fused by one 3x3 convolution, then a branch for each map."""

    def __init__(self, channels: list[int], width: int, keypoints: int):
        super().__init__(channels, width)
        self.fuse = nn.Sequential(*convolved(width * len(channels), width))
        self.center = nn.Sequential(*convolved(width, width), nn.Conv2d(width, 1, 1))
        self.point = nn.Sequential(*convolved(width, width), nn.Conv2d(width, 2 * keypoints, 1))
        self.see = nn.Sequential(*convolved(width, width), nn.Conv2d(width, keypoints, 1))
        nn.init.constant_(self.center[-1].bias, PRIOR)  # type: ignore[arg-type]

    def from_neck(self, levels: list[Tensor], size: Size) -> dict[str, Tensor]:
        """The neck's outputs to maps at the resolution of its finest level.

        Returns:
            `centres` (B, 1, h, w): logits. `points` (B, 2 P, h, w): x and y of each keypoint of the object whose centre is there, as
            fractions of the picture. `seen` (B, P, h, w): logits of whether it is in the picture, visible or hidden. `places` (B, 2, h, w):
            x, y of a cell's middle.
        """
        fused = self.fuse(at_finest(levels))
        height, width = fused.shape[2:]
        cells = places_of(fused).t().reshape(4, height, width).expand(fused.shape[0], -1, -1, -1)
        ways = self.point(fused).float()
        count = ways.shape[1] // 2
        points = cells[:, :2].repeat(1, count, 1, 1) + ways * UNIT * cells[:, 2:].repeat(1, count, 1, 1)
        return {"centres": self.center(fused), "points": points, "seen": self.see(fused), "places": cells[:, :2]}


def _losses(centre: Tensor, points: Tensor, seen: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Focal, keypoint and visibility loss of one picture.

    Args:
        centre: (A,) logits at the A locations.
        points: (A, P, 2), pixels.
        seen: (A, P) logits.
        places: (A, 2), pixels.
        rows: (N, OBJECT + 3 P), as `Keypoints.rows` has them; rows of -1 are none.
    """
    if not len(rows):
        rows = rows.new_full((1, rows.shape[1]), -1.0)
    corners, ignored = rows[:, :4], rows[:, 5]
    middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    squared = (places - middle[:, None]).square().sum(2)
    squared = squared - squared.amin(1, keepdim=True)  # the nearest location has heat exactly 1
    scale = sides.prod(1).clamp(min=1).sqrt()
    heat = (-squared / (2 * (SPREAD * scale).clamp(min=1.0).square())[:, None]).exp() * (ignored == 0)[:, None]
    best, owner = heat.max(0)
    inside = ((places > corners[:, None, :2]) & (places < corners[:, None, 2:])).all(2)
    crowd = (inside & (ignored > 0)[:, None]).any(0) & (best < NEAR)

    # The penalty-reduced focal loss (Eq 1 of CenterNet), as sums over all locations; indexing would synchronise with the host.
    probability, is_centre = centre.sigmoid(), best == 1
    found = F.logsigmoid(centre) * (1 - probability).square()
    empty = F.logsigmoid(-centre) * probability.square() * (1 - best).pow(4)
    focal = -torch.where(is_centre, found, torch.where(crowd, 0, empty)).sum() / is_centre.sum().clamp(min=1)

    own = rows[owner, OBJECT:].reshape(*points.shape[:2], 3)
    labelled = own[:, :, 2] > 0
    near = best * (best >= NEAR)
    weight = near[:, None] * labelled
    # Relative to the object's side, as in OKS, so that small objects count like large ones.
    error = (points - own[:, :, :2]).abs().sum(2) / scale[owner, None].clamp(min=MIN_SIDE)
    point = (weight * error).sum() / weight.sum().clamp(min=1e-6)
    known = near[:, None] * labelled.any(1, keepdim=True)  # objects without keypoints were not annotated
    visible = F.binary_cross_entropy_with_logits(seen, labelled.to(seen), reduction="none")
    visibility = (known * visible).sum() / (known.sum() * labelled.shape[1]).clamp(min=1e-6)
    return torch.stack([focal, POINTS_WEIGHT * point, visibility])


class KeypointPrecision:
    """COCO's `ap`, `ap50` and `ap75` of object keypoint similarity, `pck`, and `pck_KEYPOINT` of each that is labelled somewhere.

    OKS uses COCO's sigmas for COCO's 17 keypoints, else their mean for all. `pck` is the share of labelled keypoints found within CLOSE x
    the longer side of their object's box, among as many of the best detections as the picture has objects.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self.sigmas = COCO_SIGMAS if names == COCO else np.full(len(names), COCO_SIGMAS.mean())
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._pictures = 0
        self._hits = np.zeros((2, len(names)), np.int64)  # found, labelled

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Objects as `select_objects` returns them, and rows (N, OBJECT + 3 P)."""
        found, rows = predicted.cpu().numpy(), truth.cpu().numpy().astype(np.float64)
        self._pictures += 1
        places = found[:, 1:].reshape(len(found), len(self.names), 3)
        there = rows[:, OBJECT:].reshape(len(rows), len(self.names), 3)
        for row, points in zip(rows, there, strict=True):
            x1, y1, x2, y2, area, crowd = row[:OBJECT].tolist()
            numbers = {"num_keypoints": int((points[:, 2] > 0).sum()), "iscrowd": int(crowd > 0), "area": area}
            self._add(self._truth, points, {**numbers, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        for score, points in zip(found[:, 0].tolist(), places, strict=True):
            self._add(self._found, points, {"score": score, "num_keypoints": len(points), "area": 1.0, "bbox": [0, 0, 1, 1]})
        self._count(places[:, :, :2], rows[rows[:, 5] <= 0], there[rows[:, 5] <= 0])

    def _add(self, annotations: list[dict[str, Any]], points: np.ndarray, facts: dict[str, Any]) -> None:
        facts = facts | {"keypoints": points.ravel().tolist(), "id": len(annotations) + 1, "image_id": self._pictures, "category_id": 0}
        annotations.append(facts)

    def _count(self, found: np.ndarray, rows: np.ndarray, there: np.ndarray) -> None:
        """Match each object with the most similar detection, one to one."""
        labelled = there[:, :, 2] > 0
        self._hits[1] += labelled.sum(0)
        with_some: list[int] = np.flatnonzero(labelled.any(1)).tolist()
        found = found[: len(with_some)]
        pairs = [
            (float(similarity(there[i, labelled[i], :2], found[j][None, labelled[i]])[0]), i, j)
            for i in with_some
            for j in range(len(found))
        ]
        taken: set[tuple[str, int]] = set()
        for _, i, j in sorted(pairs, reverse=True):
            if not {("there", i), ("found", j)} & taken:
                taken |= {("there", i), ("found", j)}
                reach = CLOSE * max(rows[i, 2] - rows[i, 0], rows[i, 3] - rows[i, 1])
                self._hits[0] += labelled[i] & (np.linalg.norm(found[j] - there[i, :, :2], axis=1) <= reach)

    def compute(self) -> dict[str, float]:
        """Figures of all pictures so far."""
        hits, labelled = self._hits
        if not labelled.any():
            return {}
        sizes: list[tuple[int, ...]] = [(1, 1)] * self._pictures
        precision = coco_precision("keypoints", self._truth, self._found, sizes, classes=1, most=MAX_OBJECTS, sigmas=self.sigmas)
        figures = {"ap": float(precision.mean()), "ap50": float(precision[0].mean()), "ap75": float(precision[5].mean())}
        by_name = {f"pck_{name}": float(hits[i] / labelled[i]) for i, name in enumerate(self.names) if labelled[i]}
        return figures | {"pck": float(hits.sum() / labelled.sum()), **by_name}


class KeypointTask(Task):
    """The keypoints of each object; the classes are their names."""

    figure, title, classifies = "ap", "keypoint AP", None
    served = ("centres", "points", "seen")

    def head(self, channels: list[int], width: int, classes: int) -> nn.Module:
        """See `KeypointsHead.from_neck`."""
        return KeypointsHead(channels, width, classes)

    def crop(self, size: int, augmentation: Augmentation) -> Transform:
        """A random crop of the picture, at about its own scale."""
        return crop_of_whole_cells(size, augmentation, "keypoints")

    def check(self, classes: list[str], augmentation: Augmentation) -> None:
        """Flips swap left and right keypoints, which must be recognisable by name."""
        names = tuple(classes)
        if not (augmentation.mirror or augmentation.turn):
            return
        if lonely := unpaired_sides(names):
            raise UserError(
                f"keypoint {lonely[0]!r} has no left or right counterpart among {', '.join(names)}, "
                "so it cannot be swapped in a flipped picture; "
                "rename it, or set finetune.augment to no-flip"
            )
        if not has_sides(names):
            log.warning("no keypoint has left or right in its name, so flips swap none; if they must be swapped, rename them, or set "
                        "finetune.augment to no-flip")  # fmt: skip

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: Finetune | Interpreter) -> dict[str, Tensor]:
        """Focal loss of the centres + error of the keypoints + cross entropy of whether they are there, a mean over the pictures.

        Each picture's is a mean over its own objects, so that the loss does not depend on how a batch is split.
        """
        sides = constant(batch["image"].shape[:1:-1], outputs["points"].device)  # (W, H)
        places = outputs["places"].flatten(2).mT * sides
        points = outputs["points"].flatten(2).mT.unflatten(2, (-1, 2)) * sides
        centres, seen = outputs["centres"].float().flatten(1), outputs["seen"].float().flatten(2).mT
        pictures = zip(centres, points, seen, places, batch["label"], strict=True)
        centre, point, visibility = torch.stack([_losses(*of_one) for of_one in pictures]).mean(0)
        return {"loss": centre + point + visibility, "centre": centre, "point": point, "visibility": visibility}

    def serve(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """`centres` (B, 1, h, w) in [0, 1], `points` (B, 2 P, h, w), fractions of the input, `seen` (B, P, h, w) in [0, 1]."""
        return outputs["centres"].sigmoid(), outputs["points"], outputs["seen"].sigmoid()

    def decode(self, output: dict[str, Tensor], own: Size, size: Size) -> Tensor:
        """Objects, float32 (D, 1 + 3 P): see `select_objects`."""
        served = self.serve({name: part[None] for name, part in output.items()})
        centres, points, seen = (values[0].float().cpu().numpy() for values in served)
        padded = -(-own[0] // MULTIPLE) * MULTIPLE, -(-own[1] // MULTIPLE) * MULTIPLE
        return torch.from_numpy(select_objects(centres, points, seen, padded, (own[0], own[1]), size=(size[0], size[1])))

    def score(self, classes: list[str]) -> KeypointPrecision:
        """Of objects and their keypoints."""
        return KeypointPrecision(classes)

    def agreement(self, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> tuple[int, int]:
        """Over the centres that either detects: both do, and the keypoints differ by less than 1 % of the picture on average."""
        (heat, points, _), (others, other_points, _) = self.serve(exact), self.serve(rounded)
        found, still = heat >= SHOWN, others.nan_to_num() >= SHOWN
        moved = (points - other_points).abs().mean(1, keepdim=True).nan_to_num(nan=torch.inf)
        either = found | still
        return int((found & still & (moved <= 0.01)).sum()), int(either.sum())

    def draw(self, image: np.ndarray, labels: dict[str, Any], classes: list[str]) -> list[Panel]:
        """The picture with the keypoints of each, one panel each."""
        from dreamteacher.data.drawing import draw_keypoints

        skeleton = next((label.body.skeleton for label in labels.values() if isinstance(label, Keypoints)), ())
        panels: list[Panel] = []
        for name, label in labels.items():
            if isinstance(label, Keypoints):
                points = label.points[~label.ignored]
            else:
                sure = label[label[:, 0] >= SHOWN, 1:]
                points = sure.reshape(len(sure), len(classes), 3)
            panels.append((name, draw_keypoints(image, points, skeleton, LIKELY)))
        return panels


TASK = KeypointTask()
