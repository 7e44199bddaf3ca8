"""What `ingest` made, read back picture by picture at random, without unpacking."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from dreamteacher.data.boxes import Boxes
from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.depth import from_tiff
from dreamteacher.data.instances import from_png
from dreamteacher.data.keypoints import Body, Keypoints
from dreamteacher.data.masks import decode_mask
from dreamteacher.data.several_labels import from_json
from dreamteacher.data.strata import by_class, by_cluster, in_turns
from dreamteacher.errors import UserError

PLACE = ("offset", "length", "label_offset", "label_length", "height", "width")  # columns of the manifest
UNLIMITED = 1 << 62  # pixels; ingest has checked the sizes
CACHE_BYTES = 1 << 30  # a split that is smaller than this when decoded stays in memory
# Class id, or of each class 1, 0 or IGNORE, or a map (H, W): uint8 with IGNORE, int32 of `data.instances`, float32 of `data.depth`; or
# boxes or keypoints, or none.
Label = int | tuple[int, ...] | np.ndarray | Boxes | Keypoints | None
LabelForm = Literal["class", "mask", "boxes", "instances", "labels", "depth", "keypoints"]
FORMS = ("mask", "boxes", "instances", "labels", "depth", "keypoints")  # as the column label has them; else it is empty or a class id
ROW = 6  # numbers of a box in a batch: x1, y1, x2, y2, class, ignored; -1: there is none


@dataclass(frozen=True)
class Sample:
    """image: uint8 (H, W, 3) RGB. Image and label are shared with the cache: do not write to them."""

    image: np.ndarray
    label: Label
    name: str


class ImageSet:
    """One split of the data set in `folder`, map-style, cheap to pickle to loader workers.

    task: name of what is learned from the labels (see `tasks.base.get_task`), or None. form: of the labels.
    classes: their names by id. mean, std: of the train split, RGB in [0, 1]. names: where each picture came from. in_memory: the split is
    small enough to be kept decoded.

    Raises:
        UserError: the folder holds no data set.
    """

    def __init__(self, folder: Path, split: Literal["train", "val"]):
        # A million rows as dictionaries take more than 1 GB.
        self.names: list[str] = []
        shards: dict[str, int] = {}
        hashes, where, pixels = bytearray(), array("q"), 0
        self.form: LabelForm = "class"
        try:
            facts = json.loads((folder / "dataset.json").read_text())
            with (folder / "manifest.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    if row["split"] == split:
                        self.names.append(row["path"])
                        if row["label"] in FORMS:
                            self.form = row["label"]  # type: ignore[assignment]
                        hashes += bytes.fromhex(row["sha256"])
                        where.append(shards.setdefault(row["shard"], len(shards)))
                        where.extend(int(row[key] or 0) for key in PLACE)
                        pixels += int(row["width"]) * int(row["height"])
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no data set ({error.filename} is missing); run `dreamteacher ingest` first") from error
        self.task: str | None = facts["task"]
        self.classes: list[str] = facts["classes"]
        self.body = Body(tuple(self.classes), tuple((first, second) for first, second in facts.get("skeleton", ())))
        self.mean: list[float] = facts["mean"]
        self.std: list[float] = facts["std"]
        self._hashes = np.frombuffer(hashes, np.uint8).reshape(-1, hashlib.sha256().digest_size)
        self._shards = [folder / "shards" / name for name in shards]
        # number of the shard, offset and length of the picture, offset and length of the label (length 0: none), height and width
        self._where = np.frombuffer(where, np.int64).reshape(-1, 1 + len(PLACE))
        self.in_memory = pixels * 4 < CACHE_BYTES
        self._cache: dict[int, Sample] = {}
        self._files: dict[tuple[int, int], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_files": {}}

    def __len__(self) -> int:
        return len(self.names)

    def sha256(self, index: int) -> str:
        """Hexadecimal digest of the file in which the picture came."""
        return self._hashes[index].tobytes().hex()

    def digest(self) -> str:
        """sha256 (hexadecimal) of the sorted sha256 of all its pictures' files: the same whatever their order and names."""
        return hashlib.sha256(b"".join(sorted(each.tobytes() for each in self._hashes))).hexdigest()

    def labelled(self) -> list[int]:
        """Indices of the pictures that have a label."""
        return np.flatnonzero(self._where[:, 4]).tolist()

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of the picture as stored, without decoding it."""
        height, width = self._where[index, 5:].tolist()
        return height, width

    def label(self, index: int) -> Label:
        """The label alone, without decoding the picture: class id, or a map of the picture's size, or boxes on it, or None."""
        label = self.full_size_label(index)
        if isinstance(label, np.ndarray) and label.shape != self.size(index):
            return nearest(label, *self.size(index))
        return label

    def full_size_label(self, index: int) -> Label:
        """As `label`, but a mask in its own size, which is larger than the picture's where ingest reduced a validation picture."""
        shard, offset, length = self._where[index, [0, 3, 4]].tolist()
        if not length:
            return None
        data = self._bytes(shard, offset, length)
        if self.form == "boxes":
            return Boxes.from_json(data)
        if self.form == "mask":
            return decode_mask(data, max_pixels=UNLIMITED)
        if self.form == "keypoints":
            return Keypoints.from_json(data, self.body)
        read: dict[str, Callable[[bytes], Label]] = {"instances": from_png, "labels": from_json, "depth": from_tiff}
        return read.get(self.form, int)(data)

    def read(self, index: int) -> Sample:
        """Picture, label and name at `index` (0 <= index < len)."""
        sample = self._cache.get(index)
        if sample is None:
            shard, offset, length = self._where[index, :3].tolist()
            try:
                image = decode(self._bytes(shard, offset, length), max_pixels=UNLIMITED).image
            except BadPicture as error:
                raise UserError(
                    f"{self._shards[shard]}: {self.names[index]} is damaged since ingest ({error.reason}); "
                    "fetch the data set again (`dvc checkout`) or run `dreamteacher ingest` again"
                ) from error
            sample = Sample(image, self.label(index), self.names[index])
            if self.in_memory:
                self._cache[index] = sample
        return sample

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        key = os.getpid(), shard  # a forked worker opens its own
        if key not in self._files:
            self._files[key] = os.open(self._shards[shard], os.O_RDONLY)
        return os.pread(self._files[key], length, offset)


