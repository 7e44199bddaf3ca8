"""Label tables that could be misread silently: split columns, duplicate columns, labels that are not classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_sources import manifest, run, save_pictures

from dreamteacher.errors import UserError

SPLIT = ("train", "train", "train", "val")


def table(root: Path, name: str, head: str, *lines: str) -> Path:
    """Four pictures and a table with these lines, each behind the name of its picture."""
    save_pictures(root, *(f"{i}.png" for i in range(4)))
    (root / name).write_text(head + "\n" + "".join(f"{i}.png,{line}\n" for i, line in enumerate(lines)))
    return root


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
@pytest.mark.parametrize(("column", "cells"), [("set", SPLIT), ("Subset", ("Training", "", "Test", "Test")), ("is_valid", "0001")])
def test_a_column_that_says_the_split_is_refused_whatever_it_is_called(name: str, column: str, cells: tuple, tmp_path: Path) -> None:
    head = f"{'path' if name == 'labels.csv' else 'file_name'},label,{column}"
    root = table(tmp_path / "s", name, head, *(f"{'ab'[i % 2]},{cell}" for i, cell in enumerate(cells)))
    with pytest.raises(UserError, match=rf"{name}: its column {column} is not read; lay the pictures into train/"):
        run(root, tmp_path / "out")


def test_so_are_columns_among_those_of_classes_and_lines_of_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its column is_test is not read"):
        run(table(tmp_path / "columns", "labels.csv", "path,cat,is_test", "1,0", "0,0", "1,1", "1,0"), tmp_path / "out")
    with pytest.raises(UserError, match="its column kfold is not read"):  # which would be a class
        run(table(tmp_path / "folds", "labels.csv", "path,cat,kfold", "1,0", "0,0", "1,1", "1,0"), tmp_path / "out")
    save_pictures(tmp_path / "json", *(f"{i}.png" for i in range(4)))
    lines = [{"file_name": f"{i}.png", "label": "ab"[i % 2], "is_valid": i == 3} for i in range(4)]
    (tmp_path / "json/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="its column is_valid is not read"):
        run(tmp_path / "json", tmp_path / "out")


def test_of_classes_in_cells_too(tmp_path: Path) -> None:
    root = table(tmp_path / "s", "labels.csv", "path,label,set", *(f"a;{'bc'[i % 2]},{split}" for i, split in enumerate(SPLIT)))
    with pytest.raises(UserError, match="its column set is not read"):
        run(root, tmp_path / "out", task="multilabel")


def test_trains_beside_other_vehicles_are_a_class(tmp_path: Path) -> None:
    root = table(tmp_path / "s", "labels.csv", "path,is_car,is_train", "1,0", "0,1", "1,1", "1,0")
    assert run(root, tmp_path / "out")["n_labelled"] == 4
    with pytest.raises(UserError, match="its column is_train is not read"):
        run(table(tmp_path / "t", "labels.csv", "path,is_train,is_test", "1,0", "0,1", "1,0", "1,0"), tmp_path / "t-out")


def test_another_column_may_hold_anything_and_where_folders_say_the_split_it_is_no_matter(tmp_path: Path) -> None:
    run(table(tmp_path / "s", "labels.csv", "path,label,kind", "a,test", "b,train", "a,blood", "b,test"), tmp_path / "out")
    save_pictures(tmp_path / "t", *(f"{split}/{i}.png" for i, split in enumerate(SPLIT)))
    lines = (f"{split}/{i}.png,{'ab'[i % 2]},{split}\n" for i, split in enumerate(SPLIT))
    (tmp_path / "t/labels.csv").write_text("path,label,set\n" + "".join(lines))
    run(tmp_path / "t", tmp_path / "t-out")
    assert [row["split"] for row in manifest(tmp_path / "t-out")] == ["val", "train", "train", "train"]


@pytest.mark.parametrize(
    ("name", "head", "column"),
    [
        ("labels.csv", "path,label,Label", "label"),
        ("labels.csv", "path,label,Path", "path"),
        ("metadata.csv", "file_name,Label,label", "label"),
    ],
)
def test_of_two_columns_of_one_name_neither_is_chosen(name: str, head: str, column: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}: two columns are called {column} \(capitals do not count\); keep one"):
        run(table(tmp_path / "s", name, head, "a,x", "b,y", "a,x", "b,y"), tmp_path / "out")


@pytest.mark.parametrize("label", ["1 3 10 5", '"[834.0, 222.0, 56.0, 36.0]"', "3;4;5;6"])
def test_lists_of_numbers_are_no_classes(label: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is a list of numbers, as a box or the run lengths of a mask are.* as 1;2;3 with ingest.task multilabel"
    ):
        run(table(tmp_path / "s", "labels.csv", "path,label", label, label, "a", "a"), tmp_path / "out")


def test_what_may_be_a_mistake_in_classes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(table(tmp_path / "s", "labels.csv", "path,label", "no_crack", "no crack", "-1", "-1"), tmp_path / "out")
    stderr = capsys.readouterr().err
    assert "classes 'no crack' and 'no_crack' differ in blanks and strokes only; are they one?" in stderr
    assert "'-1' in labels.csv was taken as a class" in stderr
    run(table(tmp_path / "two", "labels.csv", "path,label", "1", "-1", "1", "-1"), tmp_path / "two-out")
    assert "was taken as a class" not in capsys.readouterr().err


def test_a_table_that_contradicts_class_folders_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pictures(tmp_path / "s", "cat/0.png", "cat/1.png", "dog/2.png")
    (tmp_path / "s/labels.csv").write_text("path,label\ncat/0.png,dog\ncat/1.png,cat\ndog/2.png,dog\n")
    run(tmp_path / "s", tmp_path / "out")
    assert (
        "labels.csv says that cat/0.png is 'dog', and it lies in the folder of the class 'cat'; the table counts" in capsys.readouterr().err
    )
