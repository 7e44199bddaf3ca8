"""The score of a constant prediction, a lower bound for a useful model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Floor:
    """A metric in [0, 1], and the prediction that scores it, in words."""

    value: float
    words: str


def constant_prediction(metric: str, report: Mapping[str, Any]) -> Floor | None:
    """The metric of always predicting the most frequent train class, on the validation split; None if it is not known.

    Args:
        metric: miou, top1 or ap; others are not supported.
        report: ingest's report.json; its pixel counts are those of the stored masks.
    """
    if metric == "ap":
        return Floor(0.0, "no box at all")
    counts = report.get("labels_per_class_and_split") or {}
    train, val = counts.get("train") or {}, counts.get("val") or {}
    total = sum(val.values())
    if metric not in ("miou", "top1") or not total:
        return None
    of_train = train if any(train.values()) else val
    chosen = max(of_train, key=lambda name: of_train[name])
    share = val.get(chosen, 0) / total  # accuracy of predicting this class everywhere, and its IoU; all other IoUs are 0
    classes = sum(count > 0 for count in val.values()) if metric == "miou" else 1
    return Floor(share / classes, f"“{chosen}” everywhere" if metric == "miou" else f"always “{chosen}”")
