"""What ingest counts on its way through the pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreamteacher.data.depth import DepthCounts
from dreamteacher.data.items import IGNORE, TASKS, Item
from dreamteacher.data.prepare import Prepared
from dreamteacher.data.seen import Kept
from dreamteacher.data.signs import alike

EXAMPLES = 1000  # duplicates, leaks and near copies that report.json names; all are counted
MOST_SIZES = 1000  # sizes of pictures that are told apart
MOST_COLOURS = 1000  # of palettes, that are held against others
SPLITS = ("train", "val")


def _by_split(length: int) -> dict[str, np.ndarray]:
    return {split: np.zeros(length, np.int64) for split in SPLITS}


@dataclass
class Tally:
    """Whole numbers, so that the order of adding does not show; as large for a million pictures as for ten.

    counts: by name. classes: labelled pictures of each class, of boxes those that show it. boxes: of each class, without those of regions
    to ignore. mask_values, source_values: int64 (256) pixels of each class, as stored and as they were before masks were reduced.
    pictures_with: int64 (256) masks that hold the class. shown, vanished: int64 (256) masks that held it before they were reduced, and
    those of them that do not any more. thin, palette: as of Prepared. before: split and thumbnail of the picture before, which is a
    neighbour by name. histogram: int64 (3, 256) of the train pictures. warnings: of Prepared. depths: of maps of it. n_classes: of
    pictures that may have several. sizes: of pictures that were reduced, before.
    shared_origins: as of `seen.Seen`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[int]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    boxes: dict[str, Counter[int]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    mask_values: dict[str, np.ndarray] = field(default_factory=lambda: _by_split(256))
    source_values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    pictures_with: dict[str, np.ndarray] = field(default_factory=lambda: _by_split(256))
    shown: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    vanished: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    depths: dict[str, DepthCounts] = field(default_factory=lambda: {split: DepthCounts() for split in SPLITS})
    thin: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    palette: dict[int, int] = field(default_factory=dict)
    before: tuple[str, np.ndarray] | None = None
    n_classes: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    warnings: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tasks: set[str] = field(default_factory=set)
    reasons: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))  # examples: of the source, of what came in
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"duplicates": [], "leaks": [], "near_copies": []})
    shared_origins: tuple[int, str, str] | None = None
    manifest: Any = field(default_factory=hashlib.sha256)

    def add(self, picture: Prepared, split: str) -> None:
        """A picture that is kept."""
        self.counts[split] += 1
        self.warnings.update(picture.warnings)
        if self.before and self.before[0] != split and alike(self.before[1], picture.thumbnail):
            self.counts["alike_across_splits"] += 1
        self.before = split, picture.thumbnail
        if split == "train":
            self.histogram += picture.histogram
        if picture.frames > 1:
            self.counts["files_of_many"] += 1
            self.counts["pictures_in_them"] += picture.frames
        if picture.reduced:
            self.counts["reduced"] += 1
            if picture.source_size in self.sizes or len(self.sizes) < MOST_SIZES:
                self.sizes[picture.source_size] += 1
        if picture.label:
            self.counts[f"labelled_{split}"] += 1
            self.tasks.add(TASKS[picture.label[0]])
            if picture.boxes is not None:
                counted = Counter(picture.boxes.classes[~picture.boxes.ignored].tolist())
                self.boxes[split].update(counted)
                self.classes[split].update(counted.keys())
                self.counts[f"without_boxes_{split}"] += not counted
            elif picture.several is not None:
                self.classes[split].update(i for i, value in enumerate(picture.several) if value == 1)
                self.n_classes = len(picture.several)
            elif picture.cls is not None:
                self.classes[split][picture.cls] += 1
            elif picture.depth is not None:
                self.depths[split].add(picture.depth)
            else:
                self._add_mask(picture, split)

    def _add_mask(self, picture: Prepared, split: str) -> None:
        before, after = picture.source_mask_values, picture.mask_values
        self.mask_values[split] += after
        self.source_values += before
        self.pictures_with[split] += before > 0
        self.thin += picture.thin
        self.counts["masks_without_255"] += before[IGNORE] == 0
        self.counts["masks_of_0_and_255"] += bool(before[IGNORE] and before[0] and not before[1:IGNORE].any())
        self.counts["other_palettes"] += any(self.palette.get(colour, n) != n for colour, n in picture.palette.items())
        if len(self.palette) < MOST_COLOURS:
            self.palette = picture.palette | self.palette
        if picture.reduced:
            self.shown += before > 0
            self.vanished += (before > 0) & (after == 0)

    def reject(self, item: Item, reason: str) -> None:
        """A picture that cannot be used."""
        self.counts["quarantined"] += 1
        self.counts["incoming_quarantined"] += item.incoming
        reasons = self.reasons[item.incoming]
        if len(reasons) < 3:
            reasons.append(f"{item.name}: {reason}")

    def drop(self, name: str, picture: Prepared, kind: str, other: Kept) -> None:
        """A picture of which `other` is a copy; kind: duplicates or leaks."""
        self.counts[kind] += 1
        lost = picture.label is not None and picture.label_hash != other.label
        self.counts["label_conflicts" if other.label else "labels_lost"] += lost
        if len(self.examples[kind]) < EXAMPLES:
            example = {"path": name, "same_as": other.name, "labelled": picture.label is not None}
            self.examples[kind].append(example | ({"label_lost": True} if lost else {}))

    def add_near_copy(self, of_val: str, of_train: str) -> None:
        """A picture of val that looks the same as one of train."""
        self.counts["near_copies"] += 1
        if len(self.examples["near_copies"]) < EXAMPLES:
            self.examples["near_copies"].append({"path": of_val, "same_as": of_train})

    @property
    def task(self) -> str | None:
        """Of the labels; None without any."""
        return next(iter(self.tasks), None)

    @property
    def masks(self) -> bool:
        """Whether the labels are masks."""
        return self.task == TASKS["mask.png"]

    @property
    def has_boxes(self) -> bool:
        """Whether the labels are boxes, or objects or keypoints, which are counted as those are."""
        return self.task in ("detection", "instances", "keypoints")

    @property
    def of_boxes(self) -> str:
        """What they are called."""
        return {"detection": "boxes", "keypoints": "keypoints"}.get(str(self.task), "objects")

    @property
    def a_box(self) -> str:
        """One of them."""
        return {"detection": "a box", "keypoints": "a keypoint"}.get(str(self.task), "an object")

    def labels_of(self, split: str) -> np.ndarray:
        """int64 (n): labelled pictures of each class in a split (of masks: that hold the class), 255 = unknown left out."""
        if self.masks:
            return self.pictures_with[split][:255]
        counts = np.zeros(max(self.classes[split], default=-1) + 1, np.int64)
        counts[list(self.classes[split])] = list(self.classes[split].values())
        return counts

    def metrics(self) -> dict[str, float]:
        """What the stage returns."""
        names = {f"n_{name}": self.counts[name] for name in (*SPLITS, "quarantined", "duplicates", "leaks")}
        return {name: float(value) for name, value in names.items()} | {
            "n_labelled": float(self.counts["labelled_train"] + self.counts["labelled_val"])
        }
