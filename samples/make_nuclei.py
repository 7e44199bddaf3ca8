"""Makes samples/nuclei from the Data Science Bowl 2018 set: `python samples/make_nuclei.py SOURCE` (see samples/nuclei/README.md).

SOURCE holds index.csv (name, split, kind, ...), images/NAME.jpg and instances/NAME.png (16 bit: 0 background, 1..n nuclei).
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, QUALITY, ID_LENGTH = 128, 98, 12


def main(source: Path, out: Path) -> None:
    """Write images/{train,val}/ID.jpg, masks/{train,val}/ID.png (one bit) and classes.txt to `out`."""
    with (source / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len({row["name"][:ID_LENGTH] for row in rows}) != len(rows):
        sys.exit(f"names are not unique in their first {ID_LENGTH} characters")
    for row in rows:
        with Image.open(source / "images" / f"{row['name']}.jpg") as file:
            picture = file.copy()
        with Image.open(source / "instances" / f"{row['name']}.png") as file:
            mask = Image.fromarray((np.asarray(file) > 0).astype(np.uint8) * 255)
        scale = SIDE / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        for folder in ("images", "masks"):
            (out / folder / row["split"]).mkdir(parents=True, exist_ok=True)
        name = row["name"][:ID_LENGTH]
        picture.resize(size, Image.Resampling.BILINEAR).save(out / "images" / row["split"] / f"{name}.jpg", quality=QUALITY, optimize=True)
        mask.resize(size, Image.Resampling.NEAREST).convert("1").save(out / "masks" / row["split"] / f"{name}.png", optimize=True)
    (out / "classes.txt").write_text("background\nnucleus\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "nuclei")
