"""Pictures of val that train has too, saved or resized again: found by thumbnails, in memory that does not grow with the set."""

from __future__ import annotations

import numpy as np

from dreamteacher.data.signs import SIDE

HELD = 4096  # pictures of each split that are compared: the first
BATCH = 64  # pictures that are compared in one product of matrices
MOST = 0.02  # distance (1 - correlation of thumbnails) of copies: JPEG of quality 60, or half the size
OF_OTHERS = 0.1  # the same as a share of the distance between different pictures of val, which in some sets all look alike
SAMPLE, FEWEST = 256, 8  # pictures of val by which that is measured, and fewer than which do not tell it
UNKNOWN = 0.005  # then


class NearCopies:
    """Of each of the first pictures of val the picture of train that looks most like it."""

    def __init__(self) -> None:
        self._thumbnails = {split: np.empty((HELD, SIDE * SIDE), np.float32) for split in ("train", "val")}
        self._digests = {split: np.empty((HELD, 32), np.uint8) for split in ("train", "val")}
        self._count = {"train": 0, "val": 0}
        self._likeness = np.full(HELD, -np.inf, np.float32)  # of a picture of val and the nearest of train
        self._nearest = np.zeros((HELD, 32), np.uint8)
        self._waiting: dict[str, list[tuple[np.ndarray, bytes]]] = {"train": [], "val": []}

    def add(self, split: str, thumbnail: np.ndarray, digest: bytes) -> None:
        """A picture. thumbnail: as of `signs`; digest: 32 bytes by which it is known."""
        if thumbnail.any():
            self._waiting[split].append((thumbnail, digest))
            if len(self._waiting[split]) == BATCH:
                self._compare()

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The digests of the pictures of val that have a near copy in train, and of that."""
        self._compare()
        (found,) = np.nonzero(1 - self._likeness < self._largest_distance())
        return [(self._digests["val"][i].tobytes(), self._nearest[i].tobytes()) for i in found]

    def _compare(self) -> None:
        new = {split: (np.array([t for t, _ in each]), _bytes([d for _, d in each])) for split, each in self._waiting.items() if each}
        self._waiting = {"train": [], "val": []}
        before = self._count["val"]
        for split, (thumbnails, digests) in new.items():
            start = self._count[split]
            self._count[split] = end = min(start + len(thumbnails), HELD)
            self._thumbnails[split][start:end], self._digests[split][start:end] = thumbnails[: end - start], digests[: end - start]
        if "train" in new:
            self._note(slice(0, self._count["val"]), *new["train"])
        if "val" in new and self._count["train"]:
            held = slice(0, self._count["train"])
            self._note(slice(before, self._count["val"]), self._thumbnails["train"][held], self._digests["train"][held])

    def _note(self, of_val: slice, thumbnails: np.ndarray, digests: np.ndarray) -> None:
        """Compare pictures of val with pictures of train."""
        likeness = self._thumbnails["val"][of_val] @ thumbnails.T
        if not likeness.size:
            return
        best = likeness.argmax(axis=1)
        likeness = likeness[np.arange(len(best)), best]
        better = likeness > self._likeness[of_val]
        self._likeness[of_val][better], self._nearest[of_val][better] = likeness[better], digests[best[better]]

    def _largest_distance(self) -> float:
        n = self._count["val"]
        if n < FEWEST:
            return UNKNOWN
        val = self._thumbnails["val"][:n]
        likeness = val[:SAMPLE] @ val.T
        np.fill_diagonal(likeness, -1)
        return min(MOST, OF_OTHERS * float(1 - np.median(likeness.max(axis=1))))


def _bytes(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