class Samples(torch.utils.data.Dataset):
    """What the training loop takes: item (index, seed) -> tensors of the picture at `indices[index]`, transformed with that seed.

    Items have a label only where every one of the pictures has one, so that all have the same keys. The process' own random
    state is left as it was: how many workers load the data changes nothing else.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Sample], dict[str, Tensor]], indices: list[int] | None = None):
        self.images = images
        self.transform = transform
        self.indices: Sequence[int] = range(len(images)) if indices is None else indices
        self.in_memory = images.in_memory
        self._labelled = bool(np.isin(self.indices, images.labelled()).all())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            result = self.transform(self.images.read(self.indices[index]))
        finally:
            torch.set_rng_state(state)
        if not self._labelled:
            result.pop("label", None)
        return result

    @staticmethod
    def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `collate`, with which the training loop makes a batch."""
        return collate(items)


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch: each tensor stacked; labels of boxes `(N, ROW)` and of keypoints are first filled up to the longest, by rows of -1."""
    if items[0].get("label", torch.empty(0)).ndim == 2:
        labels = _equally_long([item["label"] for item in items])
        items = [{**item, "label": label} for item, label in zip(items, labels, strict=True)]
    return default_collate(items)


def _equally_long(tensors: list[Tensor]) -> list[Tensor]:
    if len({tensor.shape for tensor in tensors}) == 1:
        return tensors
    most = max(len(tensor) for tensor in tensors)
    return [torch.nn.functional.pad(tensor, (0, 0, 0, most - len(tensor)), value=-1.0) for tensor in tensors]


def label_tensor(label: Label) -> Tensor | None:
    """As a label stands in a batch: int64 `()`, `(K,)` or `(H, W)`; of depth float32 `(H, W)`, of boxes `(N, ROW)`; None without one.

    Of keypoints float32 `(N, OBJECT + 3 P)`, as `Keypoints.rows` has them.
    """
    if isinstance(label, (Boxes, Keypoints)):
        return torch.from_numpy(label.rows())
    if isinstance(label, np.ndarray):
        return torch.from_numpy(label if label.dtype.kind == "f" else label.astype(np.int64))
    return None if label is None else torch.tensor(label)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (H, W) by the nearest pixel's centre, as Pillow does. (v2 takes the pixels' corners, which shifts it against the picture.)"""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns]


def few_labelled(
    images: ImageSet,
    n: int | None,
    seed: int,
    by: Literal["random", "class", "cluster"] = "random",
    among: list[int] | None = None,
) -> list[int]:
    """Indices, sorted, of `n` labelled pictures (None: all): the first `n` in an order by hash of seed and content.

    `among`: only these labelled pictures are drawn from; None: all.

    The same pictures are drawn whatever their order, and most of them again when data is added. Of class ids each class gets
    its equal share as far as it has pictures; with `by` so do, in masks and boxes, the classes that occur, or clusters of similar pictures
    (see `strata`).

    Raises:
        UserError: fewer than `n` pictures are labelled.
    """
    labelled = images.labelled() if among is None else sorted(among)
    if n is None:
        return labelled
    if n > len(labelled):
        raise UserError(
            f"few_labels = {n}, but only {len(labelled)} of {len(images)} pictures have a label; label more or lower few_labels"
        )
    order = sorted(labelled, key=lambda i: hashlib.sha256(f"{seed}:{images.sha256(i)}".encode()).digest())
    if by == "cluster":
        return sorted(by_cluster(images, order, n))
    if images.form == "class":
        order = in_turns(order, (int(images.label(i)) for i in order))  # type: ignore[arg-type]
    elif by == "class":
        return sorted(by_class(images, order, n))
    return sorted(order[:n])
