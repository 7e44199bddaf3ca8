"""Labelled train pictures held out by content to measure by, so that the validation split stays untouched."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from dreamteacher.data.dataset import ImageSet

SHARE = 0.3  # of the labelled pictures, at most
FOLDS = 3
# As many as a figure needs to be steady, and no more than it needs: a class id is one thing to be right about, a mask or boxes are many.
FORMS = ("mask", "boxes", "instances", "depth", "keypoints")
MOST: dict[str, int] = {"class": 400, "labels": 400} | dict.fromkeys(FORMS, 100)
LEAST: dict[str, int] = {"class": 60, "labels": 60} | dict.fromkeys(FORMS, 20)


def hold_out(images: ImageSet, draw: int) -> tuple[list[int], list[int]]:
    """(indices to draw train pictures from, indices to measure by): the labelled pictures of `images` in two parts.

    Of class ids each class gives the same share. Where enough pictures are labelled, the parts are the same for every `draw`; else, so
    that the draws together see more of them, draw by draw another of FOLDS parts is held out: see `is_crossed`.
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
            held += ordered[: int(len(ordered) * min(SHARE, MOST[images.form] / count))]
    return sorted(set(images.labelled()) - set(held)), sorted(held)


def is_crossed(images: ImageSet) -> bool:
    """Whether so few pictures are labelled that each draw holds out others (cross-validation)."""
    return SHARE * len(images.labelled()) < LEAST[images.form]
