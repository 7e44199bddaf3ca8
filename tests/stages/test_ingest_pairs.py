"""Pairs of masks and pictures whose names differ in more than a suffix; an unpaired mask is not a training picture."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ingest_sources import manifest, picture, report, run, save
from PIL import Image

from dreamteacher.data import names
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.table import assign_roles, open_table, take_deeper_pictures
from dreamteacher.errors import UserError

Write = Callable[[Path, int], None]


def ids(i: int) -> np.ndarray:
    """A mask of three classes, for each `i` another."""
    mask = np.zeros((20, 24), np.uint8)
    mask[: 6 + i] = 1
    mask[:, :5] = 2
    return mask


def source(root: Path, image: str, mask: str, n: int = 4) -> Path:
    for i in range(n):
        save(picture(i), root / image.format(i=i, k=i % 2, n=i // 2))
        save(Image.fromarray(ids(i)), root / mask.format(i=i, k=i % 2, n=i // 2))
    (root / "classes.txt").write_text("background\nroad\ncar\n")
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("img{i}.png", "mask{i}.png"),
        ("images/img{i}.jpg", "labels/label{i}.png"),
        ("{i}/image.png", "{i}/mask.png"),
        ("a{i}_json/img.png", "a{i}_json/label.png"),
        ("scan{i}/img.png", "scan{i}/seg.png"),
        ("images/frame{n}/{k}.png", "masks/frame{n}/{k}.png"),
        ("tile_512/{i}.png", "mask_512/{i}.png"),
        ("photo_1/{i}.png", "masks/{i}.png"),
        ("photo_{i}/img{i}.png", "masks/mask{i}.png"),
        ("photo_{i}/img0.png", "photo_{i}/masks/mask0.png"),
        ("images/rust_{k}/{i}.png", "masks/{i}.png"),
        ("CXR_png/{i}.png", "masks/{i}_mask.png"),
        ("images/scan_{n}/{n}_{k}.png", "masks/{n}_{k}.png"),
    ],
)
def test_words_may_stand_before_numbers_or_be_the_whole_name(image: str, mask: str, tmp_path: Path) -> None:
    run(source(tmp_path / "s", image, mask), tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert len(rows) == 4
    stored = ImageSet(tmp_path / "out", "train")
    for index, row in enumerate(rows):
        i = next(i for i in range(4) if image.format(i=i, k=i % 2, n=i // 2) == row["path"])
        assert np.array_equal(stored.label(index), ids(i))


def test_masks_whose_picture_is_gone_are_not_those_of_other_pictures_with_its_number(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "images/{i}.png", "masks/{i}.png")
    for i in range(4, 8):  # more pictures, which go on with the numbers
        save(picture(i), root / f"later/{i}.png")
    save(Image.fromarray(ids(4)), root / "masks/4.png")
    run(root, tmp_path / "out")
    assert len(ImageSet(tmp_path / "out", "train").labelled()) == 4
    assert "1 masks belong to no picture (such as masks/4.png)" in report(tmp_path / "out")["summary"]


@pytest.mark.parametrize("image", ["scan_{n}/images/{n}_{k}.png", "JPEGImages/scan_{n}/{n}_{k}.png"])
def test_lists_may_name_pictures_without_folders_of_scans(image: str, tmp_path: Path) -> None:
    root = source(tmp_path / "s", image, "SegmentationClass/{n}_{k}.png")
    for split, n in (("train", 0), ("val", 1)):
        (root / f"{split}.txt").write_text(f"{n}_0\n{n}_1\n")
    run(root, tmp_path / "out", val_fraction=0.5)
    assert {row["path"]: row["split"] for row in manifest(tmp_path / "out")} == {
        image.format(n=n, k=k): split for n, split in enumerate(("train", "val")) for k in (0, 1)
    }


def test_a_name_that_fits_pictures_of_two_scans_gives_no_split(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "scan_{n}/images/{k}.png", "scan_{n}/masks/{k}.png")
    (root / "train.txt").write_text("0\n")
    (root / "val.txt").write_text("1\n")
    run(root, tmp_path / "out")
    note = "val.txt seems to list pictures, and names none that is here (such as '1'), so it is not followed"
    assert note in report(tmp_path / "out")["summary"]


@pytest.mark.parametrize("boxes", ["labels/{n}_{k}.txt", "labels/scan_{n}/{n}_{k}.txt", "images/scan_{n}/{n}_{k}.txt"])
def test_boxes_may_lie_in_folders_of_scans_or_in_one(boxes: str, tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/scan_{i // 2}/{i // 2}_{i % 2}.png")
        path = tmp_path / "s" / boxes.format(n=i // 2, k=i % 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    assert run(tmp_path / "s", tmp_path / "out")["n_labelled"] == 4
    assert {row["label"] for row in manifest(tmp_path / "out")} == {"boxes"}


def test_the_mask_of_another_frame_is_not_taken(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "images/scan{n}/{k}.png", "masks/scan{n}/{k}.png")
    (root / "masks/scan0/0.png").unlink()
    run(root, tmp_path / "out")
    assert {row["path"]: row["label"] for row in manifest(tmp_path / "out")}["images/scan0/0.png"] == ""


@pytest.mark.parametrize(
    ("image", "mask"), [("{i}/t1.png", "{i}/lesion.png"), ("x{i}.png", "y{i}.png"), ("frame{i:04d}.png", "lesion{i:04d}.png")]
)
def test_masks_beside_pictures_under_unknown_names_are_refused(image: str, mask: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{mask.format(i=0)} and others look like masks of the pictures beside them, such as"):
        run(source(tmp_path / "s", image, mask), tmp_path / "out")


def test_of_many_files_in_one_folder_those_of_one_number_are_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lesion00000\.png and others look like masks"):
        run(source(tmp_path / "s", "frame{i:05d}.png", "lesion{i:05d}.png", n=650), tmp_path / "out")


def test_drawings_that_are_pictures_too_are_read_from_folders_of_their_own(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "{i}/photo.png", "{i}/icon.png")
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"0/icon\.png .*, or, if they are pictures too, put them into folders of their own"):
        run(root, tmp_path / "out")
    for i in range(4):
        (root / f"{i}/icons").mkdir()
        (root / f"{i}/icon.png").rename(root / f"{i}/icons/icon.png")
    assert run(root, tmp_path / "out")["n_labelled"] == 8


@pytest.mark.parametrize(
    ("image", "mask", "extra"),
    [
        ("{i}/img.png", "{i}/label.png", "{i}/label_viz.png"),
        ("img_{i}.png", "mask_{i}.png", "mask_{i}_overlay.png"),
        ("{i}.png", "{i}_mask.png", "{i}_mask_color.png"),
    ],
)
def test_drawings_of_masks_are_not_trained_on(image: str, mask: str, extra: str, tmp_path: Path) -> None:
    root = source(tmp_path / "s", image, mask)
    for i in range(4):
        save(picture(50 + i), root / extra.format(i=i))
    run(root, tmp_path / "out")
    assert [row["label"] for row in manifest(tmp_path / "out")] == ["mask"] * 4
    assert report(tmp_path / "out")["beside_masks"] == 4


def listed(root: Path, column: str = "mask_file_name") -> Path:
    """Pictures, masks of other names, and a file that says which belongs to which."""
    source(root, "train/{i}.jpg", "train/y/{i}.png")
    lines = [{"file_name": f"{i}.jpg", column: f"y/{3 - i}.png"} for i in range(4)]
    (root / "train/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_masks_that_a_table_names_are_those_of_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(listed(tmp_path / "s"), tmp_path / "out")
    stored = ImageSet(tmp_path / "out", "train")
    assert [row["path"] for row in manifest(tmp_path / "out")] == [f"train/{i}.jpg" for i in range(4)]
    assert all(np.array_equal(stored.label(i), ids(3 - i)) for i in range(4))
    assert "passed over" not in capsys.readouterr().err
    run(tmp_path / "s", tmp_path / "none", labels="none")
    assert len(manifest(tmp_path / "none")) == 4  # no mask is a training picture


def test_a_mask_that_a_table_names_must_be_there(tmp_path: Path) -> None:
    root = listed(tmp_path / "s")
    (root / "train/y/2.png").unlink()
    with pytest.raises(UserError, match=r"line 2: there is no file 'y/2.png', which its mask_file_name names"):
        run(root, tmp_path / "out")


def test_what_a_table_names_beside_masks_and_of_pictures_that_are_not_there_may_be_missing(tmp_path: Path) -> None:
    root = listed(tmp_path / "s")
    lines = [json.loads(line) | {"preview_file_name": "small/0.png"} for line in (root / "train/metadata.jsonl").read_text().splitlines()]
    lines.append({"file_name": "9.jpg", "mask_file_name": "y/9.png"})
    (root / "train/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(root, tmp_path / "out")
    assert [row["label"] for row in manifest(tmp_path / "out")] == ["mask"] * 4


def test_depth_that_a_table_names_is_no_picture_and_read_where_it_is_wanted(tmp_path: Path) -> None:
    root = listed(tmp_path / "s", "depth_file_name")
    run(root, tmp_path / "auto")
    assert len(manifest(tmp_path / "auto")) == 4
    run(root, tmp_path / "depth", task="depth")
    assert np.array_equal(ImageSet(tmp_path / "depth", "train").label(1), ids(2))


def test_a_mask_without_its_picture_is_not_that_of_one_stray_picture_elsewhere(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "images/{i}.png", "masks/{i}.png")
    save(picture(7), root / "stray/7.png")
    save(Image.fromarray(ids(7)), root / "masks/7.png")
    run(root, tmp_path / "out")
    assert len(ImageSet(tmp_path / "out", "train").labelled()) == 4
    assert "1 masks belong to no picture (such as masks/7.png)" in report(tmp_path / "out")["summary"]


def test_a_line_names_masks_that_were_taken_for_pictures_elsewhere(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "images/{i}.png", "masks/{i}.png")
    for i in (7, 8):
        save(picture(i), root / f"stray/{i}.png")
        save(Image.fromarray(ids(i)), root / f"masks/{i}.png")
    run(root, tmp_path / "out")
    (line,) = (line for line in report(tmp_path / "out")["summary"] if "neighbours" in line)
    assert line.startswith("2 masks or files of boxes were taken") and "masks/7.png for stray/7.png" in line


def test_flat_masks_whose_names_are_those_of_several_pictures_are_refused(tmp_path: Path) -> None:
    root = source(tmp_path / "s", "images/rust/{i}.png", "masks/{i}.png")
    for i in range(3):  # the numbers begin anew in each folder, so that 3 is unlike by chance
        save(picture(10 + i), root / f"images/crack/{i}.png")
    with pytest.raises(UserError, match="no mask is named as a picture is"):
        run(root, tmp_path / "out")


def test_a_stray_text_around_class_folders_is_no_file_of_boxes(tmp_path: Path) -> None:
    for cls in ("cat", "dog"):
        for i in range(3):
            save(picture(i + 3 * (cls == "dog")), tmp_path / f"s/{cls}/{cls}_{i}.png")
    (tmp_path / "s/cat_1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    run(tmp_path / "s", tmp_path / "out")
    assert [row["label"] for row in manifest(tmp_path / "out")] == ["0"] * 3 + ["1"] * 3


def test_flat_files_are_looked_for_below_their_folder_alone() -> None:
    """Pictures that all have one name would else be compared each with each: 20,000 take minutes then."""
    files = [name for i in range(20_000) for name in (f"images/c{i}x/image.jpg", f"masks/c{i}y/image.png", f"labels/c{i}y/image.txt")]
    table = open_table(map(names.row, files))
    start = time.perf_counter()
    assign_roles(table)
    take_deeper_pictures(table)
    assert time.perf_counter() - start < 10
