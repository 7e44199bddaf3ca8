"""What a constant prediction scores: below it, a model has learnt nothing from the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Floor:
    """A figure in [0, 1], and which prediction has it."""

    value: float
    words: str


def constant_prediction(figure: str, report: Mapping[str, Any]) -> Floor | None:
    """The figure on the validation split of always predicting the class that most train labels have; None: it is not known here.

    Args:
        figure: miou, top1 or ap; of any other nothing is known.
        report: ingest's report.json; its counts of masks' pixels are those of the stored pictures.
    """
    if figure == "ap":
        return Floor(0.0, "no box at all")
    counts = report.get("labels_per_class_and_split") or {}
    train, val = counts.get("train") or {}, counts.get("val") or {}
    total = sum(val.values())
    if figure not in ("miou", "top1") or not total:
        return None
    of_train = train if any(train.values()) else val
    chosen = max(of_train, key=lambda name: of_train[name])
    share = val.get(chosen, 0) / total  # accuracy of predicting this class everywhere, and its IoU; the IoU of all others is 0
    classes = sum(count > 0 for count in val.values()) if figure == "miou" else 1
    return Floor(share / classes, f"“{chosen}” everywhere" if figure == "miou" else f"always “{chosen}”")
