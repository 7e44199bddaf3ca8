"""Data sets in ingest's format from given pictures and masks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dreamteacher.data.shards import ShardSet
from dreamteacher.stages.ingest import COLUMNS


def write_masks_set(folder: Path, classes: list[str], val: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    """A segmentation set whose val split has these (picture uint8 (h, w, 3), mask uint8 (H, W)), and no train split."""
    (folder / "shards").mkdir(parents=True)
    with ShardSet(folder / "shards", "val", 1 << 20) as shards, (folder / "manifest.csv").open("w", newline="") as file:
        manifest = csv.DictWriter(file, COLUMNS, restval="")
        manifest.writeheader()
        for number, (picture, mask) in enumerate(val):
            files = {"png": _png(picture), "mask.png": _png(mask)}
            shard, places = shards.write(f"{number}", files)
            row = dict(zip(("offset", "length", "label_offset", "label_length"), (*places["png"], *places["mask.png"]), strict=True))
            row |= {"path": f"{number}.png", "sha256": hashlib.sha256(files["png"]).hexdigest(), "split": "val", "shard": shard}
            manifest.writerow(row | {"height": picture.shape[0], "width": picture.shape[1], "label": "mask"})
    facts = {"task": "segmentation", "classes": classes, "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
