"""Near-duplicates of val pictures in train (re-saved or resized), found by thumbnails in constant memory."""

from __future__ import annotations

import numpy as np

from dreamteacher.data.signs import SIDE

MAX_COMPARED = 4096  # pictures per split that are compared
BATCH = 64  # pictures per matrix product
MAX_DISTANCE = 0.02  # distance (1 - correlation of thumbnails) of copies: JPEG of quality 60, or half the size
RELATIVE_DISTANCE = 0.1  # the same relative to the typical distance between different val pictures, as some data sets are uniform
SAMPLE, MIN_SAMPLE = 256, 8  # val pictures by which the typical distance is measured, and their minimum
DEFAULT_DISTANCE = 0.005  # with fewer val pictures


class NearCopies:
    """Finds the most similar train picture for each of the first val pictures."""

    def __init__(self) -> None:
        self._thumbnails = {split: np.empty((MAX_COMPARED, SIDE * SIDE), np.float32) for split in ("train", "val")}
        self._digests = {split: np.empty((MAX_COMPARED, 32), np.uint8) for split in ("train", "val")}
        self._count = {"train": 0, "val": 0}
        self._similarity = np.full(MAX_COMPARED, -np.inf, np.float32)  # of each val picture to its nearest train picture
        self._nearest = np.zeros((MAX_COMPARED, 32), np.uint8)
        self._waiting: dict[str, list[tuple[np.ndarray, bytes]]] = {"train": [], "val": []}

    def add(self, split: str, thumbnail: np.ndarray, digest: bytes) -> None:
        """Add a picture. thumbnail: see `signs.thumbnail`. digest: 32 bytes that identify the picture."""
        if thumbnail.any():
            self._waiting[split].append((thumbnail, digest))
            if len(self._waiting[split]) == BATCH:
                self._compare()

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """[(digest of a val picture, digest of its near-duplicate in train)]."""
        self._compare()
        (found,) = np.nonzero(1 - self._similarity < self._largest_distance())
        return [(self._digests["val"][i].tobytes(), self._nearest[i].tobytes()) for i in found]

    def _compare(self) -> None:
        new = {split: (np.array([t for t, _ in each]), _bytes([d for _, d in each])) for split, each in self._waiting.items() if each}
        self._waiting = {"train": [], "val": []}
        before = self._count["val"]
        for split, (thumbnails, digests) in new.items():
            start = self._count[split]
            self._count[split] = end = min(start + len(thumbnails), MAX_COMPARED)
            self._thumbnails[split][start:end], self._digests[split][start:end] = thumbnails[: end - start], digests[: end - start]
        if "train" in new:
            self._update_nearest(slice(0, self._count["val"]), *new["train"])
        if "val" in new and self._count["train"]:
            held = slice(0, self._count["train"])
            self._update_nearest(slice(before, self._count["val"]), self._thumbnails["train"][held], self._digests["train"][held])

    def _update_nearest(self, of_val: slice, thumbnails: np.ndarray, digests: np.ndarray) -> None:
        """Compare val pictures with train pictures, and keep the most similar."""
        similarity = self._thumbnails["val"][of_val] @ thumbnails.T
        if not similarity.size:
            return
        best = similarity.argmax(axis=1)
        similarity = similarity[np.arange(len(best)), best]
        better = similarity > self._similarity[of_val]
        self._similarity[of_val][better], self._nearest[of_val][better] = similarity[better], digests[best[better]]

    def _largest_distance(self) -> float:
        n = self._count["val"]
        if n < MIN_SAMPLE:
            return DEFAULT_DISTANCE
        val = self._thumbnails["val"][:n]
        similarity = val[:SAMPLE] @ val.T
        np.fill_diagonal(similarity, -1)
        return min(MAX_DISTANCE, RELATIVE_DISTANCE * float(1 - np.median(similarity.max(axis=1))))


def _bytes(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
