"""Made-up pictures, machines and speeds for the tests of `dreamteacher init`."""

from pathlib import Path

import numpy as np
from PIL import Image

from dreamteacher.project.machine import Machine, Speed

CPU = Machine("cpu", "2 CPU cores", 8e9, False)
GPU = Machine("cuda", "NVIDIA L4", 24e9, True)
FAST = Speed(teacher=0.01, features=0.03)


def draw(path: Path, width: int = 48, height: int = 40, values: int = 256, channels: tuple[int, ...] = (3,)) -> None:
    """A picture of noise, which no other equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(abs(hash(str(path))))
    Image.fromarray(random.integers(0, values, (height, width, *channels), np.uint8)).save(path)


def segmentation(root: Path, count: int = 6, masks: int = 4) -> Path:
    for split in ("train", "val"):
        for i in range(count):
            draw(root / f"images/{split}/{i}.png", 171, 128)
        for i in range(masks):
            draw(root / f"masks/{split}/{i}.png", 171, 128, 2, ())
    (root / "classes.txt").write_text("road\ncar\n")
    return root


def classification(root: Path, count: int = 5) -> Path:
    for name in ("cat", "dog", "owl"):
        for i in range(count):
            draw(root / name / f"{i}.jpg", 32, 32)
    return root


def unlabelled(root: Path, count: int = 5) -> Path:
    for i in range(count):
        draw(root / f"{i}.jpg", 640, 480)
    return root


KINDS = {"segmentation": segmentation, "classification": classification, "unlabelled": unlabelled}
