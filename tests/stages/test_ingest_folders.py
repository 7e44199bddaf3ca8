"""Folders that are not classes: unlabelled, of the wrong kind, parts of the data set; and notes on missing labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_sources import facts, picture, report, run, save, save_pictures

from dreamteacher.errors import UserError


def folders(root: Path, *names: str) -> Path:
    save_pictures(root, *(f"{name}/{i}.png" for name in names for i in range(3)))
    return root


@pytest.mark.parametrize(
    "name",
    ["unlabeled2017", "unlabelled_pool", "unlabeled_images", "_unlabeled", "train_unlabeled", "no_label", "no-labels", "not labelled"],
)
def test_folders_of_pictures_without_a_label_are_no_classes(name: str, tmp_path: Path) -> None:
    counts = run(folders(tmp_path / "s", "cat", "dog", name), tmp_path / "out")
    assert (counts["n_train"], counts["n_labelled"]) == (9, 6)
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("name", ["labelled", "unlabelled_cat", "label_1", "note"])
def test_other_names_are_classes(name: str, tmp_path: Path) -> None:
    run(folders(tmp_path / "s", "cat", "dog", f"x{name}"), tmp_path / "out")
    assert f"x{name}" in facts(tmp_path / "out")["classes"]


@pytest.mark.parametrize("name", ["trash", "thumbnails", "_backup", "tmp2", "unknown"])
def test_folders_that_are_hardly_classes_are_said_unless_they_are_listed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"the folder {name} was taken as a class; if its pictures have none, call it unlabelled, or take it away"
    run(folders(tmp_path / "s", "cat", "dog", name), tmp_path / "out")
    assert message in capsys.readouterr().err
    (tmp_path / "s/classes.txt").write_text(f"cat\ndog\n{name}\n")
    run(tmp_path / "s", tmp_path / "listed")
    assert message not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "is_said"), [("patient_{}", True), ("2023-0{}", True), ("10{}CANON", True), ("c{}", False), ("{}", False)]
)
def test_folders_that_differ_in_numbers_alone_are_said(
    pattern: str, is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folders(tmp_path / "s", *(pattern.format(i) for i in (1, 2, 3))), tmp_path / "out")
    assert ("the classes are folders that differ in numbers alone" in capsys.readouterr().err) == is_said


@pytest.mark.parametrize(
    ("names", "is_said"),
    [(("glass", "paper", "trash"), False), (("set1", "set2", "set3"), False), (("patient1", "patient2", "patient3"), True)],
)
def test_folders_that_are_in_train_and_val_are_classes(
    names: tuple[str, ...], is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ("train", "val")
    for k, folder in enumerate(f"{split}/{name}" for split in splits for name in names):
        for i in range(3):
            save(picture(10 * k + i), tmp_path / "s" / folder / f"{i}.png")
    run(tmp_path / "s", tmp_path / "out")
    stderr = capsys.readouterr().err
    assert ("differ in numbers alone" in stderr) == is_said
    assert "was taken as a class" not in stderr


def test_empty_folders_among_classes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(tmp_path / "s", "cat", "dog")
    run(tmp_path / "s", tmp_path / "full")
    assert "folders are empty" not in capsys.readouterr().err
    (tmp_path / "s/horse").mkdir()
    (tmp_path / "s/horse/.keep").touch()
    for other in ("masks", "test"):  # no names of classes
        (tmp_path / "s" / other).mkdir()
    run(tmp_path / "s", tmp_path / "out")
    assert "1 folders are empty, so if they are classes, the set does not know them (such as horse)" in capsys.readouterr().err
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_what_may_hold_the_missing_split_or_labels_is_named(tmp_path: Path) -> None:
    folders(tmp_path / "s", "val/cat", "val/dog")
    (tmp_path / "s/train.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no picture is left to train on .*; passed over: 1 \.zip \(train\.zip\)"):
        run(tmp_path / "s", tmp_path / "out")
    folders(tmp_path / "t", "train/cat", "train/dog", "val/images")
    (tmp_path / "t/val/annotations_of_val.txt").write_text("0.png\tcat\t0\t0\t9\t9\n")
    with pytest.raises(UserError, match=r"6 labels, and none in val.*; passed over: 1 \.txt \(val/annotations_of_val\.txt\)"):
        run(tmp_path / "t", tmp_path / "out")


def test_drawings_of_masks_without_masks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pictures(tmp_path / "s", "images/1.png", "images/2.png", "labels_colored/1.png", "labels_colored/2.png")
    run(tmp_path / "s", tmp_path / "out")
    stderr = capsys.readouterr().err
    assert (
        "2 files, such as labels_colored/1.png, are passed over as drawings of masks; if they are the masks, call their folder masks/"
        in stderr
    )


@pytest.mark.parametrize(
    ("classes", "names", "is_said"),
    [
        (("rgb", "nir"), ("0", "1", "2"), True),
        (("first", "second"), ("a_0412", "a_0977", "b_0003"), True),
        (("first", "second"), ("harbour", "bridge", "field"), True),
        (("cat", "dog"), ("0", "1", "2"), False),
        (("cat", "dog"), ("img_007", "img_008", "img_009"), False),
        (("walk", "run"), ("frame_0000", "frame_0010", "frame_0020", "frame_0030"), False),
        (("low", "high"), ("0", "1", "2"), False),
        (("before", "after"), ("0", "1", "2"), False),
        (("before", "after"), ("a_0412", "a_0977", "b_0003"), True),
    ],
)
def test_folders_of_the_same_scenes_are_said(classes: tuple[str, ...], names: tuple[str, ...], is_said: bool, tmp_path: Path) -> None:
    for i, place in enumerate(f"{split}/{cls}/{name}" for split in ("train", "val") for cls in classes for name in names):
        save(picture(i), tmp_path / f"s/{place}.png")
    run(tmp_path / "s", tmp_path / "out")
    said = "\n".join(report(tmp_path / "out")["summary"])
    assert ("the classes are folders of the same file names" in said) == is_said


def test_classes_in_file_names_are_said(tmp_path: Path) -> None:
    said = "file names begin with 'big cat' and 'dog'; if these are classes, put the pictures of each into a folder of its name"
    for name, files, is_said in (
        ("pets", [f"{word}{i}" for word in ("train/big cat.", "train/dog_") for i in range(3)], True),
        ("cameras", [f"{word}{i}" for word in ("IMG_", "DSC_") for i in range(3)], False),
        ("one", [f"dog_{i}" for i in range(6)], False),
        ("some", [f"big cat{i}" for i in range(3)] + [f"dog{i}" for i in range(3)] + ["other"], False),
    ):
        save_pictures(tmp_path / name, *(f"{file}.png" for file in files))
        run(tmp_path / name, tmp_path / f"of {name}")
        assert (said in report(tmp_path / f"of {name}")["summary"]) == is_said


def test_a_folder_beside_those_of_labelled_pictures_is_no_class(tmp_path: Path) -> None:
    folders(tmp_path / "s", "labelled/cat", "labelled/dog", "pool")
    problem = (
        "classes lie below labelled/, and the folder 'pool' beside it would be one more; if its pictures have no label, call it unlabelled"
    )
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "s", tmp_path / "out")
    (tmp_path / "s/pool").rename(tmp_path / "s/unlabelled")
    run(tmp_path / "s", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]
