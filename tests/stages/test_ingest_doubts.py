"""Notes on probable mistakes in a source, each with its first example."""

import tarfile
from pathlib import Path

import numpy as np
from ingest_sources import facts, mask_of, picture, reasons, report, run, save
from PIL import Image

from dreamteacher.data.dataset import ImageSet


def masks(folder: Path, mask: Image.Image) -> Path:
    for i in range(4):
        save(picture(i), folder / f"images/{i}.png")
        save(mask, folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("background\nroad\ncar\n")
    return folder


def test_a_mask_of_two_pictures_is_said(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", mask_of(1))
    save(picture(50), source / "images/0.bmp")
    run(source, tmp_path / "out")
    note = "1 masks or files of boxes belong to several pictures (such as masks/0.png to images/0.bmp and images/0.png)"
    assert any(line.startswith(note) for line in report(tmp_path / "out")["summary"])


def test_two_ways_of_writing_the_object_are_said(tmp_path: Path) -> None:
    source = masks(tmp_path / "in", mask_of(1))
    save(mask_of(255), source / "masks/0.png")
    run(source, tmp_path / "out")
    assert any(line.startswith("1 masks hold only 0 and 255, and the other") for line in report(tmp_path / "out")["summary"])


def test_what_finds_no_picture_and_folders_of_no_class_are_named(tmp_path: Path) -> None:
    source = masks(tmp_path / "masks", mask_of(1))
    save(mask_of(1), source / "masks/lost.png")
    run(source, tmp_path / "of-masks")
    assert "1 masks belong to no picture (such as masks/lost.png)" in report(tmp_path / "of-masks")["summary"]
    for i in range(6):
        save(picture(i), tmp_path / "folders" / "abc"[i % 3] / f"{i}.png")
    (tmp_path / "folders/classes.txt").write_text("b\na\n")
    run(tmp_path / "folders", tmp_path / "of-folders")
    assert any(
        "are not in classes.txt; their pictures have no label (such as c)" in line for line in report(tmp_path / "of-folders")["summary"]
    )


def test_numbers_with_a_point_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    for i in range(6):
        save(picture(i), tmp_path / "in" / f"{i}.png")
    rows = "".join(f"{i}.png,{value}\n" for i, value in enumerate(("10.0", "2.0", "1.0") * 2))
    (tmp_path / "in/labels.csv").write_text(f"path,label\n{rows}")
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["1.0", "2.0", "10.0"]


def test_measured_values_are_said_to_be_taken_as_classes(tmp_path: Path) -> None:
    for i in range(6):
        save(picture(i), tmp_path / "in" / f"{i}.png")
    rows = "".join(f"{i}.png,{value}\n" for i, value in enumerate((0.5, 1.25, 2) * 2))
    (tmp_path / "in/labels.csv").write_text(f"path,label\n{rows}")
    run(tmp_path / "in", tmp_path / "out")
    note = "'0.5' in labels.csv and 1 other fractions are taken as classes; values are not learnt as such"
    assert note in report(tmp_path / "out")["summary"]


def test_links_in_shards_have_no_content_and_are_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/train.tar", "w") as tar:
        for i in range(4):
            save(picture(i), tmp_path / f"{i}.png")
            tar.add(tmp_path / f"{i}.png", f"{i}.png")
        for kind, name in ((tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "0.png"
            tar.addfile(link)
    run(tmp_path / "in", tmp_path / "out", max_bad_fraction=0.5)
    assert set(reasons(tmp_path / "out")) == {"train.tar/soft.png", "train.tar/hard.png"}
    assert "a link in the tar, without content" in reasons(tmp_path / "out")["train.tar/hard.png"]


def test_pictures_of_one_origin_on_both_sides_are_said(tmp_path: Path) -> None:
    for k, name in enumerate(("train/a.rf.{}.png", "train/b.rf.{}.png", "val/a.rf.{}.png", "val/c.rf.{}.png")):
        for i in range(2):
            save(picture(10 * k + i), tmp_path / "in" / name.format(f"{10 * k + i:032x}"))
    run(tmp_path / "in", tmp_path / "out")
    (note,) = [line for line in report(tmp_path / "out")["summary"] if line.startswith("by their names")]
    assert note.startswith("by their names 2 pictures of val come from what pictures of train come from")
    for i in range(2):
        (tmp_path / f"in/val/a.rf.{20 + i:032x}.png").unlink()
    run(tmp_path / "in", tmp_path / "apart")
    assert not any(line.startswith("by their names") for line in report(tmp_path / "apart")["summary"])


def test_depth_in_two_units_is_said_and_what_renderers_write_for_nothing_is_unknown(tmp_path: Path) -> None:
    metres = np.full((20, 24), 1.5, np.float32)
    metres[:5] = 1e10
    for i in range(4):
        save(picture(i), tmp_path / f"in/images/{i}.png")
        save(Image.fromarray(metres), tmp_path / f"in/depth/{i}.tif")
    run(tmp_path / "in", tmp_path / "one", task="depth")
    assert np.array_equal(ImageSet(tmp_path / "one", "train").label(0), np.where(metres > 2, 0, metres))
    assert not any("in one unit" in line for line in report(tmp_path / "one")["summary"])
    (tmp_path / "in/depth/3.tif").unlink()
    save(Image.fromarray(np.full((20, 24), 1500, np.uint16)), tmp_path / "in/depth/3.png")
    run(tmp_path / "in", tmp_path / "two", task="depth")
    assert "the middle depth of a map in train is from 1.5 to 1.5e+03; are all maps in one unit?" in report(tmp_path / "two")["summary"]
