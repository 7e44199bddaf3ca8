"""The counts of an ingest."""

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
from dreamteacher.data.signs import looks_alike

EXAMPLES = 1000  # duplicates, leaks and near copies that report.json names; all are counted
MAX_SIZES = 1000  # distinct picture sizes that are counted
MAX_COLOURS = 1000  # palette colours that are compared between masks
SPLITS = ("train", "val")


def _by_split(length: int) -> dict[str, np.ndarray]:
    return {split: np.zeros(length, np.int64) for split in SPLITS}


@dataclass
class Tally:
    """Counts in constant memory; integers, so that the result does not depend on the order of pictures.

    counts: by name. classes: labelled pictures per class. boxes: boxes per class without ignored regions. mask_values, source_values: int64
    (256) pixels per class, as stored and before downscaling. pictures_with: int64 (256) masks that contain the class. shown, vanished:
    int64 (256) masks that contained it before downscaling, and those of them that no longer do. thin, palette, warnings: see Prepared.
    before: split and thumbnail of the previous picture by name. histogram: int64 (3, 256) of the train pictures. depths: of depth maps.
    n_classes: for multilabel. sizes: original sizes of downscaled pictures. shared_origins: see `seen.Seen`.
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
    reasons: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))  # examples: of the source, of incoming pictures
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"duplicates": [], "leaks": [], "near_copies": []})
    shared_origins: tuple[int, str, str] | None = None
    manifest: Any = field(default_factory=hashlib.sha256)

    def add(self, picture: Prepared, split: str) -> None:
        """Count a picture that is kept."""
        self.counts[split] += 1
        self.warnings.update(picture.warnings)
        if self.before and self.before[0] != split and looks_alike(self.before[1], picture.thumbnail):
            self.counts["alike_across_splits"] += 1
        self.before = split, picture.thumbnail
        if split == "train":
            self.histogram += picture.histogram
        if picture.frames > 1:
            self.counts["files_of_many"] += 1
            self.counts["pictures_in_them"] += picture.frames
        if picture.reduced:
            self.counts["reduced"] += 1
            if picture.source_size in self.sizes or len(self.sizes) < MAX_SIZES:
                self.sizes[picture.source_size] += 1
        if picture.label:
            self.counts[f"labelled_{split}"] += 1
            self.tasks.add(TASKS[picture.label[0]])
            if picture.boxes is not None:
                counted = Counter(picture.boxes.classes[~picture.boxes.ignored].tolist())
                self.boxes[split].update(counted)
                self.classes[split].update(counted.keys())
                self.counts[f"without_boxes_{split}"] += not counted
            elif picture.multi_hot is not None:
                self.classes[split].update(i for i, value in enumerate(picture.multi_hot) if value == 1)
                self.n_classes = len(picture.multi_hot)
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
        if len(self.palette) < MAX_COLOURS:
            self.palette = picture.palette | self.palette
        if picture.reduced:
            self.shown += before > 0
            self.vanished += (before > 0) & (after == 0)

    def reject(self, item: Item, reason: str) -> None:
        """Count a picture that cannot be used."""
        self.counts["quarantined"] += 1
        self.counts["incoming_quarantined"] += item.incoming
        reasons = self.reasons[item.incoming]
        if len(reasons) < 3:
            reasons.append(f"{item.name}: {reason}")

    def drop(self, name: str, picture: Prepared, kind: str, other: Kept) -> None:
        """Count a duplicate of the kept picture `other`; kind: duplicates or leaks."""
        self.counts[kind] += 1
        lost = picture.label is not None and picture.label_hash != other.label
        self.counts["label_conflicts" if other.label else "labels_lost"] += lost
        if len(self.examples[kind]) < EXAMPLES:
            example = {"path": name, "same_as": other.name, "labelled": picture.label is not None}
            self.examples[kind].append(example | ({"label_lost": True} if lost else {}))

    def add_near_copy(self, of_val: str, of_train: str) -> None:
        """Count a val picture that looks the same as one of train."""
        self.counts["near_copies"] += 1
        if len(self.examples["near_copies"]) < EXAMPLES:
            self.examples["near_copies"].append({"path": of_val, "same_as": of_train})

    @property
    def task(self) -> str | None:
        """The task of the labels; None without labels."""
        return next(iter(self.tasks), None)

    @property
    def masks(self) -> bool:
        """Whether the labels are masks."""
        return self.task == TASKS["mask.png"]

    @property
    def has_boxes(self) -> bool:
        """Whether the labels are boxes, instances or keypoints, which are counted as boxes."""
        return self.task in ("detection", "instances", "keypoints")

    @property
    def objects_noun(self) -> str:
        """Plural noun for them in messages."""
        return {"detection": "boxes", "keypoints": "keypoints"}.get(str(self.task), "objects")

    @property
    def one_object(self) -> str:
        """Singular for them in messages, with article."""
        return {"detection": "a box", "keypoints": "a keypoint"}.get(str(self.task), "an object")

    def labels_of(self, split: str) -> np.ndarray:
        """int64 (n): labelled pictures per class in a split (masks: that contain the class), without 255 (unknown)."""
        if self.masks:
            return self.pictures_with[split][:255]
        counts = np.zeros(max(self.classes[split], default=-1) + 1, np.int64)
        counts[list(self.classes[split])] = list(self.classes[split].values())
        return counts

    def metrics(self) -> dict[str, float]:
        """The metrics of the stage."""
        names = {f"n_{name}": self.counts[name] for name in (*SPLITS, "quarantined", "duplicates", "leaks")}
        return {name: float(value) for name, value in names.items()} | {
            "n_labelled": float(self.counts["labelled_train"] + self.counts["labelled_val"])
        }
