"""Public sets as folders that ingest reads, from packed or published copies that you have.

    python -m benchmarks.datasets camvid --from FOLDER --out data/camvid

| name | FOLDER holds | task | split |
| --- | --- | --- | --- |
| dsb2018 | images/, instances/ (16-bit masks), index.csv with a column split | segmentation | as index.csv has it |
| dsb2018-instances | the same | instances (set ingest.task) | the same |
| camvid | train/, trainannot/, test/, testannot/, classes.txt (number and name) | segmentation | val: Seq05VD of test, a drive of its own |
| bccd | JPEGImages/, Annotations/, ImageSets/Main/ (Pascal VOC) | detection | val: val and test |
| tinyimagenet100 | train_a.npz, train_b.npz, val.npz: jpeg, offsets, labels, wnids | classification | as published |
| cifar10 | cifar10_train.npz, cifar10_test.npz: jpeg, offsets, labels, classes | classification | val: test |

`jpeg` of an .npz holds the files' bytes end to end, `offsets` where each begins, and where the last ends.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dreamteacher.errors import UserError, resource_errors_in_one_line

UNSEEN_DRIVE = "Seq05VD"  # of CamVid; the other drive of its test split is in train, too


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(SETS))
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder with the set as the table says")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    options = parser.parse_args(words)
    try:
        write(options.name, options.source, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"{options.out}: {sum(path.suffix == '.jpg' for path in options.out.rglob('*'))} pictures")


def write(name: str, source: Path, out: Path) -> None:
    """The set `name` of the folder `source` as `out`, all at once.

    Raises:
        UserError: `out` exists, or `source` lacks something.
    """
    if out.exists():
        raise UserError(f"{out} exists; remove it, or name another --out")
    made = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    try:
        with resource_errors_in_one_line(f"benchmarks.datasets {name}"):
            made.mkdir(parents=True)
            SETS[name](source, made)
        made.rename(out)
    except (FileNotFoundError, KeyError) as error:
        missing = error.filename if isinstance(error, FileNotFoundError) else error
        raise UserError(f"{source} does not hold {name} ({missing} is missing); see `python -m benchmarks.datasets --help`") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def dsb2018(source: Path, out: Path) -> None:
    """Nucleus or background, from masks of single nuclei."""
    (out / "classes.txt").write_text("background\nnucleus\n")
    with (source / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            mask = np.asarray(Image.open(source / "instances" / f"{row['name']}.png"))
            _pair(source / "images" / f"{row['name']}.jpg", (mask > 0).astype(np.uint8), out, row["split"])


def dsb2018_instances(source: Path, out: Path) -> None:
    """Each nucleus by a number of its own."""
    with (source / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            mask = np.asarray(Image.open(source / "instances" / f"{row['name']}.png"))
            _pair(source / "images" / f"{row['name']}.jpg", mask, out, row["split"], "instances")


def camvid(source: Path, out: Path) -> None:
    """11 classes, 255 unknown."""
    lines = [line.split(maxsplit=1) for line in (source / "classes.txt").read_text().splitlines()]
    (out / "classes.txt").write_text("".join(f"{name}\n" for number, name in lines if number != "255"))
    for folder, split, start in (("train", "train", ""), ("test", "val", UNSEEN_DRIVE)):
        for picture in _some(sorted((source / folder).glob(f"{start}*.jpg")), source / folder):
            _pair(picture, np.asarray(Image.open(source / f"{folder}annot" / f"{picture.stem}.png")), out, split)


def bccd(source: Path, out: Path) -> None:
    """Pascal VOC as it came, with val and test as one split to measure by."""
    for folder in ("JPEGImages", "Annotations"):
        shutil.copytree(source / folder, out / folder)
    lists = out / "ImageSets/Main"
    lists.mkdir(parents=True)
    names = {split: (source / "ImageSets/Main" / f"{split}.txt").read_text().split() for split in ("train", "val", "test")}
    (lists / "train.txt").write_text("\n".join(names["train"]) + "\n")
    (lists / "val.txt").write_text("\n".join(names["val"] + names["test"]) + "\n")


def tinyimagenet100(source: Path, out: Path) -> None:
    """Class folders by WordNet id."""
    for file, split in (("train_a", "train"), ("train_b", "train"), ("val", "val")):
        _unpack(source / f"{file}.npz", "wnids", out / split, f"{file}_")


def cifar10(source: Path, out: Path) -> None:
    """Class folders."""
    for file, split in (("train", "train"), ("test", "val")):
        _unpack(source / f"cifar10_{file}.npz", "classes", out / split, "")


SETS: dict[str, Callable[[Path, Path], None]] = {
    "dsb2018": dsb2018,
    "dsb2018-instances": dsb2018_instances,
    "camvid": camvid,
    "bccd": bccd,
    "tinyimagenet100": tinyimagenet100,
    "cifar10": cifar10,
}


def _pair(picture: Path, mask: np.ndarray, out: Path, split: str, masks: str = "masks") -> None:
    """A picture's own bytes, and its mask in the folder `masks` beside it."""
    for folder in ("images", masks):
        (out / folder / split).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, out / "images" / split / picture.name)
    Image.fromarray(mask).save(out / masks / split / f"{picture.stem}.png")


def _unpack(file: Path, classes: str, out: Path, prefix: str) -> None:
    """The JPEG files of an .npz into class folders."""
    with np.load(file, allow_pickle=False) as packed:
        data, offsets, labels, names = packed["jpeg"].tobytes(), packed["offsets"], packed["labels"], packed[classes]
    for name in names:
        (out / str(name)).mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels):
        (out / str(names[label]) / f"{prefix}{index:05}.jpg").write_bytes(data[offsets[index] : offsets[index + 1]])


def _some(paths: Iterable[Path], folder: Path) -> list[Path]:
    found = list(paths)
    if not found:
        raise FileNotFoundError(2, "no pictures", str(folder))
    return found


if __name__ == "__main__":
    main()
