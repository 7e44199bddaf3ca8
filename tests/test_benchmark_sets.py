"""Public sets are written as folders that ingest understands."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import datasets
from dreamteacher.data.dataset import ImageSet
from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest

BOX = "<object><name>{}</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object>"


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (32, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def mask(kind: type, *values: int) -> np.ndarray:
    return np.resize(np.array(values, kind), (32, 40))


def dsb2018(folder: Path) -> None:
    put(folder / "index.csv", "name,split,kind\na,train,x\nb,train,x\nc,val,x\n")
    for number, name in enumerate("abc"):
        put(folder / f"images/{name}.jpg", jpeg(number))
        put(folder / f"instances/{name}.png", np.array([0, 0, 1, 700], np.uint16).repeat(10)[None].repeat(32, axis=0))  # in one piece each


def dsb2018_instances(folder: Path) -> None:
    dsb2018(folder)


def camvid(folder: Path) -> None:
    put(folder / "classes.txt", "0 Sky\n1 Road\n255 void\n")
    for number, name in enumerate(("train/0001TP_1", "train/0016E5_2", "val/0016E5_3", "test/0001TP_4", "test/Seq05VD_5")):
        put(folder / f"{name}.jpg", jpeg(number))
        put(folder / f"{name.replace('/', 'annot/')}.png", mask(np.uint8, 0, 1, 255))


def bccd(folder: Path) -> None:
    for number, (split, names) in enumerate({"train": "ab", "val": "c", "test": "d"}.items()):
        put(folder / f"ImageSets/Main/{split}.txt", "\n".join(names))
        for name in names:
            put(folder / f"JPEGImages/{name}.jpg", jpeg(10 * number + ord(name)))
            boxes = BOX.format("RBC") + BOX.format("WBC").replace("20", "30")
            put(folder / f"Annotations/{name}.xml", f"<annotation><filename>{name}.jpg</filename>{boxes}</annotation>")


def pack(path: Path, first: int, labels: list[int], **more: list[str]) -> None:
    files = [jpeg(first + i) for i in range(len(labels))]
    offsets = np.cumsum([0, *map(len, files)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=np.array(labels, np.uint8), **more)


def tinyimagenet100(folder: Path) -> None:
    for number, file in enumerate(("train_a", "train_b", "val")):
        pack(folder / f"{file}.npz", 10 * number, [0, 1], wnids=["n01", "n02"], names=["fish", "frog"])


def cifar10(folder: Path) -> None:
    for number, file in enumerate(("train", "test")):
        pack(folder / f"cifar10_{file}.npz", 10 * number, [1, 0, 1], classes=["bird", "ship"])


@pytest.mark.parametrize(
    ("make", "task", "classes", "train", "val"),
    [
        (dsb2018, "segmentation", ["background", "nucleus"], 2, 1),
        (dsb2018_instances, "instances", ["object"], 2, 1),
        (camvid, "segmentation", ["Sky", "Road"], 2, 1),
        (bccd, "detection", ["RBC", "WBC"], 2, 2),
        (tinyimagenet100, "classification", ["n01", "n02"], 4, 2),
        (cifar10, "classification", ["bird", "ship"], 3, 3),
    ],
)
def test_a_set_is_ingested_with_its_task_classes_and_split(
    make: Callable[[Path], None], task: str, classes: list[str], train: int, val: int, tmp_path: Path
) -> None:
    make(tmp_path / "given")
    datasets.main([make.__name__.replace("_", "-"), "--from", str(tmp_path / "given"), "--out", str(tmp_path / "set")])
    chosen = task if task == "instances" else "auto"  # by itself ingest takes such masks for an extra beside others
    metrics = ingest.run(Params.model_validate({"ingest": {"task": chosen}}), source=tmp_path / "set", out=tmp_path / "data")
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (train, val, train + val)
    images = ImageSet(tmp_path / "data", "train")
    assert (images.task, images.classes) == (task, classes)


def test_of_camvid_the_drive_that_training_never_sees_is_measured(tmp_path: Path) -> None:
    camvid(tmp_path / "given")
    datasets.write("camvid", tmp_path / "given", tmp_path / "set")
    assert sorted(path.stem for path in (tmp_path / "set/images").rglob("*.jpg")) == ["0001TP_1", "0016E5_2", "Seq05VD_5"]
    assert [path.name for path in (tmp_path / "set/images/val").iterdir()] == ["Seq05VD_5.jpg"]


@pytest.mark.parametrize("name", sorted(datasets.SETS))
def test_a_folder_that_holds_something_else_is_refused_and_nothing_is_left(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(SystemExit) as stop:
        datasets.main([name, "--from", str(tmp_path / "given"), "--out", str(tmp_path / "set")])
    assert stop.value.code == 2
    assert f"given does not hold {name} (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_folder_that_exists_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        datasets.main(["bccd", "--from", str(tmp_path), "--out", str(tmp_path)])
    assert "exists; remove it, or name another --out" in capsys.readouterr().err
