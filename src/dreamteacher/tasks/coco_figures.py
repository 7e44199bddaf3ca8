"""COCO's average precision by pycocotools, for any kind of objects."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

Annotations = list[dict[str, Any]]  # COCO annotations, for pictures with the ids 1, 2 and so on


def coco_precision(
    kind: str, truth: Annotations, found: Annotations, sizes: list[tuple[int, ...]], *, classes: int, most: int, sigmas: Any = None
) -> np.ndarray:
    """(overlaps of 0.5 to 0.95, recalls, classes): precision, -1 where a class has no object.

    Args:
        kind: "bbox", "segm" or "keypoints".
        truth: the labels.
        found: the detections, with scores.
        sizes: (H, W) of each picture.
        classes: number of categories, with the ids 0, 1 and so on.
        most: maximum detections per picture, by descending score.
        sigmas: for "keypoints", OKS' constant of each keypoint.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    with redirect_stdout(StringIO()):
        for annotations in (truth, found):
            side = COCO()
            images = [{"id": number, "height": size[0], "width": size[1]} for number, size in enumerate(sizes, 1)]
            side.dataset = {"images": images, "annotations": [dict(each) for each in annotations]}
            side.dataset["categories"] = [{"id": number} for number in range(classes)]
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, kind)
        evaluation.params.maxDets, evaluation.params.areaRng, evaluation.params.areaRngLbl = [most], [[0, 1e10]], ["all"]
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def average_precision(precision: np.ndarray, classes: list[str]) -> dict[str, float]:
    """`ap` (mean over overlaps and classes), `ap50`, `ap75`, and `ap_CLASS`, of the classes that occur, from `coco_precision`."""
    seen = [number for number in range(len(classes)) if (precision[:, :, number] >= 0).all()]
    ap, ap50, ap75 = (float(part.mean()) for part in (precision[:, :, seen], precision[0, :, seen], precision[5, :, seen]))
    return {"ap": ap, "ap50": ap50, "ap75": ap75} | {f"ap_{classes[number]}": float(precision[:, :, number].mean()) for number in seen}
