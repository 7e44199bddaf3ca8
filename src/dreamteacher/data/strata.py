"""Stratified draws of labelled pictures: by class, or by clusters of similar pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dreamteacher.data.boxes import Boxes
from dreamteacher.data.instances import unpack
from dreamteacher.data.items import IGNORE
from dreamteacher.data.keypoints import Keypoints
from dreamteacher.errors import UserError

if TYPE_CHECKING:
    from dreamteacher.data.dataset import ImageSet, Label, LabelForm

CANDIDATES = 2000  # pictures, first by hash, from which fewer are drawn; bounds decoding to seconds
MAX_CLUSTERS = 100
GRID, BINS = 8, 8  # cells per side of the thumbnail; bins per colour channel


def by_class(images: ImageSet, order: list[int], n: int) -> list[int]:
    """Draw `n` of `order`, balanced over classes; a picture counts for each class that it shows.

    Greedy: each step takes the first in `order` that shows the class with the fewest pictures so far. Pictures without a class come last.

    Raises:
        UserError: the labels have no classes.
    """
    if images.form == "depth":
        raise UserError("few_labels_by = class, but labels of the form depth have no classes; take cluster or random")
    order = order[: max(CANDIDATES, n)]
    shown = {i: classes_of(images.full_size_label(i), images.form) for i in order}
    waiting = {c: [i for i in order if c in shown[i]] for c in sorted(set().union(*shown.values()))}
    counts, drawn = dict.fromkeys(waiting, 0), dict[int, None]()
    while waiting and len(drawn) < n:
        rarest = min(waiting, key=lambda c: counts[c])
        left = [i for i in waiting.pop(rarest) if i not in drawn]
        if left:
            drawn[left[0]] = None
            waiting[rarest] = left[1:]
            for c in shown[left[0]]:
                counts[c] += 1
    return [*drawn, *(i for i in order if i not in drawn)][:n]


def by_cluster(images: ImageSet, order: list[int], n: int) -> list[int]:
    """Draw `n` of `order`, round-robin over min(n, MAX_CLUSTERS) k-means clusters of `descriptor`.

    With up to `CANDIDATES` pictures, the clusters do not depend on the order.
    """
    from scipy.cluster.vq import kmeans2

    order = order[: max(CANDIDATES, n)]
    fixed = sorted(order, key=images.sha256)
    described = np.stack([descriptor(images.read(i).image) for i in fixed])
    for part in (slice(0, GRID**2), slice(GRID**2, None)):  # equal weight for both parts
        described[:, part] /= np.sqrt(described[:, part].var(axis=0).sum()) or 1
    _, cluster = kmeans2(described, min(n, MAX_CLUSTERS), iter=20, minit="++", missing="warn", rng=np.random.default_rng(0))
    of = dict(zip(fixed, cluster.tolist(), strict=True))
    return round_robin(order, [of[i] for i in order])[:n]


def round_robin(order: list[int], group: Iterable[int]) -> list[int]:
    """`order` rearranged: the first of each group, then the second of each, and so on; within a round in the original order."""
    turns: dict[int, int] = defaultdict(int)  # group -> number of its elements so far
    turn = {}
    for i, g in zip(order, group, strict=True):
        turn[i] = turns[g]
        turns[g] += 1
    return sorted(order, key=lambda i: turn[i])


def descriptor(image: np.ndarray) -> np.ndarray:
    """float64 (GRID^2 + 3 BINS,) of an RGB picture, uint8 (H, W, 3): a grey thumbnail and a histogram of each channel."""
    rows, columns = (np.linspace(0, side, GRID + 1).astype(int) for side in image.shape[:2])
    grey = image.mean(axis=2)
    cells = [
        [grey[top : max(bottom, top + 1), left : max(right, left + 1)].mean() for left, right in pairwise(columns)]
        for top, bottom in pairwise(rows)
    ]
    counts = [np.bincount(image[..., c].ravel() // (256 // BINS), minlength=BINS) for c in range(3)]
    return np.concatenate([np.ravel(cells) / 255, np.ravel(counts) / grey.size])


def classes_of(label: Label, form: LabelForm) -> set[int]:
    """The ids of the classes that a label of this `form` shows; not for depth, which has none."""
    label = label.as_boxes() if isinstance(label, Keypoints) else label
    if isinstance(label, Boxes):
        return set(label.classes[~label.ignored].tolist())
    if form == "instances":
        return set(unpack(label)[1].tolist())  # type: ignore[arg-type]
    if form == "labels":
        return {c for c, shown in enumerate(label) if shown == 1}  # type: ignore[arg-type]
    if form == "mask":
        return set(np.unique(label).tolist()) - {IGNORE}  # type: ignore[arg-type]
    return {int(label)}  # type: ignore[arg-type]
