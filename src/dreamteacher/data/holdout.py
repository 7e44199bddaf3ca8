"""Hold out labelled train pictures, chosen by content, so that the validation split stays untouched."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from dreamteacher.data.dataset import ImageSet

SHARE = 0.3  # of the labelled pictures, at most
FOLDS = 3
# As many pictures as a stable metric needs: a class id is one prediction, a mask or boxes are many.
FORMS = ("mask", "boxes", "instances", "depth", "keypoints")
MAX_HELD_OUT: dict[str, int] = {"class": 400, "labels": 400} | dict.fromkeys(FORMS, 100)
MIN_HELD_OUT: dict[str, int] = {"class": 60, "labels": 60} | dict.fromkeys(FORMS, 20)


def hold_out(images: ImageSet, draw: int) -> tuple[list[int], list[int]]:
    """Split the labelled pictures of `images`: (indices for training, held-out indices), stratified for class labels.

    With enough labelled pictures the split is the same for every `draw`; else each draw holds out another fold (see `is_crossed`).
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index in images.labelled():
        groups[int(images.label(index)) if images.form == "class" else 0].append(index)  # type: ignore[arg-type]
    count = sum(map(len, groups.values()))
    held = []
    for group in groups.values():
        ordered = sorted(group, key=lambda i: hashlib.sha256(f"held out:{images.sha256(i)}".encode()).digest())
        if is_crossed(images):
            held += ordered[draw % FOLDS :: FOLDS] if len(ordered) > 1 else []
        else:
            held += ordered[: int(len(ordered) * min(SHARE, MAX_HELD_OUT[images.form] / count))]
    return sorted(set(images.labelled()) - set(held)), sorted(held)


def is_crossed(images: ImageSet) -> bool:
    """Whether so few pictures are labelled that each draw holds out another fold (cross-validation)."""
    return SHARE * len(images.labelled()) < MIN_HELD_OUT[images.form]
