"""Sources for ingest, and readers of its outputs."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def save_pictures(folder: Path, *names: str) -> None:
    """A picture for each name, all different."""
    for i, name in enumerate(names):
        save(picture(i), folder / name)


def mask_of(value: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    values = np.zeros((size[1], size[0]), np.uint8)
    values[: size[1] // 2] = value
    return Image.fromarray(values)


def params(**settings) -> Params:
    return Params(ingest={"val_fraction": 0.0, **settings})


def run(source: Path | str, out: Path, **settings) -> dict[str, float]:
    return ingest.run(params(**settings), out=out, source=source)


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def facts(out: Path) -> dict:
    return json.loads((out / "dataset.json").read_text())


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def reasons(out: Path) -> dict[str, str]:
    with (out / "quarantine.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def stored(out: Path, row: dict[str, str], which: str = "") -> bytes:
    data = (out / "shards" / row["shard"]).read_bytes()
    start = int(row[f"{which}offset"])
    return data[start : start + int(row[f"{which}length"])]
