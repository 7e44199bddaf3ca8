"""The data set that `ingest` writes, with random access to its pictures in the shards."""

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
from dreamteacher.data.multilabel import from_json
from dreamteacher.data.strata import by_class, by_cluster, round_robin
from dreamteacher.errors import UserError

LOCATION = ("offset", "length", "label_offset", "label_length", "height", "width")  # columns of the manifest
UNLIMITED = 1 << 62  # pixels; ingest has checked the sizes
CACHE_BYTES = 1 << 30  # a split that is smaller than this when decoded stays in memory
# Class id; multi-hot vector of 1, 0 or IGNORE; map (H, W): uint8 mask with IGNORE, int32 of `data.instances` or float32 of `data.depth`;
# boxes; keypoints; or None.
Label = int | tuple[int, ...] | np.ndarray | Boxes | Keypoints | None
LabelForm = Literal["class", "mask", "boxes", "instances", "labels", "depth", "keypoints"]
FORMS = ("mask", "boxes", "instances", "labels", "depth", "keypoints")  # values of the column label besides a class id and an empty cell
ROW = 6  # columns of a box in a batch: x1, y1, x2, y2, class, ignored; rows of -1 are padding


@dataclass(frozen=True)
class Sample:
    """image: uint8 (H, W, 3) RGB. Image and label are shared with the cache: do not write to them."""

    image: np.ndarray
    label: Label
    name: str


class ImageSet:
    """One split of the data set in `folder`, map-style, cheap to pickle to loader workers.

    task: of the labels (see `tasks.base.get_task`), or None. form: of the labels. classes: names by id. mean, std: of the train split, RGB
    in [0, 1]. names: path of each picture in the source. in_memory: the split is small enough to be cached decoded.

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
                        where.extend(int(row[key] or 0) for key in LOCATION)
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
        self._where = np.frombuffer(where, np.int64).reshape(-1, 1 + len(LOCATION))
        self.in_memory = pixels * 4 < CACHE_BYTES
        self._cache: dict[int, Sample] = {}
        self._files: dict[tuple[int, int], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_files": {}}

    def __len__(self) -> int:
        return len(self.names)

    def sha256(self, index: int) -> str:
        """Hexadecimal sha256 of the picture's source file."""
        return self._hashes[index].tobytes().hex()

    def digest(self) -> str:
        """Hexadecimal sha256 over the sorted sha256 of all source files: independent of their order and names."""
        return hashlib.sha256(b"".join(sorted(each.tobytes() for each in self._hashes))).hexdigest()

    def labelled(self) -> list[int]:
        """Indices of the pictures that have a label."""
        return np.flatnonzero(self._where[:, 4]).tolist()

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of the picture as stored, without decoding it."""
        height, width = self._where[index, 5:].tolist()
        return height, width

    def label(self, index: int) -> Label:
        """The label, without decoding the picture; maps have the picture's size. None if it is not labelled."""
        label = self.full_size_label(index)
        if isinstance(label, np.ndarray) and label.shape != self.size(index):
            return nearest(label, *self.size(index))
        return label

    def full_size_label(self, index: int) -> Label:
        """As `label`, but masks at their original size, which is larger if ingest reduced a validation picture."""
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
        """Picture, label and name at `index`."""
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
        key = os.getpid(), shard  # a forked worker opens its own files
        if key not in self._files:
            self._files[key] = os.open(self._shards[shard], os.O_RDONLY)
        return os.pread(self._files[key], length, offset)


class Samples(torch.utils.data.Dataset):
    """Data set for the training loop: item (index, seed) -> tensors of the picture at `indices[index]`, transformed with that seed.

    Items have a label only if all pictures have one, so that all have the same keys. The random state of the process is restored, so the
    number of loader workers changes no other draw.
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
        """See `collate`."""
        return collate(items)


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack items to a batch; box labels `(N, ROW)` and keypoint labels are padded with rows of -1 to the longest."""
    if items[0].get("label", torch.empty(0)).ndim == 2:
        labels = _pad_to_longest([item["label"] for item in items])
        items = [{**item, "label": label} for item, label in zip(items, labels, strict=True)]
    return default_collate(items)


def _pad_to_longest(tensors: list[Tensor]) -> list[Tensor]:
    if len({tensor.shape for tensor in tensors}) == 1:
        return tensors
    most = max(len(tensor) for tensor in tensors)
    return [torch.nn.functional.pad(tensor, (0, 0, 0, most - len(tensor)), value=-1.0) for tensor in tensors]


def label_tensor(label: Label) -> Tensor | None:
    """The label as a tensor: int64 `()`, `(K,)` or `(H, W)`; float32 `(H, W)` for depth, `(N, ROW)` for boxes and `(N, OBJECT + 3 P)` for
    keypoints (see `Keypoints.rows`); None without a label."""
    if isinstance(label, (Boxes, Keypoints)):
        return torch.from_numpy(label.rows())
    if isinstance(label, np.ndarray):
        return torch.from_numpy(label if label.dtype.kind == "f" else label.astype(np.int64))
    return None if label is None else torch.tensor(label)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (H, W), nearest by pixel centres as Pillow does. (torchvision's v2 uses corners, which shifts it.)"""
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
    """Draw `n` labelled pictures (None: all); returns their sorted indices.

    Pictures are ordered by a hash of seed and content, so a draw does not depend on their order, and mostly stays the same when data is
    added. Class labels are drawn evenly over classes. `by` extends that to the classes in masks and boxes, or to clusters of similar
    pictures (see `strata`). among: indices to draw from; None: all labelled pictures.

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
        order = round_robin(order, (int(images.label(i)) for i in order))  # type: ignore[arg-type]
    elif by == "class":
        return sorted(by_class(images, order, n))
    return sorted(order[:n])
